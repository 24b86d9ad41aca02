"""The two-stream diffusion transformer of Stable Diffusion 3 (Esser et al. 2024): patches and words are one sequence for attention, and have weights
of their own for all else.

Level and the whole prompt's vector together shift, scale and gate every block of both streams (adaLN-zero)."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import HeadNorm, attend
from gencore.check import ConfigError, InputError, dims
from gencore.config import Few, Size, check_fields
from gencore.embeddings import PatchEmbedding2D, TimestepEmbedding, unpatchify
from gencore.layers import MLP, AdaLNZero, MLPConfig, modulate
from gencore.positions import sincos_2d


@dataclass(frozen=True)
class JointDiTConfig:
    """Sizes of the transformer."""
    channels: Size = 16             # C of the latents
    out_channels: Size = 16
    size: Size = 128                # side of the latents in training
    patch: Few = 2                  # latents per side of a token
    places: Few = 96                # side of the stored table of positions, in tokens: larger pictures can't be drawn
    width: Size = 1536              # D
    layers: Few = 24
    heads: Few = 24                 # N
    context: Size = 4096            # width of the prompt's states
    pooled: Size = 2048             # width of the whole prompt's vector
    qk_norm: bool = False           # RMS norms of queries and keys (Stable Diffusion 3.5)

    def __post_init__(self):
        check_fields(self)
        if self.width % self.heads or self.size % self.patch:
            raise ConfigError(f"JointDiT: heads should divide width {self.width} and patch size {self.size}, got {self.heads} and {self.patch}")


class Stream(nn.Module):
    """One stream's part of the attention: x (B,T,D) -> q, k, v (B,N,T,E), and what was seen back into the stream."""

    def __init__(self, cfg, back=True):
        super().__init__()
        self.heads, E = cfg.heads, cfg.width // cfg.heads
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.q_norm, self.k_norm = (HeadNorm("rms", E) if cfg.qk_norm else None for _ in range(2))
        self.out = nn.Linear(cfg.width, cfg.width) if back else None

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)          # each (B, N, T, E)
        return (q, k, v) if self.q_norm is None else (self.q_norm(q), self.k_norm(k), v)


class JointBlock(nn.Module):
    """Patches x (B,P,D), words y (B,S,D), cond (B,D) -> both, changed; the last block gives its words up."""

    def __init__(self, cfg, last):
        super().__init__()
        D = cfg.width
        self.modulation, self.attention, self.mlp = AdaLNZero(D), Stream(cfg), MLP(D, mlp_of(cfg))
        self.word_modulation = nn.Linear(D, 2 * D) if last else AdaLNZero(D)                     # the last one: scale, shift
        self.word_attention, self.word_mlp = Stream(cfg, back=not last), None if last else MLP(D, mlp_of(cfg))
        self.last = last

    def forward(self, x, y, cond, seen):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(cond)
        if self.last:
            word_scale, word_shift = self.word_modulation(F.silu(cond))[:, None].chunk(2, -1)
        else:
            word_shift, word_scale, word_gate, *word_after = self.word_modulation(cond)
        mine = self.attention(modulate(norm(x), shift, scale))
        words = self.word_attention(modulate(norm(y), word_shift, word_scale))
        out = attend(*(torch.cat(both, 2) for both in zip(mine, words)), seen)                   # (B, N, P+S, E)
        out = out.transpose(1, 2).flatten(2)                                                     # (B, P+S, D)
        x = x + gate * self.attention.out(out[:, :x.shape[1]])
        x = x + mlp_gate * self.mlp(modulate(norm(x), mlp_shift, mlp_scale))
        if self.last:
            return x, None
        y = y + word_gate * self.word_attention.out(out[:, x.shape[1]:])
        return x, y + word_after[2] * self.word_mlp(modulate(norm(y), *word_after[:2]))


class JointDiT(nn.Module):
    """latents (B,C,H,W), t (B,) in 0..1000, Memory of the prompt, its vector (B,pooled) -> velocity (B,out_channels,H,W)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, D = cfg, cfg.width
        self.patches = PatchEmbedding2D(cfg.channels, cfg.patch, D)
        self.register_buffer("places", sincos_2d(cfg.places, cfg.places, D, cfg.size // cfg.patch)[None])          # (1, places^2, D)
        self.time = TimestepEmbedding(D)
        self.pooled = nn.Sequential(nn.Linear(cfg.pooled, D), nn.SiLU(), nn.Linear(D, D))
        self.words = nn.Linear(cfg.context, D)
        self.blocks = nn.ModuleList(JointBlock(cfg, last=i == cfg.layers - 1) for i in range(cfg.layers))
        self.out_modulation = nn.Linear(D, 2 * D)                                                # scale, shift
        self.out = nn.Linear(D, cfg.patch ** 2 * cfg.out_channels)
        for layer in (self.out_modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, latents, t, prompt, pooled):
        B, _, H, W = dims("latents", latents, "B C H W", C=self.cfg.channels)
        dims("pooled", pooled, "B D", B=B, D=self.cfg.pooled)
        dims("prompt.states", prompt.states, "B S M", B=B, M=self.cfg.context)
        h, w = H // self.cfg.patch, W // self.cfg.patch
        cond = self.time(t) + self.pooled(pooled)                                                # (B, D)
        x, y = self.patches(latents) + self._places(h, w), self.words(prompt.states)
        seen = None
        if prompt.keep is not None:                                                              # patches are all real
            seen = F.pad(prompt.keep.bool(), (h * w, 0), value=True)[:, None, None]              # (B, 1, 1, P+S)
        for block in self.blocks:
            x, y = block(x, y, cond, seen)
        scale, shift = self.out_modulation(F.silu(cond))[:, None].chunk(2, -1)
        return unpatchify(self.out(modulate(norm(x), shift, scale)), h, w, self.cfg.patch)

    def _places(self, h, w):
        """The middle of the table, (1,h*w,D)."""
        side = self.cfg.places
        if h > side or w > side:
            raise InputError(f"latents of {h} x {w} patches are more than the {side} x {side} places of this model: draw a smaller picture")
        top, left = (side - h) // 2, (side - w) // 2
        return self.places.unflatten(1, (side, side))[:, top:top + h, left:left + w].flatten(1, 2)


def norm(x):
    """Layer norm without weights: what follows shifts and scales."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def mlp_of(cfg):
    return MLPConfig(4 * cfg.width, activation="gelu_tanh", bias=True)
