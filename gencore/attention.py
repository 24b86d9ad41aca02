"""Attention: one function, `attend`, and the modules that project into it.

Vaswani et al. 2017 (scaled dot product), Shazeer 2019 and Ainslie et al. 2023 (grouped queries), Bahdanau et al. 2015 (additive)."""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from gencore.check import ConfigError, dims
from gencore.config import Few, Positive, Size, check_fields
from gencore.positions import rotate
from gencore.processor import multiplies_bfloat16
from gencore.tiles import Tiles


@dataclass(frozen=True)
class AttentionConfig:
    """Heads and projections of one attention."""
    heads: Few = 4                                                    # N
    kv_heads: Few | None = None                                       # G; None = N (no grouping)
    head_width: Size | None = None                                    # E; None = width / N
    bias: bool = False                                                # of q, k and v
    out_bias: bool = False                                            # of the output projection
    qk_norm: Literal["none", "rms", "rms+1", "layer"] = "none"        # per head, before rotary positions
    softcap: Positive | None = None                                   # scores become cap * tanh(score / cap)
    scale: Positive | None = None                                     # None = E ** -0.5

    def __post_init__(self):
        check_fields(self)


CAUSAL = "causal"          # in place of a dense mask: the last query sees the last key; by the fast kernel when T == S


def attend(q, k, v, mask=None, *, scale=None, softcap=None):
    """q (B,N,T,E) looks at k, v (B,G,S,E); G divides N. Returns (B,N,T,E).

    mask broadcasts to (B,N,T,S): bool, True = visible; float, added to the scores; CAUSAL; or Tiles, of which only the visible ones are
    computed. softcap needs the eager form (Gemma 2)."""
    if isinstance(mask, Tiles):
        return attend_tiles(q, k, v, mask, scale=scale, softcap=softcap)
    if softcap is not None:
        return attend_eager(q, k, v, mask, scale=scale, softcap=softcap)[0]
    if mask is CAUSAL and q.shape[2] != k.shape[2]:
        mask = _causal(q, k)                                                      # the kernels align first with first
    if _in_bfloat16(q):
        return attend_by_products(q, k, v, mask, scale=scale)
    causal, grouped = mask is CAUSAL, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if causal else mask, is_causal=causal, scale=scale, enable_gqa=grouped)


def _in_bfloat16(q):
    """Whether many queries are about to be multiplied in bfloat16 on a CPU that can."""
    if q.device.type != "cpu" or q.shape[2] == 1:
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    return dtype == torch.bfloat16 and multiplies_bfloat16("cpu")


def attend_by_products(q, k, v, mask=None, *, scale=None, block=128):
    """As `attend`, in bfloat16 and whole products: torch's fused CPU kernel cuts them too small for the processor's bfloat16
    instructions (forward and backward 3 x slower at T = 512). CAUSAL goes by blocks of queries, which leave out most of what is hidden."""
    B, N, T, E = q.shape
    S, grouped, block = k.shape[2], N // k.shape[1], block if mask is CAUSAL else T
    scale = E ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):
        q, k, v = (t.bfloat16().repeat_interleave(times, dim=1).flatten(0, 1) for t, times in ((q, 1), (k, grouped), (v, grouped)))
        parts = []
        for start in range(0, T, block):
            end = min(start + block, T)
            seen = end if mask is CAUSAL else S
            bias = _bias(mask, (B, N, end - start, seen)).expand(B, N, end - start, seen).flatten(0, 1)
            scores = torch.baddbmm(bias, q[:, start:end], k[:, :seen].mT, alpha=scale)       # (B*N, block, seen)
            parts.append(scores.softmax(-1) @ v[:, :seen])
        return torch.cat(parts, dim=1).unflatten(0, (B, N))                       # (B, N, T, E)


def _bias(mask, shape):
    """What is added to scores of that shape, in bfloat16."""
    if mask is None:
        return torch.zeros((), dtype=torch.bfloat16)
    if mask is CAUSAL:
        return torch.full(shape[2:], float("-inf"), dtype=torch.bfloat16).triu(shape[3] - shape[2] + 1)
    if mask.is_floating_point():
        return mask.bfloat16()
    return torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, torch.finfo(torch.bfloat16).min)


def _causal(q, k):
    """Query i sees keys <= i + (S - T): (T, S) bool."""
    T, S = q.shape[2], k.shape[2]
    return torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)


def attend_eager(q, k, v, mask=None, *, scale=None, softcap=None):
    """As `attend`, step by step; returns ((B,N,T,E), weights (B,N,T,S)): for soft-caps, explanations, and as the reference."""
    scores = _scores(q, k, mask, scale=scale, softcap=softcap)
    weights = scores.float().softmax(-1).to(v.dtype)                              # (B, N, T, S)
    return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1), weights


def _scores(q, k, mask, *, scale, softcap):
    """What the softmax takes: (B,N,T,S)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)                      # (B, N, S, E)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is CAUSAL:
        mask = _causal(q, k)
    if mask is not None and mask.is_floating_point():
        return scores + mask
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def attend_tiles(q, k, v, tiles, *, scale=None, softcap=None):
    """As `attend`, by Tiles. What several covers give is weighed by their sums of exponentials, as if one softmax had seen all."""
    def joined(form):
        return [cover.join([form(*part.gather(q, k, v), part.seen, scale=scale, softcap=softcap) for part in cover.parts]) for cover in tiles.covers]

    if len(tiles.covers) == 1:
        return joined(attend)[0]
    both = torch.stack(joined(_with_log_sum))                                     # (covers, B, N, T, E + 1)
    return (both[..., :-1] * both[..., -1:].softmax(0)).sum(0).to(v.dtype)


def _with_log_sum(q, k, v, mask, *, scale, softcap):
    """(B,N,T,E + 1) float32: what attention gives, and the logarithm of its sum of exponentials."""
    scores = _scores(q, k, mask, scale=scale, softcap=softcap).float()
    weights = scores.softmax(-1)                                                  # (B, N, T, S)
    top, place = scores.max(-1, keepdim=True)
    log_sum = top - weights.gather(-1, place).log()                               # (B, N, T, 1), true of any place, exact at the top
    out = weights.to(v.dtype) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    return torch.cat((out.float(), log_sum), -1)


class HeadNorm(nn.Module):
    """Norm of queries or keys over the width of a head: x (B,N,T,E) -> the same."""

    def __init__(self, kind, width, eps=1e-6):
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.zeros(width) if kind == "rms+1" else torch.ones(width))

    def forward(self, x):
        wide, weight = x.float(), self.weight.float()
        if self.kind == "layer":
            return F.layer_norm(wide, wide.shape[-1:], weight, None, self.eps).to(x.dtype)
        return F.rms_norm(wide, wide.shape[-1:], weight + 1 if self.kind == "rms+1" else weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Self-attention. x (B,T,D) -> (B,T,D); q, k and v are one matrix (rows q|k|v), so that a decode step has one product less."""

    def __init__(self, width, cfg, eps=1e-6):
        """eps: of the norms of queries and keys, when there are any."""
        super().__init__()
        self.heads, self.kv_heads, self.head_width = head_sizes(width, cfg)
        self.scale, self.softcap = cfg.scale, cfg.softcap
        N, G, E = self.heads, self.kv_heads, self.head_width
        self.qkv = nn.Linear(width, (N + 2 * G) * E, bias=cfg.bias)
        self.out = nn.Linear(N * E, width, bias=cfg.out_bias)
        self.q_norm = HeadNorm(cfg.qk_norm, E, eps) if cfg.qk_norm != "none" else None
        self.k_norm = HeadNorm(cfg.qk_norm, E, eps) if cfg.qk_norm != "none" else None

    def forward(self, x, seen=None, *, rotary=None, cache=None):
        """seen: mask as `attend` takes it; rotary: what rotary_table gives; cache: this layer's part of a cache."""
        q, k, v = self.project(x, rotary=rotary, cache=cache)
        out = attend(q, k, v, seen, scale=self.scale, softcap=self.softcap)       # (B, N, T, E)
        return self.out(out.transpose(1, 2).flatten(2))                           # (B, T, D)

    def project(self, x, *, rotary=None, cache=None):
        """x (B,T,D) -> what `attend` takes: q (B,N,T,E), k and v (B,G,S,E), those of the cache before them."""
        B, T, _ = x.shape
        N, G, E = self.heads, self.kv_heads, self.head_width
        heads = self.qkv(x).view(B, T, N + 2 * G, E).transpose(1, 2)              # (B, N+2G, T, E)
        qk, v = heads.split_with_sizes((N + G, G), 1)                             # (B, N+G, T, E), (B, G, T, E)
        if self.q_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :N]), self.k_norm(qk[:, N:])), dim=1)
        if rotary is not None:
            qk = rotate(qk, *rotary)                                              # queries and keys in one go
        q, k = qk.split_with_sizes((N, G), 1)
        return (q, k, v) if cache is None else (q, *cache.put(k, v))


class CrossAttention(nn.Module):
    """x (B,T,D) looks at memory (B,S,M) -> (B,T,D). With a cache the memory is projected once."""

    def __init__(self, width, cfg, memory_width=None):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = head_sizes(width, cfg)
        self.scale, self.softcap = cfg.scale, cfg.softcap
        N, G, E = self.heads, self.kv_heads, self.head_width
        self.q = nn.Linear(width, N * E, bias=cfg.bias)
        self.kv = nn.Linear(memory_width or width, 2 * G * E, bias=cfg.bias)
        self.out = nn.Linear(N * E, width, bias=cfg.out_bias)

    def forward(self, x, memory, seen=None, *, cache=None):
        q, k, v = self.project(x, memory, cache=cache)
        out = attend(q, k, v, seen, scale=self.scale, softcap=self.softcap)       # (B, N, T, E)
        return self.out(out.transpose(1, 2).flatten(2))                           # (B, T, D)

    def project(self, x, memory, *, cache=None):
        """x (B,T,D), memory (B,S,M) -> what `attend` takes: q (B,N,T,E), k and v (B,G,S,E), from the cache where it has them."""
        B, T, _ = x.shape
        N, G, E = self.heads, self.kv_heads, self.head_width
        q = self.q(x).view(B, T, N, E).transpose(1, 2)                            # (B, N, T, E)
        if cache is None or cache.memory is None:
            dims("memory", memory, "B S M", B=B, M=self.kv.in_features)
            k, v = self.kv(memory).unflatten(-1, (2 * G, E)).transpose(1, 2).chunk(2, dim=1)    # (B, G, S, E)
            if cache is not None:
                cache.memory = (k, v)
        else:
            k, v = cache.memory
        return q, k, v


class AdditiveAttention(nn.Module):
    """query (B,T,D) looks at memory (B,S,M) by a small network instead of a product (Bahdanau et al. 2015, appendix A.1.2).

    Returns (context (B,T,M), weights (B,T,S)); the weights are the alignment that one draws."""

    def __init__(self, query_width, memory_width, width):
        super().__init__()
        self.query = nn.Linear(query_width, width, bias=False)
        self.key = nn.Linear(memory_width, width, bias=True)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, query, memory, keep=None, *, keys=None):
        """keep (B,S) marks real places of the memory; keys: self.key(memory), where the same memory is asked again and again."""
        B, S, _ = dims("memory", memory, "B S M", M=self.key.in_features)
        dims("query", query, "B T D", B=B, D=self.query.in_features)
        keys = self.key(memory) if keys is None else keys
        mixed = torch.tanh(self.query(query)[:, :, None] + keys[:, None])                    # (B, T, S, width)
        scores = self.score(mixed).squeeze(-1)                                               # (B, T, S)
        if keep is not None:
            dims("keep", keep, "B S", B=B, S=S)
            scores = scores.masked_fill(~keep.bool()[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)                                                         # (B, T, S)
        return weights @ memory, weights


def head_sizes(width, cfg):
    """(N, G, E) of a configuration, checked."""
    N, G = cfg.heads, cfg.kv_heads or cfg.heads
    if cfg.head_width is None and width % N:
        raise ConfigError(f"attention.heads should divide width {width}, got {N}")
    if N % G:
        raise ConfigError(f"attention.kv_heads should divide heads {N}, got {G}")
    return N, G, cfg.head_width or width // N
