"""How a model's new ids are made, a step at a time: prompts of unequal length, caches, compiled steps; and what a run leaves beside its ids."""
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from gencore.beam import beam_search
from gencore.decode import Stepper, decode, left_padded, make_cache, picker


@dataclass
class Trace:
    """What a run leaves beside its ids."""
    logprobs: list = field(default_factory=list)     # (B,) a step: how likely each token was to the model itself

    def by_row(self, rows):
        """The log-probabilities of each row, as long as the longest; None for each when none were kept."""
        return torch.stack(self.logprobs, 1).tolist() if self.logprobs else [None] * rows


@torch.inference_mode()
def run(lm, lists, sampling, *, seeds, settings, trace=None):
    """Lists of prompt ids -> yields, a step each, the list of new ids (one a row)."""
    if settings.beams > 1:
        yield from zip_longest(*likeliest(lm, lists, settings), fillvalue=next(iter(lm.cfg.eos), None))
        return
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    first, stepper, seen = prefilled(lm, lists, settings)
    pick = recorded(picker(sampling, generators, seen=seen), trace or Trace())
    for tokens in decode(first, stepper.step, pick, limit=settings.max_new_tokens):
        yield tokens.tolist()


def prefilled(lm, lists, settings):
    """Lists of prompt ids -> (logits (B,V) after them, Stepper that goes on, the prompts (B,T) with -1 for padding)."""
    limit, device = settings.max_new_tokens, lm.embedding.weight.device
    ids, keep = left_padded(lists, lm.cfg.pad if lm.cfg.pad is not None else 0, extra=limit)
    length, chunk = ids.shape[1] + limit, None
    single = settings.compile and len(lists) == settings.beams == 1 and settings.window is None
    stepper = lm.fast_stepper(length) if single else None
    if stepper is None:
        context = min(settings.window or lm.cfg.context, lm.cfg.context)
        cache, chunk = make_cache(lm.cfg.transformer, len(lists), length, context=context, like=lm.embedding.weight)
        stepper = Stepper(lm.last_logits, cache, keep=keep.to(device), within=chunk)
    seen = ids.masked_fill(~keep[:, :ids.shape[1]], -1)
    return stepper.prefill(ids.to(device), chunk=chunk), stepper, seen.to(device)


def likeliest(lm, lists, settings):
    """Lists of prompt ids -> the new ids of the likeliest text of each, with its end, by beam search."""
    beams = settings.beams
    first, stepper, _ = prefilled(lm, lists, settings)
    rows = torch.arange(len(lists), device=first.device).repeat_interleave(beams)
    stepper.select(rows)

    def step(tokens, rows):
        stepper.select(rows)
        return stepper.step(tokens)

    found = beam_search(first[rows], step, beams=beams, limit=settings.max_new_tokens, eos=lm.cfg.eos, length_penalty=settings.length_penalty)
    return [hypotheses[0][1] for hypotheses in found]


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
