"""Pictures in classes: read from any folder, or scikit-learn's digits, and drawn into batches.

Pixels are (N,C,S,S) uint8, C 1 or 3; labels (N,) are numbers into `names`."""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from gencore.check import ConfigError, DataError
from gencore.data import image_folder, own_rows
from imagegen.data import square


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pictures, the class of each, and the names of the classes: none where the pictures have no classes."""
    pixels: torch.Tensor            # (N, C, S, S) uint8
    labels: torch.Tensor            # (N,) long
    names: tuple[str, ...] = ()

    def __len__(self):
        return len(self.pixels)

    def plain(self):
        """The same pictures, of no class."""
        return Labelled(self.pixels, torch.zeros_like(self.labels))

    def apart(self, share, seed=0):
        """-> (the pictures to learn from, `share` of them held out, at least one)."""
        held = max(1, round(share * len(self)))
        if held >= len(self):
            raise DataError(f"{len(self)} picture{'s' * (len(self) > 1)} can't be parted into some to learn from and some held out: give more")
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self)))
        return tuple(Labelled(self.pixels[rows], self.labels[rows], self.names) for rows in (order[held:], order[:held]))


def labelled_pictures(folder, size, channels, *, split=None, need=False):
    """Subfolders by class, metadata or parquet with a label -> Labelled. Without classes: none, or DataError if they are needed."""
    check_channels(channels)
    rows = image_folder(folder, split, text=None)
    if len(rows) < 2:
        raise DataError(f"{folder} holds one picture: give at least two, since of one nothing but a copy is learnt")
    pixels = torch.stack([in_colours(square(row["image"], size), channels) for row in rows])
    if "label" not in rows.columns:
        if need:
            raise DataError(f"{folder} has no classes: put the pictures of each class into a subfolder, or give parquet with a column label")
        return Labelled(pixels, torch.zeros(len(pixels), dtype=torch.long))
    found = [None if label == "" or label != label else label for label in rows.column("label")]          # an empty cell of metadata.csv, NaN
    if None in found:
        raise DataError(f"{rows.names[found.index(None)]} has no label ({found.count(None)} such in all), others in {folder} have: give it one, or "
                        "take the column label away")
    for name, label in zip(rows.names, found):
        if not isinstance(label, (str, int, float)):
            raise DataError(f"{name}: its label should be a name or a number, got {label!r:.80}")
    names = sorted(set(found), key=by_size)
    if len({str(name) for name in names}) < len(names):
        raise DataError(f"{folder} has labels that are a number in one place and the same as a word in another, of {names!r:.80}: make them agree")
    return Labelled(pixels, torch.tensor([names.index(label) for label in found]), tuple(map(str, names)))


def by_size(label):
    """Numbers come first and by their size, then words that are numbers, likewise, then the others."""
    if not isinstance(label, str):
        return 0, label, ""
    return (1, int(label), label) if label.isdecimal() else (2, 0, label)


def digit_pictures(size, channels=1):
    """scikit-learn's 1,797 handwritten digits (8x8), enlarged, dark on white -> Labelled."""
    from sklearn.datasets import load_digits
    check_channels(channels)
    digits = load_digits()
    ink = torch.from_numpy(digits.images).float()[:, None] / 16                                  # (N, 1, 8, 8)
    large = F.interpolate(ink, size=(size, size), mode="bicubic").clamp(0, 1)
    pixels = ((1 - large) * 255).round().to(torch.uint8).expand(-1, channels, -1, -1)
    return Labelled(pixels, torch.from_numpy(np.asarray(digits.target)).long(), tuple(str(i) for i in range(10)))


def check_channels(channels):
    if channels not in (1, 3):
        raise ConfigError(f"pictures have 1 channel (grey) or 3 (colours), got {channels}")


def in_colours(pixels, channels):
    """(...,3,S,S) uint8 -> as many channels as wanted."""
    return pixels.float().mean(-3, keepdim=True).round().to(torch.uint8) if channels == 1 else pixels


class LabelledBatches:
    """Rows of pictures or latents (N,...) under their name and of labels (N,), drawn as a pure function of the step."""

    def __init__(self, rows, labels, batch, seed, *, name="pixels"):
        self.values, self.labels, self.rows, self.seed, self.name = rows, labels, batch, seed, name

    def batch(self, step, rank=0, world=1):
        own = own_rows(self.rows, rank, world)
        rows = np.random.default_rng((self.seed, step, rank)).integers(len(self.values), size=own.stop - own.start)
        return {self.name: self.values[rows], "labels": self.labels[rows]}
