"""diffusers' VQModel <-> VQAutoencoder: the same names on both sides but the codebook's."""
import torch

from gencore.config import from_dict
from gencore.families import Family, Rename, expect_fields, read_fields, write_fields
from imagegen.families.autoencoder_kl import OLD
from imagegen.vq_autoencoder import VQAutoencoder, VQAutoencoderConfig

FIELDS = (("block_out_channels", "parts.channels", [64]), ("layers_per_block", "parts.layers", 1), ("latent_channels", "parts.latent", 3),
          ("norm_num_groups", "parts.groups", 32), ("mid_block_add_attention", "parts.middle_attention", True), ("sample_size", "parts.size", 32),
          ("in_channels", "parts.picture_channels", 3), ("scaling_factor", "parts.scaling", 0.18215), ("num_vq_embeddings", "codes", 256))
FIXED = {"act_fn": ("silu",), "norm_type": ("group",), "lookup_from_codebook": (False,)}
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def to_ours(config):
    expect_fields(config, FIXED, "VQModel")
    for field, kind in BLOCKS.items():
        for found in config.get(field) or [kind]:
            expect_fields({field: found}, {field: (kind,)}, "VQModel")
    expect_fields(config, {"out_channels": (config.get("in_channels", 3),)}, "VQModel")
    fields = read_fields(FIELDS, config, "VQModel")
    width = config.get("vq_embed_dim")
    return from_dict(VQAutoencoderConfig, fields | {"width": fields["parts"]["latent"] if width is None else width})


def to_theirs(cfg):
    fields = write_fields(FIELDS, cfg) | {name: values[0] for name, values in FIXED.items()}
    blocks = {field: [kind] * len(cfg.parts.channels) for field, kind in BLOCKS.items()}
    return {"_class_name": "VQModel", **fields, **blocks, "block_out_channels": list(cfg.parts.channels), "out_channels": cfg.parts.picture_channels,
            "vq_embed_dim": cfg.width, "force_upcast": False}


def rules(cfg):
    with torch.device("meta"):
        names = VQAutoencoder(cfg).weights()
    return tuple(Rename("quantize.embedding.weight" if name == "quantizer.codebook" else name, name) for name in names)


VQ_MODEL = Family("VQModel", to_ours, to_theirs, rules, OLD)
