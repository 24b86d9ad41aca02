"""One component of a diffusers folder (a transformer, an autoencoder, an encoder of words), read and written."""
import torch
from torch import nn

from gencore.check import CheckpointError, floating
from gencore.checkpoint import load_tensors, naming, read_json, resolve, save_folder, tensor_shapes
from gencore.families import read_config
from gencore.kinds import expect_kind


def read_part(folder, family, Part, select=lambda tensors: tensors):
    """One component of a diffusers folder -> the module, in float32. A file that does not fit is refused before it is read."""
    module, state = read_state(folder, family, Part, select)
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False)


def read_state(folder, family, Part, select=lambda tensors: tensors, *, own=nn.Module.state_dict):
    """-> (the module on the meta device, {our name: tensor} in float32). own: module -> what of it is in the file."""
    file = weights_file(folder)
    cfg = read_config(family, folder / "config.json")
    with torch.device("meta"), naming(folder / "config.json"):
        module = Part(cfg)
    with naming(file):
        ours = {name: tuple(tensor.shape) for name, tensor in own(module).items()}
        family.check_shapes(cfg, select(tensor_shapes(file)), ours)
        state = family.import_state(cfg, select(load_tensors(file)))
    return module, {name: tensor.float() for name, tensor in state.items()}


def weights_file(folder):
    """The one .safetensors file of a component's folder, or the index of its shards; variants beside it (*.fp16.safetensors) are not read."""
    index = sorted(folder.glob("*.safetensors.index.json"))
    files = index or sorted(folder.glob("*.safetensors"))
    files = [file for file in files if index or file.name.count(".") == 1] or files
    if len(files) != 1:
        raise CheckpointError(f"{folder} should hold one .safetensors file, or an index of them, found {len(files)}")
    return files[0]


def read_named(folder, parts, usual=None):
    """A component's folder -> its module, by the class that its configuration names (`usual`: where it names none); parts: {name: (family, Part)}."""
    kind = read_json(folder / "config.json").get("_class_name", usual)
    if not isinstance(kind, str) or kind not in parts:
        raise CheckpointError(f"{folder / 'config.json'}: _class_name should be one of {', '.join(parts)}, got {kind!r:.80}")
    return read_part(folder, *parts[kind])


def part_files(family, cfg, state, *, dtype=torch.float32, weights="diffusion_pytorch_model"):
    """Family, our configuration and weights -> {file: content} for `save_folder`; weights: what this kind of component calls that file."""
    state = {key: tensor.to(floating(dtype)) for key, tensor in state.items()}
    return {"config.json": family.to_theirs(cfg), f"{weights}.safetensors": family.export_state(cfg, state)}


class Component(nn.Module):
    """A network that is a folder of its own in diffusers. `layout`, of each class, -> its Family, imported there: it reads and writes the class."""

    @classmethod
    def from_pretrained(cls, name):
        """A shipped name, a folder or a Hub id in diffusers' layout of this class -> the network, in float32, at rest."""
        folder = resolve(name, "imagegen")
        expect_kind(folder, f"imagegen.{cls.__name__}")
        return cls.read(folder)

    @classmethod
    def read(cls, folder):
        return read_part(folder, cls.layout(), cls)

    def save_pretrained(self, folder, dtype=torch.float32):
        """Writes diffusers' folder: config.json and the weights."""
        save_folder(folder, part_files(self.layout(), self.cfg, self.weights(), dtype=dtype))

    def weights(self):
        """What is in the file."""
        return self.state_dict()
