"""Qwen3 (Yang et al. 2025): Qwen2 without biases, with norms of queries and keys."""
from gencore.families import Family, expect_fields
from textgen.families.llama import ATTENTION_BIAS, SILU, SIZES, finished, read, rules, said, write
from textgen.families.qwen2 import upper_fields, upper_windows

FIELDS = (*SIZES, *ATTENTION_BIAS)
DEFAULTS = {"head_dim": 128, "max_position_embeddings": 32768}                   # theirs, for a file that does not say


def to_ours(config):
    """config.json -> CausalLMConfig."""
    expect_fields(config, SILU, "qwen3")
    ours = read({**DEFAULTS, **config}, "qwen3", FIELDS)
    ours["transformer"]["attention"]["qk_norm"] = "rms"
    ours["transformer"]["windows"] = upper_windows(config, "qwen3")
    return finished(ours)


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    return said(cfg, {"architectures": ["Qwen3ForCausalLM"], **write(cfg, FIELDS), **upper_fields(cfg)}, to_ours)


FAMILY = Family("qwen3", to_ours, to_theirs, rules)
