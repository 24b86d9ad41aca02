"""Masks as values: what a query may look at, said once, combined with `&`, made dense only when a kernel needs it.

    mask = causal() & window(256) & padding(keep) & documents(ids)

`None` stands for "everything is visible". Slots are places in the key sequence (in a cache: slots of the cache); a query
has its own slot, so whole sequence, chunk and single token agree."""
from dataclasses import dataclass, replace

import torch

from gencore.check import InputError, dims


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys a query sees: every rule that is set must allow the pair."""
    is_causal: bool = False                      # a query sees its own slot and those before
    width: int | None = None                     # ... and only the `width` newest of them, itself included
    keep: torch.Tensor | None = None             # (B, S) bool, True = real key
    groups: torch.Tensor | None = None           # (B, S) long: only keys of the query's own document
    blocks: torch.Tensor | None = None           # (T, S) or (B, 1, T, S) bool, anything else
    prefix: torch.Tensor | None = None           # (B,) long: these first slots see each other whatever causality and width say

    def __and__(self, other):
        merged = {"is_causal": self.is_causal or other.is_causal,
                  "width": min((w for w in (self.width, other.width) if w is not None), default=None)}
        for name in ("keep", "groups", "blocks", "prefix"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None:
                if name not in ("keep", "blocks"):
                    raise InputError(f"two masks with {name} cannot be combined: give one")
                mine = mine & theirs
            merged[name] = theirs if mine is None else mine
        return Mask(**merged)

    @property
    def only_causal(self):
        """True when the fast causal kernel says the same."""
        return self.is_causal and all(v is None for v in (self.width, self.keep, self.groups, self.blocks, self.prefix))

    def dense(self, query, key, newest=True):
        """query (T,), key (S,) slots -> bool (T, S) or (B, 1, T, S), True = visible; None = all.

        newest: the queries are the last keys (False for a preallocated cache whose tail is still empty)."""
        query, key = query[:, None], key[None, :]                                   # (T, 1), (1, S)
        seen = None
        if self.is_causal and not (newest and len(query) == 1 and self.width is None and self.prefix is None):
            seen = key <= query                                                     # (T, S)
        if self.width is not None:
            near = key > query - self.width if self.is_causal else (key - query).abs() < self.width
            seen = near if seen is None else seen & near                            # (T, S)
        if self.prefix is not None and seen is not None:
            both = (query < self.prefix[:, None, None]) & (key < self.prefix[:, None, None])     # (B, T, S)
            seen = (seen | both)[:, None]                                           # (B, 1, T, S)
        for rule in self._by_row(query[:, 0], key[0]):
            seen = rule if seen is None else seen & rule                            # (B, 1, T, S)
        return seen

    def _by_row(self, query, key):
        """The rules that differ by row of the batch, each (B, 1, T or 1, S), or (T, S) for blocks."""
        for name, slots in (("keep", self.keep), ("documents", self.groups)):
            if slots is not None and slots.shape[1] < len(key):
                raise InputError(f"{name} covers {slots.shape[1]} slots, the attention looks at {len(key)}: give a column for each")
        if self.keep is not None:
            yield self.keep[:, key][:, None, None, :]
        if self.groups is not None:
            yield (self.groups[:, query, None] == self.groups[:, None, key])[:, None]       # (B, 1, T, S)
        if self.blocks is not None:
            yield self.blocks[..., query, :][..., key]

    def with_window(self, width):
        """The same mask, no wider than `width` (None changes nothing): layers of one model differ only in this."""
        return self if width is None else replace(self, width=width if self.width is None else min(width, self.width))


def causal():
    """A query sees itself and what came before."""
    return Mask(is_causal=True)


def window(width):
    """Only the `width` newest keys, the query's own included (two-way: nearer than `width`)."""
    if width < 1:
        raise InputError(f"window should be at least 1, got {width}")
    return Mask(width=width)


def padding(keep):
    """keep (B, S) bool or 0/1, True = a real key."""
    dims("keep", keep, "B S")
    return Mask(keep=keep.bool())


def documents(ids):
    """ids (B, S) long: attention stops at the borders of packed documents."""
    dims("documents", ids, "B S")
    return Mask(groups=ids)


def prefix(lengths):
    """lengths (B,): the first so many slots see each other both ways (prefix language model); combine with causal()."""
    dims("prefix lengths", lengths, "B")
    return Mask(prefix=lengths)


def blocks(visible):
    """visible (T, S) or (B, 1, T, S) bool over all slots: any pattern at all."""
    return Mask(blocks=visible)
