"""diffusers' SD3Transformer2DModel <-> JointDiT."""
from gencore.check import ConfigError
from gencore.config import from_dict
from gencore.families import Family, Rename, Split, expect_fields, read_fields, write_fields
from imagegen.joint_dit import JointDiTConfig

FIELDS = (("in_channels", "channels", 16), ("sample_size", "size", 128), ("patch_size", "patch", 2), ("num_layers", "layers", 18),
          ("num_attention_heads", "heads", 18), ("joint_attention_dim", "context", 4096), ("pooled_projection_dim", "pooled", 2048),
          ("pos_embed_max_size", "places", 96))
FIXED = {"dual_attention_layers": ((), [])}
NORMS = {None: False, "rms_norm": True}


def to_ours(config):
    expect_fields(config, FIXED, "SD3")
    expect_fields(config, {"qk_norm": tuple(NORMS)}, "SD3")
    if "pos_embed_max_size" in config and config["pos_embed_max_size"] is None:
        raise ConfigError("config.json of a SD3 model: pos_embed_max_size should be a number, got None: places without a table are not done here")
    fields = read_fields(FIELDS, config, "SD3")
    width = fields["heads"] * (config.get("attention_head_dim") or 64)
    expect_fields(config, {"caption_projection_dim": (width,)}, "SD3")
    return from_dict(JointDiTConfig, fields | {"width": width, "out_channels": config.get("out_channels") or fields["channels"],
                                               "qk_norm": NORMS[config.get("qk_norm")]})


def to_theirs(cfg):
    own = {"attention_head_dim": cfg.width // cfg.heads, "caption_projection_dim": cfg.width, "out_channels": cfg.out_channels,
           "dual_attention_layers": [], "qk_norm": "rms_norm" if cfg.qk_norm else None}
    return {"_class_name": "SD3Transformer2DModel"} | write_fields(FIELDS, cfg) | own


def rules(cfg):
    D, last = cfg.width, cfg.layers - 1
    table = [Rename("pos_embed.pos_embed", "places")]
    for kind in ("weight", "bias"):
        table += [Rename(f"{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in PAIRS]
        for i in range(cfg.layers):
            theirs, ours = f"transformer_blocks.{i}.", f"blocks.{i}."
            table += [Split(tuple(f"{theirs}attn.to_{x}.{kind}" for x in "qkv"), f"{ours}attention.qkv.{kind}", sizes=(D, D, D)),
                      Split(tuple(f"{theirs}attn.add_{x}_proj.{kind}" for x in "qkv"), f"{ours}word_attention.qkv.{kind}", sizes=(D, D, D))]
            pairs = BLOCK + ((("norm1_context.linear", "word_modulation"),) if i == last else WORDS)
            table += [Rename(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}") for a, b in pairs]
    if cfg.qk_norm:
        table += [Rename(f"transformer_blocks.{{n}}.attn.{theirs}.weight", f"blocks.{{n}}.{ours}.weight") for theirs, ours in (
            ("norm_q", "attention.q_norm"), ("norm_k", "attention.k_norm"), ("norm_added_q", "word_attention.q_norm"),
            ("norm_added_k", "word_attention.k_norm"))]
    return table


PAIRS = (("pos_embed.proj", "patches.projection"), ("context_embedder", "words"), ("norm_out.linear", "out_modulation"), ("proj_out", "out"),
         ("time_text_embed.timestep_embedder.linear_1", "time.linear_1"), ("time_text_embed.timestep_embedder.linear_2", "time.linear_2"),
         ("time_text_embed.text_embedder.linear_1", "pooled.0"), ("time_text_embed.text_embedder.linear_2", "pooled.2"))
BLOCK = (("norm1.linear", "modulation.linear"), ("attn.to_out.0", "attention.out"), ("ff.net.0.proj", "mlp.up"), ("ff.net.2", "mlp.down"))
WORDS = (("norm1_context.linear", "word_modulation.linear"), ("attn.to_add_out", "word_attention.out"), ("ff_context.net.0.proj", "word_mlp.up"),
         ("ff_context.net.2", "word_mlp.down"))

SD3 = Family("SD3Transformer2DModel", to_ours, to_theirs, rules)
