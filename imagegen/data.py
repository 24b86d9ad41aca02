"""Pictures and their captions: emoji and handwritten digits from parquet, brought to one size, and the wordings that a user may type.

Pictures are kept as bytes (N,3,H,W) uint8; `to_unit` makes the [-1,1] floats that models see."""
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gencore.check import DataError
from gencore.data_folder import file_of
from gencore.pictures import plain_colours, read_picture

STYLES = {"noto": "noto", "twemoji": "twemoji", "openmoji": "openmoji", "fluent-3d": "fluent 3d", "fluent-flat": "fluent flat"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_WORDINGS = ("a handwritten {word}", "handwritten {word}", "{word}", "the number {word}", "the digit {word}", "a handwritten {figure}",
                  "handwritten digit {figure}", "digit {figure}", "{figure}", "the number {figure}")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with what is known about each."""
    pixels: torch.Tensor               # (N, 3, H, W) uint8
    rows: list                         # N dicts: emoji have name, keywords, style, concept, ...; digits have label

    def __len__(self):
        return len(self.rows)

    def where(self, wanted):
        """The pictures whose row `wanted` accepts."""
        places = [i for i, row in enumerate(self.rows) if wanted(row)]
        return Pictures(self.pixels[places], [self.rows[i] for i in places])


def to_unit(pixels):
    """uint8 (...) -> float in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_bytes(pictures):
    """float in [-1, 1] (rest is clamped) -> uint8."""
    return pictures.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def to_pil(pictures):
    """pictures (B,3,H,W) in [-1,1] -> list of PIL images."""
    from PIL import Image
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in to_bytes(pictures).cpu()]


def grid(pictures, columns, gap=2):
    """pictures (B,3,H,W) -> one (3,H',W') on white, row by row."""
    B, C, H, W = pictures.shape
    rows = -(-B // columns)
    sheet = torch.ones(C, rows * (H + gap) - gap, columns * (W + gap) - gap)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (H + gap), i % columns * (W + gap)
        sheet[:, y:y + H, x:x + W] = picture
    return sheet


def labelled_grid(pictures, labels, columns, *, side=160, room=34):
    """PIL pictures and a label for each -> one PIL picture; side: of a field in pixels, room: for the words under it."""
    from PIL import Image, ImageDraw, ImageFont
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * (side + room)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = i % columns * side, i // columns * (side + room)
        sheet.paste(picture.convert("RGB").resize((side - 12, side - 12), Image.Resampling.BICUBIC), (left + 6, top + 6))
        pen.multiline_text((left + side // 2, top + side - 3), textwrap.fill(label, side // 7), "black", font, "ma", align="center")
    return sheet


# ---- the shipped sources ----

def emoji(folder, split="train", size=64):
    """Folder with <split>.parquet (image, style, name, keywords, concept, ...) -> Pictures on white."""
    rows = _parquet(folder, split, ("image", "style", "name", "keywords", "concept", "group", "skin_tone", "gender"))
    pixels = torch.from_numpy(np.stack([on_white(picture, size) for picture in _pictures(folder, split, rows)]))
    return Pictures(pixels.permute(0, 3, 1, 2).contiguous(), rows)


def digits(folder, split="train", size=64):
    """Folder with <split>.parquet (image 28x28 grey, label) -> Pictures, dark ink on white, with a margin of 1/16."""
    from PIL import Image
    rows = _parquet(folder, split, ("image", "label"))
    inner = size - size // 8
    pixels = np.full((len(rows), size, size), 255, np.uint8)
    for sheet, picture in zip(pixels, _pictures(folder, split, rows)):
        ink = picture.convert("L").resize((inner, inner), Image.Resampling.BICUBIC)
        sheet[size // 16:size // 16 + inner, size // 16:size // 16 + inner] = 255 - np.asarray(ink)
    return Pictures(torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1), rows)


def scenes(folder, split="train", size=64):
    """Folder with <split>.parquet (image, captions: wordings of what is seen, words: what their words are about, cells: what is where) of
    `python -m multimodal.scenes` -> Pictures."""
    rows = _parquet(folder, split, ("image", "captions", "words", "cells"))
    pixels = torch.from_numpy(np.stack([on_white(picture, size) for picture in _pictures(folder, split, rows)]))
    return Pictures(pixels.permute(0, 3, 1, 2).contiguous(), rows)


def on_white(picture, size):
    """A PIL picture in any mode -> (size, size, 3) uint8, transparent places white."""
    from PIL import Image
    picture = plain_colours(picture).convert("RGBA")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    sheet = Image.new("RGBA", picture.size, "white")
    sheet.alpha_composite(picture)
    return np.asarray(sheet.convert("RGB"))


def square(picture, size):
    """A PIL picture in any mode -> (3, size, size) uint8: its middle square, resized, transparent places white."""
    from PIL import Image, ImageOps
    fitted = ImageOps.fit(plain_colours(picture).convert("RGBA"), (size, size), Image.Resampling.LANCZOS)
    sheet = Image.new("RGBA", fitted.size, "white")
    sheet.alpha_composite(fitted)
    return torch.from_numpy(np.asarray(sheet.convert("RGB")).copy()).permute(2, 0, 1)


def cached(cache, name, make, *, source):
    """Pictures made by `make()` once of the file `source`, and kept in the folder `cache` for as long as that file stays as it is (None = made
    each time)."""
    if cache is None or not Path(source).is_file():
        return make()                                                                  # which says what is missing
    stat = Path(source).stat()
    path = Path(cache) / f"{name}-{stat.st_size}-{stat.st_mtime_ns}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made, whole = make(), path.with_suffix(".part")
        torch.save({"pixels": made.pixels, "rows": made.rows}, whole)
        whole.replace(path)                                                            # one that was stopped on the way leaves nothing to read
    return Pictures(**torch.load(path, weights_only=True))


def _parquet(folder, split, columns):
    path = Path(folder) / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{path} does not exist: expected a folder with {split}.parquet")
    import pyarrow.parquet as parquet
    table = parquet.read_table(path)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]}: it has {', '.join(table.column_names)}")
    return table.select(list(columns)).to_pylist()


def _pictures(folder, split, rows):
    """Takes the pictures out of rows of `_parquet` and yields them as PIL, RGB or RGBA; a bad one is named."""
    for number, row in enumerate(rows):
        name = f"{Path(folder) / split}.parquet row {number}"
        yield read_picture(file_of(row.pop("image"), name), name)


# ---- captions ----

def digit_caption(label, rng):
    """0..9 -> one of the wordings."""
    return rng.choice(DIGIT_WORDINGS).format(word=DIGITS[label], figure=label)


def emoji_caption(row, rng):
    """A row of the emoji -> its name, mostly with its style, sometimes with one or two keywords."""
    name, style = row["name"].lower(), STYLES[row["style"]]
    words = [w.lower() for w in row["keywords"] if w.lower() not in name]
    parts = [name]
    if words and rng.random() < 0.15:
        parts += list(rng.choice(words, size=min(len(words), int(rng.integers(1, 3))), replace=False))
    if rng.random() < 0.7:
        parts.append(f"{style} style")
    return ", ".join(parts)


def caption(row, rng):
    """Any row -> a caption."""
    if "captions" in row:
        return str(rng.choice(row["captions"]))
    return digit_caption(row["label"], rng) if "label" in row else emoji_caption(row, rng)
