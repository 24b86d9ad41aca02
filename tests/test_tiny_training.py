"""imagegen/tiny_training.py, autoencoder_files.py, examples/image/fast_decoder.py: a tiny one follows its teacher, and a painter draws with it."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from gencore.check import CheckpointError, InputError
from gencore.checkpoint import read_json
from imagegen import Autoencoder, Editor, TextToImage, TinyAutoencoder
from imagegen.autoencoder import AutoencoderConfig
from imagegen.autoencoder_files import read_autoencoder
from imagegen.data import to_unit
from imagegen.tiny_autoencoder import TinyAutoencoderConfig
from imagegen.tiny_training import agreement, faster, lesson, pupil_loss, pupil_of
from tests.scripts import EXAMPLES, run
from tests.tiny_folders import lively_painter


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(channels=(4, 8), latent=3, groups=2, size=16, scaling=0.5, shift=0.25)).eval().requires_grad_(False)


def test_a_lesson_is_what_a_denoiser_sees_and_what_is_made_of_it(teacher):
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    latents, wanted = lesson(teacher, pictures)
    torch.testing.assert_close(latents / 0.5 + 0.25, teacher.encode(pictures)[0])
    torch.testing.assert_close(wanted, teacher.decode(teacher.encode(pictures)[0]))


def test_a_pupil_comes_near_its_teacher_in_both_directions(teacher):
    torch.manual_seed(0)
    pupil, pixels = pupil_of(teacher, 8, 1), torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    assert pupil.cfg.shrink == teacher.cfg.shrink and pupil.cfg.latent == 3 and pupil.cfg.decoder_blocks == (1, 1)
    optimizer, before = torch.optim.AdamW(pupil.parameters(), lr=5e-3), agreement(pupil, teacher, pixels)
    for _ in range(60):
        loss, count = pupil_loss(pupil, {"pixels": pixels}, None, teacher=teacher)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    assert agreement(pupil, teacher, pixels) > before + 6 and count == 8
    latents, _ = lesson(teacher, to_unit(pixels))
    assert (pupil.encode(to_unit(pixels)) - latents).square().mean() < 0.5 * latents.var()
    assert 0.01 < faster(pupil, teacher, pixels, rounds=2) < 100


def test_a_painter_draws_edits_and_is_saved_with_one_and_diffusers_opens_it(tmp_path):
    from diffusers import PixArtAlphaPipeline
    painter = lively_painter(["a seven"])
    painter.name, painter.digest = "p", "d"
    with pytest.raises(InputError, match="draws latents of 3 channels, the autoencoder takes 4"):
        painter.with_autoencoder(TinyAutoencoder(TinyAutoencoderConfig()))
    own = painter.painter.autoencoder.cfg
    for other in (Autoencoder(replace(own, shift=0.5)), Autoencoder(replace(own, channels=own.channels[:-1])), object()):
        with pytest.raises(InputError, match="expected an Autoencoder or a TinyAutoencoder that shrinks by"):
            painter.with_autoencoder(other)
    painter = painter.with_autoencoder(pupil_of(painter.painter.autoencoder, 4, 1).eval().requires_grad_(False))
    assert "recipe" not in painter("a seven", steps=1, seed=0, progress=False)[0].info
    painter.save_pretrained(tmp_path / "p")
    opened = TextToImage.from_pretrained(tmp_path / "p")
    assert isinstance(opened.painter.autoencoder, TinyAutoencoder)
    assert read_json(tmp_path / "p" / "model_index.json")["vae"] == ["diffusers", "AutoencoderTiny"]
    mine = opened("a seven", steps=3, guidance=2.0, seed=1, output_type="pt", progress=False)
    pipeline = PixArtAlphaPipeline.from_pretrained(tmp_path / "p")
    pipeline.set_progress_bar_config(disable=True)
    side = mine.shape[-1]
    theirs = pipeline("a seven", height=side, width=side, num_inference_steps=3, guidance_scale=2.0, use_resolution_binning=False,
                      clean_caption=False, latents=opened.noise([1]), output_type="pt", max_sequence_length=opened.longest).images
    torch.testing.assert_close(theirs.float(), mine, rtol=0, atol=1e-4)
    editor = Editor(opened)
    assert np.asarray(editor(np.zeros((side, side, 3), np.uint8), "a seven", steps=2, seed=0)).shape == (side, side, 3)
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(CheckpointError, match="_class_name should be one of AutoencoderKL, AutoencoderTiny, got 'VQModel'"):
        read_autoencoder(tmp_path)


def test_the_example_follows_goes_on_and_leaves_what_opens(teacher, tmp_path, capsys):
    teacher.save_pretrained(tmp_path / "teacher")
    script, out = EXAMPLES / "image" / "fast_decoder.py", tmp_path / "run"
    given = ["--autoencoder", tmp_path / "teacher", "--out", out, "size=16", "width=4", "blocks=1",
             *(f"train.{setting}" for setting in ("batch=4", "warmup=1", "eval_every=2", "threads=1"))]
    said = run(script, *given, "train.steps=2")
    assert "dB to the autoencoder's own pictures, decodes" in said and "times as fast" in said
    run(script, *given, "train.steps=4", "--resume")
    assert TinyAutoencoder.from_pretrained(out / "model").cfg.decoder == (4, 4)
    assert sorted(path.name for path in (out / "samples").iterdir())[-1] == "000004.png"
    with pytest.raises(SystemExit):
        run(script, *given[:4], "size=16", "channels=1")
    assert "takes 3 channels and a multiple of 2 as size, got channels=1 size=16" in capsys.readouterr().err
