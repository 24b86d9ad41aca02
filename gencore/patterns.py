"""In which order the codes of K codebooks are spoken: all at once, each book a step later than the one before, or one by one.

Copet et al. 2023 (MusicGen). A pattern turns codes (B,K,T) into steps (B,K,S) and back; places without a code hold a filler."""
from dataclasses import dataclass
from typing import Literal

import torch

from gencore.check import InputError, dims, whole


@dataclass(frozen=True)
class Pattern:
    """At step s, book k speaks frame `frame(s, k)`; a frame below 0 or beyond the last is silence (the filler)."""
    kind: Literal["delay", "parallel", "flattened"]
    books: int                                        # K

    def __post_init__(self):
        if self.kind not in ("delay", "parallel", "flattened"):
            raise InputError(f'a pattern is "delay", "parallel" or "flattened", got {self.kind!r:.80}')
        whole("books", self.books, 1)

    def steps(self, frames):
        """How many steps S speak that many frames T."""
        return {"delay": frames + self.books - 1, "parallel": frames, "flattened": frames * self.books}[self.kind]

    def frames(self, steps):
        """How many whole frames T that many steps S hold."""
        return max(0, {"delay": steps - self.books + 1, "parallel": steps, "flattened": steps // self.books}[self.kind])

    def grid(self, steps):
        """(K, steps): the frame that each book speaks at each step; -1 where it is silent. A longer grid begins with the shorter one."""
        step, book = torch.arange(steps)[None], torch.arange(self.books)[:, None]
        if self.kind == "delay":
            return (step - book).clamp(min=-1)
        if self.kind == "parallel":
            return step.expand(self.books, steps).clone()
        return torch.where(step % self.books == book, step // self.books, -1)

    def spread(self, codes, filler):
        """codes (B,K,T) -> steps (B,K,S); places without a code hold `filler`."""
        B, K, T = dims("codes", codes, "B K T", K=self.books)
        grid = self.grid(self.steps(T)).to(codes.device)                         # (K, S)
        silent = (grid < 0) | (grid >= T)
        padded = torch.cat([codes, codes.new_full((B, K, 1), filler)], 2)        # (B, K, T + 1)
        return padded.gather(2, grid.masked_fill(silent, T).expand(B, K, -1))    # (B, K, S)

    def gather(self, steps):
        """steps (B,K,S) -> codes (B,K,T) of the frames that are whole."""
        B, K, S = dims("steps", steps, "B K S", K=self.books)
        T = self.frames(S)
        grid = self.grid(S).to(steps.device)                                     # (K, S)
        book, step = ((grid >= 0) & (grid < T)).nonzero(as_tuple=True)           # by book, then by step, so by frame
        return steps[:, book, step].view(B, K, T)


def delay(books):
    """Book k speaks k steps late: it has seen the coarser codes of its own frame."""
    return Pattern("delay", books)


def parallel(books):
    """All books speak a frame at once: fastest, and blind to each other within the frame."""
    return Pattern("parallel", books)


def flattened(books):
    """One code a step, book after book: exact, K times as many steps."""
    return Pattern("flattened", books)
