"""Properties of the core on drawn cases: chunks = whole, window = mask, cache = no cache, left padding = none, batch = single.

A case is a model, a text and a way to feed it. tests/test_decode.py has the same of the loop that writes, test_causal_lm.py streaming = whole."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gencore.attention import AttentionConfig
from gencore.cache import Cache, FixedCache, RollingCache
from gencore.layers import MLPConfig, NormConfig
from gencore.masks import causal, documents, padding, prefix, window
from gencore.positions import RelativeConfig, RotaryConfig
from gencore.transformer import Transformer, TransformerConfig

D = 8


@st.composite
def configs(draw):
    """A transformer of one or two layers, any kind of positions, norms, windows, heads."""
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]))
    attention = AttentionConfig(heads, kv_heads, head_width=4, bias=draw(st.booleans()), softcap=draw(st.sampled_from([None, 3.0])),
                                qk_norm=draw(st.sampled_from(["none", "rms", "layer"])), scale=draw(st.sampled_from([None, 1.0])))
    positions = draw(st.sampled_from(["rotary", "interleaved", "partial", "t5", "alibi", "none"]))
    rotary = {"rotary": RotaryConfig(), "interleaved": RotaryConfig(layout="interleaved", theta=50.0), "partial": RotaryConfig(partial=0.5)}
    relative = {"t5": RelativeConfig(buckets=6, distance=5, two_way=False), "alibi": RelativeConfig("alibi")}
    return TransformerConfig(
        width=D, layers=draw(st.integers(1, 2)), attention=attention, rotary=rotary.get(positions), relative=relative.get(positions),
        norm=NormConfig(draw(st.sampled_from(["rms", "rms+1", "layer"])), draw(st.sampled_from(["pre", "post", "sandwich"]))),
        mlp=MLPConfig(8, gated=draw(st.booleans()), activation=draw(st.sampled_from(["silu", "gelu"]))),
        windows=draw(st.sampled_from([None, (2,), (3, None)])))


@st.composite
def cuts(draw, total):
    """Sizes of chunks that add up to `total`."""
    sizes = []
    while sum(sizes) < total:
        sizes.append(draw(st.integers(1, min(5, total - sum(sizes)))))
    return sizes


@st.composite
def masks(draw, rows, total):
    """Causal, perhaps with a window, documents or an open prefix."""
    kind = draw(st.sampled_from(["causal", "window", "documents", "prefix"]))
    if kind == "window":
        return causal() & window(draw(st.integers(1, total + 1)))
    if kind == "documents":
        starts = torch.tensor(draw(st.lists(st.booleans(), min_size=rows * total, max_size=rows * total))).view(rows, total)
        return causal() & documents(starts.long().cumsum(1))
    if kind == "prefix":
        return causal() & prefix(torch.tensor(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))))
    return causal()


def lively(cfg, seed):
    model, generator = Transformer(cfg).eval(), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model, generator


def feed(model, x, mask, *, cache, sizes, positions=None):
    parts = x.split(sizes, 1)
    places = [None] * len(parts) if positions is None else positions.split(sizes, 1)
    return torch.cat([model(part, mask, cache=cache, positions=place) for part, place in zip(parts, places)], 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def chunks_equal_the_whole(data):
    cfg, rows, total = data.draw(configs()), data.draw(st.integers(1, 2)), data.draw(st.integers(1, 9))
    mask, sizes = data.draw(masks(rows, total)), data.draw(cuts(total))
    if mask.prefix is not None:
        sizes = [min(3, total)] + [1] * (total - 3)                                  # an open prefix has to come in one piece
    model, generator = lively(cfg, data.draw(st.integers(0, 99)))
    x = torch.randn(rows, total, D, generator=generator)
    cache = data.draw(st.sampled_from([Cache, FixedCache]))(cfg, rows, total)
    close(feed(model, x, mask, cache=cache, sizes=sizes), model(x, mask))


@torch.no_grad()
def a_cache_equals_none(data):
    """Token by token, with steps back to another text, as after a draft that was refused."""
    cfg, total = data.draw(configs()), data.draw(st.integers(1, 7))
    model, generator = lively(cfg, data.draw(st.integers(0, 99)))
    cache = data.draw(st.sampled_from([Cache, FixedCache]))(cfg, 1, total)
    first, second = torch.randn(2, 1, total, D, generator=generator)
    kept = data.draw(st.integers(0, total))
    feed(model, first, causal(), cache=cache, sizes=[1] * total)
    cache.crop(kept)
    text = torch.cat([first[:, :kept], second[:, kept:]], 1)
    if kept < total:
        close(feed(model, text[:, kept:], causal(), cache=cache, sizes=[1] * (total - kept)), model(text, causal())[:, kept:])


@torch.no_grad()
def a_window_equals_its_mask(data):
    """Rolling cache, mask of the call and windows of the layers say the same."""
    cfg, total, width = replace(data.draw(configs()), windows=None), data.draw(st.integers(1, 24)), data.draw(st.integers(1, 6))
    model, generator = lively(cfg, data.draw(st.integers(0, 99)))
    x = torch.randn(1, total, D, generator=generator)
    whole = model(x, causal() & window(width))
    model.cfg = replace(cfg, windows=(width,))
    close(model(x, causal()), whole)
    model.cfg = cfg
    close(feed(model, x, causal(), cache=RollingCache(cfg, 1, width, chunk=5), sizes=data.draw(cuts(total))), whole)


@torch.no_grad()
def left_padding_equals_none(data):
    cfg, lengths = data.draw(configs()), data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=3))
    rows, total = len(lengths), max(lengths)
    model, generator = lively(cfg, data.draw(st.integers(0, 99)))
    x, shift = torch.randn(rows, total, D, generator=generator), total - torch.tensor(lengths)[:, None]
    positions, mask = (torch.arange(total) - shift).clamp(min=0), causal() & padding(torch.arange(total) >= shift)
    cache = data.draw(st.sampled_from([None, Cache, FixedCache]))
    if cache is None:
        out = model(x, mask, positions=positions)
    else:
        out = feed(model, x, mask, cache=cache(cfg, rows, total), sizes=data.draw(cuts(total)), positions=positions)
    for row, length in enumerate(lengths):
        close(out[row:row + 1, total - length:], model(x[row:row + 1, total - length:], causal()))


@torch.no_grad()
def right_padding_equals_none(data):
    """Two-way attention over a padded batch: what encoders see."""
    cfg, lengths = data.draw(configs()), data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=3))
    total = max(lengths)
    model, generator = lively(cfg, data.draw(st.integers(0, 99)))
    x = torch.randn(len(lengths), total, D, generator=generator)
    out = model(x, padding(torch.arange(total) < torch.tensor(lengths)[:, None]))
    for row, length in enumerate(lengths):
        close(out[row:row + 1, :length], model(x[row:row + 1, :length]))


@torch.no_grad()
def a_batch_equals_its_rows(data):
    cfg, rows, total = data.draw(configs()), data.draw(st.integers(2, 4)), data.draw(st.integers(1, 7))
    model, generator = lively(cfg, data.draw(st.integers(0, 99)))
    x = torch.randn(rows, total, D, generator=generator)
    mask = data.draw(st.sampled_from([None, causal()]))
    close(model(x, mask), torch.cat([model(row[None], mask) for row in x]))


PROPERTIES = [chunks_equal_the_whole, a_cache_equals_none, a_window_equals_its_mask, left_padding_equals_none, right_padding_equals_none,
              a_batch_equals_its_rows]


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda f: f.__name__)
def test_property(holds, cases):
    settings(max_examples=cases)(given(st.data())(holds))()
