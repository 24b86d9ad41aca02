"""Mistral (Jiang et al. 2023): Llama, with one window for every layer."""
from gencore.families import Family, expect_fields
from textgen.families.llama import KINDS, SILU, SIZES, finished, read, rules, said, window_fields, windows, write

DEFAULTS = {"num_key_value_heads": 8, "max_position_embeddings": 131072}         # theirs, for a file that does not say


def to_ours(config):
    """config.json -> CausalLMConfig."""
    expect_fields(config, {**SILU, "layer_types": (None,)}, "mistral")
    ours = read({**DEFAULTS, **config}, "mistral", SIZES)
    ours["transformer"]["windows"] = windows(config, KINDS[1:] * ours["transformer"]["layers"], "mistral")
    return finished(ours)


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    return said(cfg, {"architectures": ["MistralForCausalLM"], **write(cfg, SIZES), "sliding_window": window_fields(cfg)["sliding_window"]}, to_ours)


FAMILY = Family("mistral", to_ours, to_theirs, rules)
