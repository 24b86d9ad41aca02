"""imagegen/train_painter.py on a handful of pictures drawn here: what goes on from a painter moves, what should stay stays."""
import sys
from types import SimpleNamespace

import pytest
import torch

from gencore.config import override
from imagegen import TextToImage, train_painter
from imagegen.data import Pictures

TINY = override(train_painter.Plan(), ["prompts.steps=1", "prompts.batch=4", "painting.steps=2", "painting.batch=2", "painting.warmup=1",
                                       "decoding.steps=2", "decoding.batch=2", "decoding.warmup=1", "decoding.ema=null", "painting.ema=null"])


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

    def run(part, made):
        part(TINY, emoji_rows(), written, SimpleNamespace(out=tmp_path, base="painter", resume=False))
        return TextToImage.from_pretrained("painter").painter, TextToImage.from_pretrained(tmp_path / made / "model").painter

    return run


def same(one, two):
    return [torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)]


def test_a_painter_goes_on_and_its_words_and_latents_stay(go_on):
    before, after = go_on(train_painter.train, "transformer")
    assert not all(same(before.transformer, after.transformer))
    assert all(same(before.text_encoder, after.text_encoder)) and all(same(before.autoencoder, after.autoencoder))


def test_a_decoder_goes_on_and_all_else_stays(go_on):
    before, after = go_on(train_painter.sharpen, "decoder")
    assert not all(same(before.autoencoder.decoder, after.autoencoder.decoder))
    assert all(same(before.autoencoder.encoder, after.autoencoder.encoder)) and all(same(before.transformer, after.transformer))


def test_a_decoder_alone_needs_a_painter(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_painter", "--data", "nowhere", "--only", "decoder"])
    with pytest.raises(SystemExit):
        train_painter.main()
    assert "--only decoder needs --base" in capsys.readouterr().err
