"""gencore.attention against loops, torch's own modules with copied weights, and transformers."""

import pytest
import torch
import torch.nn.functional as F
from reference import additive_attention_by_loops, attention_by_loops, layer_norm, rms_norm
from torch import nn

from gencore.attention import (
    CAUSAL,
    AdditiveAttention,
    Attention,
    AttentionConfig,
    CrossAttention,
    HeadNorm,
    attend,
    attend_by_products,
    attend_eager,
    head_sizes,
)
from gencore.check import ConfigError, InputError
from gencore.positions import RotaryConfig, rotary_table

B, N, T, S, E = 2, 4, 5, 7, 6
close = torch.testing.assert_close


def qkv(groups=N, queries=T, keys=S):
    return torch.randn(B, N, queries, E), torch.randn(B, groups, keys, E), torch.randn(B, groups, keys, E)


def shaped(pattern, queries=T, keys=S):
    """(B, 1, T, S) bool from visible(b, t, s)."""
    return torch.tensor([[[[pattern(b, t, s) for s in range(keys)] for t in range(queries)]] for b in range(B)])


@pytest.mark.parametrize("form", [attend, lambda *a, **k: attend_eager(*a, **k)[0]], ids=["kernel", "eager"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention_is_what_the_loops_say(form, groups, softcap, scale):
    q, k, v = qkv(groups)

    def visible(b, t, s):
        return s <= t + b and (t + s) % 3 != 1 or s == 0

    out = form(q, k, v, shaped(visible), scale=scale, softcap=softcap)
    close(out.double(), attention_by_loops(q, k, v, visible, scale=scale, softcap=softcap), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [attend, lambda *a: attend_eager(*a)[0]], ids=["kernel", "eager"])
@pytest.mark.parametrize("queries", [S, 3, 1])
def test_causal_means_that_the_last_query_sees_the_last_key(form, queries):
    q, k, v = qkv(queries=queries)
    expected = attention_by_loops(q, k, v, lambda b, t, s: s <= t + S - queries)
    close(form(q, k, v, CAUSAL).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [attend, lambda *a: attend_eager(*a)[0]], ids=["kernel", "eager"])
def test_a_float_mask_is_added_to_the_scores(form):
    q, k, v = qkv()
    bias = torch.randn(N, T, S)
    close(form(q, k, v, bias[None]).double(), attention_by_loops(q, k, v, bias=bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float"])
def test_bfloat16_by_products_is_attention_within_its_rounding(kind, groups):
    q, k, v = qkv(groups, queries=S)
    mask = {"none": None, "causal": CAUSAL, "bool": shaped(lambda b, t, s: s <= t + b, queries=S), "float": torch.randn(1, N, S, S)}[kind]
    whole = [t.clone().requires_grad_() for t in (q, k, v)]
    expected = attend_eager(*whole, mask, scale=0.7)[0]
    for block in (3, 128):                                           # blocks of queries and their rest
        parts = [t.clone().requires_grad_() for t in (q, k, v)]
        out = attend_by_products(*parts, mask, scale=0.7, block=block)
        assert out.dtype == torch.bfloat16
        close(out.float(), expected, rtol=0.03, atol=0.03)
        for a, b in zip(torch.autograd.grad(out.float().sum(), parts), torch.autograd.grad(expected.sum(), whole, retain_graph=True)):
            assert (a - b).norm() < 0.03 * (1 + b.norm())


def test_explained_weights_sum_to_one_and_give_the_output():
    q, k, v = qkv(groups=2)
    out, weights = attend_eager(q, k, v, shaped(lambda b, t, s: s <= t))
    close(weights.sum(-1), torch.ones(B, N, T))
    assert not weights.triu(1)[..., :T].any()
    close(weights @ v.repeat_interleave(2, 1), out)
    close(attend(q, k, v, shaped(lambda b, t, s: s <= t)), out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_row_that_sees_nothing_stays_finite(dtype, softcap):
    """Padding queries: their output is thrown away, but a NaN would come back through the next layer's values."""
    q, k, v = (t.to(dtype).requires_grad_() for t in qkv())
    out = attend(q, k, v, shaped(lambda b, t, s: b == 0), softcap=softcap)
    out.sum().backward()
    assert out.isfinite().all() and all(t.grad.isfinite().all() for t in (q, k, v))


def copied_multihead(width, heads, bias=True):
    """torch's module and ours with the same weights."""
    theirs = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)
    ours = Attention(width, AttentionConfig(heads=heads, bias=bias, out_bias=bias))
    if bias:
        nn.init.normal_(theirs.in_proj_bias), nn.init.normal_(theirs.out_proj.bias)
    state = {"qkv.weight": theirs.in_proj_weight, "out.weight": theirs.out_proj.weight}
    if bias:
        state |= {"qkv.bias": theirs.in_proj_bias, "out.bias": theirs.out_proj.bias}
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_equals_torch_multihead(bias):
    theirs, ours = copied_multihead(24, 4, bias)
    x = torch.randn(B, T, 24)
    close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-5, atol=1e-6)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    close(ours(x, CAUSAL), theirs(x, x, x, attn_mask=hidden, need_weights=False)[0], rtol=1e-5, atol=1e-6)


def test_cross_attention_equals_torch_multihead_of_another_width():
    theirs = nn.MultiheadAttention(24, 4, kdim=10, vdim=10, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours = CrossAttention(24, AttentionConfig(heads=4, bias=True, out_bias=True), memory_width=10)
    ours.load_state_dict({
        "q.weight": theirs.q_proj_weight, "q.bias": theirs.in_proj_bias[:24], "out.weight": theirs.out_proj.weight,
        "out.bias": theirs.out_proj.bias, "kv.weight": torch.cat((theirs.k_proj_weight, theirs.v_proj_weight)),
        "kv.bias": theirs.in_proj_bias[24:]})
    x, memory, keep = torch.randn(B, T, 24), torch.randn(B, S, 10), torch.rand(B, S) > 0.3
    expected = theirs(x, memory, memory, key_padding_mask=~keep, need_weights=False)[0]
    close(ours(x, memory, keep[:, None, None]), expected, rtol=1e-5, atol=1e-6)


def test_grouped_heads_equal_heads_with_repeated_weights():
    grouped = Attention(24, AttentionConfig(heads=4, kv_heads=2, bias=True))
    full = Attention(24, AttentionConfig(heads=4, bias=True))
    with torch.no_grad():
        for name in ("weight", "bias"):
            rows = getattr(grouped.qkv, name).unflatten(0, (8, 6))                   # 4 query, 2 key, 2 value heads
            repeated = torch.cat((rows[:4], rows[4:6].repeat_interleave(2, 0), rows[6:].repeat_interleave(2, 0)))
            getattr(full.qkv, name).copy_(repeated.flatten(0, 1))
    full.out.load_state_dict(grouped.out.state_dict())
    x = torch.randn(B, T, 24)
    close(grouped(x, CAUSAL), full(x, CAUSAL))


def test_a_head_width_of_its_own_changes_the_inner_width_only():
    attention = Attention(24, AttentionConfig(heads=3, kv_heads=1, head_width=10))
    assert attention.qkv.weight.shape == (50, 24) and attention.out.weight.shape == (24, 30)
    assert attention(torch.randn(B, T, 24)).shape == (B, T, 24)


@pytest.mark.parametrize("kind", ["rms", "rms+1", "layer"])
def test_head_norms_are_what_their_formula_says(kind):
    norm = HeadNorm(kind, E)
    nn.init.normal_(norm.weight)
    x = torch.randn(B, N, T, E) * 3
    weight = norm.weight + 1 if kind == "rms+1" else norm.weight
    expected = (layer_norm if kind == "layer" else rms_norm)(x, weight)
    close(norm(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["none", "rms", "rms+1", "layer"])
def test_queries_and_keys_are_normed_before_they_turn(kind):
    """The whole module, part by part, in the order of the papers: project, norm, rotate, attend, project."""
    attention = Attention(24, AttentionConfig(heads=4, kv_heads=2, qk_norm=kind))
    x, rotary = torch.randn(B, T, 24), RotaryConfig()
    if kind != "none":
        nn.init.normal_(attention.q_norm.weight), nn.init.normal_(attention.k_norm.weight)
    q, k, v = attention.qkv(x).split((24, 12, 12), -1)
    q, k, v = (t.unflatten(-1, (-1, 6)).transpose(1, 2) for t in (q, k, v))
    if kind != "none":
        q, k = attention.q_norm(q), attention.k_norm(k)
    cos, sin = turning(torch.arange(T), 6)
    q, k = q * cos + halves(q) * sin, k * cos + halves(k) * sin
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
    close(attention(x, CAUSAL, rotary=rotary_table(torch.arange(T), 6, rotary)), attention.out(expected), rtol=1e-5, atol=1e-6)


def turning(positions, width):
    """cos and sin as transformers makes them."""
    angles = positions[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()


def halves(x):
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def test_additive_attention_is_what_the_loops_say():
    module = AdditiveAttention(6, 5, 8)
    query, memory = torch.randn(B, 3, 6), torch.randn(B, S, 5)
    keep = torch.rand(B, S) > 0.4
    keep[:, 0] = True
    parts = (module.query.weight, module.key.weight, module.key.bias, module.score.weight[0])
    for kept in (None, keep):
        context, weights = module(query, memory, kept)
        expected = additive_attention_by_loops(query, memory, parts, kept)
        close(weights.double(), expected[1], rtol=1e-5, atol=1e-6)
        close(context.double(), expected[0], rtol=1e-5, atol=1e-6)
        assert context.shape == (B, 3, 5) and weights.shape == (B, 3, S)


def test_additive_attention_learns_to_find_a_marked_place():
    """The memory's row that matches the query is to be copied: the weights must end up there."""
    module = AdditiveAttention(8, 16, 32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        place = torch.randint(8, (32,), generator=generator)
        names = torch.eye(8).expand(32, 8, 8)
        memory = torch.cat((names, torch.randn(32, 8, 8, generator=generator)), -1)           # (32, 8, 16)
        _, weights = module(torch.eye(8)[place][:, None], memory)
        loss = -weights[torch.arange(32), 0, place].log().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert loss < 0.3                                                                          # chance is log 8 = 2.08


def test_head_sizes_are_checked():
    assert head_sizes(24, AttentionConfig(heads=4, kv_heads=2)) == (4, 2, 6)
    assert head_sizes(24, AttentionConfig(heads=5, head_width=8)) == (5, 5, 8)
    with pytest.raises(ConfigError, match="attention.heads should divide width 25, got 4"):
        head_sizes(25, AttentionConfig(heads=4))
    with pytest.raises(ConfigError, match="attention.kv_heads should divide heads 4, got 3"):
        head_sizes(24, AttentionConfig(heads=4, kv_heads=3))
    with pytest.raises(ConfigError, match="AttentionConfig.heads should be between 1 and 256, got 0"):
        head_sizes(24, AttentionConfig(heads=0))


def test_an_unknown_qk_norm_is_refused():
    with pytest.raises(ConfigError, match="AttentionConfig.qk_norm should be one of 'none', 'rms', .*got 'rmsnorm'"):
        Attention(24, AttentionConfig(qk_norm="rmsnorm"))


def test_wrong_shapes_are_named():
    with pytest.raises(InputError, match="memory: M should be 10, got 24 in shape"):
        CrossAttention(24, AttentionConfig(), memory_width=10)(torch.randn(B, T, 24), torch.randn(B, S, 24))
    additive = AdditiveAttention(6, 5, 8)
    with pytest.raises(InputError, match="query: B should be 3, got 2 in shape"):
        additive(torch.randn(2, T, 6), torch.randn(3, S, 5))
    with pytest.raises(InputError, match="keep: S should be 7, got 6 in shape"):
        additive(torch.randn(B, T, 6), torch.randn(B, S, 5), torch.ones(B, S - 1))
