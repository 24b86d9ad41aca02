"""How a model's new ids are made: drawn step by step, searched by beams, or guessed by a draft; and what a run leaves beside them."""
import warnings
from dataclasses import dataclass, field
from itertools import islice, zip_longest

import torch

from gencore.beam import beam_search
from gencore.cache import Cache
from gencore.check import InputError
from gencore.choose import chances
from gencore.decode import Stepper, decode, left_padded, make_cache, picker, resting
from gencore.packed import packed
from gencore.speculative import Reader, Tally, speculate
from textgen.constraint import constrained, matchers_of


@dataclass
class Trace:
    """What a run leaves beside its ids."""
    logprobs: list = field(default_factory=list)     # (B,) a step: how likely each token was to the model itself
    tally: Tally = field(default_factory=Tally)      # of a draft's guesses

    def by_row(self, rows):
        """The log-probabilities of each row, as long as the longest; None for each when none were kept."""
        return torch.stack(self.logprobs, 1).tolist() if self.logprobs else [None] * rows


def run(lm, lists, sampling, *, seeds, settings, trace=None):
    """Lists of prompt ids -> yields, a step each, the list of new ids (one a row)."""
    steps = steps_of(lm, lists, sampling, seeds=seeds, settings=settings, trace=trace)
    while True:
        with torch.inference_mode():                 # closed at each yield: a stream that is left lying closes nothing when Python ends
            tokens = next(steps, None)
        if tokens is None:
            return
        yield tokens


def steps_of(lm, lists, sampling, *, seeds, settings, trace):
    """As `run`, by what the settings ask for."""
    if settings.draft is not None:
        yield from drafted(lm, lists[0], settings, generator=torch.Generator().manual_seed(seeds[0]), trace=trace or Trace())
        return
    with packed(lm, len(lists) * settings.beams):
        if settings.beams > 1:
            yield from zip_longest(*likeliest(lm, lists, settings), fillvalue=next(iter(lm.cfg.eos), None))
        else:
            yield from drawn(lm, lists, sampling, seeds=seeds, settings=settings, trace=trace)


def drawn(lm, lists, sampling, *, seeds, settings, trace):
    """As `run`, token by token."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    first, stepper, seen = prefilled(lm, lists, settings)
    pick = picker(sampling, generators, seen=seen)
    if settings.constraint is not None:
        pick = constrained(pick, matchers_of(lm, settings.constraint, len(lists)))
    pick = pick if trace is None else recorded(pick, trace)
    for tokens in decode(first, stepper.step, pick, limit=settings.max_new_tokens):
        yield tokens.tolist()


def prefilled(lm, lists, settings):
    """Lists of prompt ids -> (logits (B,V) after them, Stepper that goes on, the prompts (B,T) with -1 for padding)."""
    limit, device = settings.max_new_tokens, lm.embedding.weight.device
    ids, keep = left_padded(lists, lm.cfg.pad if lm.cfg.pad is not None else 0, extra=limit if len(lists) > 1 else 0)
    length, chunk = ids.shape[1] + limit, None
    single = settings.compile and len(lists) == settings.beams == 1 and settings.window is None
    stepper = lm.fast_stepper(length) if single else None
    if settings.compile and stepper is None:
        say_uncompiled(f"is for one prompt at a time that fits into {lm.cfg.context} tokens with what follows, without window and beams, of a model "
                       "whose positions don't depend on the text's length")
    if stepper is None:
        context = min(settings.window or lm.cfg.context, lm.cfg.context)
        cache, chunk = make_cache(lm.cfg.transformer, len(lists), length, context=context, like=lm.embedding.weight)
        stepper = Stepper(lm.last_logits, cache, keep=keep.to(device), within=chunk, borders=borders_of(lm))
    seen = ids.masked_fill(~keep[:, :ids.shape[1]], -1)
    return stepper.prefill(ids.to(device), chunk=chunk), stepper, seen.to(device)


def borders_of(lm):
    """Lengths at which the positions of a text begin to turn otherwise."""
    return [rotary.border for rotary in lm.cfg.transformer.rotaries if rotary.border is not None]


def say_uncompiled(why):
    """The warning that what compile=True asked for is not done here; Python shows it once."""
    warnings.warn(f"compile=True {why}: this call runs uncompiled", stacklevel=2)


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


def drafted(lm, ids, settings, *, generator, trace):
    """Ids of a prompt -> yields the new ids, each as [id]: guessed by settings.draft, checked by lm."""
    if settings.compile:
        say_uncompiled("does not go together with a draft")
    readers = []
    for model in (lm, settings.draft):
        weight = model.embedding.weight
        cache = Cache(model.cfg.transformer, 1, len(ids) + settings.max_new_tokens, dtype=weight.dtype, device=weight.device)
        readers.append(Reader(model, cache))
    with resting(settings.draft):
        for reader in readers:
            if ids[:-1]:
                reader.forward.hidden(torch.tensor([ids[:-1]], device=weight.device), cache=reader.cache)
        said = speculate(*readers, ids, odds_of(settings.sampling), generator=generator, tally=trace.tally)
        for token, logits in islice(said, settings.max_new_tokens):
            trace.logprobs.append(chosen_logprobs(logits[None], torch.tensor([token], device=weight.device)))
            yield [token]


def odds_of(sampling):
    """`chances` for speculate: of what follows the last R ids of a text."""
    def odds(logits, text):
        R, T = len(logits), len(text)
        later = torch.arange(T) > torch.arange(T - R, T)[:, None]                         # (R, T) not yet said there
        return chances(logits, sampling, seen=torch.tensor([text]).expand(R, T).masked_fill(later, -1).to(logits.device))

    return odds


def check_draft(lm, lists, settings):
    """InputError when settings.draft can't guess for lm."""
    draft, longest = settings.draft, max(map(len, lists)) + settings.max_new_tokens
    if not isinstance(draft, type(lm)):
        raise InputError(f"draft should be a {type(lm).__name__}, got {type(draft).__name__}")
    if draft.tokenizer is None or draft.cfg.vocab != lm.cfg.vocab or draft.tokenizer.engine.get_vocab() != lm.tokenizer.engine.get_vocab():
        raise InputError("draft and model should share a tokenizer: train the draft with the tokenizer of the model")
    if draft.embedding.weight.device != lm.embedding.weight.device:
        raise InputError(f"draft and model should be on one device, got {draft.embedding.weight.device} and {lm.embedding.weight.device}")
    if len(lists) > 1:
        raise InputError(f"a draft guesses for one prompt at a time, got {len(lists)}: give them one by one")
    if settings.beams > 1 or settings.constraint is not None or settings.window is not None:
        raise InputError("a draft does not go together with beams, constraint or window: leave out one of them")
    if lm.cfg.transformer.by_length or draft.cfg.transformer.by_length:
        raise InputError("a draft does not go together with positions that follow the text's length (dynamic, longrope): leave it out")
    context = min(lm.cfg.context, draft.cfg.context)
    if longest > context:
        raise InputError(f"prompt and max_new_tokens are {longest} tokens together, a draft takes at most {context} here: ask for fewer")


def recorded(pick, trace):
    """`pick`, with the log-probability of what it chose put into the trace."""
    def pick_step(logits, n):
        tokens = pick(logits, n)
        trace.logprobs.append(chosen_logprobs(logits, tokens))
        return tokens

    return pick_step


def chosen_logprobs(logits, tokens):
    """logits (...,V), tokens (...) -> their log-probabilities (...)."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
