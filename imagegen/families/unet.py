"""diffusers' UNet2DModel and UNet2DConditionModel <-> UNet. Convolutions have the same names; attention is one matrix for q, k and v here."""
import torch

from gencore.check import ConfigError
from gencore.config import from_dict
from gencore.families import Convert, Family, Rename, Split, expect_fields, read_fields, write_fields
from imagegen.families.autoencoder_kl import OLD
from imagegen.unet import UNetConfig

FIELDS = (("in_channels", "channels", ...), ("out_channels", "out_channels", ...), ("block_out_channels", "widths", ...),
          ("layers_per_block", "layers", 2), ("norm_num_groups", "groups", 32), ("norm_eps", "eps", 1e-5))
FIXED = {"act_fn": ("silu",), "center_input_sample": (False,), "mid_block_scale_factor": (1,), "dropout": (0.0,),
         "resnet_time_scale_shift": ("default",)}
USUAL = {"flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1}
ORIGINAL = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0}                   # of the first weights, google/ddpm-*
PLAIN = FIXED | {"time_embedding_type": ("positional",), "downsample_type": ("conv",), "upsample_type": ("conv",), "class_embed_type": (None,),
                 "attn_norm_num_groups": (None,), "mid_block_type": ("UNetMidBlock2D",)}
PROMPTED = FIXED | {field: (value,) for field, value in USUAL.items()} | {
    "time_embedding_type": ("positional",), "class_embed_type": (None,), "addition_embed_type": (None,), "only_cross_attention": (False,),
    "dual_cross_attention": (False,), "transformer_layers_per_block": (1,), "encoder_hid_dim_type": (None,), "time_cond_proj_dim": (None,),
    "num_attention_heads": (None,), "mid_block_type": ("UNetMidBlock2DCrossAttn",), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "attention_type": ("default",), "mid_block_only_cross_attention": (None, False), "resnet_skip_time_act": (False,),
    "cross_attention_norm": (None,), "timestep_post_act": (None,), "time_embedding_act_fn": (None,), "time_embedding_dim": (None,)}
KINDS = {"UNet2DModel": ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"),
         "UNet2DConditionModel": ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")}


def grids(config, name):
    """down_block_types and up_block_types -> which grids have attention, from fine to coarse."""
    plain_down, looking_down, plain_up, looking_up = KINDS[name]
    found = []
    for field, plain, looking in (("down_block_types", plain_down, looking_down), ("up_block_types", plain_up, looking_up)):
        kinds = config.get(field)
        if not isinstance(kinds, (list, tuple)) or any(kind not in (plain, looking) for kind in kinds):
            raise ConfigError(f"{name}: {field} should name {plain} or {looking}, got {kinds!r:.100}")
        found.append([kind == looking for kind in kinds])
    if found[0] != found[1][::-1]:
        raise ConfigError(f"{name}: up_block_types should be down_block_types backwards, got {config['up_block_types']!r:.100}")
    return found[0]


def to_plain(config):
    expect_fields(config, PLAIN, "UNet2DModel")
    original = config.get("flip_sin_to_cos") is False
    expect_fields(USUAL | config, {field: (value,) for field, value in (ORIGINAL if original else USUAL).items()}, "UNet2DModel")
    fields = read_fields(FIELDS, config, "UNet2DModel") | {"attention": grids(config, "UNet2DModel"), "original": original}
    width = config.get("attention_head_dim", 8)
    return from_dict(UNetConfig, fields | {"size": config.get("sample_size") or 32, "head_width": width, "heads": None if width else 1,
                                           "middle_attention": config.get("add_attention", True), "classes": config.get("num_class_embeds")})


def from_plain(cfg):
    if cfg.heads not in (None, 1):
        raise ConfigError(f"UNet2DModel counts no heads: give head_width instead, got heads {cfg.heads}")
    own = {"sample_size": cfg.size, "attention_head_dim": cfg.head_width, "add_attention": cfg.middle_attention, "num_class_embeds": cfg.classes}
    return {"_class_name": "UNet2DModel"} | named(cfg, "UNet2DModel", PLAIN) | (ORIGINAL if cfg.original else USUAL) | own


def to_prompted(config):
    expect_fields(config, PROMPTED, "UNet2DConditionModel")
    fields = read_fields(FIELDS, config, "UNet2DConditionModel") | {"attention": grids(config, "UNet2DConditionModel")}
    return from_dict(UNetConfig, fields | heads_of(config, fields["widths"]) | {
        "size": config.get("sample_size") or 32, "context": config.get("cross_attention_dim", 1280),
        "linear": config.get("use_linear_projection", False), "classes": config.get("num_class_embeds")})


def heads_of(config, widths):
    """attention_head_dim, which there is a number of heads, or one for each grid (Stable Diffusion 2: heads of one width) -> heads or head_width."""
    heads = config.get("attention_head_dim", 8)
    if not isinstance(heads, (list, tuple)):
        return {"heads": heads, "head_width": None}
    counts = [count if isinstance(count, int) and count > 0 else 0 for count in heads]
    head_widths = {width / count if count else 0 for width, count in zip(widths, counts)}
    if len(counts) != len(widths) or len(head_widths) > 1 or not min(head_widths).is_integer() or 0 in head_widths:
        raise ConfigError(f"UNet2DConditionModel: attention_head_dim should be a number of heads, or numbers that give heads of one width on all "
                          f"grids of {list(widths)} channels, got {heads!r:.100}")
    return {"heads": None, "head_width": int(min(head_widths))}


def from_prompted(cfg):
    heads = cfg.heads or [width // cfg.head_width for width in cfg.widths]
    own = {"sample_size": cfg.size, "attention_head_dim": heads, "cross_attention_dim": cfg.context, "use_linear_projection": cfg.linear,
           "num_class_embeds": cfg.classes}
    return {"_class_name": "UNet2DConditionModel"} | named(cfg, "UNet2DConditionModel", PROMPTED) | own


def named(cfg, name, fixed):
    plain_down, looking_down, plain_up, looking_up = KINDS[name]
    return write_fields(FIELDS, cfg) | {field: values[0] for field, values in fixed.items()} | {
        "down_block_types": [looking_down if looks else plain_down for looks in cfg.attention],
        "up_block_types": [looking_up if looks else plain_up for looks in cfg.attention[::-1]]}


def rules(cfg):
    last = len(cfg.widths) - 1
    table = [Rename("class_embedding.weight", "class_embedding.weight")] if cfg.classes else []
    places = [(f"down_blocks.{i}", cfg.widths[i]) for i in range(last + 1) if cfg.attention[i]]
    places += [("mid_block", cfg.widths[-1])] * cfg.middle_attention
    places += [(f"up_blocks.{last - i}", cfg.widths[i]) for i in range(last + 1) if cfg.attention[i]]
    for kind in ("weight", "bias"):
        same = [f"{layer}.{kind}" for layer in ("conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "conv_norm_out", "conv_out")]
        parts = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
        same += [f"{way}.resnets.{{m}}.{part}.{kind}" for way in ("down_blocks.{n}", "up_blocks.{n}") for part in parts]
        same += [f"mid_block.resnets.{{n}}.{part}.{kind}" for part in parts]
        same += [f"down_blocks.{{n}}.downsamplers.0.conv.{kind}", f"up_blocks.{{n}}.upsamplers.0.conv.{kind}"] if last else []
        same += [f"down_blocks.{i}.resnets.0.conv_shortcut.{kind}" for i in range(1, last + 1) if cfg.widths[i] != cfg.widths[i - 1]]
        same.append(f"up_blocks.{{n}}.resnets.{{m}}.conv_shortcut.{kind}")                # a skip beside what comes: always wider than what goes
        table += [Rename(name, name) for name in same]
        for place, width in places:
            table += (prompt_rules if cfg.context else place_rules)(f"{place}.attentions.{{n}}.", kind, width)
    return table


def place_rules(place, kind, D):
    return [Rename(f"{place}group_norm.{kind}", f"{place}group_norm.{kind}"), Rename(f"{place}to_out.0.{kind}", f"{place}attention.out.{kind}"),
            Split(tuple(f"{place}to_{x}.{kind}" for x in "qkv"), f"{place}attention.qkv.{kind}", sizes=(D, D, D))]


def prompt_rules(place, kind, D):
    theirs, ours = f"{place}transformer_blocks.0.", f"{place}transformer.blocks.0."
    pairs = (("norm1", "attention_norm"), ("norm2", "cross_norm"), ("norm3", "mlp_norm"), ("attn1.to_out.0", "attention.out"),
             ("attn2.to_out.0", "cross.out"), ("ff.net.2", "mlp.down"))
    table = [Rename(f"{place}{part}.{kind}", f"{place}{part}.{kind}") for part in ("norm", "proj_in", "proj_out")]
    table += [Rename(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}") for a, b in pairs]
    table.append(Convert(f"{theirs}ff.net.0.proj.{kind}", f"{ours}mlp.gate_up.{kind}", swapped, swapped))
    if kind == "weight":
        table += [Split(tuple(f"{theirs}attn1.to_{x}.weight" for x in "qkv"), f"{ours}attention.qkv.weight", sizes=(D, D, D)),
                  Rename(f"{theirs}attn2.to_q.weight", f"{ours}cross.q.weight"),
                  Split(tuple(f"{theirs}attn2.to_{x}.weight" for x in "kv"), f"{ours}cross.kv.weight", sizes=(D, D))]
    return table


def swapped(tensor):
    """Rows value|gate <-> gate|value."""
    return torch.cat(tensor.chunk(2)[::-1])


UNET = Family("UNet2DModel", to_plain, from_plain, rules, OLD)
UNET_CONDITION = Family("UNet2DConditionModel", to_prompted, from_prompted, rules)
