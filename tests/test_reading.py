"""imagegen/reading.py: a prompt encoder learns what thing each word is about, and what it says of other captions stays near."""
import itertools

import numpy as np
import pytest
import torch

from gencore.text_encoder import TextEncoder, TextEncoderConfig, encode_prompts, train_prompt_tokenizer
from gencore.train import Run, TrainConfig
from imagegen.captioned import Captioned
from imagegen.dit import DiT, DiTConfig
from imagegen.reading import FASTER, Reader, Reading, meanings_of, optimizer, train_reading, values_of
from imagegen.text_to_image import Painter
from imagegen.training import Learner

COLOURS, SHAPES = ("red", "blue", "green", "pink"), ("circle", "square", "star")
KINDS = list(itertools.product(range(4), range(3)))


def described(first, second):
    """Two (colour, shape) -> (caption, what each of its words is about)."""
    caption = " and ".join(f"a {COLOURS[c]} {SHAPES[s]}" for c, s in (first, second))
    return caption, torch.tensor([first] * 3 + [(-1, -1)] + [second] * 3, dtype=torch.int8)


PAIRS = [described(*pair) for pair in itertools.permutations(KINDS, 2)]
OTHERS = ["grinning face, noto style", "digit seven", "", "pizza"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_prompt_tokenizer([text for text, _ in PAIRS] + OTHERS * 9, 400, length=16)


@pytest.fixture
def encoder(tokenizer):
    torch.manual_seed(0)
    return TextEncoder(TextEncoderConfig(vocab=len(tokenizer), width=48, layers=2, heads=4, head_width=12, mlp=64))


def told(encoder, tokenizer, learnt, asked):
    """How often a line, fitted to the states of nouns in the captions `learnt`, tells the colours of those in `asked`; both {caption: words}."""
    def nouns(captions):
        ids, keep, _ = encode_prompts(tokenizer, list(captions), 16)
        places = [[i for i, token in enumerate(tokenizer.engine.encode(text).tokens) if token.strip("Ġ") in SHAPES] for text in captions]
        states = encoder(ids, keep).detach()
        states = torch.stack([states[i, place] for i, two in enumerate(places) for place in two])
        colours = torch.tensor([words[place, 0] for words in captions.values() for place in (2, 6)]).long()
        return torch.nn.functional.pad(states, (0, 1), value=1.0), colours

    (states, colours), (others, wanted) = nouns(learnt), nouns(asked)
    line = torch.linalg.lstsq(states, torch.nn.functional.one_hot(colours, 4).float()).solution
    return float(((others @ line).argmax(1) == wanted).float().mean())


def test_states_come_to_tell_a_nouns_colour_and_others_stay(encoder, tokenizer, tmp_path):
    unseen = dict(PAIRS[::4])
    seen = {text: words for text, words in PAIRS if text not in unseen}
    data = Captioned(None, lambda row, rng: OTHERS[row % len(OTHERS)], None, np.ones(8), words=seen)
    with torch.no_grad():
        encoder.transformer.relative.table.weight.zero_()                              # knows no order yet
    ids, keep, _ = encode_prompts(tokenizer, OTHERS, 16)
    states, blind = encoder(ids, keep).detach(), told(encoder, tokenizer, seen, unseen)
    encoder.requires_grad_(False)                                                      # as a loaded one is
    config = TrainConfig(steps=120, batch=48, lr=3e-3, warmup=10, decay=0.5, save_every=0)
    assert train_reading(encoder, tokenizer, data, config, run=Run(tmp_path / "run", progress=False)) is encoder
    assert not any(p.requires_grad for p in encoder.parameters())
    assert blind < 0.7 and told(encoder, tokenizer, seen, unseen) > 0.95
    moved = (encoder(ids, keep) - states)[keep].square().mean() / states[keep].square().mean()
    assert moved < 0.1


def test_the_bias_by_distance_moves_faster(encoder):
    first, second = optimizer(Reading(encoder, [4, 3]), TrainConfig(lr=1e-3)).parts[0].param_groups
    assert second["params"] == [encoder.transformer.relative.table.weight] and second["peak"] == FASTER * first["peak"] == FASTER * 1e-3
    assert len(first["params"]) + 1 == len(list(Reading(encoder, [4, 3]).parameters()))


def test_what_is_not_known_is_not_misread(encoder):
    reader = Reader(20, [3, 4])
    with torch.no_grad():
        reader.line.weight.zero_()
        reader.line.bias.copy_(torch.tensor([0.0, 9, 0, 0, 0, 9, 0]))                  # says 1 and 2 of every word
    words = torch.tensor([[[1, 2], [1, 2], [-1, -1], [-1, -1]], [[1, 2], [0, 2], [-1, -1], [-1, -1]], [[-1, -1]] * 4])
    wrong = -torch.log_softmax(torch.tensor([0.0, 9, 0]), 0)[0]
    torch.testing.assert_close(reader.misread(torch.randn(3, 4, 20), words), torch.stack((torch.tensor(0.0), wrong / 4, torch.tensor(0.0))),
                               atol=2e-3, rtol=0)


def test_a_learner_reads_the_states_that_the_transformer_looks_at(encoder):
    learner = Learner(Painter(DiT(DiTConfig(width=24, layers=3, heads=2, captions=48)), encoder, torch.nn.Identity()), 5, meanings=[4, 3])
    assert encoder(torch.arange(12).view(3, 4)) is learner.states and learner.reader.line.out_features == 7


def test_every_token_of_a_word_is_about_what_the_word_is_about():
    tokenizer = train_prompt_tokenizer(["red circle noto"] * 4, 262, length=12)        # few words are one token
    words = {"a red circle at": torch.tensor([[0, 1], [2, 3], [4, 5], [-1, -1]], dtype=torch.int8)}
    found = meanings_of(tokenizer, ["a red circle at", "", "green"], words, 10)
    encoded = tokenizer.engine.encode("a red circle at")
    assert len(encoded.ids) > 10 and found.shape == (3, 10, 2) and (found[1:] == -1).all()
    assert [row for place, row in zip(encoded.word_ids, found[0].tolist()) if place == 2] == [[4, 5]] * encoded.word_ids[:10].count(2)
    assert found[0, 0].tolist() == [0, 1] and values_of(words) == [5, 6]
