"""Masks as values: what a query may look at, said once, combined with `&`, made dense only when a kernel needs it.

    mask = causal() & window(256) & padding(keep) & documents(ids)
    mask = causal() & sparse(width=256, stride=1024, first=4)

`None` stands for "everything is visible". Slots are places in the key sequence (in a cache: slots of the cache); a query
has its own slot, so whole sequence, chunk and single token agree."""
from dataclasses import dataclass, replace

import torch

from gencore.check import InputError, dims


@dataclass(frozen=True, eq=False)
class Sparse:
    """A pattern of few keys: a pair is visible when any of the rules that are set says so."""
    width: int = 0                               # nearer than this: a sliding window
    stride: int | None = None                    # a multiple of this apart (Child et al. 2019, section 4.2)
    first: int = 0                               # these first slots see all and are seen by all (Beltagy et al. 2020, section 3.1)
    layout: torch.Tensor | None = None           # bool (queries, keys) in squares of `size` slots (Zaheer et al. 2020)
    size: int | None = None

    beyond: "Sparse | None" = None               # a pattern whose pairs are left out of this one

    def dense(self, query, key):
        """Slots that broadcast -> bool, True = visible."""
        seen = nearer(query, key, self.width)
        if self.stride is not None:
            seen = seen | (query % self.stride == key % self.stride)
        if self.first:
            seen = seen | (query < self.first) | (key < self.first)
        if self.layout is not None:
            seen = seen | self.layout[query // self.size, key // self.size]
        return seen if self.beyond is None else seen & ~self.beyond.dense(query, key)

    def split(self):
        """-> [what slots near each other or by name see, what only the stride shows]; what is empty is left out."""
        if self.stride is None:
            return [self]
        rest = replace(self, stride=None)
        if not rest.width and not rest.first and rest.layout is None:
            return [self]
        return [rest, Sparse(stride=self.stride, beyond=rest)]

    def touches(self, query, key):
        """(first, last) slots of spans no longer than `size`, that broadcast -> bool, False = nothing between them is visible."""
        low, high = query[0] - key[1], query[1] - key[0]                            # all distances between the two
        near = (low < self.width) & (high > -self.width) & (self.width > 0)
        if self.stride is not None:
            near = near | (high // self.stride * self.stride >= low)                # a multiple lies between
        if self.first:
            near = near | (query[0] < self.first) | (key[0] < self.first)
        if self.layout is not None:
            for q in query:
                for k in key:                                                       # a span lies in two squares at most
                    near = near | self.layout[q // self.size, k // self.size]
        return near


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys a query sees: every rule that is set must allow the pair."""
    is_causal: bool = False                      # a query sees its own slot and those before
    width: int | None = None                     # ... and only the `width` newest of them, itself included
    keep: torch.Tensor | None = None             # (B, S) bool, True = real key
    groups: torch.Tensor | None = None           # (B, S) long: only keys of the query's own document
    blocks: torch.Tensor | None = None           # (T, S) or (B, 1, T, S) bool, anything else
    sparse: Sparse | None = None                 # only the pairs of this pattern
    prefix: torch.Tensor | None = None           # (B,) long: these first slots see each other whatever causality, width and pattern say

    def __and__(self, other):
        merged = {"is_causal": self.is_causal or other.is_causal,
                  "width": min((w for w in (self.width, other.width) if w is not None), default=None)}
        for name in ("keep", "groups", "blocks", "sparse", "prefix"):
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
        return self.is_causal and all(v is None for v in (self.width, self.keep, self.groups, self.blocks, self.sparse, self.prefix))

    def dense(self, query, key, newest=True):
        """query (T,), key (S,) slots -> bool (T, S) or (B, 1, T, S), True = visible; None = all.

        newest: the queries are the last keys (False for a preallocated cache whose tail is still empty)."""
        self.check(len(key))
        last = newest and len(query) == 1 and all(rule is None for rule in (self.width, self.sparse, self.prefix))
        query, key = query[:, None], key[None, :]                                   # (T, 1), (1, S)
        seen = None if last else self._by_slot(query, key)                          # (T, S); causality hides nothing from the last slot
        if self.prefix is not None and seen is not None:
            both = (query < self.prefix[:, None, None]) & (key < self.prefix[:, None, None])
            seen = seen | both                                                      # (B, T, S)
        seen = both_of(seen, self._by_row(query, key))                              # (T, S) or (B, T or 1, S)
        seen = seen if seen is None or seen.dim() == 2 else seen[:, None]           # (B, 1, T or 1, S)
        return both_of(seen, None if self.blocks is None else self.blocks[..., query, key])

    @property
    def tileable(self):
        """Whether slots alone say that most pairs are hidden: what `tile` and `touches` take."""
        return (self.width is not None or self.sparse is not None) and self.blocks is None and self.prefix is None

    def split(self):
        """-> [Mask, ...] whose visible pairs are disjoint: those of a stride, which lie far apart, apart from the others."""
        return [self] if self.sparse is None else [replace(self, sparse=part) for part in self.sparse.split()]

    def tile(self, query, key):
        """query (R,T,1), key (R,1,S) slots of R small attentions -> bool (R,T,S) or (B,R,T,S)."""
        return both_of(self._by_slot(query, key), self._by_row(query, key))

    def touches(self, query, key):
        """(first, last) slots of spans, that broadcast -> bool, False = nothing between them is visible."""
        low, high = query[0] - key[1], query[1] - key[0]                            # all distances between the two
        near = high >= 0 if self.is_causal else torch.ones_like(high, dtype=torch.bool)
        if self.width is not None:
            near = near & (low < self.width) & (high > -self.width)
        return near if self.sparse is None else near & self.sparse.touches(query, key)

    def check(self, slots):
        """Every tensor has room for so many slots, or InputError."""
        for name, tensor in (("keep", self.keep), ("documents", self.groups)):
            if tensor is not None and tensor.shape[1] < slots:
                raise InputError(f"{name} covers {tensor.shape[1]} slots, the attention looks at {slots}: give a column for each")
        if self.blocks is not None and min(self.blocks.shape[-2:]) < slots:
            raise InputError(f"visible covers {tuple(self.blocks.shape[-2:])} slots, the attention looks at {slots}: make it larger")
        layout = None if self.sparse is None else self.sparse.layout
        if layout is not None and min(layout.shape) * self.sparse.size < slots:
            raise InputError(f"the layout covers {min(layout.shape)} x {self.sparse.size} slots, the attention looks at {slots}: make it larger")

    def _by_slot(self, query, key):
        """The rules that are the same in every row: slots that broadcast -> bool, or None."""
        seen = key <= query if self.is_causal else None
        if self.width is not None:
            seen = both_of(seen, key > query - self.width if self.is_causal else nearer(query, key, self.width))
        return both_of(seen, None if self.sparse is None else self.sparse.dense(query, key))

    def _by_row(self, query, key):
        """Those that differ by row of the batch: slots that broadcast -> bool (B, ...), or None."""
        seen = None if self.keep is None else self.keep[:, key]
        return both_of(seen, None if self.groups is None else self.groups[:, query] == self.groups[:, key])

    def with_window(self, width):
        """The same mask, no wider than `width` (None changes nothing): layers of one model differ only in this."""
        return self if width is None else replace(self, width=width if self.width is None else min(width, self.width))


def nearer(query, key, width):
    """Slots that broadcast -> bool: less than `width` apart. By comparisons, which allocate an eighth of what a difference does."""
    return (key > query - width) & (key < query + width)


def both_of(one, other):
    """Two rules, None = everything is visible -> their meeting."""
    return other if one is None else one if other is None else one & other


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
    if visible.dim() not in (2, 4) or visible.dim() == 4 and visible.shape[1] != 1:
        raise InputError(f"visible should be (T, S) or (B, 1, T, S), got {tuple(visible.shape)}")
    return Mask(blocks=visible.bool())


def sparse(*, width=0, stride=None, first=0):
    """Few keys for each query: those nearer than `width`, those a multiple of `stride` apart, and the `first` slots, which see all themselves.

    A window with global tokens is Longformer's pattern, a window of `stride` with that stride is the strided one of Sparse Transformers."""
    if width < 0 or first < 0 or (stride is not None and stride < 1) or not (width or stride or first):
        raise InputError(f"sparse needs a width, a stride or first slots, each at least 1, got {width}, {stride}, {first}")
    return Mask(sparse=Sparse(width, stride, first))


def block_sparse(layout, size):
    """layout (queries, keys) bool: which squares of `size` x `size` slots are visible, such as BigBird's random ones. Only these are computed."""
    dims("layout", layout, "Q K")
    if size < 1:
        raise InputError(f"the squares of a layout should have at least 1 slot a side, got {size}")
    return Mask(sparse=Sparse(layout=layout.bool(), size=size))
