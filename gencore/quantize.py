"""Vectors to code numbers and back: vector quantisation with moving averages, residual stacks of it, and finite scalars.

van den Oord et al. 2017 (VQ-VAE, straight-through), Razavi et al. 2019 (moving-average codebooks), Zeghidour et al. 2021
(residual VQ, quantiser dropout, k-means start, dead codes), Mentzer et al. 2023 (FSQ)."""
from dataclasses import dataclass
from math import prod
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gencore.check import ConfigError, InputError, dims
from gencore.config import Count, Few, Share, Size, Within, check_fields


class Quantized(NamedTuple):
    """What a quantiser returns."""
    values: torch.Tensor        # (B, T, D), the chosen code vectors; gradients pass straight through to the input
    codes: torch.Tensor         # (B, T) of one codebook, (B, K, T) of several
    commitment: torch.Tensor    # (), mean squared distance from the input to its code vector


@dataclass(frozen=True)
class QuantizeConfig:
    """Codebooks learned by moving averages."""
    width: Size = 64            # D of the vectors
    books: Few = 4              # K, residual: each codes what those before it left
    codes: Size = 256           # code vectors in a book
    decay: Share = 0.97         # of the moving averages
    dead: Annotated[float, Within(0, 1e6)] = 0.05      # a code whose moving count falls below this is restarted from the batch
    dropout: Share = 0.3        # share of training steps that use only the first 1..K books
    warmup: Count = 60          # training steps without quantiser; then the books start at k-means of the batch

    def __post_init__(self):
        check_fields(self)


class VectorQuantizer(nn.Module):
    """One codebook. In training it follows its vectors by moving averages (no gradient) and revives dead codes."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.register_buffer("codebook", torch.zeros(cfg.codes, cfg.width))
        self.register_buffer("counts", torch.ones(cfg.codes))                     # moving number of vectors per code
        self.register_buffer("sums", torch.zeros(cfg.codes, cfg.width))           # moving sum of these vectors
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, x, generator=None):
        """x (B,T,D) -> Quantized with codes (B,T). `generator` (CPU) draws the start and the revived codes in training."""
        B, T, _ = dims("x", x, "B T D", D=self.cfg.width)
        flat = x.detach().reshape(B * T, self.cfg.width).to(self.codebook.dtype)  # (B*T, D)
        with torch.autocast(x.device.type, enabled=False):                        # moving averages of bfloat16 stand still
            if self.training and not self.started:
                self.set_codebook(from_first(k_means(flat, self.cfg.codes, generator=generator)))
            codes = self.nearest(flat)                                            # (B*T,)
            values = self.codebook[codes].view_as(x)                              # (B, T, D), before this step's update
            if self.training:
                self._follow(flat, codes, generator)
        commitment = F.mse_loss(x, values)
        values = x + (values - x).detach()                                        # forward: the code; backward: identity
        return Quantized(values, codes.view(B, T), commitment)

    def nearest(self, flat):
        """flat (M,D) -> numbers (M,) of the nearest code vectors."""
        return (self.codebook.square().sum(-1) - 2 * flat @ self.codebook.T).argmin(-1)

    @torch.no_grad()
    def set_codebook(self, codebook):
        """codebook (codes,D) becomes this book; the moving averages start from it."""
        dims("codebook", codebook, "C D", C=self.cfg.codes, D=self.cfg.width)
        self.codebook.copy_(codebook)
        self.sums.copy_(codebook)
        self.counts.fill_(1.0)
        self.started.fill_(True)

    @torch.no_grad()
    def _follow(self, flat, codes, generator):
        hits = F.one_hot(codes, self.cfg.codes).to(flat.dtype)                    # (M, codes)
        counts, sums = hits.sum(0), hits.T @ flat                                 # (codes,), (codes, D)
        if several():                                                             # every process follows the vectors of all
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.counts.lerp_(counts, 1 - self.cfg.decay)
        self.sums.lerp_(sums, 1 - self.cfg.decay)
        dead = self.counts < self.cfg.dead                                        # (codes,)
        if dead.any():
            picked = flat[torch.randint(len(flat), (int(dead.sum()),), generator=generator)]
            self.sums[dead], self.counts[dead] = from_first(picked), 1.0
        self.codebook.copy_(self.sums / self.counts[:, None])


class ResidualVQ(nn.Module):
    """K codebooks, each coding what is left by those before it; fewer books give a coarser version of the same."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.books = nn.ModuleList(VectorQuantizer(cfg) for _ in range(cfg.books))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))          # training steps seen

    def forward(self, x, generator=None):
        """x (B,T,D) -> Quantized with codes (B,K,T). In training: nothing during the warm-up (codes are None), then dropout of books."""
        used = len(self.books)
        if self.training:
            self.steps += 1
            if self.steps <= self.cfg.warmup:
                return Quantized(x, None, x.new_zeros(()))
            whole = not self.books[-1].started                                    # every book starts from k-means
            draws = from_first(torch.rand(2, generator=generator).to(x.device)).tolist()          # the same books in every process
            if not whole and draws[0] < self.cfg.dropout:
                used = 1 + int(draws[1] * used)
        values, commitment, codes = torch.zeros_like(x), x.new_zeros(()), []
        for book in self.books[:used]:
            part = book(x - values.detach(), generator)
            values = values + part.values.detach()
            commitment = commitment + part.commitment / used
            codes.append(part.codes)
        return Quantized(x + (values - x).detach(), torch.stack(codes, 1), commitment)

    def lookup(self, codes):
        """codes (B,K,T), K up to all books -> values (B,T,D)."""
        B, K, T = dims("codes", codes, "B K T")
        if K > len(self.books):
            raise InputError(f"codes: K should be at most {len(self.books)}, got {K} in shape {tuple(codes.shape)}")
        check_codes(codes, self.cfg.codes)
        return sum(book.codebook[ids] for book, ids in zip(self.books, codes.unbind(1)))    # (B, T, D)


class FSQ(nn.Module):
    """Finite scalar quantisation: every component of x is bounded and rounded to a few levels; nothing is learned, no code can die."""

    def __init__(self, levels=(7, 6, 6)):
        super().__init__()
        if not levels or any(type(n) is not int or n < 2 for n in levels):
            raise ConfigError(f"FSQ levels should be whole numbers of at least 2, got {tuple(levels)}")
        self.levels, self.codes = tuple(levels), prod(levels)

    def forward(self, x):
        """x (B,T,D), D = number of levels -> Quantized with values in [-1, 1], codes (B,T)."""
        dims("x", x, "B T D", D=len(self.levels))
        counts, base = self._scales(x.device)
        unit = (counts - 1) / 2                                                   # (D,), half the span of the levels
        bounded = torch.tanh(x) * unit                                            # (B, T, D) in [-unit, unit]
        rounded = torch.round(bounded + unit) - unit                              # levels lie at -unit, -unit + 1, .. unit
        values = (bounded + (rounded - bounded).detach()) / unit                  # straight through
        codes = ((rounded + unit).long() * base).sum(-1)                          # (B, T)
        return Quantized(values, codes, x.new_zeros(()))

    def lookup(self, codes):
        """codes (B,T) -> values (B,T,D) in [-1, 1]."""
        dims("codes", codes, "B T")
        check_codes(codes, self.codes)
        counts, base = self._scales(codes.device)
        digits = codes[..., None] // base % counts                                # (B, T, D)
        return digits / ((counts - 1) / 2) - 1

    def _scales(self, device):
        """-> (how many levels each component has (D,), what its digit counts in a code (D,)); no buffers: no file would fill them."""
        return torch.tensor(self.levels, device=device), torch.tensor([1, *self.levels[:-1]], device=device).cumprod(0)


def check_codes(codes, count):
    """InputError unless these are numbers of `count` code vectors."""
    if codes.is_floating_point():
        raise InputError(f"codes should be whole numbers, got {codes.dtype}")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < count:
        raise InputError(f"codes should be 0..{count - 1}, got {int(codes.min())}..{int(codes.max())}")


def several():
    """Whether this training runs in several processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def from_first(tensor):
    """The tensor as the first process has it."""
    if several():
        torch.distributed.broadcast(tensor, 0)
    return tensor


@torch.no_grad()
def k_means(points, k, *, rounds=10, generator=None):
    """points (M,D) -> k centres (k,D) by Lloyd's rounds from points drawn by `generator`; an empty centre is drawn anew."""
    M = len(points)
    if not M or not points.isfinite().all():
        raise InputError(f"k-means needs points of finite values, got {tuple(points.shape)}{' with NaN or infinity' if M else ''}")
    order = torch.randperm(M, generator=generator).repeat(-(-k // M))[:k]         # every point once before any comes twice
    centres = points[order].clone()
    for _ in range(rounds):
        nearest = (centres.square().sum(-1) - 2 * points @ centres.T).argmin(-1)  # (M,)
        hits = F.one_hot(nearest, k).to(points.dtype)                             # (M, k)
        counts = hits.sum(0)                                                      # (k,)
        centres = hits.T @ points / counts.clamp(min=1)[:, None]                  # (k, D)
        empty = counts == 0
        centres[empty] = points[torch.randint(M, (int(empty.sum()),), generator=generator)]
    return centres
