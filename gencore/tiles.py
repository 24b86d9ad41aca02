"""Attention by tiles: of windows and sparse patterns only what can be seen is computed, so time and memory grow with the visible pairs.

Queries and keys are cut into tiles of slots. For each tile of queries, the tiles of keys are listed in which it can see anything; those that
list about equally many are gathered into one batch of small dense attentions, whose masks are the rules within the tiles."""
from typing import NamedTuple

import torch

TILE = 128                 # slots: fastest of 32, 64 and 128 for windows of 64 to 1024 on a CPU
FINE = 32                  # ... where a stride is set: a tile computes all of a diagonal's surroundings
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


class Tiles(NamedTuple):
    """A mask as `attend` takes it: parts that together hold every query once."""
    parts: list[Part]
    place: torch.Tensor                      # (T,) where the parts, one after another, have each query
    rows: int                                # B

    @property
    def pairs(self):
        """Pairs of query and key that are computed for a row of the batch, those in visible tiles that are hidden themselves included."""
        return sum(part.seen.numel() for part in self.parts) // self.rows

    def join(self, outs):
        """What each part's attention gave (B*R,N,t,E) -> (B,N,T,E)."""
        rows = [out.transpose(1, 2).reshape(self.rows, -1, out.shape[1], out.shape[3]) for out in outs]      # (B, R * t, N, E)
        return torch.cat(rows, dim=1).index_select(1, self.place).transpose(1, 2)


def tiles_of(mask, query, key, *, rows=1):
    """A Mask; slots query (T,), key (S,), each without gaps; rows of the batch -> Tiles, or None where a dense mask does as well."""
    if len(query) < SHORTEST or not mask.tileable:
        return None
    mask.check(len(key))
    size = _size(mask.sparse)
    touched = mask.touches(_spans(query, size)[:, :, None], _spans(key, size)[:, None])         # (tiles of queries, tiles of keys)
    counts = touched.sum(1).clamp(min=1)
    doublings = counts.double().log2().ceil()                             # within a group, widths differ less than twofold
    groups = [(doublings == n).nonzero()[:, 0] for n in doublings.unique()]
    if sum(len(group) * int(counts[group].max()) for group in groups) * size ** 2 > WORTH * len(query) * len(key):
        return None
    parts = [_part(mask, (query, key), group, touched[group], rows=rows, size=size) for group in groups]
    order = _inside(torch.cat(groups)[:, None], size).flatten()           # which query is where
    return Tiles(parts, order.argsort()[:len(query)], rows)               # those that fill up the last tile sort last


def _size(sparse):
    """Slots of a tile for a Sparse, or for None."""
    if sparse is not None and sparse.layout is not None:
        return min(TILE, sparse.size)
    return TILE if sparse is None or sparse.stride is None else min(TILE, FINE)


def _spans(slots, size):
    """Slots (T,) -> (2, tiles): the first and the last of each tile."""
    first = slots[::size]
    return torch.stack((first, (first + size - 1).clamp(max=slots[-1])))


def _inside(tiles, size):
    """(R, n) tiles -> (R, n * size) places in them."""
    return (tiles[:, :, None] * size + torch.arange(size, device=tiles.device)).flatten(1)


def _part(mask, slots, group, touched, *, rows, size):
    """group (R,) tiles of queries, touched (R, tiles of keys) what each may see -> Part."""
    query, key = slots
    counts = touched.sum(1, keepdim=True)
    listed = torch.arange(max(1, int(counts.max())), device=key.device) < counts                # (R, n): shorter lists are filled up
    tiles = listed.long().masked_scatter(listed, touched.nonzero()[:, 1])
    asking, looked_at = _inside(group[:, None], size), _inside(tiles, size)                     # (R, t), (R, s)
    real = listed.repeat_interleave(size, 1) & (looked_at < len(key))
    asking, looked_at = asking.clamp(max=len(query) - 1), looked_at.clamp(max=len(key) - 1)
    seen = mask.tile(query[asking][:, :, None], key[looked_at][:, None]) & real[:, None]        # (R, t, s) or (B, R, t, s)
    return Part(asking.flatten(), looked_at.flatten(), seen.expand(rows, *seen.shape[-3:]).flatten(0, 1)[:, None])
