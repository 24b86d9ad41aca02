"""gencore.cache: whole, chunks of 1 and 3, empty start, left-padded rows, every kind of cache, long texts (STYLE rule 34)."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gencore.attention import AttentionConfig
from gencore.cache import Cache, FixedCache, RollingCache
from gencore.check import InputError
from gencore.layers import MLPConfig, NormConfig
from gencore.masks import causal, documents, padding, prefix, window
from gencore.positions import RelativeConfig, RotaryConfig
from gencore.transformer import Memory, Transformer, TransformerConfig

B, T, D = 2, 11, 32
PLAIN = TransformerConfig(width=D, layers=3, attention=AttentionConfig(heads=4, kv_heads=2), rotary=RotaryConfig(),
                          mlp=MLPConfig(width=40, gated=True, activation="silu"))
KINDS = {
    "llama": PLAIN,
    "interleaved": replace(PLAIN, rotary=RotaryConfig(layout="interleaved", partial=0.5)),
    "gemma": replace(PLAIN, norm=NormConfig(kind="rms+1", place="sandwich"), windows=(4, None), local_rotary=RotaryConfig(theta=100.0),
                     attention=AttentionConfig(heads=4, kv_heads=1, softcap=5.0, qk_norm="rms+1")),
    "post": replace(PLAIN, norm=NormConfig(kind="layer", place="post"), rotary=None),
    "t5": replace(PLAIN, rotary=None, relative=RelativeConfig(two_way=False, buckets=8, distance=6), cross=12),
    "alibi": replace(PLAIN, rotary=None, relative=RelativeConfig(kind="alibi")),
    "yarn": replace(PLAIN, rotary=RotaryConfig(scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8})),
    "adaln": replace(PLAIN, condition="adaln_zero", norm=NormConfig(kind="layer", affine=False)),
}
CACHES = {"static": Cache, "fixed": FixedCache}


def made(cfg):
    """A lively model and what it needs beside x."""
    model = Transformer(cfg).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    given = {}
    if cfg.cross:
        keep = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
        given["memory"] = Memory(torch.randn(B, 5, cfg.cross), keep)
    if cfg.condition == "adaln_zero":
        given["cond"] = torch.randn(B, D)
    return model, given


def in_chunks(model, x, mask, cache, *, sizes, positions=None, given=None):
    """x through the cache, `sizes` positions at a time."""
    out, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        out.append(model(x[:, part], mask, cache=cache, positions=None if positions is None else positions[:, part], **(given or {})))
        start += size
    return torch.cat(out, 1)


def chunked(first, chunk, total=T):
    sizes = [first] if first else []
    while sum(sizes) < total:
        sizes.append(min(chunk, total - sum(sizes)))
    return sizes


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sizes", [[T], chunked(0, 1), chunked(0, 3), chunked(5, 1), chunked(4, 3)],
                         ids=["whole", "ones", "threes", "prompt+ones", "prompt+threes"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_chunks_equal_the_whole(kind, sizes, cache):
    model, given = made(KINDS[kind])
    x, cache = torch.randn(B, T, D), CACHES[cache](KINDS[kind], B, T + 3)
    close(in_chunks(model, x, causal(), cache, sizes=sizes, given=given), model(x, causal(), **given))
    assert int(cache.length) == T


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_left_padded_rows_equal_rows_alone(kind, cache):
    model, given = made(KINDS[kind])
    lengths, x = (T, T - 4), torch.randn(B, T, D)
    keep = torch.arange(T + 3) >= torch.tensor([[T - n] for n in lengths])                     # (B, slots of the cache)
    positions = (torch.arange(T) - torch.tensor([[T - n] for n in lengths])).clamp(min=0)       # (B, T)
    out = in_chunks(model, x, causal() & padding(keep), CACHES[cache](KINDS[kind], B, T + 3), sizes=chunked(6, 1), positions=positions,
                    given=given)
    for row, length in enumerate(lengths):
        alone = {name: Memory(*(t[[row]] for t in value)) if name == "memory" else value[[row]] for name, value in given.items()}
        close(out[row:row + 1, T - length:], model(x[row:row + 1, T - length:], causal(), **alone))


@pytest.mark.parametrize("rule", ["window", "documents", "prefix"])
@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_masks_hold_across_chunks(rule, cache):
    ids = torch.tensor([[0] * 4 + [1] * 10, [0] * 9 + [1] * 5])
    mask = causal() & {"window": window(4), "documents": documents(ids), "prefix": prefix(torch.tensor([3, 2]))}[rule]
    model, x = made(PLAIN)[0], torch.randn(B, T, D)
    close(in_chunks(model, x, mask, CACHES[cache](PLAIN, B, T + 3), sizes=chunked(5, 2)), model(x, mask))


@pytest.mark.parametrize("limit", [1, 4, 7])
@pytest.mark.parametrize("first, chunk", [(0, 1), (0, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["llama", "gemma", "alibi"])
@torch.no_grad()
def test_a_rolling_cache_equals_a_window_mask_over_long_texts(kind, first, chunk, limit):
    """60 positions through a few slots; stacked layers hand on what slid out, so whole and chunks agree only if each layer does."""
    model, x = made(KINDS[kind])[0], torch.randn(1, 60, D)
    cache = RollingCache(KINDS[kind], 1, limit, chunk=3)
    close(in_chunks(model, x, causal(), cache, sizes=chunked(first, chunk, 60)), model(x, causal() & window(limit)))
    assert cache.length == 60 and cache.layers[0].k.shape[2] == 2 * limit + 3


@torch.no_grad()
def test_a_rolling_cache_keeps_padding_in_its_place():
    model, x = made(PLAIN)[0], torch.randn(B, 40, D)
    keep = torch.arange(40) >= torch.tensor([[0], [7]])
    mask, cache = causal() & padding(keep), RollingCache(PLAIN, B, 5, chunk=3)
    out, whole = in_chunks(model, x, mask, cache, sizes=chunked(0, 3, 40)), model(x, mask & window(5))
    close(out[keep], whole[keep])


@torch.no_grad()
def test_memory_is_projected_once():
    cfg = KINDS["t5"]
    model, given = made(cfg)
    calls = []
    model.blocks[0].cross.kv.register_forward_hook(lambda *_: calls.append(1))
    in_chunks(model, torch.randn(B, T, D), causal(), Cache(cfg, B, T), sizes=chunked(4, 1), given=given)
    assert len(calls) == 1


@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_selected_rows_go_on_as_themselves(cache):
    """Beams: rows are repeated, exchanged, dropped."""
    cfg = KINDS["t5"]
    model, given = made(cfg)
    x, cache = torch.randn(B, T, D), CACHES[cache](cfg, B, T)
    in_chunks(model, x[:, :6], causal(), cache, sizes=[6], given=given)
    rows = torch.tensor([1, 0, 1])
    cache.select(rows)
    picked = {"memory": Memory(*(t[rows] for t in given["memory"]))}
    close(in_chunks(model, x[rows, 6:], causal(), cache, sizes=[1] * 5, given=picked), model(x[rows], causal(), **picked)[:, 6:])


@torch.no_grad()
def test_a_cache_in_bfloat16_follows_its_model():
    model, x = Transformer(PLAIN).bfloat16(), torch.randn(B, T, D).bfloat16()
    out = in_chunks(model, x, causal(), Cache(PLAIN, B, T, dtype=torch.bfloat16), sizes=chunked(4, 1))
    torch.testing.assert_close(out, model(x, causal()), rtol=0.05, atol=0.05)


@torch.no_grad()
def test_a_full_cache_is_refused_and_unharmed():
    model, x, cache = made(PLAIN)[0], torch.randn(B, T, D), Cache(PLAIN, B, T)
    model(x[:, :8], causal(), cache=cache)
    with pytest.raises(InputError, match="the cache holds 11 positions, 8 are filled and 4 more were asked for: make it larger"):
        model(x[:, :4], causal(), cache=cache)
    close(model(x[:, 8:], causal(), cache=cache), model(x, causal())[:, 8:])


@torch.no_grad()
def test_a_chunk_too_long_for_a_rolling_cache_is_refused():
    model, cache = made(PLAIN)[0], RollingCache(PLAIN, B, 4, chunk=2)
    with pytest.raises(InputError, match="the rolling cache takes 10 positions at once, got 11: feed smaller chunks"):
        model(torch.randn(B, T, D), causal(), cache=cache)


@torch.no_grad()
def test_a_cache_of_another_shape_is_refused():
    model, x = made(PLAIN)[0], torch.randn(B, T, D)
    with pytest.raises(InputError, match="the cache was made for 3 rows, got 2"):
        model(x, causal(), cache=Cache(PLAIN, 3, T))
    with pytest.raises(InputError, match="the cache was made for 2 layers, this transformer has 3"):
        model(x, causal(), cache=Cache(replace(PLAIN, layers=2), B, T))


@pytest.mark.parametrize("make", [lambda: Cache(PLAIN, B, 0), lambda: RollingCache(PLAIN, B, 0), lambda: Cache(PLAIN, 0, 4)])
def test_a_cache_without_room_is_refused(make):
    with pytest.raises(InputError, match="should be at least 1"):
        make()


@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_a_cache_that_is_emptied_takes_another_memory(cache):
    cfg = KINDS["t5"]
    model, given = made(cfg)
    x, kept, other = torch.randn(B, 4, D), CACHES[cache](cfg, B, T), {"memory": Memory(torch.randn(B, 5, 12))}
    first = model(x, causal(), cache=kept, **given)
    kept.crop(0)
    second = model(x, causal(), cache=kept, **other)
    close(second, model(x, causal(), **other))
    assert not torch.allclose(first, second)


def test_a_cache_of_another_dtype_is_refused():
    model, _ = made(PLAIN)
    with pytest.raises(InputError, match="the cache was made for torch.bfloat16, got torch.float32: make it with the model's dtype"):
        model(torch.randn(B, 4, D), causal(), cache=Cache(PLAIN, B, T, dtype=torch.bfloat16))
    for length in (-3, T + 1):
        with pytest.raises(InputError, match="length should be"):
            FixedCache(PLAIN, B, T).crop(length)
