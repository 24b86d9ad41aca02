"""The next token from its logits: repetition penalty, temperature, then top-k, top-p and min-p, then one draw a row.

Holtzman et al. 2020 (top-p), Keskar et al. 2019 (repetition penalty), Ho & Salimans 2021 (guidance)."""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gencore.check import InputError, dims, in_range, whole


@dataclass(frozen=True)
class Sampling:
    """How `choose` chooses."""
    temperature: float = 1.0               # logits / temperature; 0 = the likeliest token always
    top_k: int | None = None               # only the k likeliest
    top_p: float | None = None             # only the likeliest that together reach this probability
    min_p: float | None = None             # only those at least this likely, compared with the likeliest
    repetition_penalty: float = 1.0        # logits of tokens already there: positive ones divided, negative ones multiplied

    def __post_init__(self):
        in_range("temperature", self.temperature, 0, 1e4)
        in_range("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        if self.top_k is not None:
            whole("top_k", self.top_k, 1)
        for name in ("top_p", "min_p"):
            if getattr(self, name) is not None:
                in_range(name, getattr(self, name), 0, 1)

    @property
    def greedy(self):
        """Whether the likeliest token is chosen always."""
        return self.temperature < 1e-5 or self.top_k == 1                                 # logits / 1e-40 would be no numbers


def choose(logits, sampling, generators=None, *, seen=None):
    """logits (B,V) -> ids (B,). generators: a CPU generator, or one for each row (a row then draws what it would draw alone).

    seen: (B,T) ids already there, for the repetition penalty; negative ids are no tokens."""
    dims("logits", logits, "B V")
    if seen is not None and sampling.repetition_penalty != 1.0:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.greedy:
        return likeliest(logits)
    if generators is None:
        raise InputError("choosing at random needs a generator: give one, or temperature=0")
    return draw(narrowed(logits, sampling), generators)


def chances(logits, sampling, *, seen=None):
    """logits (B,V) -> probabilities (B,V) with which `choose` chooses; greedy, all on one token."""
    if seen is not None and sampling.repetition_penalty != 1.0:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.greedy:
        return F.one_hot(likeliest(logits), logits.shape[-1]).float()
    probabilities = narrowed(logits, sampling)
    return probabilities / probabilities.sum(-1, keepdim=True)


def likeliest(logits):
    """logits (B,V) -> ids (B,) of the largest."""
    values, ids = logits.max(-1)
    check_finite(values)
    return ids


def check_finite(values):
    """InputError for largest logits or sums of probabilities (B,) of which one is NaN or infinite: any token would do. Reads one number."""
    if not math.isfinite(values.float().sum()):
        raise InputError("no token can be chosen, the logits are NaN, infinite or all masked: look for weights that are not finite, "
                         "or compute in float32")


def draw(probabilities, generators):
    """Probabilities (B,V), of any sum -> ids (B,). generators: as for `choose`."""
    B = len(probabilities)
    mass = probabilities.cumsum(-1)                                                       # (B, V)
    check_finite(mass[:, -1])
    draws = torch.cat([torch.rand(1, generator=g) for g in generators]) if isinstance(generators, (list, tuple)) \
        else torch.rand(B, generator=generators)
    aim = draws.to(mass)[:, None] * mass[:, -1:]                                          # (B, 1), below the whole mass
    ids = torch.searchsorted(mass, aim, right=True)[:, 0]                                 # never one of probability 0 ...
    return torch.minimum(ids, last_possible(probabilities))                               # ... also when rounding reaches the end


def narrowed(logits, sampling):
    """logits (B,V) -> probabilities (B,V) after temperature, top-k, top-p and min-p; what is cut has probability 0."""
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[:, -1:]                            # (B, 1)
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered                                             # (B, V) mass of the likelier ones
        before[:, 0] = -1                                                                 # the likeliest always stays
        cut = torch.zeros_like(ordered, dtype=torch.bool).scatter(-1, places, before >= sampling.top_p)
        probabilities = probabilities.masked_fill(cut, 0.0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if sampling.min_p is not None:
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)                     # (B, 1)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities


def penalise(logits, seen, penalty):
    """Makes tokens of `seen` (B,T) less likely (penalty > 1), each once, however often it was there."""
    known = seen.clamp(min=0)
    values = logits.gather(-1, known)                                                     # (B, T)
    changed = torch.where(values > 0, values / penalty, values * penalty)
    changed = torch.where(seen < 0, values, changed)
    spare = torch.cat([logits, logits[:, :1]], -1)                                        # a last column takes what is no token
    spare = spare.scatter(-1, known.masked_fill(seen < 0, logits.shape[-1]), changed)
    return spare[:, :-1]


def last_possible(probabilities):
    """(B,V) -> (B,): the last id that is not impossible."""
    V = probabilities.shape[-1]
    return V - 1 - (probabilities > 0).flip(-1).int().argmax(-1)


def guide(cond, null, scale):
    """Logits with and without condition -> what the condition changes, `scale` times: null + scale * (cond - null)."""
    return torch.lerp(null, cond, scale)
