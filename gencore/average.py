"""The average of models that were trained on from one start, which is often better than each of them (Wortsman et al. 2022, "Model soups").

    python -m gencore.average runs/kept-2/model runs/kept-3/model --out runs/kept        folders of one model in, one folder out
    python -m gencore.average runs/start runs/a/model runs/b/model --weights -0.4 0.7 0.7 --out runs/both
                                         the start, and 0.7 of what each of two trainings changed in it (Ilharco et al. 2023, "Task arithmetic")"""
import argparse
from pathlib import Path

from gencore.check import CheckpointError, InputError, command
from gencore.checkpoint import load_tensors, save_folder
from gencore.digest import DIGESTS
from gencore.folder import files_below


def average(folders, out, *, weights=None):
    """Folders of one model -> `out`, a folder like the first: each weight is the mean of theirs, summed in float32; cards are not carried on.

    weights: of the folders, which sum to 1 and may be negative; None = all alike. CheckpointError where the models' weights have other names or
    shapes, or their other files say otherwise."""
    if len(folders) < 2:
        raise InputError(f"an average needs two folders or more, got {len(folders)}")
    weights = [1 / len(folders)] * len(folders) if weights is None else weights
    if len(weights) != len(folders) or not abs(sum(weights) - 1) < 1e-6:
        raise InputError(f"weights should be {len(folders)}, one for each folder, and sum to 1, got {', '.join(f'{weight:g}' for weight in weights)}")
    first, *others = [Path(folder) for folder in folders]
    if (first / "adapter_config.json").is_file():
        raise InputError(f"{first} is an adapter, whose change is a product of two matrices: average what LoRA.merged() saves")
    files = {}
    for path in (path for path in files_below(first) if path.name != DIGESTS and path.suffix != ".md"):
        name = path.relative_to(first).as_posix()
        if path.suffix == ".safetensors":
            files[name] = mean([load_tensors(folder / name) for folder in (first, *others)], [first, *others], weights)
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


def mean(states, folders, weights):
    """[{name: tensor}, ...], where they come from and how much each counts -> their mean, in the first one's dtypes."""
    shapes = {name: tensor.shape for name, tensor in states[0].items()}
    for state, folder in zip(states, folders):
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise CheckpointError(f"the weights of {folder} have other names or shapes than those of {folders[0]}: only one model's weights have "
                                  "an average")
    return {name: sum(weight * state[name].float() for weight, state in zip(weights, states)).to(tensor.dtype) for name, tensor in states[0].items()}


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="what from_pretrained opens, two or more")
    parser.add_argument("--out", type=Path, required=True, help="the folder that is written")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="how much each folder counts, 1 in all (default: all alike)")
    args = parser.parse_args()
    average(args.folders, args.out, weights=args.weights)
    print(f"done: {args.out}")


if __name__ == "__main__":
    main()
