"""imagegen/train_painter.py on a handful of pictures drawn here: what goes on from a painter moves, what should stay stays."""
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gencore.config import override
from gencore.diffusion import logit_normal
from gencore.text_encoder import TextEncoder, TextEncoderConfig, train_prompt_tokenizer
from imagegen import TextToImage, train_painter
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.captioned import Captioned
from imagegen.data import Pictures, to_unit
from imagegen.dit import DiT, DiTConfig
from imagegen.text_to_image import Painter
from imagegen.training import Learner, details_of, drawing_losses, latent_batches

TINY = override(train_painter.Plan(), ["prompts.steps=1", "prompts.batch=4", "reading.steps=1", "reading.batch=4", "reading.warmup=1",
                                       "painting.steps=2", "painting.batch=2", "painting.warmup=1", "painting.ema=null",
                                       "decoding.steps=2", "decoding.batch=2", "decoding.warmup=1", "decoding.ema=null",
                                       "emphasis.steps=2", "emphasis.batch=4", "emphasis.warmup=1", "emphasis.ema=null",
                                       "autoencoding.steps=1", "autoencoding.batch=2", "autoencoding.warmup=1", "words.layers=2",
                                       "transformer.layers=2"])


def emoji_rows():
    """Four discs in two designs."""
    colours = {"red circle": (255, 0, 0), "blue circle": (0, 0, 255)}
    rows = [{"name": name, "keywords": [], "style": style, "concept": name, "group": "Symbols", "skin_tone": "none", "gender": "none"}
            for name in colours for style in ("noto", "openmoji")]
    pixels = torch.stack([torch.tensor(colours[row["name"]], dtype=torch.uint8)[:, None, None].expand(3, 64, 64) for row in rows])
    return Pictures(pixels, rows)


@pytest.fixture
def go_on(tmp_path, monkeypatch):
    """Runs a part on the shipped painter -> (before, after)."""
    monkeypatch.setattr(train_painter, "SHOWN", ["red circle, noto style"])
    written = Pictures(torch.full((4, 3, 64, 64), 255, dtype=torch.uint8), [{"label": label} for label in range(4)])
    circle = {"captions": ["a red circle", "one red circle"], "words": [bytes(15)] * 2, "cells": bytes(3 * 64)}
    composed = Pictures(torch.full((2, 3, 64, 64), 200, dtype=torch.uint8), [circle] * 2)

    def run(part, made, parts=("transformer",), *, plan=TINY, base="painter"):
        sets = train_painter.Sets(emoji_rows(), written, composed)
        part(plan, sets, SimpleNamespace(out=tmp_path, base=base, resume=False, parts=parts, strength=0.5, rivals=True, below=0.6))
        return TextToImage.from_pretrained(base).painter, TextToImage.from_pretrained(tmp_path / made / "model").painter

    return run


def same(one, two):
    return [torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)]


def test_a_painter_and_its_words_go_on_and_its_latents_stay(go_on):
    before, after = go_on(train_painter.train, "transformer")
    assert not all(same(before.transformer, after.transformer)) and not all(same(before.text_encoder, after.text_encoder))
    assert all(same(before.autoencoder, after.autoencoder))


def test_an_autoencoder_goes_on_where_it_is_asked_for(go_on):
    before, after = go_on(train_painter.train, "transformer", ["autoencoder", "transformer"])
    assert not all(same(before.autoencoder, after.autoencoder))


def test_a_transformer_goes_on_with_finer_tokens(go_on, tmp_path):
    tokenizer = train_prompt_tokenizer(["red circle, noto style"] * 4, 300, length=12)
    transformer, words = DiTConfig(width=24, layers=3, heads=2, captions=20), TextEncoderConfig(vocab=300, width=20, heads=2, head_width=8, mlp=30)
    autoencoder = AutoencoderConfig(channels=(4, 4, 8, 8), groups=2)
    TextToImage(Painter(DiT(transformer), TextEncoder(words), Autoencoder(autoencoder)), tokenizer).save_pretrained(tmp_path / "coarse")
    before, after = go_on(train_painter.train, "transformer", plan=override(TINY, ["finer=true"]), base=tmp_path / "coarse")
    assert before.transformer.cfg == transformer
    assert after.transformer.cfg == replace(transformer, patch=1, interpolation=2.0)


def test_a_prompt_encoder_gets_layers_that_it_lacks(go_on):
    before, after = go_on(train_painter.train, "transformer", plan=override(TINY, ["words.layers=5"]))
    assert after.text_encoder.cfg == replace(before.text_encoder.cfg, layers=5)
    assert after.text_encoder.transformer.blocks[-1].mlp.down.weight.any()


def test_a_transformer_gets_layers_that_it_lacks(go_on):
    more = ["transformer.layers=9", "painting.steps=3"]
    before, after = go_on(train_painter.train, "transformer", plan=override(TINY, more))
    assert after.transformer.cfg == replace(before.transformer.cfg, layers=9)
    assert all(block.mlp.down.weight.any() for block in after.transformer.transformer.blocks)


def test_shares_of_a_batch_are_as_asked_and_scenes_may_be_missing():
    few = Pictures(torch.zeros(3, 3, 64, 64, dtype=torch.uint8), [{"label": 1}] * 3)
    none = Pictures(torch.empty(0, 3, 64, 64, dtype=torch.uint8), [])
    some = Pictures(few.pixels[:2], [{"captions": ["a red circle"], "words": [bytes(15)], "cells": bytes(3 * 64)}] * 2)
    shares = [train_painter.captioned(train_painter.Sets(emoji_rows(), few, composed), digits=0.2, scenes=0.3).weights for composed in (some, none)]
    assert [round(float(part.sum()), 6) for part in np.split(shares[0], (4, 7))] == [0.5, 0.2, 0.3]
    assert [round(float(part.sum()), 6) for part in np.split(shares[1], (4, 7))] == [0.8, 0.2, 0.0]


def test_concepts_count_by_a_power_of_their_tones_and_single_things_half():
    nothing, row = torch.empty(0, 3, 64, 64, dtype=torch.uint8), {"style": "noto", "group": "People", "keywords": []}
    drawn = [{**row, "name": name, "concept": name[:3], "gender": "none", "skin_tone": tone} for name, tone in
             (("wave", "none"), ("wave: dark", "dark"), ("wave: light", "light"), ("wave: medium", "medium"), ("cat", "none"))]
    three, two = bytes([3, 4, 0, 2, 0]) * 3, bytes([0, 0, 0, 0, 1]) * 3 + bytes([255] * 5) + bytes([1, 2, 0, 0, 2]) * 3       # alike; one by another
    composed = [{"captions": ["a"], "words": [words], "cells": bytes(3 * 64)} for words in (bytes(15), three, two)]
    sets = train_painter.Sets(*(Pictures(nothing.new_zeros(len(rows), 3, 64, 64), rows) for rows in (drawn, [], composed)))
    assert [train_painter.things_in(train_painter.words_of(row["words"][0])) for row in composed] == [1, 3, 2]
    data = train_painter.captioned(sets, digits=0.0, scenes=0.5)
    weights, variants = data.weights, data.variants.tolist()
    assert len({*variants[:4]}) == 1 and len({*variants}) == 5                         # the waves are variants of one picture, all else is alone
    assert weights[:4].sum() == pytest.approx(4 ** 0.75 * weights[4]) and weights[5:].tolist() == pytest.approx([0.1, 0.2, 0.2])


def test_errors_count_more_where_the_variants_of_a_picture_differ():
    latents = torch.zeros(4, 2, 4, 4)
    latents[0, 0, 1, 2], latents[1, :, 1, 2], latents[2, :, 3, 3] = 3.0, -1.0, 5.0
    details = details_of(latents, torch.tensor([7, 7, 9, 2]))
    assert details.shape == (4, 1, 4, 4) and details.nonzero().tolist() == [[0, 0, 1, 2], [1, 0, 1, 2]] and details[:2].max() == 1

    class Silent(torch.nn.Module):
        def forward(self, x, *_):
            return torch.zeros_like(x)

    painter = Painter(Silent(), Silent(), torch.nn.Identity())
    batch = {"latents": latents, "ids": torch.zeros(4, 3), "keep": torch.ones(4, 3, dtype=torch.bool)}
    plain, weighted = (drawing_losses(painter, given, torch.Generator().manual_seed(0)) for given in (batch, batch | {"details": details}))
    errors = torch.randn(latents.shape, generator=noise_after_levels(4)) - latents
    torch.testing.assert_close(weighted - plain, 4 * (errors[:, :, 1, 2] ** 2).sum(1) / 32 * torch.tensor([1.0, 1, 0, 0]))


def noise_after_levels(count):
    """The generator of seed 0 as it is when the levels are drawn."""
    generator = torch.Generator().manual_seed(0)
    logit_normal(count, generator, mean=1.0, std=1.2)
    return generator


def test_what_lies_where_is_learnt_where_it_is_known():
    torch.manual_seed(0)
    painter = Painter(DiT(DiTConfig(patch=1, width=24, layers=3, heads=2, captions=20)), torch.nn.Identity(), torch.nn.Identity())
    learner, cells = Learner(painter, 5, [3, 4]), torch.zeros(2, 2, 8, 8, dtype=torch.long)
    learner.late = torch.zeros(2, 64, 24, requires_grad=True)
    with torch.no_grad():
        learner.tell.bias.copy_(torch.tensor([0.0, 9, 0, 0, 0, 9, 0]))                 # says 1 and 2 of every cell
    cells[0] += torch.tensor([1, 2])[:, None, None]
    cells[1, :, 4:] = -1
    losses = learner.misnamed(cells)
    empty = -torch.log_softmax(torch.tensor([0.0, 9, 0]), 0)[0] - torch.log_softmax(torch.tensor([0.0, 0, 9, 0]), 0)[0]
    torch.testing.assert_close(losses[1], empty / 16)                                  # half of two properties, a quarter of their weight
    assert losses[0] < 1e-3 and learner.misnamed(torch.full_like(cells, -1)).eq(0).all()
    losses.sum().backward()
    assert learner.late.grad[1, :32].any() and not learner.late.grad[1, 32:].any()


def test_larger_tokens_are_told_every_other_cell():
    learner = Learner(Painter(DiT(DiTConfig(width=24, layers=3, heads=2, captions=20)), torch.nn.Identity(), torch.nn.Identity()), 5, [3])
    torch.nn.init.zeros_(learner.tell.bias)
    learner.late, cells = torch.zeros(1, 16, 24), torch.full((1, 1, 8, 8), -1)
    cells[..., ::2, ::2] = 1
    torch.testing.assert_close(learner.misnamed(cells), torch.tensor([3.0]).log())


def test_a_decoder_goes_on_and_all_else_stays(go_on):
    before, after = go_on(train_painter.sharpen, "decoder")
    assert not all(same(before.autoencoder.decoder, after.autoencoder.decoder))
    assert all(same(before.autoencoder.encoder, after.autoencoder.encoder)) and all(same(before.transformer, after.transformer))


def test_designs_can_count_for_more_and_all_else_stays(go_on):
    before, after = go_on(train_painter.emphasise, "emphasis")
    assert not all(same(before.transformer, after.transformer))
    assert all(same(before.text_encoder, after.text_encoder)) and all(same(before.autoencoder, after.autoencoder))


def test_a_base_keeps_its_shift_and_a_decoder_in_training_the_bits_of_the_others(go_on, tmp_path):
    base = TextToImage.from_pretrained("painter")
    base.painter.transformer.out.bias.data += 1e-5                                                         # nothing of bfloat16
    TextToImage(base.painter, base.tokenizer, shift=3.0).save_pretrained(tmp_path / "base")
    before, after = go_on(train_painter.sharpen, "decoder", base=tmp_path / "base")
    assert all(same(before.transformer, after.transformer)) and TextToImage.from_pretrained(tmp_path / "decoder" / "model").shift == 3.0
    go_on(train_painter.train, "transformer", base=tmp_path / "base")
    assert TextToImage.from_pretrained(tmp_path / "transformer" / "model").shift == 3.0


def test_a_part_begins_alike_whatever_was_drawn_before_it(go_on, monkeypatch):
    starts = []
    for drawn in (1, 5):
        monkeypatch.setattr(train_painter, "train_prompts", lambda *given, **named: SimpleNamespace(tower=None))
        monkeypatch.setattr(train_painter, "train_reading", lambda *given, drawn=drawn, **named: torch.rand(drawn))
        monkeypatch.setattr(train_painter, "train_transformer", lambda *given, **named: starts.append(float(torch.rand(1))) or sys.exit())
        with pytest.raises(SystemExit):
            go_on(train_painter.train, "transformer")
    assert starts[0] == starts[1]


def test_latents_are_learnt_as_they_are_drawn():
    tokenizer = train_prompt_tokenizer(["red circle, noto style"] * 4, 300, length=12)
    autoencoder = Autoencoder(AutoencoderConfig(channels=(4, 4, 8, 8), groups=2, scaling=0.5))
    words = TextEncoder(TextEncoderConfig(vocab=300, width=20, heads=2, head_width=8, mlp=30))
    drawing = TextToImage(Painter(DiT(DiTConfig(width=24, layers=3, heads=2, captions=20)), words, autoencoder), tokenizer)
    pixels = emoji_rows().pixels
    data = Captioned(pixels, lambda i, rng: "red circle, noto style", torch.arange(4), np.array([0.0, 0.0, 1.0, 0.0]))
    with torch.no_grad():
        learnt = latent_batches(drawing.painter, tokenizer, data, replace(TINY.painting, batch=2)).batch(0)["latents"]
        torch.testing.assert_close(learnt, drawing.encode(to_unit(pixels[2:3])).expand_as(learnt), rtol=0, atol=1e-5)


@pytest.mark.parametrize("given, words", [
    (["--parts", "decoder"], "--parts needs --base"), (["--base", "painter", "--parts", "transformer,decoder"], "or be decoder or emphasis alone"),
    (["digit_share=0.8", "scene_share=0.5"], "leave some of 1 for emoji, got 0.8 and 0.5"), (["prompts.accumulate=2"], "accumulate should be 1"),
    (["autoencoder.quant_convs=false"], "quant_convs should be true"), (["--strength", "-1"], "--strength should be between 0 and 100, got -1"),
])
def test_what_can_not_be_trained_is_said_at_the_door(given, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_painter", "--data", "nowhere", *given])
    with pytest.raises(SystemExit):
        train_painter.main()
    assert words in capsys.readouterr().err
