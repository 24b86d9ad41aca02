"""Folders in the layouts of transformers, in and out: what the models of this package share."""
import torch

from gencore.check import CheckpointError, floating, present
from gencore.checkpoint import belongs, load_tensors, naming, read_json, resolve, tensor_shapes, weights_file
from gencore.families import read_config
from gencore.kinds import expect_kind
from gencore.tokenizer import Tokenizer
from textgen.families import family


def open_folder(cls, name_or_folder, *, dtype=torch.float32, device="cpu"):
    """A shipped name, a folder or a Hub id -> cls(cfg, tokenizer) in eval mode."""
    dtype, device, folder = floating(dtype), present(device), resolve(name_or_folder, "textgen")
    layout = layout_of(folder, cls)
    cfg = read_config(layout, folder / "config.json")
    state = read_state(folder, layout, cfg, cls)
    with torch.device("meta"):
        model = cls(cfg)
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
    model.requires_grad_(True)
    model.tokenizer = tokenizer_of(folder, cfg.vocab)
    return model.eval()


def tokenizer_of(folder, vocab):
    """The folder's tokenizer, None where there is none; CheckpointError when it has tokens that a model of `vocab` doesn't know."""
    if not belongs(folder / "tokenizer.json"):
        return None
    tokenizer = Tokenizer.from_folder(folder)
    if len(tokenizer) > vocab:
        raise CheckpointError(f"{folder / 'tokenizer.json'} has {len(tokenizer)} tokens, the model of config.json {vocab}: they are not of one model")
    return tokenizer


def layout_of(folder, cls):
    """Folder, class of the model -> its Family."""
    expect_kind(folder, f"textgen.{cls.__name__}")
    return family(read_json(folder / "config.json")["model_type"], cls.__name__)


def read_state(folder, layout, cfg, cls, *, tied=()):
    """{our name: tensor} of a folder, refused before anything is allocated when the weights don't fit. tied: our copies, in no file."""
    with torch.device("meta"), naming(folder / "config.json"):
        wanted = {name: tensor.shape for name, tensor in cls(cfg).state_dict().items() if name not in tied}
    with naming(weights_file(folder)):
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
