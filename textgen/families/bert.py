"""BERT (Devlin et al. 2019): norms after the sum, learned positions, segment types; as BertForMaskedLM and BertForSequenceClassification."""
from gencore.config import from_dict
from gencore.families import Drop, Family, Rename, Split, Tie, expect_fields, expect_said, read_fields, write_fields
from textgen.families.gpt2 import ACTIVATIONS
from textgen.masked import EncoderConfig

FIELDS = (
    ("vocab_size", "vocab", 30522),
    ("hidden_size", "transformer.width", 768),
    ("num_hidden_layers", "transformer.layers", 12),
    ("num_attention_heads", "transformer.attention.heads", 12),
    ("intermediate_size", "transformer.mlp.width", 3072),
    ("hidden_act", "transformer.mlp.activation", "gelu"),
    ("layer_norm_eps", "transformer.norm.eps", 1e-12),
    ("hidden_dropout_prob", "transformer.dropout", 0.1),
    ("max_position_embeddings", "context", 512),
    ("type_vocab_size", "types", 2),
    ("pad_token_id", "pad", 0),
)
FIXED = {"position_embedding_type": ("absolute",), "is_decoder": (False,), "add_cross_attention": (False,), "tie_word_embeddings": (True,),
         "hidden_act": tuple(ACTIVATIONS), "problem_type": (None, "single_label_classification")}


def to_ours(config, labels=()):
    """config.json -> EncoderConfig; labels: where the file names none."""
    expect_fields(config, FIXED, "bert")
    ours = read_fields(FIELDS, config, "bert")
    stack = ours["transformer"]
    stack["attention"] |= {"bias": True, "out_bias": True}
    stack["mlp"] |= {"bias": True, "activation": ACTIVATIONS[stack["mlp"]["activation"]]}
    stack["norm"] |= {"kind": "layer", "place": "post"}
    names = {int(number): label for number, label in (config.get("id2label") or dict(enumerate(labels))).items()}
    dropout = config.get("classifier_dropout")
    return from_dict(EncoderConfig, {**ours, "dropout": stack["dropout"] if dropout is None else dropout, "family": "bert",
                                     "labels": [names[i] for i in sorted(names)]})


def to_theirs(cfg, architecture):
    """EncoderConfig -> config.json."""
    theirs = {"architectures": [architecture], "model_type": "bert", **write_fields(FIELDS, cfg), "attention_probs_dropout_prob": 0.0,
              "classifier_dropout": cfg.dropout, "tie_word_embeddings": True, "position_embedding_type": "absolute"}
    theirs["hidden_act"] = next(name for name, ours in ACTIVATIONS.items() if ours == cfg.transformer.mlp.activation)
    if cfg.labels:
        theirs |= {"id2label": {str(i): label for i, label in enumerate(cfg.labels)}, "label2id": {label: i for i, label in enumerate(cfg.labels)}}
    expect_said(cfg, to_ours(theirs), "bert")
    return theirs


def encoder_rules(cfg):
    """Everything below the heads."""
    D = cfg.transformer.width
    there, here = "bert.encoder.layer.{n}.", "encoder.transformer.blocks.{n}."
    table = [Rename(f"bert.embeddings.{theirs}.weight", f"encoder.{ours}.weight") for theirs, ours in
             (("word_embeddings", "embedding"), ("position_embeddings", "positions.table"), ("token_type_embeddings", "types"))]
    table.append(Drop("bert.embeddings.position_ids"))
    for kind in ("weight", "bias"):
        table += [Rename(f"bert.embeddings.LayerNorm.{kind}", f"encoder.norm.{kind}"),
                  Split(tuple(f"{there}attention.self.{x}.{kind}" for x in ("query", "key", "value")), f"{here}attention.qkv.{kind}", (D, D, D))]
        table += [Rename(f"{there}{theirs}.{kind}", f"{here}{ours}.{kind}") for theirs, ours in (
            ("attention.output.dense", "attention.out"), ("attention.output.LayerNorm", "attention_norm"),
            ("intermediate.dense", "mlp.up"), ("output.dense", "mlp.down"), ("output.LayerNorm", "mlp_norm"))]
    return table


def masked_rules(cfg):
    head = "cls.predictions.transform."
    return (*encoder_rules(cfg), *(Rename(f"{head}{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in (("dense", "dense"), ("LayerNorm", "norm"))
                                   for kind in ("weight", "bias")),
            Rename("cls.predictions.bias", "bias"), Tie("cls.predictions.decoder.weight", "encoder.embedding.weight"),
            Tie("cls.predictions.decoder.bias", "bias"),
            *(Drop(f"{part}.{kind}") for part in ("bert.pooler.dense", "cls.seq_relationship") for kind in ("weight", "bias")))


def classifier_rules(cfg):
    return (*encoder_rules(cfg), *(Rename(f"{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in
                                   (("bert.pooler.dense", "pooler"), ("classifier", "head")) for kind in ("weight", "bias")))


ALIASES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
LAYOUTS = {
    "MaskedLM": Family("bert", to_ours, lambda cfg: to_theirs(cfg, "BertForMaskedLM"), masked_rules, ALIASES),
    "TextClassifier": Family("bert", lambda config: to_ours(config, ("LABEL_0", "LABEL_1")),         # transformers' names when there are none
                             lambda cfg: to_theirs(cfg, "BertForSequenceClassification"), classifier_rules, ALIASES),
}
