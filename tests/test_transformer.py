"""gencore.transformer against torch's encoder and decoder layers, transformers' Llama, and its own parts written out."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference import attention_by_loops, visible_by_rules
from torch import nn

from gencore.attention import AttentionConfig
from gencore.check import InputError
from gencore.layers import MLPConfig, NormConfig, modulate
from gencore.masks import causal, documents, padding, prefix, window
from gencore.positions import RelativeConfig, RotaryConfig
from gencore.transformer import Memory, Transformer, TransformerConfig

B, T, S, D = 2, 8, 5, 32
close = torch.testing.assert_close
LAYER = NormConfig(kind="layer", eps=1e-5)
LLAMA = TransformerConfig(width=D, layers=2, attention=AttentionConfig(heads=4, kv_heads=2), rotary=RotaryConfig(),
                          mlp=MLPConfig(width=48, gated=True, activation="silu"))


def lively(module):
    """Weights large enough that a wrong order or a lost part shows."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_blocks_equal_torch_encoder_layers(place, activation):
    theirs = lively(nn.TransformerEncoderLayer(D, 4, 48, 0.0, activation, batch_first=True, norm_first=place == "pre"))
    ours = Transformer(TransformerConfig(
        width=D, layers=1, attention=AttentionConfig(heads=4, bias=True, out_bias=True), norm=replace(LAYER, place=place),
        mlp=MLPConfig(width=48, activation=activation, bias=True), final_norm=False)).eval()
    state = theirs.state_dict()
    ours.load_state_dict({"blocks.0." + name: state[their] for name, their in {
        "attention_norm.weight": "norm1.weight", "attention_norm.bias": "norm1.bias", "mlp_norm.weight": "norm2.weight",
        "mlp_norm.bias": "norm2.bias", "attention.qkv.weight": "self_attn.in_proj_weight", "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out.weight": "self_attn.out_proj.weight", "attention.out.bias": "self_attn.out_proj.bias",
        "mlp.up.weight": "linear1.weight", "mlp.up.bias": "linear1.bias", "mlp.down.weight": "linear2.weight",
        "mlp.down.bias": "linear2.bias"}.items()})
    x, keep = torch.randn(B, T, D), torch.rand(B, T) > 0.3
    keep[:, 0] = True
    close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    close(ours(x, causal()), theirs(x, torch.ones(T, T).triu(1).bool()), rtol=1e-4, atol=1e-5)
    close(ours(x, padding(keep))[keep], theirs(x, src_key_padding_mask=~keep)[keep], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_blocks_with_memory_equal_torch_decoder_layers(place):
    theirs = lively(nn.TransformerDecoderLayer(D, 4, 48, 0.0, "gelu", batch_first=True, norm_first=place == "pre"))
    ours = Transformer(TransformerConfig(
        width=D, layers=1, attention=AttentionConfig(heads=4, bias=True, out_bias=True), norm=replace(LAYER, place=place), cross=D,
        mlp=MLPConfig(width=48, bias=True), final_norm=False)).eval()
    state, block = theirs.state_dict(), ours.blocks[0]
    for mine, their in ((block.attention_norm, "norm1"), (block.cross_norm, "norm2"), (block.mlp_norm, "norm3"),
                        (block.mlp.up, "linear1"), (block.mlp.down, "linear2"), (block.attention.out, "self_attn.out_proj"),
                        (block.cross.out, "multihead_attn.out_proj")):
        mine.load_state_dict({name: state[f"{their}.{name}"] for name in ("weight", "bias")})
    for name in ("weight", "bias"):
        getattr(block.attention.qkv, name).data.copy_(state[f"self_attn.in_proj_{name}"])
        getattr(block.cross.q, name).data.copy_(state[f"multihead_attn.in_proj_{name}"][:D])
        getattr(block.cross.kv, name).data.copy_(state[f"multihead_attn.in_proj_{name}"][D:])
    x, memory, keep = torch.randn(B, T, D), torch.randn(B, S, D), torch.rand(B, S) > 0.3
    keep[:, 0] = True
    expected = theirs(x, memory, torch.ones(T, T).triu(1).bool(), memory_key_padding_mask=~keep)
    close(ours(x, causal(), memory=Memory(memory, keep)), expected, rtol=1e-4, atol=1e-5)


def test_a_causal_stack_equals_llama():
    from transformers import LlamaConfig, LlamaModel

    theirs = lively(LlamaModel(LlamaConfig(hidden_size=D, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                           intermediate_size=48, vocab_size=8, rms_norm_eps=1e-6)))
    ours, state = Transformer(LLAMA).eval(), theirs.state_dict()
    renamed = {"norm.weight": state["norm.weight"]}
    for i in range(2):
        there, here = f"layers.{i}.", f"blocks.{i}."
        renamed |= {here + "attention_norm.weight": state[there + "input_layernorm.weight"],
                    here + "mlp_norm.weight": state[there + "post_attention_layernorm.weight"],
                    here + "attention.qkv.weight": torch.cat([state[f"{there}self_attn.{c}_proj.weight"] for c in "qkv"]),
                    here + "attention.out.weight": state[there + "self_attn.o_proj.weight"],
                    here + "mlp.gate_up.weight": torch.cat([state[f"{there}mlp.{c}_proj.weight"] for c in ("gate", "up")]),
                    here + "mlp.down.weight": state[there + "mlp.down_proj.weight"]}
    ours.load_state_dict(renamed)
    x = torch.randn(B, T, D)
    close(ours(x, causal()), theirs(inputs_embeds=x).last_hidden_state, rtol=1e-4, atol=1e-5)
    close(ours.bfloat16()(x.bfloat16(), causal()).float(), theirs(inputs_embeds=x).last_hidden_state, rtol=0.1, atol=0.3)


def test_sandwich_norms_stand_around_both_sublayers():
    cfg = replace(LLAMA, layers=1, norm=NormConfig(kind="rms+1", place="sandwich"), final_norm=False, rotary=None)
    model, x = lively(Transformer(cfg)), torch.randn(B, T, D)
    block = model.blocks[0]
    middle = x + block.attention_after(block.attention(block.attention_norm(x)))
    close(model(x), middle + block.mlp_after(block.mlp(block.mlp_norm(middle))))


@pytest.mark.parametrize("condition, shape", [("adaln_zero", (B, D)), ("adaln_shared", (B, 6, D))])
def test_adaptive_blocks_modulate_and_gate_in_the_order_of_dit(condition, shape):
    cfg = TransformerConfig(width=D, layers=1, norm=replace(LAYER, affine=False), condition=condition, cross=12, cross_norm=False,
                            final_norm=False)
    model, x, cond, memory = lively(Transformer(cfg)), torch.randn(B, T, D), torch.randn(*shape), Memory(torch.randn(B, S, 12))
    block = model.blocks[0]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = block.modulation(cond)
    out = x + gate * block.attention(modulate(block.attention_norm(x), shift, scale))
    out = out + block.cross(out, memory.states)                                       # the stream as it is, no gate: PixArt
    out = out + mlp_gate * block.mlp(modulate(block.mlp_norm(out), mlp_shift, mlp_scale))
    close(model(x, memory=memory, cond=cond), out)


def test_adaln_zero_starts_as_identity():
    cfg = TransformerConfig(width=D, layers=3, norm=replace(LAYER, affine=False), condition="adaln_zero", final_norm=False)
    x = torch.randn(B, T, D)
    assert torch.equal(Transformer(cfg)(x, cond=torch.randn(B, D)), x)


def layer_attention(cfg, mask, rules, bias=None):
    """One layer's attention output by the module and by loops over what the rules allow."""
    model = lively(Transformer(replace(cfg, layers=1, final_norm=False)))
    x, seen = torch.randn(B, T, D), {}
    attention = model.blocks[0].attention
    attention.register_forward_hook(lambda module, args, output: seen.update(input=args[0], output=output))
    model(x, mask)
    N, G, E = attention.heads, attention.kv_heads, attention.head_width
    q, k, v = attention.qkv(seen["input"]).detach().unflatten(-1, (-1, E)).transpose(1, 2).split((N, G, G), 1)
    by_loops = attention_by_loops(q, k, v, lambda b, t, s: visible_by_rules(rules, b, t, s), softcap=attention.softcap,
                                  scale=attention.scale, bias=None if bias is None else model.relative(torch.arange(T), torch.arange(T))[0])
    expected = F.linear(by_loops.transpose(1, 2).flatten(2).float(), attention.out.weight)
    close(seen["output"], expected, rtol=1e-4, atol=1e-4)


KEEP = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1, 1]]).bool()
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 1, 1, 1]])
PLAIN = TransformerConfig(width=D)


@pytest.mark.parametrize("cfg, mask, rules", [
    (PLAIN, None, {}),
    (PLAIN, causal(), {"causal": True}),
    (PLAIN, causal() & window(3), {"causal": True, "window": 3}),
    (PLAIN, window(2), {"window": 2}),
    (PLAIN, padding(KEEP), {"keep": KEEP}),
    (PLAIN, causal() & padding(KEEP), {"causal": True, "keep": KEEP}),
    (PLAIN, causal() & documents(DOCUMENTS), {"causal": True, "documents": DOCUMENTS}),
    (PLAIN, causal() & prefix(torch.tensor([3, 5])), {"causal": True, "prefix": torch.tensor([3, 5])}),
    (replace(PLAIN, windows=(3,)), causal(), {"causal": True, "window": 3}),
    (replace(PLAIN, windows=(3,)), None, {"window": 3}),
    (replace(PLAIN, windows=(4,)), causal() & window(2), {"causal": True, "window": 2}),
    (replace(PLAIN, attention=AttentionConfig(heads=4, kv_heads=1, softcap=1.5)), causal(), {"causal": True}),
    (replace(PLAIN, attention=AttentionConfig(heads=2, head_width=10, scale=1.0)), causal(), {"causal": True}),
])
def test_what_a_layer_sees_is_what_the_loops_say(cfg, mask, rules):
    layer_attention(cfg, mask, rules)


@pytest.mark.parametrize("kind", ["t5", "alibi"])
@pytest.mark.parametrize("mask, rules", [(None, {}), (causal(), {"causal": True}),
                                         (causal() & padding(KEEP), {"causal": True, "keep": KEEP})])
def test_a_relative_bias_is_added_to_visible_scores(kind, mask, rules):
    layer_attention(replace(PLAIN, relative=RelativeConfig(kind=kind, buckets=8, distance=6)), mask, rules, bias=True)


def test_layers_with_a_window_have_their_own_mask_and_rotary():
    """Layer 0 slides with theta 100, layer 1 sees everything with theta 10000: the same as two models of one layer."""
    cfg = replace(LLAMA, windows=(3, None), local_rotary=RotaryConfig(theta=100.0), final_norm=False)
    both, x = lively(Transformer(cfg)), torch.randn(B, T, D)
    first = Transformer(replace(cfg, layers=1, windows=None, rotary=cfg.local_rotary, local_rotary=None)).eval()
    second = Transformer(replace(cfg, layers=1, windows=None, local_rotary=None)).eval()
    first.blocks[0], second.blocks[0] = both.blocks[0], both.blocks[1]
    close(both(x, causal()), second(first(x, causal() & window(3)), causal()))


def test_documents_of_a_packed_row_equal_documents_alone():
    model, x = lively(Transformer(LLAMA)), torch.randn(1, T, D)
    packed = model(x, causal() & documents(DOCUMENTS[:1]), positions=torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]]))
    for start, end in ((0, 3), (3, 6), (6, 8)):
        close(packed[:, start:end], model(x[:, start:end], causal()), rtol=1e-4, atol=1e-5)


def test_dropout_happens_in_training_only():
    model, x = Transformer(replace(LLAMA, dropout=0.5)), torch.randn(B, T, D)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    dry = Transformer(LLAMA)
    assert torch.equal(dry(x), dry(x))
    lost = (Transformer(replace(LLAMA, layers=1, dropout=1.0, final_norm=False)).train()(x) - x).abs().max()
    assert lost == 0


def test_a_stack_runs_in_bfloat16_and_under_autocast():
    for cfg in (LLAMA, replace(LLAMA, rotary=None, relative=RelativeConfig()),
                replace(LLAMA, rotary=None, relative=RelativeConfig("alibi")),
                replace(LLAMA, attention=AttentionConfig(softcap=5.0, qk_norm="rms"))):
        model, x = Transformer(cfg), torch.randn(B, T, D)
        wide = model(x, causal())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x, causal() & padding(KEEP))
            mixed.float().sum().backward()
        narrow = model.bfloat16()(x.bfloat16(), causal())
        assert narrow.dtype == torch.bfloat16 and mixed.isfinite().all()
        close(narrow.float(), wide, rtol=0.1, atol=0.1)


def test_gradients_reach_every_weight():
    cfg = replace(LLAMA, cross=12, attention=AttentionConfig(heads=4, qk_norm="rms", bias=True), relative=RelativeConfig(), dropout=0.1)
    model = Transformer(cfg)
    model(torch.randn(B, T, D), causal(), memory=Memory(torch.randn(B, S, 12))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_training_goes_on_after_a_look_in_inference_mode():
    """Rates that depend on the length are made in the forward: those made in inference mode must not reach a backward."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4}
    model, x = Transformer(replace(LLAMA, rotary=RotaryConfig(scaling=scaling))), torch.randn(B, T, D)
    with torch.inference_mode():
        seen = model(x, causal())
    out = model(x, causal())
    out.sum().backward()
    close(out, seen.clone())


def test_the_same_seed_makes_the_same_weights_and_residual_writers_start_small():
    torch.manual_seed(3)
    first = Transformer(replace(LLAMA, layers=8))
    torch.manual_seed(3)
    second = Transformer(replace(LLAMA, layers=8))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert float(first.blocks[0].attention.qkv.weight.std().detach()) == pytest.approx(0.02, rel=0.1)
    assert float(first.blocks[0].mlp.down.weight.std().detach()) == pytest.approx(0.005, rel=0.1)


def test_tensor_names_are_the_published_ones():
    names = {name for name in Transformer(replace(LLAMA, layers=1)).state_dict()}
    assert names == {"blocks.0.attention_norm.weight", "blocks.0.attention.qkv.weight", "blocks.0.attention.out.weight",
                     "blocks.0.mlp_norm.weight", "blocks.0.mlp.gate_up.weight", "blocks.0.mlp.down.weight", "norm.weight"}


def test_a_model_can_be_made_without_memory_and_copied():
    with torch.device("meta"):
        model = Transformer(replace(LLAMA, condition="adaln_zero"))
    assert all(p.is_meta for p in model.parameters())
    weights = Transformer(replace(LLAMA, condition="adaln_zero")).state_dict()
    model.load_state_dict(weights, assign=True)
    x, cond = torch.randn(B, T, D), torch.randn(B, D)
    assert torch.equal(model(x, cond=cond), copy.deepcopy(model)(x, cond=cond))


@pytest.mark.parametrize("cfg, given, sentence", [
    ({}, {"x": torch.randn(B, T, 16)}, r"x: D should be 32, got 16 in shape \(2, 8, 16\)"),
    ({}, {"x": torch.randn(T, D)}, "x: expected 3 dimensions"),
    ({"cross": 12}, {}, r"this transformer has cross-attention: give memory=Memory\(states, keep\)"),
    ({}, {"memory": Memory(torch.randn(B, S, 12))}, "this transformer has no cross-attention"),
    ({"cross": 12}, {"memory": Memory(torch.randn(B, S, 13))}, "memory: M should be 12, got 13"),
    ({"cross": 12}, {"memory": Memory(torch.randn(B, S, 12), torch.ones(B, S + 1))}, "memory.keep: S should be 5, got 6"),
    ({"condition": "adaln_zero"}, {}, 'condition is "adaln_zero": cond should be given'),
    ({}, {"cond": torch.randn(B, D)}, 'condition is "none": cond should not be given'),
    ({"condition": "adaln_zero"}, {"cond": torch.randn(B, 6, D)}, "cond: expected 2 dimensions"),
    ({"condition": "adaln_shared"}, {"cond": torch.randn(B, D)}, r"cond: expected 3 dimensions \(B 6 D\)"),
    ({}, {"positions": torch.arange(T + 1)}, r"positions should be \(8,\) or \(2, 8\), got \(9,\)"),
    ({"rotary": RotaryConfig(axes=(4, 4))}, {}, r"positions should be \(8,\) or \(2, 8\) and an axis, got \(8,\)"),
    ({}, {"mask": padding(torch.ones(B, T - 1))}, "keep covers 7 slots, the attention looks at 8"),
])
def test_wrong_inputs_are_named(cfg, given, sentence):
    model = Transformer(replace(LLAMA, **cfg))
    with pytest.raises(InputError, match=sentence):
        model(given.pop("x", torch.randn(B, T, D)), given.pop("mask", None), **given)
