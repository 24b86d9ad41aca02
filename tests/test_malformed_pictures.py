"""Pictures of every kind and in every state of decay, through every door that takes pictures: a picture, or one sentence that names the file."""
import functools
import io
import random
import struct
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from gencore.check import CommonthreadError, DataError, InputError
from gencore.data import image_folder
from gencore.pictures import open_picture, prepare
from imagegen import ControlledTextToImage, Editor
from imagegen.captioned import captioned_folder
from imagegen.control import Control, ControlConfig, edges_of
from imagegen.data import emoji
from tests.scripts import EXAMPLES, run
from tests.tiny_folders import lively_painter

FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "ppm": "PPM", "jp2": "JPEG2000", "avif": "AVIF"}
PROMPTS = ["a handwritten seven", "slice of pizza, noto style"]


def noise(size=(40, 30), mode="RGB", seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def packed(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *chunks, depth=8, colour=2):
    """A PNG whose header says that size, with these chunks and no others."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def pil(path):
    """As a user opens it; PIL itself may have something to say of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(path)


# ---- what is sound, whatever its kind ----

@functools.cache
def sound():
    """{name: bytes} of files that hold a picture."""
    grey = noise(mode="L")
    palette, clear = noise().convert("P", palette=Image.Palette.ADAPTIVE), noise(mode="RGBA")
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [noise(seed=seed) for seed in range(3)]
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 5000, zip=True)
    files = {f"plain.{end}": packed(noise(), kind) for end, kind in FORMATS.items()}
    files |= {"grey.png": packed(grey, "PNG"), "bit.png": packed(noise(mode="1"), "PNG"), "grey-alpha.png": packed(clear.convert("LA"), "PNG"),
              "alpha.png": packed(clear, "PNG"), "palette.png": packed(palette, "PNG"), "palette-clear.png": packed(palette, "PNG", transparency=3),
              "palette-alpha.png": packed(palette, "PNG", transparency=bytes(range(256))), "key.png": packed(noise(), "PNG", transparency=(1, 2, 3)),
              "deep.png": packed(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
              "cmyk.jpg": packed(noise(mode="CMYK"), "JPEG"), "grey.jpg": packed(grey, "JPEG"), "turned.jpg": packed(noise(), "JPEG", exif=exif),
              "progressive.jpg": packed(noise(), "JPEG", progressive=True), "clear.webp": packed(clear, "WEBP"),
              "clear.gif": packed(palette, "GIF", transparency=0), "cmyk.tif": packed(noise(mode="CMYK"), "TIFF"),
              "float.tif": packed(Image.fromarray(np.random.default_rng(0).random((30, 40), np.float32)), "TIFF"),
              "long.tif": packed(Image.fromarray(np.arange(1200, dtype=np.int32).reshape(30, 40) * 50), "TIFF"),
              "text.png": packed(noise(), "PNG", pnginfo=text), "pixel.png": packed(noise((1, 1)), "PNG"), "pixel.gif": packed(noise((1, 1)), "GIF"),
              "flat.png": packed(noise((3000, 1)), "PNG"), "tall.jpg": packed(noise((1, 3000)), "JPEG"),
              "profile.png": packed(noise(), "PNG", icc_profile=b"no" * 900),
              "profile.jpg": packed(noise(), "JPEG", icc_profile=bytes(range(256)) * 300),
              "exif.jpg": packed(noise(), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 60),
              "exif.png": packed(noise(), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 20),
              "exif.webp": packed(noise(), "WEBP", exif=b"\0" * 40)}
    for end in ("gif", "webp", "png", "tif", "avif"):
        files[f"moving.{end}"] = packed(frames[0], FORMATS[end], save_all=True, append_images=frames[1:])
    return files


# ---- what is not ----

@functools.cache
def broken():
    """{name: bytes}: 200 files that lie about themselves or have decayed; some can be read nevertheless."""
    draw, files = random.Random(0), {}
    whole = {name: raw for name, raw in sound().items() if name.startswith(("plain", "moving", "palette-clear", "cmyk"))}
    for name, raw in whole.items():
        stem, end = name.split(".")
        for share in (0.02, 0.15, 0.3, 0.5, 0.7, 0.97):
            files[f"{stem}-cut{share}.{end}"] = raw[:max(1, int(len(raw) * share))]
        for turn in range(4):
            places, changed = draw.sample(range(len(raw)), 1 + 8 * turn), bytearray(raw)
            for place in places if turn < 3 else range(16, min(40, len(raw))):            # anywhere, or all of the header
                changed[place] ^= draw.randrange(1, 256)
            files[f"{stem}-flip{turn}.{end}"] = bytes(changed)
        files[f"{stem}-magic.{end}"] = b"\0\1\2\3" + raw[4:]
    pixels = zlib.compress(b"\0" * 200)
    files |= {"nothing.png": b"", "zeros.png": bytes(3000), "text.jpg": b"no picture, some words\n" * 9, "html.gif": b"<html><body>404</body></html>",
              "null.png": png(0, 0, chunk(b"IDAT", pixels)), "wide0.png": png(5, 0, chunk(b"IDAT", pixels)), "bare.png": png(8, 8),
              "bomb.png": png(60000, 60000, chunk(b"IDAT", zlib.compress(bytes(10 ** 6)))),
              "most.png": png(2 ** 31 - 1, 2 ** 31 - 1, chunk(b"IDAT", pixels)),
              "deflate.png": png(64, 64, chunk(b"IDAT", zlib.compress(bytes(10 ** 8)))), "depth.png": png(8, 8, chunk(b"IDAT", pixels), depth=7),
              "colours.png": png(8, 8, chunk(b"IDAT", pixels), colour=5), "nopalette.png": png(8, 8, chunk(b"IDAT", pixels), colour=3),
              "words.png": png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10 ** 8))), chunk(b"IDAT", pixels)),
              "icc.png": png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10 ** 8))), chunk(b"IDAT", pixels)),
              "large.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
              "negative.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, -8, -8, 1, 24, 0, 0, 0, 0, 0, 0),
              "large.ppm": b"P6 100000 100000 255\n" + bytes(50), "endless.ppm": b"P6 " + b"9" * 5000 + b" 1 255\n",
              "large.gif": b"GIF89a" + b"\xff" * 40,
              "loop.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
              "lab.tif": packed(noise().convert("LAB"), "TIFF"), "many.gif": many_frames(20_000)}
    return files


def many_frames(count):
    """A GIF of one pixel and many frames."""
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b";"


@pytest.fixture(scope="module")
def editor():
    return Editor(lively_painter(PROMPTS))


def checked(door, path, within=5.0):
    """What came through the door, or None when it was refused by a sentence that names the file; neither slowly nor with much memory."""
    begun = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "(?s).*more than one frame")
            made = door(path)
    except CommonthreadError as error:
        made, message = None, str(error)
        assert isinstance(error, (DataError, InputError)) and path.name in message and "\n" not in message and len(message) < 600, message
        assert "object at 0x" not in message and "Traceback" not in message, message
    assert time.process_time() - begun < within, path.name
    return made


def peak():
    """Megabytes that this process has ever had."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def folder_of(path):
    """The class folder around a file, which an imagefolder is."""
    return path.parent.parent


def written(place, files):
    """{name: bytes} -> paths, each alone in a folder of a class."""
    for number, (name, raw) in enumerate(files.items()):
        path = place / str(number) / "thing" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(raw)
        yield path


def test_pictures_of_every_kind_come_through_every_door(tmp_path, editor):
    doors = {"open": lambda path: prepare(open_picture(path), 16), "folder": lambda path: captioned_folder(folder_of(path), 16)[0].pixels[0],
             "bytes": lambda path: prepare(open_picture(path.read_bytes()), 16), "PIL": lambda path: prepare(open_picture(pil(path)), 16)}
    for path in written(tmp_path, sound()):
        made = {name: checked(door, path) for name, door in doors.items()}
        assert all(picture is not None and picture.shape == (3, 16, 16) for picture in made.values()), path.name
        assert torch.equal(made["open"], made["bytes"]) and torch.equal(made["open"], made["PIL"]), path.name
    with pytest.warns(UserWarning, match="moving.gif has more than one frame: the first is read"):
        open_picture(next(tmp_path.rglob("moving.gif")))


def test_a_broken_note_of_the_camera_is_no_broken_picture(tmp_path):
    for name in ("exif.jpg", "exif.png", "exif.webp"):
        (tmp_path / name).write_bytes(sound()[name])
        assert open_picture(tmp_path / name).size == (40, 30)


def few(files, count=30):
    """Some of them, the oddest among them."""
    odd = {name: raw for name, raw in files.items() if "-" not in name}
    return odd | dict(random.Random(1).sample(sorted(files.items()), count))


def decayed(files, tmp_path, editor):
    """Every file through every door; how many of them could be read by open_picture."""
    controlled = ControlledTextToImage(editor.painter, Control.beside(ControlConfig(copied=1, stem=4), editor.painter.painter))
    def as_mask(path):
        """Through the door of masks: one that has another size than the picture, or nothing white, is a sentence as well."""
        try:
            return editor(Image.new("RGB", (40, 30)), PROMPTS[0], mask=path, steps=1, seed=0)
        except InputError as error:
            assert "the mask" in str(error) or path.name in str(error)
            if "the mask" not in str(error):
                raise

    doors = [lambda path: captioned_folder(folder_of(path), 16), lambda path: image_folder(folder_of(path))[0]["image"], edges_of,
             lambda path: editor(path, PROMPTS[0], steps=2, seed=0), lambda path: controlled(PROMPTS[0], path, steps=1, seed=0, progress=False)]
    readable, memory = 0, peak()
    for path in written(tmp_path, files):
        opened = checked(lambda path: prepare(open_picture(path), 16), path)
        readable += opened is not None
        for door in doors:
            assert (checked(door, path) is None) == (opened is None), path.name
        checked(as_mask, path)
    assert peak() - memory < 800, "megabytes"
    return readable


def test_a_few_malformed_pictures_end_in_a_picture_or_a_sentence(tmp_path, editor):
    files = few(broken())
    assert 0 < decayed(files, tmp_path, editor) < len(files)


@pytest.mark.slow
def test_200_malformed_pictures_end_in_a_picture_or_a_sentence(tmp_path, editor):
    files = broken()
    assert len(files) >= 200
    assert 20 < decayed(files, tmp_path, editor) < len(files) - 60


def test_a_malformed_picture_in_parquet_is_named_by_its_row(tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet
    rows = [{"image": {"bytes": raw, "path": None}, "style": "noto", "name": "a", "keywords": [], "concept": "a", "group": "Symbols",
             "skin_tone": "none", "gender": "none"} for raw in (sound()["plain.png"], broken()["zeros.png"])]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet row 1 is not a picture that can be read"):
        emoji(tmp_path, size=16)
    with pytest.raises(DataError, match=r"train.parquet row 1 is not a picture that can be read"):
        image_folder(tmp_path, text="name")
    rows[1]["image"]["bytes"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet row 1 holds no file bytes"):
        emoji(tmp_path, size=16)


def test_examples_end_in_one_line_when_their_picture_is_broken(tmp_path, editor, capsys):
    editor.painter.save_pretrained(tmp_path / "painter")
    path = tmp_path / "class" / "thing" / "zeros.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(broken()["zeros.png"])
    of_base = ["--data", tmp_path / "class", "--base", tmp_path / "painter", "--out", tmp_path / "run"]
    commands = [["image/edit.py", path, "a", "--painter", tmp_path / "painter", "--out", tmp_path / "a.png"], ["image/lora.py", *of_base],
                ["image/control.py", *of_base, "control.copied=1"]]
    for command in (*commands, *([script, *of_base[:2], *of_base[4:]] for script in ("train_image.py", "image/gan.py"))):
        with pytest.raises(SystemExit) as stopped:
            run(EXAMPLES / command[0], *command[1:])
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert stopped.value.code == 2 and said.startswith("error: ") and "zeros.png is not a picture that can be read" in said, said


def test_a_data_set_of_one_picture_or_without_labels_is_one_sentence(tmp_path, editor, capsys):
    import pyarrow
    import pyarrow.parquet as parquet
    (tmp_path / "one" / "thing").mkdir(parents=True)
    noise().save(tmp_path / "one" / "thing" / "a.png")
    cells = [{"bytes": packed(noise(), "PNG"), "path": None}] * 3
    parquet.write_table(pyarrow.table({"image": cells, "label": ["a", None, "b"]}), tmp_path / "some.parquet")
    parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "none.parquet")
    editor.painter.save_pretrained(tmp_path / "painter")
    base = ["--base", tmp_path / "painter", "control.copied=1"]
    for script, data, more, words in (
            ("train_image.py", "one", [], "one holds 1 pictures and 1 different captions: give at least 2"),
            ("image/gan.py", "one", [], "one holds one picture: give at least two"),
            ("image/control.py", "one", base, "one holds one picture: give at least two"),
            ("image/gan.py", "some.parquet", [], r"some.parquet row 1 has no label (1 such in all)"),
            ("image/gan.py", "none.parquet", [], "none.parquet has no classes"),
            ("image/lora.py", "some.parquet", base[:2], 'some.parquet row 0 and the others have no column "text"')):
        with pytest.raises(SystemExit) as stopped:
            run(EXAMPLES / script, "--data", tmp_path / data, "--out", tmp_path / "run", *more)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert stopped.value.code == 2 and said.startswith("error: ") and words in said, said


def test_what_no_picture_is_made_for_is_said(editor):
    lines = Image.new("L", (16, 16), 255)
    for picture in (b"", b"\x89PNG", np.zeros((0, 0), np.uint8), Image.new("RGB", (0, 4))):
        with pytest.raises((DataError, InputError), match="the picture is"):
            editor(picture, "a")
    with pytest.raises(DataError, match="the picture is not a picture that can be read"):
        editor(lines.convert("RGB"), "a", mask=b"no mask")

