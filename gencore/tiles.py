"""Attention by tiles: of windows and sparse patterns only what can be seen is computed, so time and memory grow with the visible pairs.

Queries and keys are cut into tiles of slots. For each tile of queries, the tiles of keys are listed in which it can see anything; those that
list about equally many are gathered into one batch of small dense attentions, whose masks are the rules within the tiles. For a stride,
slots are put in the order of their remainders first: what sees each other then lies together."""
from typing import NamedTuple

import torch

TILE = 128                 # slots: fastest of 32, 64 and 128 for windows of 64 to 1024 on a CPU
FINE = 64                  # ... of slots in the order of their remainders, where runs are shorter
SHORTEST = 512             # queries; below, a dense mask is as fast
WORTH = 0.5                # share of all pairs up to which gathering pays


class Part(NamedTuple):
    """R tiles of t queries, each looking at the same number s of keys."""
    query: torch.Tensor                      # (R * t,) which queries
    key: torch.Tensor                        # (R * s,) which keys
    seen: torch.Tensor                       # (B * R, 1, t, s) bool

    def gather(self, q, k, v):
        """q (B,N,T,E), k, v (B,G,S,E) -> the same of B * R small attentions."""
        tiles = self.seen.shape[0]
        return tuple(x.transpose(1, 2).index_select(1, places).unflatten(1, (tiles // x.shape[0], -1)).flatten(0, 1).transpose(1, 2)
                     for x, places in ((q, self.query), (k, self.key), (v, self.key)))


class Cover(NamedTuple):
    """Parts that together hold every query once."""
    parts: list[Part]
    place: torch.Tensor                      # (T,) where the parts, one after another, have each query
    rows: int                                # B

    def join(self, outs):
        """What each part gave (B*R,N,t,E) -> (B,N,T,E)."""
        rows = [out.transpose(1, 2).reshape(self.rows, -1, out.shape[1], out.shape[3]) for out in outs]      # (B, R * t, N, E)
        return torch.cat(rows, dim=1).index_select(1, self.place).transpose(1, 2)


class Tiles(NamedTuple):
    """A mask as `attend` takes it: one cover, or several whose visible pairs are disjoint."""
    covers: list[Cover]

    @property
    def pairs(self):
        """Pairs of query and key that are computed for a row of the batch, those in visible tiles that are hidden themselves included."""
        return sum(part.seen.numel() // cover.rows for cover in self.covers for part in cover.parts)


def tiles_of(mask, query, key, *, rows=1):
    """A Mask; slots query (T,), key (S,), each without gaps; rows of the batch -> Tiles, or None where a dense mask does as well."""
    if len(query) < SHORTEST or not mask.tileable:
        return None
    mask.check(len(key))
    plans = [_Plan(part, query, key) for part in mask.split()]
    if sum(plan.pairs for plan in plans) > WORTH * len(query) * len(key):
        return None
    return Tiles([plan.cover(rows) for plan in plans])


class _Plan:
    """Which tiles of keys each tile of queries looks at, under one mask."""

    def __init__(self, mask, query, key):
        self.mask, sparse = mask, mask.sparse
        stride = None if sparse is None or sparse.width or sparse.first or sparse.layout is not None else sparse.stride
        self.size = min(TILE if stride is None else FINE, TILE if sparse is None or sparse.layout is None else sparse.size)
        orders = [torch.arange(len(slots), device=slots.device) if stride is None else (slots % stride).argsort(stable=True)
                  for slots in (query, key)]
        self.order, self.slots = orders, [slots[order] for slots, order in zip((query, key), orders)]
        queries, keys = (self._spans(slots) for slots in self.slots)
        self.touched = mask.touches(queries[:, :, None], keys[:, None])                         # (tiles of queries, tiles of keys)
        if stride is not None:
            queries, keys = (self._spans(slots % stride) for slots in self.slots)
            self.touched &= (queries[0][:, None] <= keys[1]) & (keys[0] <= queries[1][:, None])
        counts = self.touched.sum(1).clamp(min=1)
        doublings = counts.double().log2().ceil()                         # within a group, widths differ less than twofold
        self.groups = [(doublings == n).nonzero()[:, 0] for n in doublings.unique()]
        self.pairs = sum(len(group) * int(counts[group].max()) for group in self.groups) * self.size ** 2

    def _spans(self, values):
        """(T,) -> (2, tiles): the least and the greatest of each tile."""
        values = torch.cat((values, values[-1:].expand(-len(values) % self.size))).view(-1, self.size)
        return torch.stack(values.aminmax(dim=1))

    def _inside(self, tiles):
        """(R, n) tiles -> (R, n * size) places in them."""
        return (tiles[:, :, None] * self.size + torch.arange(self.size, device=tiles.device)).flatten(1)

    def cover(self, rows):
        """-> Cover of a batch of so many rows."""
        listed = self._inside(torch.cat(self.groups)[:, None]).flatten()  # those that fill up the last tile sort last
        place = listed.argsort()[:len(self.order[0])][self.order[0].argsort()]
        return Cover([self._part(group, rows) for group in self.groups], place, rows)

    def _part(self, group, rows):
        """group (R,) tiles of queries -> Part."""
        (query, key), touched = self.slots, self.touched[group]                                 # (R, tiles of keys)
        counts = touched.sum(1, keepdim=True)
        listed = torch.arange(max(1, int(counts.max())), device=key.device) < counts            # (R, n): shorter lists are filled up
        tiles = listed.long().masked_scatter(listed, touched.nonzero()[:, 1])
        asking, looked_at = self._inside(group[:, None]), self._inside(tiles)                   # (R, t), (R, s)
        real = listed.repeat_interleave(self.size, 1) & (looked_at < len(key))
        asking, looked_at = asking.clamp(max=len(query) - 1), looked_at.clamp(max=len(key) - 1)
        seen = self.mask.tile(query[asking][:, :, None], key[looked_at][:, None]) & real[:, None]         # (R, t, s) or (B, R, t, s)
        seen = seen.expand(rows, *seen.shape[-3:]).flatten(0, 1)[:, None]                       # (B * R, 1, t, s)
        return Part(self.order[0][asking.flatten()], self.order[1][looked_at.flatten()], seen)
