"""textgen/additive.py: the recurrence against the paper's equations, padding, a small language and its alignment, folders, wrong input."""
from dataclasses import replace

import pytest
import torch

from gencore.check import CheckpointError, ConfigError, InputError
from tests.test_seq2seq import PAIRS, learnt
from textgen import AttentionSeq2Seq, AttentionSeq2SeqConfig
from textgen.seq2seq import train_pair_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_pair_tokenizer([text for pair in PAIRS for text in pair], 290, length=24)


def small(tokenizer, **changes):
    torch.manual_seed(0)
    return AttentionSeq2Seq(AttentionSeq2SeqConfig(**{"vocab": len(tokenizer), "context": 24, "width": 24, "hidden": 32, "dropout": 0.0, **changes}),
                            tokenizer)


@pytest.fixture(scope="module")
def model(tokenizer):
    return learnt(small(tokenizer), steps=200, lr=5e-3)


def test_a_step_is_that_of_the_paper(tokenizer):
    """Appendix A.1.2 and A.2.2, written out for one row with the gates of torch's GRU."""
    model = small(tokenizer).eval()
    source, target = torch.randint(2, 200, (1, 5)), torch.randint(2, 200, (1, 1))
    logits, weights = model(source, target)
    states, last = model.reader(model.embedding(source))
    state = torch.tanh(model.bridge(torch.cat((last[0], last[1]), -1)))                            # from the forward and the backward end
    attention, word = model.attention, model.embedding(target[:, 0])
    energy = torch.stack([attention.score(torch.tanh(attention.query(state) + attention.key(states[:, j]))) for j in range(5)], 1)[..., 0]
    alpha = energy.softmax(-1)
    seen = (alpha[..., None] * states).sum(1)
    state = model.writer(torch.cat((word, seen), -1), state)
    wanted = torch.tanh(model.readout(torch.cat((word, seen, state), -1))) @ model.embedding.weight.mT + model.bias
    torch.testing.assert_close(weights[:, 0], alpha)
    torch.testing.assert_close(logits[:, 0], wanted)


def test_padding_changes_nothing(tokenizer):
    model = small(tokenizer).eval()
    source, target = torch.randint(2, 200, (2, 7)), torch.randint(2, 200, (2, 4))
    keep = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    logits, weights = model(source, target, keep)
    alone, _ = model(source[1:, :3], target[1:])
    torch.testing.assert_close(logits[1:], alone)
    assert float(weights.detach()[1, :, 3:].max()) < 1e-9
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))


def test_a_small_language_is_learnt_and_the_alignment_turns_round(model):
    assert model.generate([german for german, _ in PAIRS]) == [english for _, english in PAIRS]
    assert model.generate("rot haus", beams=3) == "house red"
    read, written, weights = model.align("rot haus")
    assert "".join(read).startswith("rot haus") and "".join(written).startswith("house red") and weights.shape == (len(written), len(read))


def test_a_batch_gives_what_each_text_gives_alone(model):
    texts = ["rot", "hund haus", "blau blau rot hund"]
    for beams in (1, 3):
        assert model.generate(texts, beams=beams, max_new_tokens=12) == [model.generate(text, beams=beams, max_new_tokens=12) for text in texts]


def test_without_attention_the_last_state_is_all_that_is_seen(tokenizer):
    model = small(tokenizer, attention="none").eval()
    _, weights = model(torch.randint(2, 200, (2, 7)), torch.randint(2, 200, (2, 4)))
    assert torch.equal(weights, torch.ones(2, 4, 1))
    with_attention = small(tokenizer)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in with_attention.named_parameters()}      # the same network


def test_a_folder_gives_the_same_texts(model, tmp_path):
    model.save_pretrained(tmp_path / "gru")
    back = AttentionSeq2Seq.from_pretrained(tmp_path / "gru")
    assert back.cfg == model.cfg and back.generate(["rot haus", "hund rot"], beams=2) == model.generate(["rot haus", "hund rot"], beams=2)
    (tmp_path / "gru" / "digests.json").unlink()
    (tmp_path / "gru" / "config.json").write_text('{"vocab": 9}')
    with pytest.raises(CheckpointError):
        AttentionSeq2Seq.from_pretrained(tmp_path / "gru")


def test_the_alignment_is_drawn(model, tmp_path):
    from PIL import Image
    with Image.open(model.draw_alignment("rot haus", tmp_path / "alignment.png")) as picture:
        assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(1 << 24)) > 10


@pytest.mark.parametrize("call, error, words", [
    (lambda m: m.generate([]), InputError, r"a list of them, got \[\]"),
    (lambda m: m.generate(None), InputError, "a list of them, got None"),
    (lambda m: m(torch.tensor([[999]]), torch.tensor([[1]])), InputError, "source should be between 0 and"),
    (lambda m: m(torch.tensor([[1]]), torch.tensor([[-1]])), InputError, "target should be between 0 and"),
    (lambda m: m.generate("rot", beams=2, length_penalty=float("nan")), InputError, "length_penalty should be between -20 and 20, got nan"),
    (lambda m: m.generate("rot", beams=0), InputError, "beams should be a whole number between 1 and 256, got 0"),
    (lambda m: m.generate("rot", max_new_tokens=99), InputError, "max_new_tokens should be a whole number between 1 and 24, got 99"),
    (lambda m: m.generate("rot " * 40), InputError, "tokens are more than the 24 that this model reads"),
    (lambda m: AttentionSeq2Seq(m.cfg).generate("rot"), InputError, "this model has no tokenizer"),
    (lambda m: replace(m.cfg, attention="dot"), ConfigError, "attention should be one of 'additive', 'none', got 'dot'")])
def test_wrong_input_is_answered_with_one_sentence(call, error, words, model):
    with pytest.raises(error, match=words):
        call(model)


def test_what_a_network_cannot_say_or_read_is_named(tokenizer, model):
    blind, mute = small(tokenizer, attention="none"), AttentionSeq2Seq(model.cfg)
    ids, keep = torch.tensor([[3, 4, 5]]), torch.tensor([[True, True, True]])
    for call, words in ((lambda: blind.align("a b"), "no attention"), (lambda: mute.align("a", "b"), "has no tokenizer"),
                        (lambda: model(ids[0], ids), "source: expected 2 dimensions"), (lambda: model(ids, ids[:, :0]), "target has no tokens"),
                        (lambda: model(ids[:, :0], ids), "keep should be True at the beginning"),
                        (lambda: model(ids[:0], ids[:0]), "source has no rows"),
                        (lambda: model(ids, ids, keep.logical_not()), "keep should be True at the beginning"),
                        (lambda: model(ids, ids, torch.tensor([[False, True, True]])), "keep should be True at the beginning"),
                        (lambda: model(ids, ids, keep[:, :2]), "keep")):
        with pytest.raises(InputError, match=words):
            call()
