"""Word vectors learnt by negative sampling, as matrix products over blocks of text (Mikolov et al. 2013; Ji et al. 2016 share the noise words).

A block is T words in a row with a margin of `window` words on both sides. All scores of the block are one product (T, T + 2 window), of which
the band inside each word's window counts; the noise words are drawn for the block and shared by its words, so that they are a product too.
Gradients are written by hand: a step touches some thousand rows of two tables, and an optimizer over whole tables would touch all of them."""
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import embedding

from gencore.check import ConfigError
from gencore.config import Size, check_fields

BLOCK = 32                    # T, words of a block


@dataclass(frozen=True)
class Word2VecConfig:
    """gensim's names in brackets where they differ."""
    objective: Literal["skip-gram", "cbow"] = "skip-gram"      # [sg=1, sg=0]
    width: Size = 100             # D [vector_size]
    window: Size = 5              # most words to either side; each word draws its own from 1 to this
    negative: Size = 5            # weight of the noise against each word that was there
    min_count: Size = 5           # rarer words are left out
    sample: float = 1e-3          # words more frequent than this share are thinned out; 0 = none
    epochs: Size = 5
    lr: float = 0.025             # falls linearly [alpha] ...
    min_lr: float = 1e-4          # ... to this
    noise: Size = 32              # noise words drawn for a block, each with weight negative * pairs / noise
    blocks: Size = 32             # blocks of one step
    seed: int = 1

    def __post_init__(self):
        check_fields(self)
        if not 0 <= self.seed < 2 ** 63:
            raise ConfigError(f"Word2VecConfig.seed should be between 0 and 2**63 - 1, got {self.seed}")
        if not (0 <= self.min_lr <= self.lr < math.inf and 0 <= self.sample < math.inf):
            raise ConfigError(f"lr should fall to min_lr >= 0 and sample be >= 0, got lr={self.lr}, min_lr={self.min_lr}, sample={self.sample}")


class Trainer:
    """Two tables (V,D): `vectors` of a word as itself, `contexts` of a word as its neighbours' neighbour."""

    def __init__(self, counts, cfg):
        """counts (V,) long: how often each word occurs."""
        self.cfg, self.rate = cfg, cfg.lr
        self.generator = torch.Generator().manual_seed(cfg.seed)
        V, share = len(counts), counts.double() / counts.sum()
        self.vectors = (torch.rand(V, cfg.width, generator=self.generator) - 0.5) / cfg.width
        self.contexts = torch.zeros(V, cfg.width)
        smoothed = counts.double() ** 0.75
        self.noise = (smoothed / smoothed.sum()).cumsum(0)                               # noise words are drawn by bisection
        kept = torch.ones(V, dtype=torch.double) if cfg.sample == 0 else (cfg.sample / share).sqrt() + cfg.sample / share
        self.kept = kept.clamp(max=1).float()                                            # share of its occurrences that a word keeps
        offset = torch.arange(BLOCK + 2 * cfg.window) - cfg.window - torch.arange(BLOCK)[:, None]
        self.offset = offset.abs().masked_fill(offset == 0, cfg.window + 1).int()        # (T, S): distance; a word is not its own neighbour

    def thinned(self, ids, sentences):
        """ids (n,), sentences (n,) long -> the same without some of the frequent words (section 2.3 of Mikolov et al.)."""
        stay = torch.rand(len(ids), generator=self.generator) < self.kept[ids]
        return ids[stay], sentences[stay]

    def parts(self, ids, sentences):
        """One pass over a text, ids (n,) and the sentence of each (n,) -> yields what each `step` takes: blocks (R,S) and their sentences (R,S)."""
        if not len(ids):                                                                 # every word was thinned out
            return
        W = self.cfg.window
        filled = -len(ids) % BLOCK
        ids = torch.nn.functional.pad(ids, (W, W + filled))
        sentences = torch.nn.functional.pad(sentences, (W, W + filled), value=-1)
        rows, owners = (t.unfold(0, BLOCK + 2 * W, BLOCK) for t in (ids, sentences.int()))           # (blocks, S), S = T + 2W
        yield from zip(rows.split(self.cfg.blocks), owners.split(self.cfg.blocks))

    def step(self, around, owners, lr):
        """around (R,S): R blocks with their margins; owners (R,S): sentences, -1 = outside."""
        self.rate, W, T = lr, self.cfg.window, BLOCK
        words, owner = around[:, W:W + T], owners[:, W:W + T]                            # (R, T)
        reach = torch.randint(1, W + 1, words.shape, generator=self.generator).int()     # each word's own window
        reach = reach.masked_fill(owner < 0, 0)
        band = (self.offset <= reach[..., None]) & (owner[..., None] == owners[:, None])                     # (R, T, S)
        noise = torch.searchsorted(self.noise, torch.rand(len(words), self.cfg.noise, generator=self.generator, dtype=torch.double))
        learn = self.skip_gram if self.cfg.objective == "skip-gram" else self.cbow
        learn(words, around, noise.clamp(max=len(self.noise) - 1), band.float())

    def skip_gram(self, words, around, noise, band):
        """words (R,T) foretell each of their neighbours among `around` (R,S), and not the noise (R,M); band (R,T,S) 1 = neighbour."""
        x, y, n = embedding(words, self.vectors), embedding(around, self.contexts), embedding(noise, self.contexts)  # (R, T, D), (R, S, D), (R, M, D)
        pairs = band.sum(-1, keepdim=True)                                               # (R, T, 1)
        weight = pairs * (self.cfg.negative / noise.shape[1])
        right = torch.sigmoid(-(x @ y.mT)) * band                                        # (R, T, S): what the scores lack
        wrong = torch.sigmoid(x @ n.mT) * -weight                                        # (R, T, M)
        self.move(self.vectors, (words, torch.baddbmm(right @ y, wrong, n), pairs[..., 0] * (1 + self.cfg.negative)))
        self.move(self.contexts, (around, right.mT @ x, band.sum(1)), (noise, wrong.mT @ x, weight.sum(1).expand(noise.shape)))

    def cbow(self, words, around, noise, band):
        """The mean of each word's neighbours foretells the word, and not the noise. As gensim, each neighbour takes the mean's whole gradient."""
        pairs = band.sum(-1, keepdim=True)                                               # (R, T, 1)
        mean = band / pairs.clamp(min=1)                                                 # (R, T, S)
        x = mean @ embedding(around, self.vectors)                                       # (R, T, D)
        y, n = embedding(words, self.contexts), embedding(noise, self.contexts)          # (R, T, D), (R, M, D); far sooner than by [] of a tensor
        there = (pairs > 0).float()                                                      # a word without neighbours teaches nothing
        right = torch.sigmoid(-(x * y).sum(-1, keepdim=True)) * there                    # (R, T, 1)
        weight = there * (self.cfg.negative / noise.shape[1])
        wrong = torch.sigmoid(x @ n.mT) * -weight                                        # (R, T, M)
        self.move(self.vectors, (around, band.mT @ torch.baddbmm(right * y, wrong, n), mean.sum(1) * (1 + self.cfg.negative)))
        self.move(self.contexts, (words, right * x, there[..., 0]), (noise, wrong.mT @ x, weight.sum(1).expand(noise.shape)))

    def move(self, table, *parts):
        """parts (rows (R,S), pulls (R,S,D), weights (R,S)): adds rate * pulls to the rows of the table, less where the weights of a row sum to more
        than 1 / rate. One after another such pulls weaken as the row moves; summed at once they would overshoot."""
        total = torch.zeros(len(table))
        for rows, _, weights in parts:
            total.index_add_(0, rows.flatten(), weights.flatten())
        for rows, pulls, _ in parts:
            rate = (1 / total[rows]).clamp_(max=self.rate)
            table.index_add_(0, rows.flatten(), pulls.mul_(rate[..., None]).flatten(0, 1))
