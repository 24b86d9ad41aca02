"""Batches as pure functions of the step: a resumed run needs no sampler state, and several processes share one batch by its rows."""
import functools
import itertools

import numpy as np
import torch

from gencore.check import DataError, InputError
from gencore.data_folder import audio_folder, image_folder, text_folder

__all__ = ["Batches", "StreamBatches", "TokenWindows", "audio_folder", "hold_out", "image_folder", "pack_documents", "right_padded", "text_folder"]


def own_rows(batch, rank, world):
    """The rows of a batch that process `rank` of `world` works on, as a slice."""
    if batch % world:
        raise InputError(f"batch {batch} can't be shared by {world} processes: make it a multiple of {world}")
    each = batch // world
    return slice(rank * each, (rank + 1) * each)


def collate_default(rows):
    """[dict, ...] -> dict of stacked tensors; numbers become tensors, strings stay a list."""
    return torch.utils.data.default_collate(rows)


class Batches:
    """Batches of a map-style data set, also a `datasets` one: each epoch is a new order, a function of (seed, epoch).

    `dataset.at(i, epoch)` is asked instead of `dataset[i]` where it exists: augmentation that a resumed run repeats."""

    def __init__(self, dataset, batch, seed=0, collate=None, *, epochs=None):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(f"{type(dataset).__name__} has no length or no rows by number: use StreamBatches for a stream")
        if len(dataset) == 0:
            raise DataError("the data set is empty: nothing to make batches of")
        self.dataset, self.rows, self.seed, self.epochs = dataset, batch, seed, epochs
        self.collate = collate or collate_default
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    @property
    def steps(self):
        """Steps until `epochs` are over, or None when there is no limit."""
        return None if self.epochs is None else -(-self.epochs * len(self.dataset) // self.rows)

    def _make_order(self, epoch):
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))

    def places(self, step, rank=0, world=1):
        """[(epoch, index), ...] of this process's rows: epochs follow each other without a gap, so every row is seen equally often."""
        if self.steps is not None and step >= self.steps:
            raise DataError(f"step {step} lies beyond {self.epochs} epochs ({self.steps} steps of {self.rows} rows)")
        own = own_rows(self.rows, rank, world)
        numbers = range(step * self.rows + own.start, step * self.rows + own.stop)
        return [(n // len(self.dataset), int(self._order(n // len(self.dataset))[n % len(self.dataset)])) for n in numbers]

    def row_names(self, step, rank=0, world=1):
        """Index of each row of that batch in the data set; fit() names them when a loss is not finite."""
        return [index for _, index in self.places(step, rank, world)]

    def batch(self, step, rank=0, world=1):
        at = getattr(self.dataset, "at", None) or (lambda index, epoch: self.dataset[index])
        return self.collate([at(index, epoch) for epoch, index in self.places(step, rank, world)])


class StreamBatches:
    """Batches of a stream (any iterable that can be begun again, such as a streaming `datasets` one), begun again when it ends.

    A step that is not the next one, as after a resume, reads the stream from its start up to there: the order is the stream's own."""

    def __init__(self, stream, batch, *, collate=None):
        self.stream, self.rows, self.collate = stream, batch, collate or collate_default
        self.next_step, self.source = None, None

    def _endless(self):
        for epoch in itertools.count():
            if hasattr(self.stream, "set_epoch"):
                self.stream.set_epoch(epoch)
            row = None
            for row in self.stream:
                yield row
            if row is None:
                raise DataError("the stream gave no row: nothing to make batches of")

    def batch(self, step, rank=0, world=1):
        if step != self.next_step:
            self.source = itertools.islice(self._endless(), step * self.rows, None)
        rows = list(itertools.islice(self.source, self.rows))
        self.next_step = step + 1
        return self.collate(rows[own_rows(self.rows, rank, world)])


class TokenWindows:
    """Windows of one long token array: batch(step) -> {"ids": (B, length + 1)}; inputs ids[:, :-1], targets ids[:, 1:].

    In an epoch no token comes twice: the windows lie side by side, in another order and from another start each time."""

    def __init__(self, ids, length, batch, seed=0):
        ids = torch.from_numpy(ids) if isinstance(ids, np.ndarray) else torch.as_tensor(ids)
        if ids.ndim != 1 or len(ids) < length + 1:
            raise DataError(f"expected a row of at least {length + 1} tokens, got shape {tuple(ids.shape)}: "
                            f"give more text or a smaller length")
        self.ids, self.length, self.rows, self.seed = ids, length, batch, seed
        self.windows = max(1, (len(ids) - 1) // length - 1)                     # of an epoch: one less than fit, so that the start can move

    def starts(self, step, rank=0, world=1):
        """First token of each of this process's windows at `step`."""
        numbers = np.arange(step * self.rows, (step + 1) * self.rows)[own_rows(self.rows, rank, world)]
        return np.array([self._start(*divmod(int(number), self.windows)) for number in numbers])

    def _start(self, epoch, number):
        first, order = _epoch(self.seed, epoch, self.windows, len(self.ids) - self.windows * self.length)
        return first + int(order[number]) * self.length

    row_names = starts

    def batch(self, step, rank=0, world=1):
        places = torch.from_numpy(self.starts(step, rank, world))[:, None] + torch.arange(self.length + 1)      # (B, length + 1)
        return {"ids": self.ids[places].long()}


@functools.lru_cache(maxsize=4)
def _epoch(seed, epoch, windows, room):
    """Of TokenWindows: where the first window of an epoch starts, and the order of its windows."""
    rng = np.random.default_rng((seed, epoch))
    return int(rng.integers(room)), rng.permutation(windows)


def hold_out(dataset, share=0.1, seed=0):
    """Data set without splits -> (most of it, the `share` held out), as torch Subsets, whose rows still vary where the data set's do (`at`); the
    choice is a function of the seed."""
    count = max(1, round(share * len(dataset)))
    if count >= len(dataset):
        raise DataError(f"{len(dataset)} rows are too few to hold {count} out")
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    kind = VaryingSubset if hasattr(dataset, "at") else torch.utils.data.Subset
    return kind(dataset, sorted(order[count:])), kind(dataset, sorted(order[:count]))


class VaryingSubset(torch.utils.data.Subset):
    """A Subset of a data set that gives its rows in other variants each epoch."""

    def at(self, index, epoch):
        return self.dataset.at(self.indices[index], epoch)


def right_padded(token_lists, pad):
    """Token lists -> ids (B,T) long, keep (B,T) bool: shorter rows are filled at their end; T is at least 1."""
    T = max((len(tokens) for tokens in token_lists), default=1) or 1
    ids, keep = torch.full((len(token_lists), T), pad), torch.zeros(len(token_lists), T, dtype=torch.bool)
    for row, tokens in enumerate(token_lists):
        ids[row, :len(tokens)], keep[row, :len(tokens)] = torch.tensor(tokens, dtype=torch.long), True
    return ids, keep


def pack_documents(token_lists, length, pad=0):
    """Token lists -> ids (rows, length), documents (rows, length), both long: documents are numbered from 0 in each row, padding is -1.

    A document longer than a row is cut into pieces. Each piece goes where it leaves the least room (best fit, longest first)."""
    pieces = [torch.as_tensor(tokens[i:i + length]) for tokens in token_lists for i in range(0, len(tokens), length)]
    if not pieces:
        raise DataError("no tokens to pack: every document is empty")
    rows, room = [], {}                                                         # room: free tokens -> rows that have as many
    for piece in sorted(pieces, key=len, reverse=True):
        free = min((free for free in room if free >= len(piece)), default=None)
        row = len(rows) if free is None else room[free].pop()
        if free is None:
            rows.append([])
            free = length
        elif not room[free]:
            del room[free]
        rows[row].append(piece)
        room.setdefault(free - len(piece), []).append(row)
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    documents = torch.full((len(rows), length), -1, dtype=torch.long)
    for row, its_pieces in enumerate(rows):
        joined = torch.cat(its_pieces)
        ids[row, :len(joined)] = joined
        documents[row, :len(joined)] = torch.repeat_interleave(torch.arange(len(its_pieces)), torch.tensor([len(p) for p in its_pieces]))
    return ids, documents
