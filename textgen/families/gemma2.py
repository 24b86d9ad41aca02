"""Gemma 2 (Gemma Team 2024): norms around every sublayer, stored minus one; scaled embeddings; soft caps; every other layer with a window."""
from gencore.attention import head_sizes
from gencore.families import Family, expect_fields
from textgen.families.llama import ATTENTION_BIAS, KINDS, SIZES, finished, read, rules, said, window_fields, windows, write

FIXED = {"hidden_activation": ("gelu_pytorch_tanh", None), "use_bidirectional_attention": (None, False)}
DEFAULTS = {"head_dim": 256, "num_key_value_heads": 4, "max_position_embeddings": 8192, "tie_word_embeddings": True, "query_pre_attn_scalar": 256}
FIELDS = (*SIZES, *ATTENTION_BIAS, ("final_logit_softcapping", "logit_softcap", 30.0))
SCORE_CAP = ("attn_logit_softcapping", "transformer.attention.softcap", 50.0)


def to_ours(config):
    """config.json -> CausalLMConfig."""
    config = {**DEFAULTS, **config}
    ours = gemma(config, "gemma2", (*FIELDS, SCORE_CAP))
    ours["transformer"]["windows"] = windows(config, [KINDS[layer % 2 == 0] for layer in range(config["num_hidden_layers"])], "gemma2")
    return finished(ours)


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    return said(cfg, {"architectures": ["Gemma2ForCausalLM"], **gemma_fields(cfg, (*FIELDS, SCORE_CAP)), **window_fields(cfg, always=True)}, to_ours)


def gemma(config, name, fields):
    """What Gemma 2 and 3 have in common -> nested dict of our fields."""
    expect_fields(config, FIXED, name)
    ours = read(config, name, fields)
    stack = ours["transformer"]
    stack["mlp"]["activation"] = "gelu_tanh"
    stack["norm"] |= {"kind": "rms+1", "place": "sandwich"}
    stack["attention"]["scale"] = config["query_pre_attn_scalar"] ** -0.5
    return {**ours, "embedding_scale": stack["width"] ** 0.5}


def gemma_fields(cfg, fields):
    """The other way."""
    scale, width = cfg.transformer.attention.scale, head_sizes(cfg.transformer.width, cfg.transformer.attention)[2]
    theirs = {**write(cfg, fields), "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": width if scale is None else round(scale ** -2)}
    del theirs["hidden_act"]
    return theirs


FAMILY = Family("gemma2", to_ours, to_theirs, rules)
