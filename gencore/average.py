"""The average of models that were trained on from one start, which is often better than each of them (Wortsman et al. 2022, "Model soups").

    python -m gencore.average runs/kept-2/model runs/kept-3/model --out runs/kept        folders of one model in, one folder out"""
import argparse
from pathlib import Path

import torch

from gencore.check import CheckpointError, InputError, command
from gencore.checkpoint import load_tensors, save_folder
from gencore.digest import DIGESTS
from gencore.folder import files_below


def average(folders, out):
    """Folders of one model -> `out`, a folder like the first: each weight is the mean of theirs, summed in float32; cards are not carried on.

    CheckpointError where their weights have other names or shapes, or their other files say otherwise."""
    if len(folders) < 2:
        raise InputError(f"an average needs two folders or more, got {len(folders)}")
    first, *others = [Path(folder) for folder in folders]
    if (first / "adapter_config.json").is_file():
        raise InputError(f"{first} is an adapter, whose change is a product of two matrices: average what LoRA.merged() saves")
    files = {}
    for path in (path for path in files_below(first) if path.name != DIGESTS and path.suffix != ".md"):
        name = path.relative_to(first).as_posix()
        if path.suffix == ".safetensors":
            files[name] = mean([load_tensors(folder / name) for folder in (first, *others)], [first, *others])
            continue
        for other in others:
            if not (other / name).is_file():
                raise CheckpointError(f"{other} has no {name}, as {first} has: give folders of one model, each that from_pretrained opens")
            if (other / name).read_bytes() != path.read_bytes():
                raise CheckpointError(f"{other / name} is not as {path}: only one model's weights have an average")
        files[name] = path.read_bytes()
    if not any(name.endswith(".safetensors") for name in files):
        raise CheckpointError(f"{first} has no .safetensors file: give the folder that from_pretrained opens")
    save_folder(out, files)


def mean(states, folders):
    """[{name: tensor}, ...] and where they come from -> their mean, in the first one's dtypes."""
    shapes = {name: tensor.shape for name, tensor in states[0].items()}
    for state, folder in zip(states, folders):
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise CheckpointError(f"the weights of {folder} have other names or shapes than those of {folders[0]}: only one model's weights have "
                                  "an average")
    return {name: torch.stack([state[name].float() for state in states]).mean(0).to(tensor.dtype) for name, tensor in states[0].items()}


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="what from_pretrained opens, two or more")
    parser.add_argument("--out", type=Path, required=True, help="the folder that is written")
    args = parser.parse_args()
    average(args.folders, args.out)
    print(f"done: {args.out}")


if __name__ == "__main__":
    main()
