"""textgen/word_senses.py: what is learnt from and judged share no cue, and what the probe can and can't tell; the example, tiny."""
import copy

import pytest
import torch

from gencore.attention import AttentionConfig
from gencore.layers import MLPConfig
from gencore.tokenizer import train_bpe
from gencore.transformer import TransformerConfig
from tests.scripts import EXAMPLES, run
from textgen import CausalLM
from textgen.model import CausalLMConfig
from textgen.word_senses import FRAMES, SENSES, judged, probe, sentences, states, unlabelled

NEUTRAL = set(" ".join(FRAMES).replace(",", "").replace("{a}", "").replace("{b}", "").split())


def cues(side, word):
    return {part for text, _ in side for part in text.replace(",", "").split()} - NEUTRAL - {word}


@pytest.mark.parametrize("word", SENSES)
def test_no_cue_and_no_frame_is_both_learnt_from_and_judged(word):
    learn, judge = sentences(word)
    assert cues(learn, word) and not cues(learn, word) & cues(judge, word)
    for side in (learn, judge):
        assert sum(sense for _, sense in side) * 2 == len(side) and all(text.endswith(" " + word) for text, _ in side)
    starts = [{text.split()[0] + text.split()[1] for text, _ in side} for side in (learn, judge)]
    assert not starts[0] & starts[1]
    assert sentences(word) == (learn, judge) != sentences(word, seed=1)


def test_no_cue_belongs_to_both_senses_of_a_word():
    for senses in SENSES.values():
        first, second = (set(words.split()) for words in senses.values())
        assert len(first) == len(second) == 16 and not first & second


def test_unlabelled_sentences_are_a_function_of_the_seed():
    assert unlabelled(5, seed=3) == unlabelled(5, seed=3) != unlabelled(5, seed=4)


def test_a_probe_separates_what_a_line_separates_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator)
    separable, noise = (x @ torch.randn(8, generator=generator) > 0).long(), torch.randint(2, (400,), generator=generator)
    assert ((probe(x[:200], separable[:200])(x[200:]) > 0).long() == separable[200:]).float().mean() > 0.93
    assert 0.4 < ((probe(x[:200], noise[:200])(x[200:]) > 0).long() == noise[200:]).float().mean() < 0.6


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    tokenizer = train_bpe(unlabelled(300, seed=0), 600)
    stack = TransformerConfig(width=16, layers=2, attention=AttentionConfig(heads=2), mlp=MLPConfig(32))
    return CausalLM(CausalLMConfig(vocab=len(tokenizer), context=64, transformer=stack), tokenizer)


def test_states_are_those_of_each_text_alone_at_its_last_token(untrained):
    texts = ["He thought of the oak, of the birch, and of the bark", "the bark"]
    contextual, static = states(untrained, texts)
    for row, text in enumerate(texts):
        ids = torch.tensor([untrained.tokenizer.encode(text)])
        last = untrained.hidden(ids)[0, -1]
        torch.testing.assert_close(untrained.transformer.norm(contextual[row, 16:]), last, rtol=1e-5, atol=1e-5)
        assert torch.equal(static[row], untrained.embedding.weight[ids[0, -1]])


def test_states_of_a_rounded_model_are_judged_in_float32(untrained):
    contextual, static = states(copy.deepcopy(untrained).bfloat16(), ["the bark", "of the oak"])
    assert contextual.dtype == static.dtype == torch.float32


def test_static_vectors_and_bags_of_words_tell_nothing(untrained):
    right, margins, senses = judged(untrained, "bark")
    assert right["static"] == right["bag of words"] == 0.5
    assert margins.shape == senses.shape and 0.2 < right["contextual"] < 0.9                            # it has read nothing


@pytest.mark.slow
def test_a_small_trained_model_tells_a_trees_bark_from_a_dogs():
    from examples.text.word_senses import trained
    lm = trained(250)                                                                                   # as benchmarks/word_senses.py does
    for seed in range(3):
        right, _, _ = judged(lm, "bark", seed)
        assert right["contextual"] >= 0.95 and abs(right["static"] - 0.5) < 0.01


@pytest.mark.slow
def test_the_example_probes_what_it_has_trained(tmp_path):
    printed = run(EXAMPLES / "text" / "word_senses.py", "--steps", 4, "--out", tmp_path / "senses.png")
    assert "static 50.0%" in printed.splitlines()[-1] and (tmp_path / "senses.png").stat().st_size > 5000
