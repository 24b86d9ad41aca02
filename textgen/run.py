"""How a model's new ids are made, a step at a time: prompts of unequal length, caches, compiled steps; and what a run leaves beside its ids."""
from dataclasses import dataclass, field

import torch

from gencore.decode import Stepper, decode, left_padded, make_cache, picker


@dataclass
class Trace:
    """What a run leaves beside its ids."""
    logprobs: list = field(default_factory=list)     # (B,) a step: how likely each token was to the model itself

    def by_row(self, rows):
        """The log-probabilities of each row, as long as the longest."""
        return torch.stack(self.logprobs, 1).tolist() if self.logprobs else [[] for _ in range(rows)]


@torch.inference_mode()
def run(lm, lists, sampling, *, seeds, settings, trace=None):
    """Lists of prompt ids -> yields, a step each, the list of new ids (one a row)."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    limit = settings.max_new_tokens
    ids, keep = left_padded(lists, lm.cfg.pad if lm.cfg.pad is not None else 0, extra=limit)
    weight = lm.embedding.weight
    stepper, chunk = lm.fast_stepper(ids.shape[1] + limit) if settings.compile and len(lists) == 1 and settings.window is None else None, None
    if stepper is None:
        context = min(settings.window or lm.cfg.context, lm.cfg.context)
        cache, within = make_cache(lm.cfg.transformer, len(lists), ids.shape[1] + limit, context=context, like=weight)
        stepper = Stepper(lm.last_logits, cache, keep=keep.to(weight.device), within=within)
        chunk = within
    seen = ids.masked_fill(~keep[:, :ids.shape[1]], -1)
    pick = recorded(picker(sampling, generators, seen=seen.to(weight.device)), trace or Trace())
    first = stepper.prefill(ids.to(weight.device), chunk=chunk)
    for tokens in decode(first, stepper.step, pick, limit=limit):
        yield tokens.tolist()


def recorded(pick, trace):
    """`pick`, with the log-probability of what it chose put into the trace."""
    def pick_step(logits, n):
        tokens = pick(logits, n)
        trace.logprobs.append(chosen_logprobs(logits, tokens))
        return tokens

    return pick_step


def chosen_logprobs(logits, tokens):
    """logits (...,V), tokens (...) -> their log-probabilities (...)."""
    logits = logits.float()
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
