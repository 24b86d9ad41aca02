"""T5 (Raffel et al. 2020): a bias by distance instead of places, RMS norms, no scale on scores; the first version, and 1.1 (gated, own head)."""
from gencore.config import from_dict
from gencore.families import Drop, Family, Rename, Split, Tie, expect_fields, expect_said, read_fields, write_fields
from textgen.seq2seq import Seq2SeqConfig

FIELDS = (
    ("vocab_size", "vocab", 32128), ("n_positions", "context", 512), ("pad_token_id", "pad", 0),
    *((theirs, ours.format(side), default) for side in ("encoder", "decoder") for theirs, ours, default in (
        ("d_model", "{}.width", 512), ("dropout_rate", "{}.dropout", 0.1), ("num_heads", "{}.attention.heads", 8),
        ("d_kv", "{}.attention.head_width", 64), ("d_ff", "{}.mlp.width", 2048), ("layer_norm_epsilon", "{}.norm.eps", 1e-6),
        ("relative_attention_num_buckets", "{}.relative.buckets", 32), ("relative_attention_max_distance", "{}.relative.distance", 128))),
    ("num_layers", "encoder.layers", 6),
)
FORMS = {"relu": (False, "relu"), "gated-gelu": (True, "gelu_tanh")}


def to_ours(config):
    """config.json -> Seq2SeqConfig."""
    form = config.get("feed_forward_proj", "relu")
    expect_fields({"feed_forward_proj": form}, {"feed_forward_proj": tuple(FORMS)}, "t5")
    ours = read_fields(FIELDS, config, "t5")
    for stack, two_way in ((ours["encoder"], True), (ours["decoder"], False)):
        stack["attention"]["scale"] = 1.0
        stack["mlp"] |= dict(zip(("gated", "activation"), FORMS[form]))
        stack["norm"] |= {"kind": "rms", "place": "pre"}
        stack["relative"] |= {"kind": "t5", "two_way": two_way}
    width, eos, tied = ours["encoder"]["width"], config.get("eos_token_id", 1), config.get("tie_word_embeddings", True)
    layers = config.get("num_decoder_layers")
    ours["decoder"] |= {"cross": width, "layers": ours["encoder"]["layers"] if layers is None else layers}
    return from_dict(Seq2SeqConfig, {**ours, "sinusoids": False, "embedding_scale": None, "head_bias": False, "tied": tied,
                                     "output_scale": width ** -0.5 if config.get("scale_decoder_outputs", tied) else None,
                                     "start": config.get("decoder_start_token_id", 0), "family": "t5",
                                     "eos": eos if isinstance(eos, (list, tuple)) else [eos]})


def to_theirs(cfg):
    """Seq2SeqConfig -> config.json."""
    form = next((form for form, shape in FORMS.items() if shape == (cfg.encoder.mlp.gated, cfg.encoder.mlp.activation)), "relu")
    theirs = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", **write_fields(FIELDS, cfg), "feed_forward_proj": form,
              "num_decoder_layers": cfg.decoder.layers, "tie_word_embeddings": cfg.tied, "scale_decoder_outputs": cfg.output_scale is not None,
              "is_encoder_decoder": True, "decoder_start_token_id": cfg.start, "eos_token_id": cfg.eos[0] if len(cfg.eos) == 1 else list(cfg.eos)}
    expect_said(cfg, to_ours(theirs), "t5", ("smoothing",))
    return theirs


def rules(cfg):
    """Tensors of both sides; the bias by distance lies in block 0 there and belongs to the stack here."""
    inner = cfg.encoder.attention.heads * cfg.encoder.attention.head_width
    head = Tie("lm_head.weight", "embedding.weight") if cfg.tied else Rename("lm_head.weight", "head.weight")
    table = [Rename("shared.weight", "embedding.weight"), head]
    for side, last in (("encoder", 1), ("decoder", 2)):
        there, here = f"{side}.block.{{n}}.layer.", f"{side}.blocks.{{n}}."
        feed = f"{there}{last}.DenseReluDense."
        table += [
            Tie(f"{side}.embed_tokens.weight", "embedding.weight"),
            Rename(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{side}.relative.table.weight"),
            Split(tuple(f"{there}0.SelfAttention.{x}.weight" for x in "qkv"), here + "attention.qkv.weight", (inner,) * 3),
            Rename(there + "0.SelfAttention.o.weight", here + "attention.out.weight"),
            Rename(there + "0.layer_norm.weight", here + "attention_norm.weight"),
            Split((feed + "wi_0.weight", feed + "wi_1.weight"), here + "mlp.gate_up.weight", (cfg.encoder.mlp.width,) * 2)
            if cfg.encoder.mlp.gated else Rename(feed + "wi.weight", here + "mlp.up.weight"),
            Rename(feed + "wo.weight", here + "mlp.down.weight"),
            Rename(f"{there}{last}.layer_norm.weight", here + "mlp_norm.weight"),
            Rename(f"{side}.final_layer_norm.weight", f"{side}.norm.weight")]
    cross = "decoder.block.{n}.layer.1."
    table += [Rename(cross + "EncDecAttention.q.weight", "decoder.blocks.{n}.cross.q.weight"),
              Split(tuple(f"{cross}EncDecAttention.{x}.weight" for x in "kv"), "decoder.blocks.{n}.cross.kv.weight", (inner, inner)),
              Rename(cross + "EncDecAttention.o.weight", "decoder.blocks.{n}.cross.out.weight"),
              Rename(cross + "layer_norm.weight", "decoder.blocks.{n}.cross_norm.weight"),
              Drop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight")]           # the first files have it, nothing reads it
    return tuple(table)


LAYOUTS = {"Seq2SeqLM": Family("t5", to_ours, to_theirs, rules)}
