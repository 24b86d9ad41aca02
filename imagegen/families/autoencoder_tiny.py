"""diffusers' AutoencoderTiny <-> TinyAutoencoder: the same names on both sides."""
import torch

from gencore.config import from_dict
from gencore.families import Family, Rename, expect_fields, read_fields, write_fields
from imagegen.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig

FIELDS = (("in_channels", "picture_channels", 3), ("latent_channels", "latent", 4), ("encoder_block_out_channels", "encoder", (64,) * 4),
          ("num_encoder_blocks", "encoder_blocks", (1, 3, 3, 3)), ("decoder_block_out_channels", "decoder", (64,) * 4),
          ("num_decoder_blocks", "decoder_blocks", (3, 3, 3, 1)), ("scaling_factor", "scaling", 1.0))
FIXED = {"act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,), "latent_shift": (0.5,),
         "latent_magnitude": (3, 3.0), "shift_factor": (0.0, None)}


def to_ours(config):
    expect_fields(config, FIXED, "AutoencoderTiny")
    expect_fields(config, {"out_channels": (config.get("in_channels", 3),)}, "AutoencoderTiny")
    return from_dict(TinyAutoencoderConfig, read_fields(FIELDS, config, "AutoencoderTiny"))


def to_theirs(cfg):
    lists = {theirs: list(value) if isinstance(value, tuple) else value for theirs, value in write_fields(FIELDS, cfg).items()}
    fixed = {name: values[0] for name, values in FIXED.items()}
    return {"_class_name": "AutoencoderTiny", **lists, **fixed, "out_channels": cfg.picture_channels, "force_upcast": False}


def rules(cfg):
    with torch.device("meta"):
        names = TinyAutoencoder(cfg).state_dict()
    return tuple(Rename(name, name) for name in names)


AUTOENCODER_TINY = Family("AutoencoderTiny", to_ours, to_theirs, rules)
