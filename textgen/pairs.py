"""Pairs of texts to translate: read from a file, and put into batches of about one length."""
import functools
import warnings
from pathlib import Path

import numpy as np

from gencore.check import DataError
from gencore.data import hold_out, own_rows, right_padded
from gencore.data_folder import held_out_split, text_folder, text_of_file


def read_pairs(path, source, target, split=None):
    """A parquet file with the columns `source` and `target` (and split), or a .tsv file of two columns -> [(source text, target text), ...]."""
    path = Path(path)
    if path.suffix == ".tsv":
        lines = {n: line.rstrip("\r").split("\t") for n, line in enumerate(text_of_file(path).split("\n"), 1) if line.strip()}
        odd = [n for n, line in lines.items() if len(line) != 2]
        if odd or not lines:
            why = f"line {odd[0]} hasn't" if odd else "it is empty"
            raise DataError(f"{path} should have two columns, source and target, in every line: {why}")
        return [tuple(line) for line in lines.values()]
    rows = text_folder(path, split, text=source)
    if target not in rows.columns:
        raise DataError(f'{path} has no column "{target}", only {", ".join(rows.columns)}')
    said = rows.column(target)
    odd = next((row for row, text in enumerate(said) if not isinstance(text, str)), None)
    if odd is not None:
        raise DataError(f'{path}: column "{target}" should hold text, row {odd} has {said[odd]!r:.80}')
    return list(zip(rows.column("text"), said))


def pairs_to_learn(path, source, target):
    """As read_pairs -> (pairs to learn from, pairs held out): the splits train and validation, or else test, else a twentieth is held out."""
    path = Path(path)
    if path.suffix != ".tsv":
        rows, held = text_folder(path, text=source), held_out_split(path)
        if held is None and "split" in rows.columns:
            held = next((split for split in ("validation", "test") if split in rows.column("split")), "validation")
        if held:
            return tuple(read_pairs(path, source, target, split) for split in ("train", held))
    return tuple(map(list, hold_out(read_pairs(path, source, target), 0.05)))


def fitting(pairs, tokenizer, context):
    """Pairs -> those whose sides have at most `context` tokens each, which a model reads; a warning says how many were left out."""
    kept = [pair for pair in pairs if all(len(tokenizer.encode(text, special=True)) <= context for text in pair)]
    if pairs and not kept:
        raise DataError(f"none of {len(pairs)} pairs fits: each has a side of more than {context} tokens, the context")
    if len(kept) < len(pairs):
        warnings.warn(f"{len(pairs) - len(kept)} of {len(pairs)} pairs are left out: a side has more than {context} tokens", stacklevel=2)
    return kept


class PairBatches:
    """Batches of pairs of about one length, so that little is padding; each epoch in a new order, a function of (seed, epoch)."""

    def __init__(self, pairs, tokenizer, batch, seed=0, *, pool=50):
        self.ids = [tuple(tokenizer.encode(text, special=True) for text in pair) for pair in pairs]
        if len(self.ids) < batch:
            raise DataError(f"{len(self.ids)} pairs are fewer than one batch of {batch}: give more, or a smaller batch")
        self.pad, self.rows, self.seed, self.pool = tokenizer.pad_id, batch, seed, pool
        self._batches = functools.lru_cache(maxsize=2)(self._make_batches)

    def __len__(self):
        """Steps of an epoch."""
        return len(self.ids) // self.rows

    def _make_batches(self, epoch):
        """(steps, rows) indices: pools of `pool` batches are sorted by length and cut, then the batches shuffled."""
        draw = np.random.default_rng((self.seed, epoch))
        order = draw.permutation(len(self.ids))[:len(self) * self.rows]
        lengths = np.array([len(source) + len(target) for source, target in self.ids])
        pools = [order[start:start + self.pool * self.rows] for start in range(0, len(order), self.pool * self.rows)]
        batches = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, self.rows) for pool in pools])
        return batches[draw.permutation(len(batches))]

    def row_names(self, step, rank=0, world=1):
        """Indices of the pairs of that batch."""
        epoch, place = divmod(step, len(self))
        return self._batches(epoch)[place][own_rows(self.rows, rank, world)].tolist()

    def batch(self, step, rank=0, world=1):
        """source (B,S), keep (B,S), target (B,T), padded to the right."""
        return self.padded(self.row_names(step, rank, world))

    def padded(self, indices):
        sources, targets = zip(*(self.ids[i] for i in indices))
        source, keep = right_padded(sources, self.pad)
        return {"source": source, "keep": keep, "target": right_padded(targets, self.pad)[0]}

    def in_order(self):
        """Every pair once, the short ones first, in batches."""
        order = sorted(range(len(self.ids)), key=lambda i: sum(map(len, self.ids[i])))
        for start in range(0, len(order), self.rows):
            yield self.padded(order[start:start + self.rows])
