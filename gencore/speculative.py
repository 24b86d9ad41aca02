"""Speculative decoding: a small model guesses some tokens ahead, the large one checks them in one forward (Leviathan et al. 2023).

What is said is distributed exactly as what the large model says alone; where it is greedy, the tokens are the same. Forwards of one token and
of several round differently: tokens whose chances are equal to the last bit may change places."""
from dataclasses import dataclass

import torch

from gencore.choose import draw


@dataclass
class Reader:
    """A model and what it has read: forward(ids (1,T), cache=cache) -> logits (1,T,V) over a static cache."""
    forward: object
    cache: object

    def read(self, text):
        """All ids so far -> logits (T,V) after each one that was not yet in the cache."""
        new = torch.tensor([text[int(self.cache.length):]], device=self.cache.layers[0].k.device)
        return self.forward(new, cache=self.cache)[0]


@dataclass
class Tally:
    """How the guesses fared."""
    proposed: int = 0
    accepted: int = 0


def speculate(large, small, text, chances, *, generator, tally):
    """Two Readers that have read all of `text` (ids) but its last -> yields (token, the large model's logits (V,) for it), without end.

    chances(logits (R,V), text) -> probabilities (R,V) of what follows the last R ids of the text. Algorithm 1 of the paper; how many are
    guessed follows from how the guesses before fared."""
    text, ahead = list(text), 4
    while True:
        room = min(reader.cache.size - len(text) for reader in (large, small))            # the last token stays unread
        guesses, guessed = [], []
        for _ in range(min(ahead, room - 1)):
            guessed.append(chances(small.read(text + guesses)[-1:], text + guesses)[0])   # (V,)
            guesses.append(int(draw(guessed[-1][None], generator)))
        logits = large.read(text + guesses)                                               # (1 + guesses, V)
        wanted = chances(logits, text + guesses)
        kept, token = verdict(guesses, guessed, wanted, generator)
        tally.proposed, tally.accepted = tally.proposed + len(guesses), tally.accepted + kept
        ahead = ahead + 2 if kept == len(guesses) else max(1, ahead - 1)
        text += [*guesses[:kept], token]
        for reader in (large, small):
            reader.cache.crop(min(int(reader.cache.length), len(text) - 1))
        yield from zip(text[len(text) - kept - 1:], logits)


def verdict(guesses, guessed, wanted, generator):
    """Guesses drawn from `guessed` [(V,)], and what the large model wants (1 + guesses, V) -> (how many stay, the token after them)."""
    for n, (token, odds) in enumerate(zip(guesses, guessed)):
        if float(torch.rand((), generator=generator)) * float(odds[token]) >= float(wanted[n, token]):
            rest = (wanted[n] - odds).clamp(min=0)                                        # what the guesses said too seldom
            return n, int(draw((rest if float(rest.sum()) else wanted[n])[None], generator))
    return len(guesses), int(draw(wanted[-1:], generator))
