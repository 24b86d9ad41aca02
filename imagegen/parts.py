"""One component of a diffusers folder (a transformer, an autoencoder, an encoder of words), read and written."""
import torch

from gencore.check import CheckpointError, floating
from gencore.checkpoint import load_tensors, naming, tensor_shapes
from gencore.families import read_config


def read_part(folder, family, Part, select=lambda tensors: tensors):
    """One component of a diffusers folder -> the module, in float32. A file that does not fit is refused before it is read."""
    file = weights_file(folder)
    cfg = read_config(family, folder / "config.json")
    with torch.device("meta"), naming(folder / "config.json"):
        module = Part(cfg)
    with naming(file):
        ours = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        family.check_shapes(cfg, select(tensor_shapes(file)), ours)
        state = family.import_state(cfg, select(load_tensors(file)))
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return module.requires_grad_(False)


def weights_file(folder):
    """The one file of weights in a component's folder."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{folder} should hold one .safetensors file, found {len(files)}")
    return files[0]


def part_files(family, cfg, state, *, dtype=torch.float32, weights="diffusion_pytorch_model"):
    """Family, our configuration and weights -> {file: content} for `save_folder`; weights: what this kind of component calls that file."""
    state = {key: tensor.to(floating(dtype)) for key, tensor in state.items()}
    return {"config.json": family.to_theirs(cfg), f"{weights}.safetensors": family.export_state(cfg, state)}
