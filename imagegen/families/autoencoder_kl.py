"""diffusers' AutoencoderKL <-> Autoencoder: the same names on both sides; old files spell the attention differently."""
from gencore.config import from_dict
from gencore.families import Family, Rename, expect_fields, read_fields, write_fields
from imagegen.autoencoder import Autoencoder, AutoencoderConfig

FIELDS = (("block_out_channels", "channels", [64]), ("layers_per_block", "layers", 1), ("latent_channels", "latent", 4),
          ("norm_num_groups", "groups", 32), ("mid_block_add_attention", "middle_attention", True), ("sample_size", "size", 32),
          ("in_channels", "picture_channels", 3), ("scaling_factor", "scaling", 0.18215))
FIXED = {"act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,)}
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def to_ours(config):
    expect_fields(config, FIXED, "AutoencoderKL")
    for field, kind in BLOCKS.items():
        for found in config.get(field) or [kind]:
            expect_fields({field: found}, {field: (kind,)}, "AutoencoderKL")
    expect_fields(config, {"out_channels": (config.get("in_channels", 3),)}, "AutoencoderKL")
    convolved = config.get("use_quant_conv", True)
    expect_fields(config, {"use_quant_conv": (True, False), "use_post_quant_conv": (convolved,)}, "AutoencoderKL")
    shift = config.get("shift_factor")
    own = {"shift": 0.0 if shift is None else shift, "quant_convs": convolved}
    return from_dict(AutoencoderConfig, read_fields(FIELDS, config, "AutoencoderKL") | own)


def to_theirs(cfg):
    fields = write_fields(FIELDS, cfg) | {name: values[0] for name, values in FIXED.items()}
    blocks = {field: [kind] * len(cfg.channels) for field, kind in BLOCKS.items()}
    return {"_class_name": "AutoencoderKL", **fields, **blocks, "block_out_channels": list(cfg.channels), "out_channels": cfg.picture_channels,
            "force_upcast": False, "shift_factor": cfg.shift or None, "use_quant_conv": cfg.quant_convs, "use_post_quant_conv": cfg.quant_convs}


def rules(cfg):
    import torch
    with torch.device("meta"):
        names = Autoencoder(cfg).state_dict()
    return tuple(Rename(name, name) for name in names)


OLD = tuple((rf"\.attentions\.(\d+)\.{old}\.", rf".attentions.\1.{new}.")                   # of a U-Net as well
            for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")))

AUTOENCODER_KL = Family("AutoencoderKL", to_ours, to_theirs, rules, OLD)
