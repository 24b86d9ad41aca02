"""diffusers' PixArtTransformer2DModel <-> DiT."""
from gencore.config import from_dict
from gencore.families import Family, Rename, Split, expect_fields, read_fields, write_fields
from imagegen.dit import DiTConfig

FIELDS = (("in_channels", "channels", 4), ("sample_size", "size", 128), ("patch_size", "patch", 2), ("num_layers", "layers", 28),
          ("num_attention_heads", "heads", 16), ("caption_channels", "captions", ...), ("norm_eps", "eps", 1e-6))
FIXED = {"activation_fn": ("gelu-approximate",), "norm_type": ("ada_norm_single",), "norm_elementwise_affine": (False,),
         "attention_bias": (True,), "num_embeds_ada_norm": (1000,), "use_additional_conditions": (False, None), "dropout": (0.0,)}
SIZES = ("attention_head_dim", "cross_attention_dim", "out_channels", "interpolation_scale")


def to_ours(config):
    expect_fields(config, FIXED, "PixArt")
    fields = read_fields(FIELDS, config, "PixArt")
    width = fields["heads"] * (config.get("attention_head_dim") or 72)
    scale = config.get("interpolation_scale") or max(fields["size"] // 64, 1)
    if config.get("use_additional_conditions") is None and fields["size"] == 128:      # diffusers' default: size and shape embedded too
        expect_fields({"use_additional_conditions": True}, FIXED, "PixArt")
    expect_fields(config, {"cross_attention_dim": (width,)}, "PixArt")
    out = config.get("out_channels", 8) or fields["channels"]
    return from_dict(DiTConfig, fields | {"width": width, "interpolation": scale, "out_channels": out})


def to_theirs(cfg):
    fields = write_fields(FIELDS, cfg) | {name: values[0] for name, values in FIXED.items()}
    sizes = (cfg.width // cfg.heads, cfg.width, cfg.out_channels, cfg.interpolation)
    return {"_class_name": "PixArtTransformer2DModel"} | fields | dict(zip(SIZES, sizes))


def rules(cfg):
    D = cfg.width
    table = []
    for kind in ("weight", "bias"):
        table += [Rename(f"{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in PAIRS]
        theirs, ours = "transformer_blocks.{n}.", "transformer.blocks.{n}."
        table += [Split(tuple(f"{theirs}attn1.to_{x}.{kind}" for x in "qkv"), f"{ours}attention.qkv.{kind}", sizes=(D, D, D)),
                  Split(tuple(f"{theirs}attn2.to_{x}.{kind}" for x in "kv"), f"{ours}cross.kv.{kind}", sizes=(D, D))]
    return table + [Rename("scale_shift_table", "out_table"),
                    Rename("transformer_blocks.{n}.scale_shift_table", "transformer.blocks.{n}.modulation.table")]


PAIRS = (
    ("pos_embed.proj", "patches.projection"),
    ("adaln_single.emb.timestep_embedder.linear_1", "time.linear_1"),
    ("adaln_single.emb.timestep_embedder.linear_2", "time.linear_2"),
    ("adaln_single.linear", "modulation"),
    ("caption_projection.linear_1", "captions.linear_1"),
    ("caption_projection.linear_2", "captions.linear_2"),
    ("transformer_blocks.{n}.attn1.to_out.0", "transformer.blocks.{n}.attention.out"),
    ("transformer_blocks.{n}.attn2.to_q", "transformer.blocks.{n}.cross.q"),
    ("transformer_blocks.{n}.attn2.to_out.0", "transformer.blocks.{n}.cross.out"),
    ("transformer_blocks.{n}.ff.net.0.proj", "transformer.blocks.{n}.mlp.up"),
    ("transformer_blocks.{n}.ff.net.2", "transformer.blocks.{n}.mlp.down"),
    ("proj_out", "out"),
)

PIXART = Family("PixArtTransformer2DModel", to_ours, to_theirs, rules)
