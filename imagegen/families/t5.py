"""transformers' T5EncoderModel <-> the core's TextEncoder. A whole T5 file opens too; its decoder is left aside."""
from gencore.check import CheckpointError
from gencore.config import from_dict
from gencore.families import Family, Rename, Split, Tie, expect_fields, read_fields, write_fields
from gencore.text_encoder import TextEncoderConfig

FIELDS = (("vocab_size", "vocab", ...), ("d_model", "width", 512), ("num_layers", "layers", 6), ("num_heads", "heads", 8),
          ("d_kv", "head_width", 64), ("d_ff", "mlp", 2048), ("relative_attention_num_buckets", "buckets", 32),
          ("relative_attention_max_distance", "distance", 128), ("layer_norm_epsilon", "eps", 1e-6))
FORMS = {"relu": False, "gated-gelu": True}


def to_ours(config):
    form = config.get("feed_forward_proj", "relu")
    expect_fields({"feed_forward_proj": form}, {"feed_forward_proj": tuple(FORMS)}, "T5")
    return from_dict(TextEncoderConfig, read_fields(FIELDS, config, "T5") | {"gated": FORMS[form]})


def to_theirs(cfg):
    form = {gated: name for name, gated in FORMS.items()}[cfg.gated]
    return {"architectures": ["T5EncoderModel"], "model_type": "t5", **write_fields(FIELDS, cfg), "feed_forward_proj": form,
            "is_encoder_decoder": False, "use_cache": False, "tie_word_embeddings": False, "dropout_rate": 0.0,
            "num_decoder_layers": cfg.layers, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dtype": "float32"}


def rules(cfg):
    inner = cfg.heads * cfg.head_width
    block, attention = "transformer.blocks.{n}.", "encoder.block.{n}.layer.0."
    feed = "encoder.block.{n}.layer.1.DenseReluDense."
    first = (Split((feed + "wi_0.weight", feed + "wi_1.weight"), block + "mlp.gate_up.weight", sizes=(cfg.mlp, cfg.mlp)) if cfg.gated
             else Rename(feed + "wi.weight", block + "mlp.up.weight"))
    return (
        Rename("shared.weight", "tokens.weight"),
        Tie("encoder.embed_tokens.weight", "tokens.weight"),
        Rename("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "transformer.relative.table.weight"),
        Split(tuple(f"{attention}SelfAttention.{x}.weight" for x in "qkv"), block + "attention.qkv.weight", sizes=(inner,) * 3),
        Rename(attention + "SelfAttention.o.weight", block + "attention.out.weight"),
        Rename(attention + "layer_norm.weight", block + "attention_norm.weight"),
        first,
        Rename(feed + "wo.weight", block + "mlp.down.weight"),
        Rename("encoder.block.{n}.layer.1.layer_norm.weight", block + "mlp_norm.weight"),
        Rename("encoder.final_layer_norm.weight", "transformer.norm.weight"))


def encoder_only(tensors):
    """The tensors of the encoder of a T5 file."""
    kept = {name: t for name, t in tensors.items() if not name.startswith(("decoder.", "lm_head."))}
    if not any(name.startswith("encoder.") for name in kept):
        raise CheckpointError("the weights have no tensor under encoder.: expected the layout of T5")
    return kept


T5 = Family("t5", to_ours, to_theirs, rules)
