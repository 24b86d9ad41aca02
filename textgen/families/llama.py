"""Llama (Touvron et al. 2023; grouped queries and scaled rotary positions since Llama 2 and 3): the layout that CausalLM writes by default.

Its kin (mistral, qwen2, qwen3, phi3, gemma2, gemma3_text) are this table with changes; each says its own in its file."""
from gencore.attention import head_sizes
from gencore.check import ConfigError
from gencore.config import from_dict
from gencore.families import Drop, Family, Rename, Split, Tie, expect_fields, expect_said, read_fields, write_fields
from textgen.model import CausalLMConfig, special_fields, special_ids, usual

SIZES = (                                                # what all of the kin say in these words
    ("vocab_size", "vocab", 32000),
    ("hidden_size", "transformer.width", ...),
    ("num_hidden_layers", "transformer.layers", ...),
    ("num_attention_heads", "transformer.attention.heads", ...),
    ("num_key_value_heads", "transformer.attention.kv_heads", None),
    ("head_dim", "transformer.attention.head_width", None),
    ("intermediate_size", "transformer.mlp.width", ...),
    ("rms_norm_eps", "transformer.norm.eps", 1e-6),
    ("max_position_embeddings", "context", 2048),
    ("tie_word_embeddings", "tied", False),
)
ATTENTION_BIAS = (("attention_bias", "transformer.attention.bias", False), ("attention_bias", "transformer.attention.out_bias", False))
FIELDS = (*SIZES, *ATTENTION_BIAS, ("mlp_bias", "transformer.mlp.bias", False))
SILU = {"hidden_act": ("silu", "swish")}
FIXED = {**SILU, "pretraining_tp": (1,)}
NOT_SAID = ("transformer.dropout",)                      # of training alone
KINDS = ("full_attention", "sliding_attention")


# ---- configurations ----

def to_ours(config):
    """config.json -> CausalLMConfig."""
    expect_fields(config, FIXED, "llama")
    return finished(read(config, "llama", FIELDS))


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    return said(cfg, {"architectures": ["LlamaForCausalLM"], **write(cfg, FIELDS)}, to_ours)


def read(config, name, fields):
    """config.json of Llama or its kin -> nested dict of the fields of CausalLMConfig, for `finished`."""
    ours = read_fields(fields, config, name)
    stack = ours["transformer"]
    stack["mlp"] |= {"gated": True, "activation": "silu"}
    stack["norm"] |= {"kind": "rms", "place": "pre"}
    stack["rotary"] = rotary_fields(config)
    if name != "phi3":
        stack["rotary"]["partial"] = 1.0                     # transformers' models of the others turn whole heads, whatever the file says
    return {**ours, **special_ids(config), "family": name}


def finished(ours):
    """Nested dict -> CausalLMConfig in the usual words."""
    return usual(from_dict(CausalLMConfig, ours))


def write(cfg, fields):
    """The fields of config.json that all of the kin write."""
    _, G, E = head_sizes(cfg.transformer.width, cfg.transformer.attention)
    if cfg.transformer.rotary is None:
        raise ConfigError(f"the {cfg.family} layout can't say this model's rotary=None: its positions are rotary, choose another family")
    return {"model_type": cfg.family, **write_fields(fields, cfg), "num_key_value_heads": G, "head_dim": E, "hidden_act": "silu",
            "attention_dropout": 0.0, "rope_parameters": rope_parameters(cfg.transformer.rotary), **special_fields(cfg)}


def said(cfg, theirs, reader):
    """`theirs`, once it is certain that it is read as `cfg` again; ConfigError names what this layout can't say."""
    expect_said(usual(cfg), reader(theirs), theirs["model_type"], NOT_SAID)
    return theirs


def rotary_fields(config):
    """rope_parameters, or the old rope_theta and rope_scaling -> fields of RotaryConfig."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    theta = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
    partial = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if rope.get("rope_type", "default") == "default":
        return {"theta": theta, "partial": partial}
    if rope["rope_type"] == "dynamic":                       # by transformers' rule always of the context
        rope["original_max_position_embeddings"] = config.get("max_position_embeddings", 2048)
    if rope["rope_type"] in ("yarn", "longrope", "llama3") and not rope.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = config.get("original_max_position_embeddings", config.get("max_position_embeddings", 2048))
    if rope["rope_type"] in ("yarn", "longrope") and rope.get("factor") is None:
        rope["factor"] = config.get("max_position_embeddings", 2048) / rope["original_max_position_embeddings"]
    return {"theta": theta, "partial": partial, "scaling": rope}


def rope_parameters(rotary):
    """RotaryConfig -> rope_parameters."""
    rope = {"rope_type": "default", **(rotary.scaling or {}), "rope_theta": rotary.theta}
    return rope if rotary.partial == 1.0 else {**rope, "partial_rotary_factor": rotary.partial}


def windows(config, kinds, name):
    """layer_types (or `kinds`, those of this family) and sliding_window -> one window per layer, None = sees everything."""
    kinds = config.get("layer_types") or kinds
    other = [kind for kind in kinds if kind not in KINDS]
    if other or len(kinds) != config["num_hidden_layers"]:
        raise ConfigError(f"config.json of a {name} model: layer_types should be {config['num_hidden_layers']} of {' or '.join(KINDS)}, "
                          f"got {other[:1] or len(kinds)}")
    return tuple(config.get("sliding_window", 4096) if kind == "sliding_attention" else None for kind in kinds)


def window_fields(cfg, *, always=False):
    """One window per layer -> layer_types and sliding_window; always: a number even if no layer has one, as Gemma's code makes that mask anyway."""
    of_layers = [cfg.transformer.window_of(layer) for layer in range(cfg.transformer.layers)]
    return {"layer_types": [KINDS[width is not None] for width in of_layers],
            "sliding_window": next((width for width in of_layers if width is not None), 4096 if always else None)}


# ---- tensors ----

def rules(cfg):
    """q, k, v are one matrix here, and so are gate and up."""
    N, G, E = head_sizes(cfg.transformer.width, cfg.transformer.attention)
    F = cfg.transformer.mlp.width
    there, here = "model.layers.{n}.", "transformer.blocks.{n}."
    table = [*outer_rules(cfg)]
    for kind in ("weight", "bias") if cfg.transformer.attention.bias else ("weight",):
        table += [Split(tuple(f"{there}self_attn.{x}_proj.{kind}" for x in "qkv"), f"{here}attention.qkv.{kind}", (N * E, G * E, G * E))]
    for kind in ("weight", "bias") if cfg.transformer.mlp.bias else ("weight",):
        table += [Split((f"{there}mlp.gate_proj.{kind}", f"{there}mlp.up_proj.{kind}"), f"{here}mlp.gate_up.{kind}", (F, F))]
    return tuple(table)


def outer_rules(cfg):
    """All but the two fused matrices: table, head, norms, and what leaves attention and MLP."""
    stack, there, here = cfg.transformer, "model.layers.{n}.", "transformer.blocks.{n}."
    names = {"self_attn.o_proj.weight": "attention.out.weight", "mlp.down_proj.weight": "mlp.down.weight",
             "input_layernorm.weight": "attention_norm.weight"}
    if stack.norm.place == "sandwich":
        names |= {"post_attention_layernorm.weight": "attention_after.weight", "pre_feedforward_layernorm.weight": "mlp_norm.weight",
                  "post_feedforward_layernorm.weight": "mlp_after.weight"}
    else:
        names["post_attention_layernorm.weight"] = "mlp_norm.weight"
    if stack.attention.qk_norm != "none":
        names |= {f"self_attn.{x}_norm.weight": f"attention.{x}_norm.weight" for x in "qk"}
    if stack.attention.out_bias:
        names["self_attn.o_proj.bias"] = "attention.out.bias"
    if stack.mlp.bias:
        names["mlp.down_proj.bias"] = "mlp.down.bias"
    return (Rename("model.embed_tokens.weight", "embedding.weight"),
            Rename("model.norm.weight", "transformer.norm.weight"),
            Tie("lm_head.weight", "embedding.weight") if cfg.tied else Rename("lm_head.weight", "head.weight"),
            *(Rename(there + theirs, here + ours) for theirs, ours in names.items()),
            Drop(there + "self_attn.rotary_emb.inv_freq"), Drop("model.rotary_emb.inv_freq"))


FAMILY = Family("llama", to_ours, to_theirs, rules)
