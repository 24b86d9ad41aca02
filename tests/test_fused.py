"""Linear layer and activation in one call: the same numbers, and the usual way wherever it does not apply."""
import pytest
import torch
from torch import nn

from gencore import fused
from gencore.layers import MLP, MLPConfig
from gencore.processor import multiplies_bfloat16


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(fused.ROWS, 24), (3, 17, 24), (2, 5, 7, 24)])
def test_an_mlp_without_gradients_gives_what_it_gives_with_them(activation, bias, shape):
    torch.manual_seed(0)
    mlp, x = MLP(24, MLPConfig(40, activation=activation, bias=bias)), torch.randn(shape)
    with torch.no_grad():
        assert fused.fits(x, mlp.up)
        got, transposed = mlp(x), mlp(x.transpose(0, -2)).transpose(0, -2)
    assert got.shape == x.shape and not got.requires_grad
    torch.testing.assert_close(got, mlp(x).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(transposed, got, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_does_not_fit_goes_the_usual_way():
    x, linear = torch.randn(fused.ROWS, 8), nn.Linear(8, 8)
    assert fused.fits(x, linear)
    assert not fused.fits(x[:1], linear) and not fused.fits(x.double(), linear.double())
    assert not fused.fits(x, nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    assert not fused.fits(x.bfloat16(), nn.Linear(8, 8)) and not fused.fits(x.half(), nn.Linear(8, 8).half())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.fits(x.double(), nn.Linear(8, 8).double())                      # which autocast leaves in float64
    with torch.backends.mkldnn.flags(enabled=False):
        assert not fused.fits(x, nn.Linear(8, 8))
    with torch.enable_grad():
        assert not fused.fits(x, nn.Linear(8, 8))


@pytest.mark.skipif(not multiplies_bfloat16("cpu"), reason="products of bfloat16 are emulated here")
def test_in_bfloat16_it_is_no_further_from_float32_than_the_usual_way():
    torch.manual_seed(0)
    mlp, x = MLP(64, MLPConfig(128, activation="gelu_tanh", bias=True)), torch.randn(fused.ROWS, 64)
    exact = mlp(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        usual = mlp(x).detach()
        with torch.no_grad():
            got = mlp(x)
    with torch.no_grad():
        cast = mlp.bfloat16()(x.bfloat16())
    assert got.dtype == usual.dtype == cast.dtype == torch.bfloat16
    assert torch.equal(got, cast) and (got - exact).abs().max() <= 1.2 * (usual - exact).abs().max()


@torch.no_grad()
def test_hooks_are_called():
    mlp, x, seen = MLP(8, MLPConfig(16)), torch.randn(fused.ROWS, 8), []
    for layer in (mlp.up, mlp.down):
        handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
        mlp(x)
        handle.remove()
    assert seen == [(fused.ROWS, 16), (fused.ROWS, 8)]
