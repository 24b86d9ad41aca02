"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, plain MLP, biases everywhere, tied head."""
from gencore.config import from_dict
from gencore.families import Drop, Family, Rename, Tie, Transpose, expect_fields, expect_said, read_fields, write_fields
from textgen.model import CausalLMConfig, special_fields, special_ids, usual

FIELDS = (
    ("vocab_size", "vocab", 50257),
    ("n_embd", "transformer.width", 768),
    ("n_layer", "transformer.layers", 12),
    ("n_head", "transformer.attention.heads", 12),
    ("n_positions", "context", 1024),
    ("layer_norm_epsilon", "transformer.norm.eps", 1e-5),
    ("resid_pdrop", "transformer.dropout", 0.1),
    ("tie_word_embeddings", "tied", True),
)
FIXED = {"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)}
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu",
               "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu"}


def to_ours(config):
    """config.json -> CausalLMConfig."""
    expect_fields(config, {**FIXED, "activation_function": tuple(ACTIVATIONS)}, "gpt2")
    ours = read_fields(FIELDS, config, "gpt2")
    stack = ours["transformer"]
    stack["mlp"] = {"width": config.get("n_inner") or 4 * stack["width"], "bias": True,
                    "activation": ACTIVATIONS[config.get("activation_function", "gelu_new")]}
    stack["norm"] |= {"kind": "layer", "place": "pre"}
    stack["attention"] |= {"bias": True, "out_bias": True, "scale": None if config.get("scale_attn_weights", True) else 1.0}
    return usual(from_dict(CausalLMConfig, {**ours, **special_ids(config), "learned_positions": True, "family": "gpt2"}))


def to_theirs(cfg):
    """CausalLMConfig -> config.json."""
    stack = cfg.transformer
    act = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == stack.mlp.activation)
    theirs = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **write_fields(FIELDS, cfg), "n_inner": stack.mlp.width,
              "activation_function": act, "scale_attn_weights": stack.attention.scale is None, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
              **special_fields(cfg)}
    expect_said(usual(cfg), to_ours(theirs), "gpt2")
    return theirs


def rules(cfg):
    """Tensors: GPT-2 stores its matrices as (in, out); q, k and v are one there too."""
    there, here = "transformer.h.{n}.", "transformer.blocks.{n}."
    table = [
        Rename("transformer.wte.weight", "embedding.weight"),
        Rename("transformer.wpe.weight", "positions.table.weight"),
        Tie("lm_head.weight", "embedding.weight") if cfg.tied else Rename("lm_head.weight", "head.weight"),
        Drop(there + "attn.bias"), Drop(there + "attn.masked_bias"),
    ]
    for theirs, ours in (("attn.c_attn", "attention.qkv"), ("attn.c_proj", "attention.out"), ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down")):
        table += [Transpose(f"{there}{theirs}.weight", f"{here}{ours}.weight"), Rename(f"{there}{theirs}.bias", f"{here}{ours}.bias")]
    for theirs, ours in ((there + "ln_1", here + "attention_norm"), (there + "ln_2", here + "mlp_norm"), ("transformer.ln_f", "transformer.norm")):
        table += [Rename(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]
    return tuple(table)


FAMILY = Family("gpt2", to_ours, to_theirs, rules, aliases=((r"^(?!transformer\.|lm_head\.)", "transformer."),))
