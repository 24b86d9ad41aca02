"""Phi-3 (Abdin et al. 2024): Llama with q, k, v and gate, up stored as one matrix each, as they are here; longrope for long contexts."""
from gencore.families import Family, Rename, expect_fields
from textgen.families.llama import KINDS, SILU, SIZES, finished, outer_rules, read, said, window_fields, windows, write

DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "sliding_window": None, "original_max_position_embeddings": 4096}


def to_ours(config):
    """config.json -> CausalLMConfig."""
    config = {**DEFAULTS, **config}
    expect_fields(config, SILU, "phi3")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if rope and rope.get("rope_type", rope.get("type")) in ("su", "yarn"):       # old names of the same thing, in Phi-3 alone
        config["rope_parameters"] = {**{key: value for key, value in rope.items() if key != "type"}, "rope_type": "longrope"}
    ours = read(config, "phi3", SIZES)
    if config["sliding_window"] is not None:
        ours["transformer"]["windows"] = windows(config, KINDS[1:] * ours["transformer"]["layers"], "phi3")
    return finished(ours)


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    theirs = write(cfg, SIZES)
    original = theirs["rope_parameters"].get("original_max_position_embeddings", cfg.context)
    return said(cfg, {"architectures": ["Phi3ForCausalLM"], **theirs, "sliding_window": window_fields(cfg)["sliding_window"],
                      "original_max_position_embeddings": original, "resid_pdrop": 0.0, "embd_pdrop": 0.0}, to_ours)


def rules(cfg):
    """The fused matrices have the order of rows that they have here."""
    there, here = "model.layers.{n}.", "transformer.blocks.{n}."
    return (*outer_rules(cfg), Rename(there + "self_attn.qkv_proj.weight", here + "attention.qkv.weight"),
            Rename(there + "mlp.gate_up_proj.weight", here + "mlp.gate_up.weight"))


FAMILY = Family("phi3", to_ours, to_theirs, rules)
