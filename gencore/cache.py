"""Caches of keys and values: an argument with a length, preallocated, advanced once a forward by the Transformer.

    cache = Cache(cfg, batch=1, size=512)
    transformer(prompt, causal(), cache=cache)          # fills slots 0..T-1
    transformer(token, causal(), cache=cache)           # looks at all of them"""
import torch

from gencore.attention import head_sizes
from gencore.check import InputError, whole


class LayerCache:
    """One layer's part: k, v (B,G,size,E) and the projected memory of its cross-attention."""

    def __init__(self, whole, shape, dtype, device):
        self.whole, self.memory = whole, None
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def put(self, k, v):
        """New k, v (B,G,T,E) -> all keys and values so far (B,G,S,E)."""
        start = self.whole.length - self.whole.first
        end = start + k.shape[2]
        self.k[:, :, start:end] = k
        self.v[:, :, start:end] = v
        return self.k[:, :, :end], self.v[:, :, :end]


class Cache:
    """Static: room for `size` positions. `length` is how many are filled."""
    newest = True              # the queries of a forward are the last keys that `put` returns
    window = None              # how far back a query may look; None = to the start

    def __init__(self, cfg, batch, size, *, dtype=torch.float32, device="cpu"):
        for name, value in (("batch", batch), ("size", size)):
            if value < 1:
                raise InputError(f"the cache's {name} should be at least 1, got {value}")
        self.size, self.length, self.first = size, 0, 0
        _, G, E = head_sizes(cfg.width, cfg.attention)
        self.layers = [self.layer((batch, G, size, E), dtype, device) for _ in range(cfg.layers)]

    def layer(self, shape, dtype, device):
        return LayerCache(self, shape, dtype, device)

    def reserve(self, T):
        """Room for T more -> (slots of the queries (T,), slots of the keys (S,))."""
        if self.length + T > self.size:
            raise InputError(f"the cache holds {self.size} positions, {self.length} are filled and {T} more were asked for: make it larger")
        device = self.layers[0].k.device
        return (torch.arange(self.length, self.length + T, device=device),
                torch.arange(self.first, self.length + T, device=device))

    def check(self, rows, layers, dtype):
        """Made for this batch and this transformer, or InputError."""
        if len(self.layers) != layers:
            raise InputError(f"the cache was made for {len(self.layers)} layers, this transformer has {layers}")
        if self.layers[0].k.shape[0] != rows:
            raise InputError(f"the cache was made for {self.layers[0].k.shape[0]} rows, got {rows}: make another, or select() rows")
        if self.layers[0].k.dtype != dtype:
            raise InputError(f"the cache was made for {self.layers[0].k.dtype}, got {dtype}: make it with the model's dtype")

    def advance(self, T):
        self.length += T

    def crop(self, length):
        """Forget what is beyond `length` positions."""
        if not 0 <= length <= self.length:
            raise InputError(f"the cache holds {self.length} positions: it can't go back to {length}")
        self.length = length
        self._begin_anew(length)

    def _begin_anew(self, length):
        """A cache that is empty has no memory either: the next one may be another."""
        for layer in self.layers if length == 0 else ():
            layer.memory = None

    def select(self, rows):
        """Keep (or repeat) these rows of the batch: beams, or a finished sequence dropped."""
        for layer in self.layers:
            layer.k, layer.v = layer.k[rows], layer.v[rows]
            if layer.memory is not None:
                layer.memory = tuple(t[rows] for t in layer.memory)


class RollingCache(Cache):
    """The last `window` positions of a text of any length: memory stays flat, and no query looks further back.

    Keys lie in one piece of 2 x window slots; when it is full, the newest half moves to the front."""

    def __init__(self, cfg, batch, window, *, chunk=1, dtype=torch.float32, device="cpu"):
        if window < 1:
            raise InputError(f"the window of a rolling cache should be at least 1, got {window}")
        self.window = window
        super().__init__(cfg, batch, 2 * window + chunk, dtype=dtype, device=device)

    def reserve(self, T):
        if self.length - self.first + T > self.size:
            kept = min(self.window, self.length - self.first)
            if kept + T > self.size:
                raise InputError(f"the rolling cache takes {self.size - kept} positions at once, got {T}: feed smaller chunks")
            start = self.length - self.first - kept
            for layer in self.layers:
                for t in (layer.k, layer.v):
                    t[:, :, :kept] = t[:, :, start:start + kept].clone()
            self.first = self.length - kept
        device = self.layers[0].k.device
        return (torch.arange(self.length, self.length + T, device=device),
                torch.arange(self.first, self.length + T, device=device))

    def crop(self, length):
        if length:
            raise InputError("a rolling cache has let go of what came before: it can't go back, but to 0")
        super().crop(0)
        self.first = 0


class FixedLayerCache(LayerCache):
    """Always returns its whole buffer: shapes never change, so that a compiled step is compiled once."""

    def put(self, k, v):
        self.k.index_copy_(2, self.whole.query, k)
        self.v.index_copy_(2, self.whole.query, v)
        return self.k, self.v


class FixedCache(Cache):
    """For torch.compile: `length` is a tensor on the device, attention runs over all slots and the mask hides the empty ones."""
    newest = False

    def __init__(self, cfg, batch, size, *, dtype=torch.float32, device="cpu"):
        super().__init__(cfg, batch, size, dtype=dtype, device=device)
        self.length = torch.zeros((), dtype=torch.long, device=device)
        self.all_slots = torch.arange(size, device=device)
        self.query = None

    def layer(self, shape, dtype, device):
        return FixedLayerCache(self, shape, dtype, device)

    def reserve(self, T):
        self.query = self.length + torch.arange(T, device=self.all_slots.device)
        return self.query, self.all_slots

    def advance(self, T):
        self.length += T

    def crop(self, length):
        whole("length", length, 0, self.size)
        self.length.fill_(length)
        self._begin_anew(length)
