"""Qwen2 (Yang et al. 2024): Llama with biases on q, k and v, and windows in its upper layers when they are switched on."""
from gencore.families import Family, expect_fields
from textgen.families.llama import KINDS, SILU, SIZES, finished, read, rules, said, window_fields, windows, write

DEFAULTS = {"max_position_embeddings": 32768}                                    # theirs, for a file that does not say


def to_ours(config):
    """config.json -> CausalLMConfig."""
    expect_fields(config, SILU, "qwen2")
    ours = read({**DEFAULTS, **config}, "qwen2", SIZES)
    ours["transformer"]["attention"]["bias"] = True
    ours["transformer"]["windows"] = upper_windows(config, "qwen2")
    return finished(ours)


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    return said(cfg, {"architectures": ["Qwen2ForCausalLM"], **write(cfg, SIZES), **upper_fields(cfg)}, to_ours)


def upper_windows(config, name):
    """use_sliding_window, max_window_layers -> one window per layer, or None."""
    if not config.get("use_sliding_window", False) or config.get("sliding_window", 4096) is None:
        return None
    full = min(config.get("max_window_layers", 28), config["num_hidden_layers"])
    return windows(config, KINDS[:1] * full + KINDS[1:] * (config["num_hidden_layers"] - full), name)


def upper_fields(cfg):
    """The other way; layer_types says it exactly, max_window_layers to readers that do not know layer_types."""
    fields = window_fields(cfg)
    slides = fields["sliding_window"] is not None
    return {**fields, "use_sliding_window": slides, "max_window_layers": fields["layer_types"].index(KINDS[1]) if slides else cfg.transformer.layers}


FAMILY = Family("qwen2", to_ours, to_theirs, rules)
