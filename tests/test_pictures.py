"""gencore/pictures.py, through what pictures are trained on: grey ramps of every depth come out as the same ramp, transparent places white."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from gencore.check import InputError
from gencore.pictures import eight_bits, read_picture, white_marks
from imagegen.data import Pictures, cached, labelled_grid, on_white, square

RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))               # black on the left, white on the right


@pytest.mark.parametrize("picture", [
    Image.fromarray((RAMP * 255).astype(np.uint8)), Image.fromarray((RAMP * 65535).astype(np.uint16)),
    Image.fromarray((RAMP * 65535).astype(np.int32)), Image.fromarray(RAMP.astype(np.float32)),
    Image.fromarray((RAMP * 255).astype(np.uint8)).convert("P"), Image.fromarray((RAMP * 255).astype(np.uint8)).convert("CMYK")],
    ids=lambda picture: picture.mode)
def test_a_ramp_of_any_depth_stays_one(picture):
    values = square(picture, 32).float().mean((0, 1)) / 255
    assert np.abs(values.numpy() - RAMP[0]).max() < 0.02
    if picture.mode in ("L", "I;16", "P"):                    # what PNG holds
        raw = io.BytesIO()
        picture.save(raw, "PNG")
        assert np.abs(on_white(read_picture(raw, "ramp"), 32).mean((0, 2)) / 255 - RAMP[0]).max() < 0.02


def test_transparent_places_are_white():
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert square(clear, 16).min() == 255


def test_a_labelled_grid_holds_each_picture_in_its_field():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    labels = ["one", "two", "a label of many words"]
    sheet = labelled_grid([Image.new("RGB", (8, 8), colour) for colour in colours], labels, columns=2, side=60, room=30)
    assert sheet.size == (120, 180)
    fields = [sheet.crop((x, y, x + 60, y + 90)) for y in (0, 90) for x in (0, 60)]
    assert [field.getpixel((30, 30)) for field in fields] == [*colours, (255, 255, 255)]
    inked = [np.asarray(field.crop((0, 60, 60, 90)).convert("L")).min() < 99 for field in fields]
    assert inked == [True, True, True, False]


def test_places_without_a_number_are_black_and_the_rest_stays_as_it_was():
    values = RAMP.astype(np.float32) * 1.02                      # sharpening goes a little beyond 1
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
    seen = np.asarray(eight_bits(values))
    assert np.abs(seen[5:].mean(0) / 255 - (RAMP[0] * 1.02).clip(0, 1)).max() < 0.01 and seen[0, 0] == seen[1, 1] == seen[2, 2] == 0
    assert np.asarray(eight_bits(np.full((2, 2), np.nan, np.float32))).max() == 0


def test_what_is_kept_is_of_the_file_as_it_is(tmp_path):
    source, cache, made = tmp_path / "train.parquet", tmp_path / "cache", []

    def make():
        made.append(source.stat().st_size)
        return Pictures(torch.full((1, 3, 4, 4), made[-1], dtype=torch.uint8), [{"label": 1}])

    for text in ("one", "one", "three"):
        if not source.is_file() or source.read_text() != text:
            source.write_text(text)
        assert cached(cache, "some", make, source=source).pixels.unique().tolist() == [len(text)]
    assert made == [3, 5] and not list(cache.glob("*.part"))
    assert cached(None, "some", make, source=source).rows == [{"label": 1}] and made == [3, 5, 5]


def test_marks_of_every_form_are_the_same_marks():
    marks = np.zeros((6, 8), bool)
    marks[2:4, 1:5] = True
    real, byte = marks.astype(np.float32), marks.astype(np.uint8) * 255
    forms = [marks, marks[None], marks[..., None], real, real[None, None], real[..., None], np.stack([real] * 3, -1), real * 2 - 1, byte, byte[None],
             np.stack([byte] * 3, -1), Image.fromarray(byte)]
    forms += [torch.from_numpy(form) for form in (marks, marks[None], real, real[None], real[None, None], byte)]
    forms += [torch.from_numpy(np.stack([real] * 3)), torch.from_numpy(np.stack([real] * 3)) * 2 - 1, torch.from_numpy(real).bfloat16()]
    for form in forms:
        assert (np.asarray(white_marks(form)) == byte).all(), (type(form), form.dtype if hasattr(form, "dtype") else form.mode)


@pytest.mark.parametrize("marks, words", [
    (np.ones((4, 4), np.uint8), "of uint8 should be 0 and 255, got 0 and 1: give them as bool"),
    (np.ones((4, 4), np.int64), "should be bool, in 0..1 or"), (np.ones((2, 4, 4), bool), "should be bool"), (np.full((4, 4), np.nan), "in 0..1"),
    (np.full((4, 4), 2.0), "of floating numbers should be in 0..1"), (torch.ones(2, 1, 4, 4), r"got torch.float32 \(2, 1, 4, 4\)"),
    (np.ones((0, 4), bool), "is empty")])
def test_what_are_no_marks_is_said(marks, words):
    with pytest.raises(InputError, match=words):
        white_marks(marks)
