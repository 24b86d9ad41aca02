"""gencore.layers against formulas, torch, transformers and diffusers."""

import pytest
import torch
import torch.nn.functional as F
from reference import layer_norm, rms_norm
from torch import nn

from gencore.check import ConfigError
from gencore.layers import (
    ACTIVATIONS,
    MLP,
    AdaLNZero,
    GatedMLP,
    MLPConfig,
    NormConfig,
    RMSNorm,
    SharedAdaLN,
    make_mlp,
    make_norm,
    modulate,
)

B, T, D = 2, 5, 12
close = torch.testing.assert_close


def shaken(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("kind", ["rms", "rms+1", "layer"])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_are_what_their_formula_says(kind, affine):
    norm = shaken(make_norm(D, NormConfig(kind=kind, affine=affine, eps=1e-3)))
    x = torch.randn(B, T, D) * 4
    weight = norm.weight + (kind == "rms+1") if affine else None
    expected = layer_norm(x, weight, norm.bias if affine else None, 1e-3) if kind == "layer" else rms_norm(x, weight, 1e-3)
    close(norm(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norms_equal_llama_and_gemma(dtype):
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x = torch.randn(B, T, D, dtype=dtype)
    for theirs, ours in ((LlamaRMSNorm(D, 1e-5), RMSNorm(D, 1e-5)), (Gemma2RMSNorm(D, 1e-5), RMSNorm(D, 1e-5, one_plus=True))):
        shaken(theirs).to(dtype), ours.load_state_dict(theirs.state_dict()), ours.to(dtype)
        close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_norms_start_as_plain_ones():
    x = torch.randn(B, T, D)
    close(make_norm(D, NormConfig())(x), make_norm(D, NormConfig(kind="rms+1"))(x))
    assert make_norm(D, NormConfig(kind="layer", bias=False)).bias is None


@pytest.mark.parametrize("ours, theirs", [("gelu", "gelu"), ("gelu_tanh", "gelu_new"), ("gelu_tanh", "gelu_pytorch_tanh"),
                                          ("quick_gelu", "quick_gelu"), ("silu", "silu"), ("relu", "relu")])
def test_activations_equal_transformers(ours, theirs):
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 201)
    close(ACTIVATIONS[ours](x), ACT2FN[theirs](x), rtol=1e-5, atol=1e-6)


def test_erf_and_tanh_gelu_differ_by_more_than_parity_allows():
    x = torch.linspace(-6, 6, 201)
    assert 1e-4 < (ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_tanh"](x)).abs().max() < 1e-3


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
def test_mlps_are_what_their_formula_says(activation, bias):
    x, act = torch.randn(B, T, D), ACTIVATIONS[activation]
    plain = make_mlp(D, MLPConfig(width=20, activation=activation, bias=bias))
    assert isinstance(plain, MLP)
    close(plain(x), F.linear(act(F.linear(x, plain.up.weight, plain.up.bias)), plain.down.weight, plain.down.bias))
    gated = make_mlp(D, MLPConfig(width=20, gated=True, activation=activation, bias=bias))
    assert isinstance(gated, GatedMLP)
    weight, offset = gated.gate_up.weight, gated.gate_up.bias if bias else torch.zeros(40)
    mixed = act(x @ weight[:20].T + offset[:20]) * (x @ weight[20:].T + offset[20:])
    close(gated(x), F.linear(mixed, gated.down.weight, gated.down.bias), rtol=1e-5, atol=1e-6)


def test_adaptive_norm_starts_at_zero_and_has_the_order_of_dit():
    """shift, scale, gate of attention, then of the MLP, after silu: as diffusers' AdaLayerNormZero."""
    from diffusers.models.normalization import AdaLayerNormZero

    ours, cond, x = AdaLNZero(D), torch.randn(B, D), torch.randn(B, T, D)
    assert all(not part.any() for part in ours(cond))
    theirs = AdaLayerNormZero(D)
    shaken(ours)
    theirs.linear.load_state_dict(ours.linear.state_dict())
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = ours(cond)
    normed, *parts = theirs(x, emb=cond)
    close(modulate(F.layer_norm(x, (D,), eps=1e-6), shift, scale), normed, rtol=1e-5, atol=1e-6)
    for part, expected in zip((gate, mlp_shift, mlp_scale, mlp_gate), parts):
        close(part[:, 0], expected)


def test_shared_adaptive_norm_adds_its_own_table():
    module, cond = SharedAdaLN(D), torch.randn(B, 6, D)
    parts = module(cond)
    assert len(parts) == 6 and all(part.shape == (B, 1, D) for part in parts)
    for i, part in enumerate(parts):
        close(part[:, 0], cond[:, i] + module.table[i])


@pytest.mark.parametrize("make, sentence", [
    (lambda: NormConfig(kind="batch"), "NormConfig.kind should be one of 'rms', 'rms\\+1', 'layer', got 'batch'"),
    (lambda: NormConfig(place="middle"), "NormConfig.place should be one of 'pre', 'post', 'sandwich', got 'middle'"),
    (lambda: MLPConfig(activation="swish"), "MLPConfig.activation should be one of .*got 'swish'"),
])
def test_unknown_words_are_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()
