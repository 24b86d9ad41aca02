"""gencore/packed.py: the same products from weights in oneDNN's order, while it is open and no longer."""
import pytest
import torch
from torch import nn

from gencore.decode import column_major
from gencore.packed import FEW, packed
from gencore.processor import multiplies_bfloat16
from gencore.step_linear import StepLinear

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 72), nn.GELU(), nn.Linear(72, 24, bias=False))


@pytest.mark.parametrize("shape", [(16, 40), (2, 8, 40), (FEW, 40), (FEW - 1, 40), (40,), (300, 40)])
@pytest.mark.parametrize("lay_out", [lambda layers: layers, column_major])
@torch.no_grad()
def test_products_are_the_same(layers, shape, lay_out):
    x = torch.randn(*shape)
    expected = lay_out(layers)(x)
    with packed(layers, 16):
        torch.testing.assert_close(layers(x), expected, rtol=0, atol=1e-5)
    assert torch.equal(layers(x), expected)


@onednn
@torch.no_grad()
def test_enough_rows_are_read_in_another_order_and_few_as_ever(layers, monkeypatch):
    layers = layers[0]
    with packed(layers, 16):
        layers.weight.zero_()                           # a copy was made: this is for a text's time alone
        assert layers(torch.randn(FEW, 40)).sub(layers.bias).abs().max() > 0.1
        torch.testing.assert_close(layers(torch.randn(FEW - 1, 40)), layers.bias.expand(FEW - 1, -1))
    torch.testing.assert_close(layers(torch.randn(FEW, 40)), layers.bias.expand(FEW, -1))


@pytest.mark.parametrize("rows", [1, FEW - 1])
def test_few_rows_make_no_copies(layers, rows):
    with packed(layers, rows):
        assert not any("forward" in vars(child) for child in layers.modules())


def test_gradients_and_autocast_go_the_usual_way(layers):
    x = torch.randn(16, 40)
    with packed(layers, 16):
        layers(x).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layers(x).dtype == torch.bfloat16
    assert all(weight.grad.any() for weight in layers.parameters())


@torch.no_grad()
def test_bfloat16_is_the_same_and_other_layers_stay(layers):
    x = torch.randn(16, 40)
    with packed(StepLinear(layers[0]), 16) as nothing:
        assert nothing is None
    short = layers.bfloat16()
    expected = short(x.bfloat16())
    with packed(short, 16):
        assert any("forward" in vars(child) for child in short.modules()) == multiplies_bfloat16("cpu")
        torch.testing.assert_close(short(x.bfloat16()), expected, rtol=2e-2, atol=2e-2)


@onednn
@torch.no_grad()
def test_it_closes_after_an_error_and_where_another_is_open(layers):
    calls = []
    layers[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(RuntimeError), packed(layers, 16):
        layers(torch.randn(16, 3))
    assert not any("forward" in vars(child) for child in layers.modules())
    with packed(layers, 16):
        with packed(layers, 8):
            layers(torch.randn(8, 40))
        assert "forward" in vars(layers[0])             # it is the outer one's
        layers(torch.randn(8, 40))
    assert len(calls) == 2 and "forward" not in vars(layers[0])
