"""Folders in the layouts of transformers, in and out: what the models of this package share."""
import torch

from gencore.check import CheckpointError, floating
from gencore.checkpoint import belongs, load_tensors, read_json, resolve, tensor_shapes
from gencore.tokenizer import Tokenizer
from textgen.families import family


def open_folder(cls, name_or_folder, *, dtype=torch.float32, device="cpu"):
    """A shipped name, a folder or a Hub id -> cls(cfg, tokenizer) in eval mode."""
    dtype, folder = floating(dtype), resolve(name_or_folder, "textgen")
    layout, config = layout_of(folder, cls)
    try:
        cfg = layout.to_ours(config)
        state = read_state(folder, layout, cfg, cls)
    except CheckpointError as error:
        raise error if str(folder) in str(error) else CheckpointError(f"{folder}: {error}") from error
    with torch.device("meta"):
        model = cls(cfg)
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
    model.requires_grad_(True)
    if belongs(folder / "tokenizer.json"):
        model.tokenizer = Tokenizer.from_folder(folder)
    return model.eval()


def layout_of(folder, cls):
    """Folder, class of the model -> (its Family, contents of config.json)."""
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise CheckpointError(f"{folder / 'config.json'} has no model_type: it is not the configuration of a language model")
    return family(config["model_type"], cls.__name__), config


def read_state(folder, layout, cfg, cls, *, tied=()):
    """{our name: tensor} of a folder, refused before anything is allocated when the weights don't fit. tied: our copies, in no file."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in cls(cfg).state_dict().items() if name not in tied}
    layout.check_shapes(cfg, tensor_shapes(folder), wanted)
    return layout.import_state(cfg, load_tensors(folder))


def files_of(model, dtype=None, *, kind=None, tied=()):
    """What save_pretrained writes, for gencore.checkpoint.save_folder and fit's export. kind: its class as `family` knows it."""
    layout = family(model.cfg.family, kind or type(model).__name__)
    dtype = floating(dtype)
    ours = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items() if name not in tied}
    stored = str(next(iter(ours.values())).dtype).removeprefix("torch.")
    return {"config.json": {**layout.to_theirs(model.cfg), "dtype": stored}, "model.safetensors": layout.export_state(model.cfg, ours),
            **(model.tokenizer.files() if model.tokenizer else {})}
