"""Batches as pure functions of the step: a resumed run needs no sampler state."""
import numpy as np
import torch

from gencore.check import DataError, InputError


def share_of_rows(batch, rank, world):
    """The rows of a batch that process `rank` of `world` works on, as a range."""
    if batch % world:
        raise InputError(f"batch {batch} can't be shared by {world} processes: make it a multiple of {world}")
    each = batch // world
    return range(rank * each, (rank + 1) * each)


class TokenWindows:
    """Random windows of one long token array: batch(step) -> {"ids": (B, length + 1)}; inputs ids[:, :-1], targets ids[:, 1:]."""

    def __init__(self, ids, length, batch, seed=0):
        ids = torch.from_numpy(ids) if isinstance(ids, np.ndarray) else torch.as_tensor(ids)
        if ids.ndim != 1 or len(ids) < length + 1:
            raise DataError(f"expected a row of at least {length + 1} tokens, got shape {tuple(ids.shape)}: give more text or a smaller length")
        self.ids, self.length, self.rows, self.seed = ids, length, batch, seed

    def starts(self, step, rank=0, world=1):
        """First token of each of this process's windows at `step`."""
        starts = np.random.default_rng((self.seed, step)).integers(0, len(self.ids) - self.length, size=self.rows)
        own = share_of_rows(self.rows, rank, world)
        return starts[own.start:own.stop]

    row_names = starts          # fit() names these when a loss is not finite

    def batch(self, step, rank=0, world=1):
        places = torch.from_numpy(self.starts(step, rank, world))[:, None] + torch.arange(self.length + 1)      # (B, length + 1)
        return {"ids": self.ids[places].long()}
