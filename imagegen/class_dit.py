"""The diffusion transformer of Peebles & Xie 2023 on the core: noisy latents, a noise level and a class -> what was asked for (noise, v, ...).

Patches of latents are its tokens; level and class together shift, scale and gate every block (adaLN-zero), which therefore begins as identity."""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import AttentionConfig
from gencore.check import ConfigError, dims
from gencore.config import Few, Share, Size, check_fields
from gencore.embeddings import LabelEmbedding, PatchEmbedding2D, TimestepEmbedding, unpatchify
from gencore.layers import MLPConfig, NormConfig, modulate
from gencore.positions import RotaryConfig, grid_positions, sincos_2d
from gencore.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class ClassDiTConfig:
    """Sizes of the transformer; channels 1 or 3 and a size of pixels make it a model of pixels."""
    channels: Size = 4              # C of the latents
    out_channels: Size = 4          # C, or 2C: the second half is a variance (Nichol & Dhariwal 2021)
    size: Few = 32                  # side of the latents in training
    patch: Few = 2                  # latents per side of a token
    width: Size = 384               # D
    layers: Few = 12
    heads: Few = 6                  # N
    classes: Size = 1000            # labels 0..classes-1; `classes` itself is the null label of guidance
    mlp_eps: Share = 1e-5           # of the norms before the MLPs; the others have 1e-6
    positions: Literal["table", "rotary"] = "table"            # sinusoids added to the patches, or queries and keys turned by row and column

    def __post_init__(self):
        check_fields(self)
        if self.positions == "rotary" and self.width % (4 * self.heads):
            raise ConfigError(f"ClassDiT: rotary positions need heads of a width that 4 divides, got {self.width} / {self.heads}")

    @property
    def transformer(self):
        """The core's configuration."""
        half = self.width // self.heads // 2
        return TransformerConfig(
            rotary=RotaryConfig(theta=100.0, axes=(half, half)) if self.positions == "rotary" else None,        # grids are short, so are the waves
            width=self.width, layers=self.layers, attention=AttentionConfig(heads=self.heads, bias=True, out_bias=True),
            mlp=MLPConfig(4 * self.width, activation="gelu_tanh", bias=True), norm=NormConfig("layer", eps=1e-6, affine=False),
            condition="adaln_zero")


class ClassDiT(nn.Module):
    """latents (B,C,H,W), t (B,) in 0..1000, labels (B,) -> (B,out_channels,H,W)."""

    def __init__(self, cfg):
        super().__init__()
        if cfg.size % cfg.patch:                        # not of a configuration: examples give the size of the data later
            raise ConfigError(f"ClassDiT size should be a multiple of patch {cfg.patch}, got {cfg.size}")
        self.cfg = cfg
        self.patches = PatchEmbedding2D(cfg.channels, cfg.patch, cfg.width)
        self.time = TimestepEmbedding(cfg.width, shift=1.0)
        self.labels = LabelEmbedding(cfg.classes, cfg.width)
        self.transformer = Transformer(cfg.transformer)
        for block in self.transformer.blocks:
            block.mlp_norm.eps = cfg.mlp_eps
        self.out_modulation = nn.Linear(cfg.width, 2 * cfg.width)                      # shift, scale
        self.out = nn.Linear(cfg.width, cfg.patch ** 2 * cfg.out_channels)
        for layer in (self.out_modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, latents, t, labels, dropped=None):
        """dropped (B,) bool: rows whose label is hidden, so that guidance has something to compare with."""
        B, _, H, W = dims("latents", latents, "B C H W", C=self.cfg.channels)
        h, w = H // self.cfg.patch, W // self.cfg.patch
        cond = self.time(t) + self.labels(labels, dropped)                             # (B, D)
        x, places = self.patches(latents), None
        if self.cfg.positions == "rotary":
            places = grid_positions(h, w).to(x.device)                                 # (P, 2)
        else:
            x = x + sincos_2d(h, w, self.cfg.width, self.cfg.size // self.cfg.patch).to(latents)
        x = self.transformer(x, positions=places, cond=cond)                           # (B, P, D)
        shift, scale = self.out_modulation(F.silu(cond))[:, None].chunk(2, -1)         # each (B, 1, D)
        return unpatchify(self.out(modulate(x, shift, scale)), h, w, self.cfg.patch)

    def guided(self, latents, t, labels, scale):
        """As forward, leaning from no class towards the labels (Ho & Salimans 2022): one batch of 2B, `scale` 1 is the labels alone."""
        if scale == 1:
            return self(latents, t, labels)
        null = torch.full_like(labels, self.cfg.classes)
        said, without = self(*(torch.cat((part, part)) for part in (latents, t)), torch.cat((labels, null))).chunk(2)
        return torch.lerp(without, said, float(scale))
