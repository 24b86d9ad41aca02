"""Captioned pictures and the batches that are drawn from them."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gencore.check import DataError
from gencore.data import image_folder, own_rows
from imagegen.data import square


@dataclass(frozen=True, eq=False)
class Captioned:
    """Pictures, what may be said of each, and how often each is shown."""
    pixels: torch.Tensor            # (N, 3, S, S) uint8
    caption: Callable               # (i, rng) -> a caption of picture i; another wording each time, if there are several
    things: torch.Tensor            # (N,) long: pictures of one thing have one number; contrast is between things
    weights: np.ndarray             # (N,) how often a picture is drawn, in proportion
    cells: torch.Tensor | None = None               # (N, K, h, w) int8: K properties of what lies on each cell, 0 = nothing; -1 = not known
    variants: torch.Tensor | None = None            # (N,) long: pictures that differ in one detail, such as a skin tone, have one number
    words: dict | None = None       # caption -> (its words, L) int8: L properties of the thing that each word is about; -1 = not known

    def draw(self, count, rng):
        """count picture numbers (count,)."""
        chances = np.cumsum(self.weights)
        return np.searchsorted(chances, rng.random(count) * chances[-1], side="right").clip(max=len(self.weights) - 1)


class CaptionedBatches:
    """batch(step) of drawn pictures as a pure function of the step; `columns(indices, rng)` says what a batch holds."""

    def __init__(self, data, batch, seed, columns):
        self.data, self.rows, self.seed, self.columns = data, batch, seed, columns

    def batch(self, step, rank=0, world=1):
        rng = np.random.default_rng((self.seed, step, rank))
        own = own_rows(self.rows, rank, world)
        return self.columns(self.data.draw(own.stop - own.start, rng), rng)


def captioned_folder(folder, size, *, least=1):
    """A folder of captioned pictures -> (Captioned, captions); the same caption is the same thing, and there are at least so many things."""
    rows = image_folder(folder)
    captions = rows.column("text")
    if len(set(captions)) < least:
        raise DataError(f"{folder} holds {len(rows)} pictures and {len(set(captions))} different captions: "
                        f"give at least {least}, since words are learnt by contrast")
    pixels = torch.stack([square(row["image"], size) for row in rows])
    number = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    things = torch.tensor([number[text] for text in captions])
    return Captioned(pixels, lambda i, rng: captions[i], things, np.ones(len(captions))), captions
