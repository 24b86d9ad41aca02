"""Gemma 3, its language model (Gemma Team 2025): Gemma 2 with norms of queries and keys instead of the cap on scores, five layers with a window
to one without, and a rotary base for each kind of layer."""
from gencore.families import Family
from textgen.families.gemma2 import DEFAULTS, FIELDS, gemma, gemma_fields
from textgen.families.llama import KINDS, finished, rope_parameters, rotary_fields, rules, said, window_fields, windows

THETA = dict(zip(KINDS, (1e6, 1e4)))


def to_ours(config):
    """config.json -> CausalLMConfig. attn_logit_softcapping is stored there without effect."""
    config = {**DEFAULTS, "max_position_embeddings": 131072, "final_logit_softcapping": None, **config}
    told = {key: config[key] for key in ("max_position_embeddings", "original_max_position_embeddings") if key in config}
    everywhere, near = (rotary_fields({**told, "rope_parameters": rope}) for rope in both_ropes(config))
    ours = gemma(config, "gemma3_text", FIELDS)
    stack, every = ours["transformer"], config.get("sliding_window_pattern", 6)
    stack["attention"]["qk_norm"] = "rms+1"
    stack |= {"rotary": everywhere, "local_rotary": near}
    stack["windows"] = windows(config, [KINDS[(layer + 1) % every != 0] for layer in range(stack["layers"])], "gemma3_text")
    return finished(ours)


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    theirs = {**gemma_fields(cfg, FIELDS), **window_fields(cfg, always=True)}
    near = cfg.transformer.local_rotary or cfg.transformer.rotary
    theirs["rope_parameters"] = dict(zip(KINDS, (theirs["rope_parameters"], rope_parameters(near))))
    return said(cfg, {"architectures": ["Gemma3ForCausalLM"], **theirs}, to_ours)


def both_ropes(config):
    """rope_parameters of full and of sliding attention; of old files: rope_theta, rope_scaling and rope_local_base_freq."""
    ropes = config.get("rope_parameters") or {KINDS[0]: config.get("rope_scaling")}
    old = dict(zip(KINDS, ("rope_theta", "rope_local_base_freq")))
    return [{"rope_theta": config.get(old[kind], THETA[kind]), **(ropes.get(kind) or {})} for kind in KINDS]


FAMILY = Family("gemma3_text", to_ours, to_theirs, rules)
