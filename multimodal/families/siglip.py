"""SigLIP's vision tower (transformers: SiglipVisionModel) <-> multimodal.vision.VisionTower.

Written with the names of published files ("vision_model." in front) and without the pooling head, which no bridge here reads."""
from gencore.check import ConfigError
from gencore.config import from_dict
from gencore.families import Drop, Family, Rename, Split, expect_fields, read_fields, write_fields
from multimodal.vision import VisionConfig

FIELDS = (
    ("image_size", "image", 224),
    ("patch_size", "patch", 16),
    ("num_channels", "channels", 3),
    ("hidden_size", "width", 768),
    ("num_hidden_layers", "layers", 12),
    ("num_attention_heads", "heads", 12),
    ("intermediate_size", "mlp", 3072),
    ("layer_norm_eps", "eps", 1e-6),
)
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu", "silu": "silu",
               "swish": "silu", "relu": "relu"}


def activation(config, field, default, name):
    """Our name of the activation that a configuration's field names."""
    theirs = config.get(field, default)
    if theirs not in ACTIVATIONS:
        raise ConfigError(f"config.json of a {name} model: {field} should be one of {', '.join(ACTIVATIONS)}, got {theirs!r}")
    return ACTIVATIONS[theirs]


def to_ours(config):
    expect_fields(config, {"model_type": ("siglip_vision_model",)}, "siglip")
    fields = read_fields(FIELDS, config, "siglip")
    return from_dict(VisionConfig, {**fields, "activation": activation(config, "hidden_act", "gelu_pytorch_tanh", "siglip")})


def to_theirs(cfg):
    theirs = next(name for name, ours in ACTIVATIONS.items() if ours == cfg.activation)
    return {"model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"], **write_fields(FIELDS, cfg),
            "hidden_act": theirs, "attention_dropout": 0.0, "vision_use_head": False}


def tower_rules(cfg, theirs="vision_model.", ours=""):
    """Rules of the tower's tensors under these prefixes; LLaVA holds the same tower under longer ones."""
    layer, block, D = theirs + "encoder.layers.{n}.", ours + "encoder.blocks.{n}.", cfg.width
    pairs = [(theirs + "embeddings.patch_embedding", ours + "patches.projection"), (theirs + "post_layernorm", ours + "norm"),
             (layer + "layer_norm1", block + "attention_norm"), (layer + "layer_norm2", block + "mlp_norm"),
             (layer + "self_attn.out_proj", block + "attention.out"),
             (layer + "mlp.fc1", block + "mlp.up"), (layer + "mlp.fc2", block + "mlp.down")]
    rules = [Rename(theirs + "embeddings.position_embedding.weight", ours + "places.table.weight")]
    for part in ("weight", "bias"):
        rules += [Rename(f"{a}.{part}", f"{b}.{part}") for a, b in pairs]
        parts = tuple(f"{layer}self_attn.{name}_proj.{part}" for name in "qkv")
        rules.append(Split(parts, f"{block}attention.qkv.{part}", sizes=(D, D, D)))
    head = ("probe", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight", "attention.out_proj.bias",
            "layernorm.weight", "layernorm.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    unused = [f"head.{name}" for name in head] + ["embeddings.position_ids"]
    return (*rules, *(Drop(theirs + name) for name in unused))


SIGLIP = Family("siglip_vision_model", to_ours, to_theirs, tower_rules, aliases=((r"^(?!vision_model\.)", "vision_model."),))
