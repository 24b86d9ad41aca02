"""gencore.tiles: equal to the dense mask, forward and gradients; what is computed grows with what is visible, counted rather than timed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gencore import tiles
from gencore.attention import AttentionConfig, attend
from gencore.cache import RollingCache
from gencore.check import InputError
from gencore.layers import MLPConfig
from gencore.masks import block_sparse, blocks, causal, documents, padding, prefix, sparse, window
from gencore.positions import RotaryConfig
from gencore.tiles import Tiles, tiles_of
from gencore.transformer import Transformer, TransformerConfig

B, N, E = 2, 4, 6
close = torch.testing.assert_close
RANDOM = torch.rand(9, 9, generator=torch.Generator().manual_seed(2)) < 0.3
PATTERNS = {"window": window(21), "strided": sparse(width=24, stride=24), "odd stride": sparse(stride=7),
            "stride beside others": sparse(width=5, first=2, stride=13), "global": sparse(width=10, first=3), "only global": sparse(first=3),
            "squares as tiles": block_sparse(RANDOM, 16), "small squares": block_sparse(RANDOM.repeat(4, 4), 5),
            "large squares": block_sparse(RANDOM, 23), "window of a pattern": window(40) & sparse(stride=16, width=3)}


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 and 8, used however short the sequence is."""
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "FINE", 8)
    monkeypatch.setattr(tiles, "SHORTEST", 2)
    monkeypatch.setattr(tiles, "WORTH", float("inf"))


def heads(groups, queries, keys):
    return [torch.randn(B, n, slots, E, requires_grad=True) for n, slots in ((N, queries), (groups, keys), (groups, keys))]


def both_ways(mask, qkv, first=0, **settings):
    """(outputs and gradients by tiles, the same by the dense mask), the queries being the last of the keys, which begin at `first`.

    What a query that sees nothing gets is thrown away."""
    T, S = qkv[0].shape[2], qkv[1].shape[2]
    query, key = torch.arange(first + S - T, first + S), torch.arange(first, first + S)
    dense, sent, results = mask.dense(query, key), torch.randn(qkv[0].shape), []
    for form in (tiles_of(mask, query, key, rows=B), dense):
        out = attend(*qkv, form, **settings) * dense.any(-1, keepdim=True)
        results.append((out, *torch.autograd.grad(out, qkv, sent)))
    return results


@pytest.mark.parametrize("groups", [N, 2])
@pytest.mark.parametrize("direction", ["causal", "two-way"])
@pytest.mark.parametrize("name", PATTERNS)
def test_tiles_equal_the_dense_mask_forward_and_backward(small, name, direction, groups):
    mask = causal() & PATTERNS[name] if direction == "causal" else PATTERNS[name]
    keep = torch.ones(B, 140, dtype=torch.bool)
    keep[0, :19], keep[1, 100:] = False, False
    for T, S, more in ((101, 101, None), (48, 48, None), (37, 120, None), (101, 101, padding(keep)),
                       (101, 101, documents(torch.arange(140).expand(B, 140) // 30))):
        by_tiles, by_dense = both_ways(mask if more is None else mask & more, heads(groups, T, S))
        for a, b in zip(by_tiles, by_dense):
            close(a, b, rtol=1e-5, atol=1e-5)


def test_keys_that_start_late_have_slots_of_their_own(small):
    """A rolling cache holds the slots from 37 on only."""
    for mask in (causal() & window(20), causal() & sparse(width=8, stride=12, first=40), causal() & block_sparse(RANDOM, 16)):
        for a, b in zip(*both_ways(mask, heads(N, 30, 70), first=37)):
            close(a, b, rtol=1e-5, atol=1e-5)


def test_a_softcap_and_a_scale_are_those_of_dense_attention(small):
    for a, b in zip(*both_ways(causal() & window(20), heads(2, 60, 60), softcap=2.0, scale=0.9)):
        close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", [causal(), window(21), causal() & window(21), sparse(width=9), sparse(stride=24), sparse(stride=7),
                                  sparse(first=20), block_sparse(RANDOM, 16), block_sparse(RANDOM, 23)])
def test_a_tile_is_left_out_exactly_when_nothing_in_it_is_visible(mask):
    slots, size = torch.arange(101), 16
    spans = torch.stack((slots[::size], (slots[::size] + size - 1).clamp(max=100)))
    touched = mask.touches(spans[:, :, None], spans[:, None])
    dense = torch.nn.functional.pad(mask.dense(slots, slots), (0, 11, 0, 11)).view(7, size, 7, size).any(3).any(1)
    assert torch.equal(touched, dense)


@pytest.mark.parametrize("mask", [causal(), padding(torch.ones(B, 2048)), causal() & window(1900), window(64) & prefix(torch.tensor([3, 4])),
                                  window(64) & blocks(torch.ones(2048, 2048, dtype=torch.bool)), sparse(stride=2, width=9)])
def test_a_mask_that_hides_little_or_by_no_rule_of_slots_stays_dense(mask):
    assert tiles_of(mask, torch.arange(2048), torch.arange(2048)) is None


def test_short_sequences_and_single_steps_stay_dense():
    assert tiles_of(causal() & window(8), torch.arange(500), torch.arange(500)) is None
    assert tiles_of(causal() & window(8), torch.tensor([5000]), torch.arange(5001)) is None


def test_a_layout_that_is_too_small_is_refused():
    with pytest.raises(InputError, match="the layout covers 9 x 16 slots, the attention looks at 2048: make it larger"):
        tiles_of(block_sparse(RANDOM, 16), torch.arange(2048), torch.arange(2048))


def test_computed_pairs_grow_with_the_visible_ones():
    """Windows and global slots: a constant for each query. Strided with a stride of sqrt(T): T ** 1.5 (Child et al. 2019)."""
    for mask in (causal() & window(256), causal() & sparse(width=256, first=4), sparse(width=200, first=8)):
        short, long = (tiles_of(mask, torch.arange(T), torch.arange(T)).pairs for T in (3072, 6144))
        assert long < 2.2 * short and long < 6144 * 900
    short, long = (tiles_of(causal() & sparse(width=side, stride=side), torch.arange(side ** 2), torch.arange(side ** 2)).pairs for side in (64, 96))
    assert long < 1.15 * 1.5 ** 3 * short                              # T grows 1.5 ** 2 times


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor that anything computes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if torch.is_tensor(tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def largest(function, *inputs, **named):
    with Largest() as seen:
        function(*inputs, **named)
    return seen.elements


def stack(**settings):
    torch.manual_seed(0)
    attention = AttentionConfig(heads=2, kv_heads=1)
    return Transformer(TransformerConfig(width=16, layers=2, attention=attention, mlp=MLPConfig(32), rotary=RotaryConfig(), **settings))


def test_memory_of_a_model_with_windows_grows_with_the_length():
    """The largest tensor of a forward and backward; a dense mask would be four times as large at twice the length."""
    model = stack(windows=(64,))
    sizes = [largest(lambda x: model(x, causal()).sum().backward(), torch.randn(1, T, 16)) for T in (1024, 2048)]
    assert sizes[1] < 2.2 * sizes[0] and sizes[1] < 2048 * 600


def test_a_rolling_cache_decodes_in_flat_memory():
    model = stack()
    cache = RollingCache(model.cfg, 1, 8)
    with torch.no_grad():
        sizes = [largest(model, torch.randn(1, 1, 16), causal() & window(8), cache=cache) for _ in range(80)]
    assert max(sizes[40:]) == max(sizes[:40]) and cache.length == 80
    assert all(layer.k.shape[2] == 17 for layer in cache.layers)


def test_a_model_with_windows_says_the_same_by_tiles(monkeypatch):
    """Layers with and without a window, grouped queries, left padding."""
    model, x, used = stack(windows=(None, 40)), torch.randn(2, 600, 16), []
    keep = torch.ones(2, 600, dtype=torch.bool)
    keep[0, :70] = False

    def spy(*arguments, **named):
        used.append(tiles_of(*arguments, **named))
        return used[-1]

    results = []
    for shortest in (512, 10_000):
        monkeypatch.setattr(tiles, "SHORTEST", shortest)
        monkeypatch.setattr("gencore.transformer.tiles_of", spy)
        out = model(x, causal() & padding(keep))[keep]
        results.append((out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))))
    assert [type(form) for form in used] == [type(None), Tiles, type(None), type(None)]
    for a, b in zip(*results):
        close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.detach().abs().max())))


def test_chunks_through_a_rolling_cache_equal_the_whole(small):
    model, x = stack(windows=(24,)), torch.randn(2, 100, 16)
    whole = model(x, causal() & window(48))
    cache = RollingCache(model.cfg, 2, 48, chunk=33)
    parts = [model(part, causal(), cache=cache) for part in x.split(33, 1)]
    close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
