"""diffusers' DiTTransformer2DModel <-> ClassDiT. There every block has a copy of the embedders of level and class; here they are once.

With rotary positions it has no counterpart there: its folder has our own fields and names."""
import torch

from gencore.check import ConfigError
from gencore.config import from_dict, to_dict
from gencore.families import Copies, Family, Rename, Split, expect_fields, read_fields, write_fields
from imagegen.class_dit import ClassDiT, ClassDiTConfig

FIELDS = (("in_channels", "channels", 4), ("sample_size", "size", 32), ("patch_size", "patch", 2), ("num_layers", "layers", 28),
          ("num_attention_heads", "heads", 16), ("num_embeds_ada_norm", "classes", 1000), ("norm_eps", "mlp_eps", 1e-5))
FIXED = {"activation_fn": ("gelu-approximate",), "norm_type": ("ada_norm_zero",), "norm_elementwise_affine": (False,),
         "attention_bias": (True,), "dropout": (0.0,)}
PAIRS = (
    ("pos_embed.proj", "patches.projection"),
    ("transformer_blocks.{n}.norm1.linear", "transformer.blocks.{n}.modulation.linear"),
    ("transformer_blocks.{n}.attn1.to_out.0", "transformer.blocks.{n}.attention.out"),
    ("transformer_blocks.{n}.ff.net.0.proj", "transformer.blocks.{n}.mlp.up"),
    ("transformer_blocks.{n}.ff.net.2", "transformer.blocks.{n}.mlp.down"),
    ("proj_out_1", "out_modulation"),
    ("proj_out_2", "out"),
)


def to_ours(config):
    expect_fields(config, FIXED, "DiT")
    fields = read_fields(FIELDS, config, "DiT")
    width = fields["heads"] * (config.get("attention_head_dim") or 72)
    return from_dict(ClassDiTConfig, fields | {"width": width, "out_channels": config.get("out_channels") or fields["channels"]})


def to_theirs(cfg):
    if cfg.positions == "rotary":
        raise ConfigError("diffusers' DiT has no rotary positions: save it as ROTARY_DIT")
    fields = write_fields(FIELDS, cfg) | {name: values[0] for name, values in FIXED.items()}
    return {"_class_name": "DiTTransformer2DModel"} | fields | {"attention_head_dim": cfg.width // cfg.heads, "out_channels": cfg.out_channels}


def rules(cfg):
    D, copies = cfg.width, [f"transformer_blocks.{n}.norm1.emb." for n in range(cfg.layers)]
    table = [Copies(tuple(f"{copy}class_embedder.embedding_table.weight" for copy in copies), "labels.table.weight")]
    for kind in ("weight", "bias"):
        table += [Rename(f"{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in PAIRS]
        table += [Copies(tuple(f"{copy}timestep_embedder.{layer}.{kind}" for copy in copies), f"time.{layer}.{kind}")
                  for layer in ("linear_1", "linear_2")]
        table.append(Split(tuple(f"transformer_blocks.{{n}}.attn1.to_{x}.{kind}" for x in "qkv"),
                           f"transformer.blocks.{{n}}.attention.qkv.{kind}", sizes=(D, D, D)))
    return table


def own_names(cfg):
    with torch.device("meta"):
        return tuple(Rename(name, name) for name in ClassDiT(cfg).state_dict())


DIT = Family("DiTTransformer2DModel", to_ours, to_theirs, rules)
ROTARY_DIT = Family("RotaryDiT", lambda config: from_dict(ClassDiTConfig, {name: value for name, value in config.items() if name != "_class_name"}),
                    lambda cfg: {"_class_name": "RotaryDiT"} | to_dict(cfg), own_names)
