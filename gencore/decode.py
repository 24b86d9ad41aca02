"""One generation loop for words, codebooks and picture tokens: a prefill, then steps on a preallocated cache.

    stepper = Stepper(model.logits, cache)                        # words: tokens (B,), logits (B,V)
    for ids in decode(stepper.prefill(prompt), stepper.step, pick, limit=80): ...

Nothing in `decode` knows what a token is. Streams of K codebooks are the same loop with tokens (B,K) and logits (B,K,V):
the model's own `step(tokens (B,K)) -> logits (B,K,V)` embeds them and runs the transformer on the cache; `pick_by_pattern` puts the
filler where the pattern is silent; `guided` runs rows with and without condition as one batch of 2B, so the prefill has 2B rows, the
conditioned ones first:

    first, step = guided(prefill_logits, step, scale=3.0)
    for codes in decode(first, step, pick_by_pattern(pick, pattern, filler), limit=pattern.steps(frames)): ...
    pattern.gather(torch.stack(all_codes, -1))                    # (B, K, T)
"""
import warnings
import weakref
from contextlib import contextmanager
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import nn

from gencore.cache import Cache, FixedCache, RollingCache
from gencore.choose import choose, guide
from gencore.masks import padding, window


def decode(logits, step, pick, *, limit, ended=None):
    """logits of the prefill -> yields tokens, at most `limit` times; step(tokens) -> the next logits, pick(logits, n) -> tokens.

    ended(tokens) -> (B,) bool, True = this row has said its end; the loop stops when every row has."""
    over = None
    for n in range(limit):
        tokens = pick(logits, n)
        yield tokens
        if ended is not None:
            over = ended(tokens) if over is None else over | ended(tokens)
            if bool(over.all()):
                return
        if n + 1 < limit:
            logits = step(tokens)


def picker(sampling, generators=None, *, seen=None):
    """`pick` for decode: logits (B,V) or (B,K,V) -> tokens. seen: (B,T) ids of the prompt, for the repetition penalty of words."""
    said = seen

    def pick(logits, n):
        nonlocal said
        if logits.ndim == 3:
            B, K, V = logits.shape
            each = [g for g in generators for _ in range(K)] if isinstance(generators, (list, tuple)) else generators
            return choose(logits.reshape(B * K, V), sampling, each).view(B, K)
        if sampling.repetition_penalty == 1.0:
            return choose(logits, sampling, generators)
        ids = choose(logits, sampling, generators, seen=said)
        said = ids[:, None] if said is None else torch.cat((said, ids[:, None]), 1)
        return ids

    return pick


def pick_by_pattern(pick, pattern, filler):
    """As `pick` for (B,K,V), with `filler` in the books that the pattern keeps silent at step n."""
    def pick_step(logits, n):
        silent = pattern.grid(n + 1)[:, n] < 0                                    # (K,)
        return pick(logits, n).masked_fill(silent.to(logits.device), filler)

    return pick_step


def guided(logits, step, scale):
    """Logits and step of 2B rows (conditioned, then unconditioned) -> those of B guided rows: one batched pass a step."""
    def both(tokens):
        return _guided_half(step(torch.cat([tokens, tokens])), scale)

    return _guided_half(logits, scale), both


def _guided_half(logits, scale):
    cond, null = (logits.float() if logits.dtype == torch.float16 else logits).chunk(2)
    return guide(cond.masked_fill(cond.isinf(), -1e9), null.masked_fill(null.isinf(), -1e9), scale)      # inf - inf is no number


class Stepper:
    """Runs forward(ids (B,T), *, mask, positions, cache) -> logits (B,T or 1,V) over one cache.

    keep (B,S): False at the left padding of unequal prompts, with room for every slot that is to come. within: width of the window
    that a rolling cache keeps. borders: lengths beyond which positions turn otherwise (longrope): a text that passes one is read once more."""

    def __init__(self, forward, cache, *, keep=None, within=None, borders=()):
        self.forward, self.cache, self.within, self.done = forward, cache, within, 0
        self.beyond, self.said = {border + 1 for border in borders if within is None or within >= border}, None
        self._mask(None if keep is None or bool(keep.all()) else keep)

    def _mask(self, keep):
        self.keep, self.mask = keep, window(self.within) if self.within else None
        self.pads = None if keep is None else (~keep).sum(1, keepdim=True)        # (B, 1)
        if keep is not None:
            self.mask = padding(keep) if self.mask is None else self.mask & padding(keep)

    def select(self, rows):
        """Goes on with these rows of the batch, of which some may be the same: beams."""
        self.cache.select(rows)
        self.said = None if self.said is None else self.said[rows]
        self._mask(None if self.keep is None else self.keep[rows])

    def prefill(self, ids, *, chunk=None):
        """ids (B,T) -> logits (B,V) after the last; in chunks where the cache rolls."""
        self.said = ids if self.beyond else None
        for part in ids.split(chunk or ids.shape[1], 1):
            logits = self._run(part)
        return logits

    def step(self, tokens):
        """tokens (B,) -> logits (B,V)."""
        if self.said is not None:
            self.said = torch.cat((self.said, tokens[:, None]), 1)
            lengths = {self.said.shape[1]} if self.pads is None else {self.said.shape[1] - pad for pad in self.pads[:, 0].tolist()}
            if lengths & self.beyond:
                self.cache.crop(0)
                self.done = 0
                return self._run(self.said)
        return self._run(tokens[:, None])

    def _run(self, ids):
        positions = None
        if self.pads is not None:
            slots = torch.arange(self.done, self.done + ids.shape[1], device=ids.device)
            positions = (slots - self.pads).clamp(min=0)                          # (B, T)
        logits = self.forward(ids, mask=self.mask, positions=positions, cache=self.cache)
        self.done += ids.shape[1]
        return logits[:, -1]


@contextmanager
def resting(model):
    """While open, the model is in eval mode; where several are open at once, as two streams may be, until the last is closed."""
    if model not in _resting:
        _resting[model] = [[module for module in model.modules() if module.training], 0]
        model.eval()
    state = _resting[model]
    state[1] += 1
    try:
        yield model
    finally:
        state[1] -= 1
        if not state[1]:
            for module in _resting.pop(model)[0]:                # not those that rested before, as a frozen part does
                module.training = True


_resting = WeakKeyDictionary()          # {model: [its modules that were training, how many rest in it]}


def left_padded(prompts, pad, *, extra=0):
    """Lists of ids -> (ids (B,T), keep (B,T+extra)): shorter prompts begin with `pad`, which nobody looks at."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], dtype=torch.long)     # (B, T)
    keep = torch.ones(len(prompts), longest + extra, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        keep[row, :longest - len(prompt)] = False
    return ids, keep


def make_cache(cfg, batch, length, *, context, like):
    """(cache, window or None) for texts that grow to `length`: static when that fits the context, else rolling over it."""
    if length <= context:
        return Cache(cfg, batch, length, dtype=like.dtype, device=like.device), None
    return RollingCache(cfg, batch, context, chunk=context, dtype=like.dtype, device=like.device), context


class CompiledStep:
    """A step over a FixedCache, compiled once for its sizes and used again for every text."""

    def __init__(self, forward, cfg, size, *, like):
        self.latest = lambda: None                                                # the text that is under way, if any
        self.cache = FixedCache(cfg, 1, size, dtype=like.dtype, device=like.device)
        self.plain = lambda ids: forward(ids, cache=self.cache)
        self.fast = compiled(self.plain, like.device)

    def stepper(self):
        """A Stepper that begins an empty text: an eager prefill, then compiled steps. None while another's text is under way in the cache."""
        if self.latest() is not None:
            return None
        self.cache.crop(0)

        def forward(ids, *, mask, positions, cache):
            return self.fast(ids) if ids.shape[1] == 1 else self.plain(ids)

        stepper = Stepper(forward, self.cache)
        self.latest = weakref.ref(stepper)
        return stepper


def compiled(function, device="cpu"):
    """A plain function of ids of one shape, under torch.compile as decoding wants it: what else it reads must stay as it is.

    As it is, with one warning, where no C++ compiler is found or it does not work."""
    if not has_compiler():
        warnings.warn(f"compile=True needs a C++ compiler, {COMPILERS}, none was found: going on uncompiled", stacklevel=2)
        return function
    from torch._dynamo.exc import BackendCompilerFailed
    code = function.__code__.replace(co_name="compiled")                          # torch.compile keeps its results by code: this is its own
    own = FunctionType(code, function.__globals__, "compiled", function.__defaults__, function.__closure__)
    fast = torch.compile(own, dynamic=False, fullgraph=True, options=ON_CPU if torch.device(device).type == "cpu" else ELSEWHERE)

    def guarded(ids):
        nonlocal fast
        try:
            return fast(ids)
        except BackendCompilerFailed as error:
            why = str(error.inner_exception).strip().splitlines()[0]
            warnings.warn(f"compile=True: the C++ compiler, {COMPILERS}, could not compile this model ({why}): going on uncompiled", stacklevel=2)
            fast = function
            return function(ids)

    return guarded


def _no_guards(guards):
    """A step always has the same shapes, model and cache: looking whether they have changed took a twentieth of its time."""
    return [False] * len(guards)


# realize_opcount_threshold: what every row of a product needs, such as a norm, is computed once, not in the sum of each row
ON_CPU = {"realize_opcount_threshold": 0, "guard_filter_fn": _no_guards}
ELSEWHERE = {"max_autotune": True, "guard_filter_fn": _no_guards}
COMPILERS = "g++ (clang++ on macOS, cl on Windows) or the one that the variable CXX names"


def has_compiler():
    """Whether inductor finds its C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    try:
        return bool(get_cpp_compiler())
    except RuntimeError:                                                          # torch._inductor.exc.InvalidCxxCompiler is one
        return False


def column_major(module):
    """Lays the matrices of linear layers out column by column, in place, but for those that narrow. The values stay; the product with one row, of
    which a step consists, streams wide ones up to twice as fast so (MKL on a CPU with AVX-512), and most narrowing ones more slowly."""
    for child in module.modules():
        if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.out_features >= child.in_features:
            child.weight.data = child.weight.data.t().contiguous().t()
    return module
