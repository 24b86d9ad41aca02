"""gencore/attention_maps.py: the weights are those that make the output, the model says what it said, and what can't be drawn is a sentence."""
import pytest
import torch
from PIL import Image

from gencore.attention import AttentionConfig, attend
from gencore.attention_maps import draw_attention, watched, weights_of
from gencore.cache import Cache
from gencore.check import InputError
from gencore.masks import causal, documents, window
from gencore.masks import prefix as prefix_of
from gencore.positions import RelativeConfig, RotaryConfig
from gencore.tiles import Tiles, tiles_of
from gencore.transformer import Transformer, TransformerConfig
from textgen import CausalLM, MaskedLM, Seq2SeqLM
from textgen.masked import EncoderConfig, bert_stack
from textgen.model import CausalLMConfig
from textgen.seq2seq import Seq2SeqConfig, transformer_stack

B, T, D, N = 2, 9, 32, 4
close = torch.testing.assert_close
STACKS = {
    "plain": TransformerConfig(D, 3),
    "grouped": TransformerConfig(D, 2, AttentionConfig(N, kv_heads=2, qk_norm="rms"), rotary=RotaryConfig()),
    "soft-capped": TransformerConfig(D, 2, AttentionConfig(N, softcap=2.0, scale=0.3)),
    "windows": TransformerConfig(D, 2, windows=(3, None), rotary=RotaryConfig()),
    "relative": TransformerConfig(D, 2, relative=RelativeConfig()),
}


def stack_of(cfg):
    """A Transformer with weights large enough that its heads look somewhere."""
    stack = Transformer(cfg).eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return stack


def outputs_of(modules):
    """[(what it was given, by name, what it gave)], filled when the modules run."""
    kept = []
    for module in modules:
        module.register_forward_hook(lambda module, given, named, out: kept.append((module, given, named, out)), with_kwargs=True)
    return kept


def check_they_make_the_outputs(weights, calls):
    """weights @ values, through the output matrix, are what each attention gave."""
    assert len(weights) == len(calls)
    for each, (module, (*inputs, _), named, out) in zip(weights, calls):
        values = module.project(*inputs, **named)[2].repeat_interleave(module.heads // module.kv_heads, dim=1)
        close(module.out((each @ values).transpose(1, 2).flatten(2)), out, rtol=1e-5, atol=1e-5)
        close(each.sum(-1), torch.ones(each.shape[:3]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", [None, causal(), causal() & prefix_of(torch.tensor([3, 5]))], ids=["all", "causal", "prefix"])
@pytest.mark.parametrize("kind", STACKS)
@torch.no_grad()
def test_the_weights_make_the_output_which_stays_what_it_was(kind, mask):
    stack, x = stack_of(STACKS[kind]), torch.randn(B, T, D)
    before = stack(x, mask)
    calls = outputs_of(block.attention for block in stack.blocks)
    with watched(stack) as seen:
        assert seen.attention == []
        assert torch.equal(stack(x, mask), before)
    assert [each.shape for each in seen.attention] == [(B, N, T, T)] * len(stack.blocks) and seen.cross == []
    check_they_make_the_outputs(seen.attention, calls)
    assert torch.equal(stack(x, mask), before) and len(seen.attention) == len(stack.blocks)           # it watches no longer


def test_causal_weights_are_zero_above_the_diagonal_and_those_of_a_window_below_it():
    stack = stack_of(STACKS["windows"])
    with watched(stack) as seen, torch.no_grad():
        stack(torch.randn(B, T, D), causal())
    near, all_before = seen.attention
    assert not near.triu(1).any() and not all_before.triu(1).any()
    assert not near.tril(-3).any() and (all_before.tril(-3).sum() > 0)


@torch.no_grad()
def test_another_forward_replaces_what_was_seen_and_an_error_ends_the_watch():
    stack = stack_of(STACKS["plain"])
    with watched(stack) as seen:
        stack(torch.randn(B, T, D))
        stack(torch.randn(1, 4, D))
        assert [each.shape for each in seen.attention] == [(1, N, 4, 4)] * 3
    with pytest.raises(InputError), watched(stack):
        stack(torch.randn(B, T, D + 1))
    assert not stack._forward_pre_hooks and not any(block.attention._forward_hooks for block in stack.blocks)


@torch.no_grad()
def test_with_a_cache_the_last_rows_are_those_of_the_whole():
    stack, x = stack_of(STACKS["grouped"]), torch.randn(B, T, D)
    with watched(stack) as whole:
        expected = stack(x, causal())
    cache = Cache(stack.cfg, B, T)
    with watched(stack) as seen:
        parts = [stack(part, causal(), cache=cache) for part in (x[:, :5], x[:, 5:])]
    close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)
    for some, every in zip(seen.attention, whole.attention):
        close(some, every[:, :, 5:], rtol=1e-5, atol=1e-5)


def test_weights_by_tiles_are_those_of_the_dense_mask():
    slots, mask = torch.arange(600), causal() & window(50) & documents(torch.arange(600)[None] // 200)
    q, k, v = torch.randn(1, 2, 600, 8), torch.randn(1, 1, 600, 8), torch.randn(1, 1, 600, 8)
    tiles = tiles_of(mask, slots, slots)
    assert isinstance(tiles, Tiles)
    weights = weights_of(q, k, tiles)
    close(weights, weights_of(q, k, mask.dense(slots, slots)), rtol=1e-5, atol=1e-6)
    close(weights @ v, attend(q, k, v, tiles), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_without_a_watch():
    stack, x = stack_of(STACKS["plain"]), torch.randn(B, T, D)
    stack(x, causal()).square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in stack.named_parameters()}
    stack.zero_grad()
    with watched(stack) as seen:
        stack(x, causal()).square().sum().backward()
    assert all(torch.equal(parameter.grad, expected[name]) for name, parameter in stack.named_parameters())
    assert not any(each.requires_grad for each in seen.attention)


@torch.no_grad()
def test_a_causal_and_a_masked_model_are_watched():
    ids = torch.randint(40, (B, T))
    lm = CausalLM(CausalLMConfig(40, 16, STACKS["grouped"])).eval()
    masked = MaskedLM(EncoderConfig(40, 16, transformer=bert_stack(D, 2, N, 64))).eval()
    for model, stack in ((lm, lm.transformer), (masked, masked.encoder.transformer)):
        expected = model(ids)
        calls = outputs_of(block.attention for block in stack.blocks)
        with watched(stack) as seen:
            assert torch.equal(model(ids), expected)
        check_they_make_the_outputs(seen.attention, calls)
        assert bool(seen.attention[0].triu(1).any()) == (model is masked)


@torch.no_grad()
def test_a_translator_is_watched_in_both_stacks():
    model = Seq2SeqLM(Seq2SeqConfig(40, 16, transformer_stack(D, 2, N, 64), transformer_stack(D, 3, N, 64, cross=True), embedding_scale=None)).eval()
    source, target, keep = torch.randint(40, (B, 7)), torch.randint(40, (B, T)), torch.ones(B, 7, dtype=torch.bool)
    keep[1, 4:] = False
    expected = model(source, target, keep)
    calls = outputs_of(block.cross for block in model.decoder.blocks)
    with watched(model.encoder) as read, watched(model.decoder) as written:
        assert torch.equal(model(source, target, keep), expected)
    assert [each.shape for each in read.attention] == [(B, N, 7, 7)] * 2 and read.cross == []
    assert [each.shape for each in written.attention] == [(B, N, T, T)] * 3
    assert [each.shape for each in written.cross] == [(B, N, T, 7)] * 3
    check_they_make_the_outputs(written.cross, calls)
    for each in (*read.attention, *written.cross):
        assert not each[1, :, :, 4:].any() and each[0, :, :, 4:].any()                                # padding is not looked at

    with watched(model.decoder) as seen:                                                               # its last step: one row
        made = model.write(source, keep, limit=5)
    steps = max(map(len, made))
    assert {each.shape for each in seen.cross} == {(B, N, 1, 7)} and {each.shape[:3] for each in seen.attention} == {(B, N, 1)}
    assert steps <= 5


def weights(layers=2, heads=N, asked=3, looked_at=3):
    return [torch.rand(1, heads, asked, looked_at).softmax(-1) for _ in range(layers)]


@pytest.mark.parametrize("heads, layer", [(1, 0), (4, -1), (6, 1)])
def test_a_picture_is_drawn_whatever_the_tokens_are(heads, layer, tmp_path):
    path = draw_attention(weights(heads=heads), ["$a", "\n", "_{$^"], tmp_path / "seen.png", layer=layer)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 100 and len(picture.convert("L").getcolors()) > 5


def test_those_that_ask_may_be_others_than_those_that_are_looked_at(tmp_path):
    picture = tmp_path / "seen.svg"
    draw_attention(weights(asked=1, looked_at=64), ["a"] * 64, picture, asking=["[MASK]"])
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize("given, words", [
    ({"layer": 2}, "layer should be a whole number between -2 and 1, got 2"),
    ({"layer": "first"}, "layer should be a whole number"),
    ({"tokens": ["a"] * 4}, "weights: T should be 4, got 3"),
    ({"asking": ["a"]}, "weights: T should be 1, got 3"),
    ({"weights": weights(asked=80, looked_at=80), "tokens": ["a"] * 80}, "room for 64 tokens a side, got 80: give a shorter text"),
    ({"weights": weights(asked=2, looked_at=65), "tokens": ["a"] * 65, "asking": ["b"] * 2}, "room for 64 tokens a side, got 65"),
    ({"weights": [torch.rand(2, N, 3, 3)]}, "weights: B should be 1, got 2"),
    ({"weights": []}, "no weights to draw, which are a list: call the model within"),
    ({"weights": torch.rand(1, N, 3, 3)}, "no weights to draw, which are a list"),
    ({"path": "seen.gif"}, "should end in .png, .svg or .pdf, got 'seen.gif'"),
    ({"path": "nowhere/seen.png"}, "there is no folder nowhere"),
])
def test_what_cant_be_drawn_is_said_in_one_sentence(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"weights": weights(), "tokens": ["a", "b", "c"], "path": "seen.png", **given}
    with pytest.raises(InputError) as caught:
        draw_attention(asked.pop("weights"), asked.pop("tokens"), asked.pop("path"), **asked)
    assert words in str(caught.value) and "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_only_a_transformer_is_watched():
    lm = CausalLM(CausalLMConfig(40, 16, STACKS["plain"]))
    with pytest.raises(InputError, match="expected a gencore.transformer.Transformer, such as the field .* got CausalLM"), watched(lm):
        pass
