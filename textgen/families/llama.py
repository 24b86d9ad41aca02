"""Llama (Touvron et al. 2023; grouped queries and scaled rotary positions since Llama 2 and 3): the layout that CausalLM writes by default."""
from gencore.attention import head_sizes
from gencore.check import ConfigError
from gencore.config import from_dict
from gencore.families import Drop, Family, Rename, Split, Tie, expect_fields, read_fields, write_fields
from textgen.model import CausalLMConfig, special_fields, special_ids

FIELDS = (
    ("vocab_size", "vocab", 32000),
    ("hidden_size", "transformer.width", ...),
    ("num_hidden_layers", "transformer.layers", ...),
    ("num_attention_heads", "transformer.attention.heads", ...),
    ("num_key_value_heads", "transformer.attention.kv_heads", None),
    ("head_dim", "transformer.attention.head_width", None),
    ("attention_bias", "transformer.attention.bias", False),
    ("attention_bias", "transformer.attention.out_bias", False),
    ("intermediate_size", "transformer.mlp.width", ...),
    ("mlp_bias", "transformer.mlp.bias", False),
    ("rms_norm_eps", "transformer.norm.eps", 1e-6),
    ("max_position_embeddings", "context", 2048),
    ("tie_word_embeddings", "tied", False),
)
FIXED = {"hidden_act": ("silu", "swish"), "pretraining_tp": (1,)}
OLD_NAMES = ("rope_theta", "rope_scaling")               # transformers 4; now in rope_parameters


def to_ours(config):
    """config.json -> CausalLMConfig."""
    expect_fields(config, FIXED, "llama")
    ours = read_fields(FIELDS, config, "llama")
    attention = ours["transformer"]["attention"]
    if attention["kv_heads"] == attention["heads"]:
        attention["kv_heads"] = None                     # None is how we say the usual: equal configurations are equal
    if attention["head_width"] is not None and attention["head_width"] * attention["heads"] == ours["transformer"]["width"]:
        attention["head_width"] = None
    ours["transformer"]["mlp"] |= {"gated": True, "activation": "silu"}
    ours["transformer"]["norm"] |= {"kind": "rms", "place": "pre"}
    ours["transformer"]["rotary"] = rotary_fields(config)
    return from_dict(CausalLMConfig, {**ours, **special_ids(config), "family": "llama"})


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    stack = cfg.transformer
    wrong = {"norm": (stack.norm.kind, stack.norm.place, stack.norm.affine) != ("rms", "pre", True) or not stack.final_norm,
             "attention": (stack.attention.qk_norm, stack.attention.softcap, stack.attention.scale) != ("none", None, None)
                          or stack.attention.bias != stack.attention.out_bias,
             "mlp": not stack.mlp.gated or stack.mlp.activation != "silu",
             "positions": stack.rotary is None or stack.rotary.layout != "half" or stack.rotary.axes is not None
                          or stack.relative is not None or cfg.learned_positions or stack.local_rotary is not None,
             "windows": stack.windows is not None and any(stack.windows), "cross": stack.cross is not None,
             "condition": stack.condition != "none"}
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(f"the llama layout can't say this model's {what}: choose another family, or another {what}")
    _, G, E = head_sizes(stack.width, stack.attention)
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **write_fields(FIELDS, cfg), "num_key_value_heads": G, "head_dim": E,
            "hidden_act": "silu", "attention_dropout": 0.0, "rope_parameters": rope_parameters(stack.rotary), **special_fields(cfg)}


def rotary_fields(config):
    """rope_parameters, or the old rope_theta and rope_scaling -> fields of RotaryConfig."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    theta = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
    partial = rope.pop("partial_rotary_factor", 1.0)
    if rope.get("rope_type", "default") == "default":
        return {"theta": theta, "partial": partial}
    if rope["rope_type"] in ("dynamic", "yarn", "longrope") and not rope.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = config.get("original_max_position_embeddings", config.get("max_position_embeddings", 2048))
    return {"theta": theta, "partial": partial, "scaling": rope}


def rope_parameters(rotary):
    """RotaryConfig -> rope_parameters."""
    rope = {"rope_type": "default", **(rotary.scaling or {}), "rope_theta": rotary.theta}
    return rope if rotary.partial == 1.0 else {**rope, "partial_rotary_factor": rotary.partial}


def rules(cfg):
    """Tensors: q, k, v are one matrix here, and so are gate and up."""
    N, G, E = head_sizes(cfg.transformer.width, cfg.transformer.attention)
    F = cfg.transformer.mlp.width
    there, here = "model.layers.{n}.", "transformer.blocks.{n}."
    table = [
        Rename("model.embed_tokens.weight", "embedding.weight"),
        Rename("model.norm.weight", "transformer.norm.weight"),
        Rename(there + "input_layernorm.weight", here + "attention_norm.weight"),
        Rename(there + "post_attention_layernorm.weight", here + "mlp_norm.weight"),
        Tie("lm_head.weight", "embedding.weight") if cfg.tied else Rename("lm_head.weight", "head.weight"),
        Drop(there + "self_attn.rotary_emb.inv_freq"), Drop("model.rotary_emb.inv_freq"),
    ]
    for kind in ("weight", "bias"):
        if kind == "weight" or cfg.transformer.attention.bias:
            table += [Split(tuple(f"{there}self_attn.{x}_proj.{kind}" for x in "qkv"), f"{here}attention.qkv.{kind}", (N * E, G * E, G * E)),
                      Rename(f"{there}self_attn.o_proj.{kind}", f"{here}attention.out.{kind}")]
        if kind == "weight" or cfg.transformer.mlp.bias:
            table += [Split((f"{there}mlp.gate_proj.{kind}", f"{there}mlp.up_proj.{kind}"), f"{here}mlp.gate_up.{kind}", (F, F)),
                      Rename(f"{there}mlp.down_proj.{kind}", f"{here}mlp.down.{kind}")]
    return tuple(table)


FAMILY = Family("llama", to_ours, to_theirs, rules)
