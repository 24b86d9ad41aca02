"""LLaVA (transformers: LlavaForConditionalGeneration) <-> multimodal.splice.Spliced: a SigLIP tower, a projector, a Llama.

Written with the names of published files, which every version reads; those of transformers 5 in memory are read too."""
from dataclasses import replace

from gencore.check import ConfigError
from gencore.config import from_dict
from gencore.families import Drop, Family, Rename, Split, Tie, expect_fields, expect_said, read_fields, write_fields
from multimodal.families import siglip
from multimodal.splice import SpliceConfig
from textgen.families.llama import rope_parameters, rotary_fields

TEXT_FIELDS = (
    ("vocab_size", "vocab", 32000),
    ("hidden_size", "width", 4096),
    ("num_hidden_layers", "layers", 32),
    ("num_attention_heads", "heads", 32),
    ("num_key_value_heads", "kv_heads", None),
    ("intermediate_size", "mlp", 11008),
    ("rms_norm_eps", "eps", 1e-6),
    ("max_position_embeddings", "context", 2048),
)


def to_ours(config):
    expect_fields(config, {"model_type": ("llava",), "vision_feature_select_strategy": ("full",), "vision_feature_layer": (-1,),
                           "projector_hidden_act": ("gelu",), "multimodal_projector_bias": (True,)}, "llava")
    for part in ("vision_config", "text_config"):
        if not isinstance(config.get(part), dict):
            raise ConfigError(f"config.json of a llava model lacks {part}")
    if "vision_feature_select_strategy" not in config or "vision_feature_layer" not in config:
        raise ConfigError('config.json of a llava model should say vision_feature_select_strategy "full" and vision_feature_layer -1: '
                          "the defaults are those of a CLIP tower, which is not read here")
    text = config["text_config"]
    expect_fields(text, {"model_type": ("llama",), "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
                         "head_dim": (None, (text.get("hidden_size") or 4096) // (text.get("num_attention_heads") or 32))}, "llava")
    fields = read_fields(TEXT_FIELDS, text, "llava")
    tied = config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    image_token = config.get("image_token_index", config.get("image_token_id", 32000))
    return from_dict(SpliceConfig, {**fields, "vision": siglip.to_ours(config["vision_config"]), "rotary": rotary_fields(text), "tied": tied,
                                    "image_token": image_token})


def to_theirs(cfg):
    text = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **write_fields(TEXT_FIELDS, cfg),
            "num_key_value_heads": cfg.kv_heads or cfg.heads, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "rope_parameters": rope_parameters(cfg.rotary),
            "tie_word_embeddings": cfg.tied, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    theirs = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": siglip.to_theirs(cfg.vision),
              "text_config": text, "image_token_index": cfg.image_token, "image_seq_length": cfg.vision.patches,
              "projector_hidden_act": "gelu", "multimodal_projector_bias": True, "vision_feature_select_strategy": "full",
              "vision_feature_layer": -1, "tie_word_embeddings": cfg.tied}
    expect_said(replace(cfg, kv_heads=cfg.kv_heads or cfg.heads), to_ours(theirs), "llava")
    return theirs


def rules(cfg):
    words = "language_model.model."
    layer, block, D, E = words + "layers.{n}.", "decoder.blocks.{n}.", cfg.width, cfg.width // cfg.heads
    key = (cfg.kv_heads or cfg.heads) * E
    head = Tie("language_model.lm_head.weight", "table.weight") if cfg.tied else Rename("language_model.lm_head.weight", "head.weight")
    return (
        Rename(words + "embed_tokens.weight", "table.weight"),
        Rename(words + "norm.weight", "decoder.norm.weight"),
        head,
        Rename(layer + "input_layernorm.weight", block + "attention_norm.weight"),
        Rename(layer + "post_attention_layernorm.weight", block + "mlp_norm.weight"),
        Split(tuple(f"{layer}self_attn.{name}_proj.weight" for name in "qkv"), block + "attention.qkv.weight", sizes=(D, key, key)),
        Rename(layer + "self_attn.o_proj.weight", block + "attention.out.weight"),
        Split((layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"), block + "mlp.gate_up.weight", sizes=(cfg.mlp, cfg.mlp)),
        Rename(layer + "mlp.down_proj.weight", block + "mlp.down.weight"),
        Drop(layer + "self_attn.rotary_emb.inv_freq"),
        *(Rename(f"multi_modal_projector.{name}.{part}", f"projector.{name}.{part}")
          for name in ("linear_1", "linear_2") for part in ("weight", "bias")),
        *siglip.tower_rules(cfg.vision, "vision_tower.vision_model.", "tower."),
    )


LLAVA = Family("llava", to_ours, to_theirs, rules, aliases=(
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
))
