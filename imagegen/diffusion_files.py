"""Diffusion's folders, in the layouts of diffusers' pipelines: model_index.json, transformer or unet, vae, scheduler."""
from dataclasses import replace

import torch

from gencore.check import CheckpointError, ConfigError
from gencore.checkpoint import naming, read_json, resolve
from gencore.kinds import expect_kind
from gencore.recipe import lasting_name, made_with
from imagegen.autoencoder_files import CODERS
from imagegen.class_dit import ClassDiT
from imagegen.diffusion import check_fit
from imagegen.families.dit import DIT, ROTARY_DIT
from imagegen.families.unet import UNET
from imagegen.parts import part_files, read_named
from imagegen.schedule import Schedule, to_schedule, to_scheduler
from imagegen.tiny_autoencoder import TinyAutoencoder, passes_through
from imagegen.unet import UNet

PARTS = {family.name: (family, Part) for family, Part in ((DIT, ClassDiT), (ROTARY_DIT, ClassDiT), (UNET, UNet))} | CODERS
PLACES = {"DiTPipeline": ("transformer", "vae"), "LDMPipeline": ("unet", "vqvae"), "DDPMPipeline": ("unet", None), "DDIMPipeline": ("unet", None)}
NULL = 1000                         # DiTPipeline's own number for no class, whatever the transformer has


def opened(name):
    """A folder or a Hub id -> the arguments of Diffusion."""
    folder = resolve(name, "imagegen")
    expect_kind(folder, "imagegen.Diffusion")
    index = read_json(folder / "model_index.json")
    networks, coder = PLACES[index["_class_name"]]
    with naming(folder / "scheduler" / "scheduler_config.json"):
        schedule = to_schedule(read_json(folder / "scheduler" / "scheduler_config.json", lowest=True))       # diffusers writes it
    with naming(folder / "model_index.json"):
        labels = read_labels(index.get("id2label"))
    coder = None if index.get(coder) in (None, [None, None]) else coder                   # no autoencoder: pixels
    denoiser, autoencoder = read_any(folder / networks), read_any(folder / coder) if coder else None
    with naming(folder / "model_index.json"):
        if not isinstance(denoiser, (ClassDiT, UNet)) or isinstance(autoencoder, (ClassDiT, UNet)):
            raise CheckpointError(f"its parts are in each other's places: {networks} and {coder}")
        denoiser = without_padding(denoiser) if isinstance(denoiser, ClassDiT) else denoiser
        autoencoder = None if is_passing_through(autoencoder) else autoencoder
        check_fit(denoiser, autoencoder, labels, schedule)
    return {"denoiser": denoiser, "autoencoder": autoencoder, "labels": labels, "schedule": schedule,
            "name": lasting_name(folder), "digest": made_with(folder)}


def read_any(folder):
    """A component's folder -> its module, by the class that its configuration names."""
    if (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} holds a whole pipeline: give the folder of one part, such as {folder / 'vae'}")
    return read_named(folder, PARTS)


def read_labels(named):
    """id2label -> names of the classes 0, 1, ... (or none), or ConfigError."""
    if named is None:
        return ()
    if not isinstance(named, dict) or set(named) != {str(i) for i in range(len(named))} or not all(isinstance(v, str) for v in named.values()):
        raise ConfigError(f"id2label should name the classes 0, 1, ... without a gap, got {named!r:.80}")
    return tuple(named[str(i)] for i in range(len(named)))


def diffusion_files(denoiser, autoencoder=None, *, labels=(), schedule=None, dtype=torch.float32):
    """Files of a folder that diffusers and `Diffusion.from_pretrained` open, for `save_folder` and fit's export.

    diffusers has no pipeline that tells a U-Net its class, or that begins a transformer at the noise of the path "ve", and no rotary transformer:
    such a folder draws here alone. DiTPipeline wants an autoencoder and 1000 for no class: one that hands pixels through, and empty classes up to
    it, are written along."""
    schedule = schedule or Schedule()
    check_fit(denoiser, autoencoder, tuple(labels), schedule)
    check_saved(denoiser, schedule)
    transformer = isinstance(denoiser, ClassDiT)
    if autoencoder is None and (transformer or schedule.path == "ve"):
        autoencoder = passes_through(denoiser.cfg.channels)
    learned = schedule.sampler == "ddpm" and denoiser.cfg.out_channels > denoiser.cfg.channels and schedule.variance is None
    name = "DiTPipeline" if transformer else "LDMPipeline" if autoencoder else "DDIMPipeline" if schedule.sampler == "ddim" else "DDPMPipeline"
    scheduler = to_scheduler(replace(schedule, variance="learned") if learned else schedule)
    place, coder = PLACES[name]
    parts = {place: padded(denoiser) if transformer else (UNET, denoiser.cfg, denoiser.state_dict())}
    if autoencoder is not None:
        parts[coder] = autoencoder.layout(), autoencoder.cfg, autoencoder.state_dict()
    index = {"_class_name": name, "_diffusers_version": "0.42.1", "scheduler": ["diffusers", scheduler["_class_name"]]}
    index |= {place: ["imagegen" if family is ROTARY_DIT else "diffusers", family.name] for place, (family, _, _) in parts.items()}
    index |= {"id2label": {str(i): label for i, label in enumerate(labels)}} if labels else {}
    files = {"model_index.json": index, "scheduler/scheduler_config.json": scheduler}
    for place, (family, cfg, state) in parts.items():
        files |= {f"{place}/{name}": content for name, content in part_files(family, cfg, state, dtype=dtype).items()}
    return files


def check_saved(denoiser, schedule):
    """ConfigError for what no pipeline of diffusers would draw with: fit's export comes last, so ask before."""
    learned = denoiser.cfg.out_channels > denoiser.cfg.channels
    if not isinstance(denoiser, ClassDiT):
        halved = 2 ** (len(denoiser.cfg.widths) - 1)
        if denoiser.cfg.size % halved:
            raise ConfigError(f"a U-Net of {len(denoiser.cfg.widths)} grids halves its pictures in diffusers: size should be a multiple of {halved}, "
                              f"got {denoiser.cfg.size}")
        if learned and schedule.sampler != "ddpm":
            raise ConfigError('a U-Net that says a variance is drawn by "ddpm" alone in diffusers: choose schedule.sampler="ddpm"')
    elif denoiser.cfg.classes > NULL and denoiser.cfg.positions != "rotary":
        raise ConfigError(f"DiTPipeline knows {NULL} classes, and takes the next for none of them: this model has {denoiser.cfg.classes}")
    elif (schedule.path, schedule.sampler) == ("flow", "euler"):
        raise ConfigError('DiTPipeline can\'t go by "euler" on the path "flow": choose schedule.sampler="dpm_solver"')
    elif learned and schedule.sampler == "ddpm" and schedule.variance not in ("small", "large"):
        raise ConfigError('DiTPipeline drops a learned variance: choose variance="small", or another sampler and "ddpm" in the call')


def padded(denoiser):
    """ClassDiT -> (family, cfg, weights) with empty classes up to DiTPipeline's number for none."""
    cfg, state, table = denoiser.cfg, denoiser.state_dict(), "labels.table.weight"
    if cfg.positions == "rotary":
        return ROTARY_DIT, cfg, state
    if cfg.classes >= NULL:
        return DIT, cfg, state
    rows = state[table]
    empty = rows.new_zeros(NULL - cfg.classes, cfg.width)
    return DIT, replace(cfg, classes=NULL), state | {table: torch.cat((rows[:-1], empty, rows[-1:]))}


def without_padding(denoiser):
    """What `padded` was made of; a ClassDiT without empty classes as it is."""
    rows = denoiser.labels.table.weight
    used = rows[:-1].any(1).nonzero()
    count = int(used.max()) + 1 if len(used) else denoiser.cfg.classes
    if count == denoiser.cfg.classes:
        return denoiser
    with torch.device("meta"):
        less = ClassDiT(replace(denoiser.cfg, classes=count))
    less.load_state_dict(denoiser.state_dict() | {"labels.table.weight": torch.cat((rows[:count], rows[-1:]))}, assign=True)
    return less.requires_grad_(False)


def is_passing_through(autoencoder):
    """Does it only hand pixels through?"""
    if not isinstance(autoencoder, TinyAutoencoder) or autoencoder.cfg != (same := passes_through(autoencoder.cfg.latent)).cfg:
        return False
    return all(tensor.equal(same.state_dict()[key]) for key, tensor in autoencoder.state_dict().items())
