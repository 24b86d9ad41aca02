"""Marian (Junczys-Dowmunt et al. 2018), the layout of the Transformer of 2017: norms after the sum, sinusoids, one token table for both sides."""
from gencore.config import from_dict
from gencore.families import Drop, Family, Rename, Split, Tie, expect_fields, expect_said, read_fields, write_fields
from textgen.seq2seq import Seq2SeqConfig

FIELDS = (
    ("vocab_size", "vocab", 58101), ("max_position_embeddings", "context", 1024), ("tie_word_embeddings", "tied", True),
    ("pad_token_id", "pad", 58100), ("decoder_start_token_id", "start", 58100),
    *((theirs.format(side), ours.format(side), default) for side in ("encoder", "decoder") for theirs, ours, default in (
        ("d_model", "{}.width", 1024), ("dropout", "{}.dropout", 0.1), ("{}_layers", "{}.layers", 12),
        ("{}_attention_heads", "{}.attention.heads", 16), ("{}_ffn_dim", "{}.mlp.width", 4096))),
)
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def to_ours(config):
    """config.json -> Seq2SeqConfig."""
    expect_fields(config, {"share_encoder_decoder_embeddings": (True,), "activation_function": tuple(ACTIVATIONS),
                           "decoder_vocab_size": (None, config.get("vocab_size", 58101))}, "marian")
    ours = read_fields(FIELDS, config, "marian")
    for stack in (ours["encoder"], ours["decoder"]):
        stack["attention"] |= {"bias": True, "out_bias": True}
        stack["mlp"] |= {"bias": True, "activation": ACTIVATIONS[config.get("activation_function", "gelu")]}
        stack["norm"] = {"kind": "layer", "place": "post", "eps": 1e-5}
    width, eos = ours["encoder"]["width"], config.get("eos_token_id", 0)
    ours["decoder"]["cross"] = width
    return from_dict(Seq2SeqConfig, {**ours, "embedding_scale": width ** 0.5 if config.get("scale_embedding", False) else None, "head_bias": True,
                                     "eos": eos if isinstance(eos, (list, tuple)) else [eos], "family": "marian"})


def to_theirs(cfg):
    """Seq2SeqConfig -> config.json."""
    act = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == cfg.encoder.mlp.activation)
    theirs = {"architectures": ["MarianMTModel"], "model_type": "marian", **write_fields(FIELDS, cfg), "activation_function": act,
              "scale_embedding": cfg.embedding_scale is not None, "static_position_embeddings": True, "is_encoder_decoder": True,
              "share_encoder_decoder_embeddings": True, "decoder_vocab_size": cfg.vocab, "attention_dropout": 0.0, "activation_dropout": 0.0,
              "eos_token_id": cfg.eos[0] if len(cfg.eos) == 1 else list(cfg.eos), "bos_token_id": None, "forced_eos_token_id": None}
    expect_said(cfg, to_ours(theirs), "marian", ("smoothing",))
    return theirs


def rules(cfg):
    """Tensors of both sides; the head's bias is a buffer."""
    D = cfg.encoder.width
    head = (Tie("lm_head.weight", "embedding.weight") if cfg.tied else Rename("lm_head.weight", "head.weight"))
    table = [Rename("model.shared.weight", "embedding.weight"), Rename("final_logits_bias", "bias"), head]
    for side in ("encoder", "decoder"):
        there, here = f"model.{side}.layers.{{n}}.", f"{side}.blocks.{{n}}."
        names = {"self_attn.out_proj": "attention.out", "self_attn_layer_norm": "attention_norm", "fc1": "mlp.up", "fc2": "mlp.down",
                 "final_layer_norm": "mlp_norm"}
        if side == "decoder":
            names |= {"encoder_attn.q_proj": "cross.q", "encoder_attn.out_proj": "cross.out", "encoder_attn_layer_norm": "cross_norm"}
        table += [Tie(f"model.{side}.embed_tokens.weight", "embedding.weight"), Drop(f"model.{side}.embed_positions.weight")]
        for kind in ("weight", "bias"):
            table += [Rename(f"{there}{theirs}.{kind}", f"{here}{ours}.{kind}") for theirs, ours in names.items()]
            table.append(Split(tuple(f"{there}self_attn.{x}_proj.{kind}" for x in "qkv"), f"{here}attention.qkv.{kind}", (D, D, D)))
            if side == "decoder":
                table.append(Split(tuple(f"{there}encoder_attn.{x}_proj.{kind}" for x in "kv"), f"{here}cross.kv.{kind}", (D, D)))
    return tuple(table)


LAYOUTS = {"Seq2SeqLM": Family("marian", to_ours, to_theirs, rules)}
