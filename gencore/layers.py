"""Norms in their conventions, plain and gated MLPs, adaptive norm.

Zhang & Sennrich 2019 (RMSNorm), Shazeer 2020 (gated MLPs), Peebles & Xie 2023 (adaLN-zero), Chen et al. 2024 (shared adaLN, PixArt)."""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from gencore import fused
from gencore.config import Share, Size, check_fields

ACTIVATIONS = {
    "gelu": F.gelu,                                                # erf; differs from the tanh form by up to 5e-4
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
}


@dataclass(frozen=True)
class NormConfig:
    """Kind and place of the norms of a block."""
    kind: Literal["rms", "rms+1", "layer"] = "rms"                 # rms+1: weights are stored minus one (Gemma)
    place: Literal["pre", "post", "sandwich"] = "pre"              # before a sublayer, after the sum, or around it
    eps: Share = 1e-6
    affine: bool = True                                            # False: no weight (adaptive norm brings its own)
    bias: bool = True                                              # of layer norms

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class MLPConfig:
    """Width and shape of the MLP of a block."""
    width: Size = 512
    gated: bool = False                                            # act(gate) * up, the two in one matrix
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"] = "gelu"
    bias: bool = False

    def __post_init__(self):
        check_fields(self)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32; one_plus: weight + 1."""

    def __init__(self, width, eps=1e-6, affine=True, one_plus=False):
        super().__init__()
        self.eps, self.one_plus = eps, one_plus
        start = torch.zeros if one_plus else torch.ones
        self.weight = nn.Parameter(start(width)) if affine else None

    def forward(self, x):
        weight, size = self.weight, x.shape[-1:]
        if weight is None or self.one_plus:
            weight = None if weight is None else weight.float() + 1
            return F.rms_norm(x.float(), size, weight, self.eps).to(x.dtype)
        if x.dtype == torch.float32:
            return torch.rms_norm(x, size, weight.float(), self.eps)                  # one call
        return F.rms_norm(x.float(), size, None, self.eps).to(x.dtype) * weight.to(x.dtype)


def make_norm(width, cfg):
    """The norm module that `cfg` names."""
    if cfg.kind == "layer":
        return nn.LayerNorm(width, cfg.eps, elementwise_affine=cfg.affine, bias=cfg.bias)
    return RMSNorm(width, cfg.eps, cfg.affine, one_plus=cfg.kind == "rms+1")


class MLP(nn.Module):
    """x (...,D) -> (...,D): down(act(up x))."""

    def __init__(self, width, cfg):
        super().__init__()
        self.activation, self.act = cfg.activation, ACTIVATIONS[cfg.activation]
        self.up = nn.Linear(width, cfg.width, bias=cfg.bias)
        self.down = nn.Linear(cfg.width, width, bias=cfg.bias)

    def forward(self, x):
        if self.activation in fused.POST and fused.fits(x, self.up) and fused.fits(x, self.down):
            return fused.product(fused.product(x, self.up, self.activation), self.down)
        return self.down(self.act(self.up(x)))


class GatedMLP(nn.Module):
    """x (...,D) -> (...,D): down(act(gate x) * up x); gate and up are one matrix (rows gate|up)."""

    def __init__(self, width, cfg):
        super().__init__()
        self.act = ACTIVATIONS[cfg.activation]
        self.gate_up = nn.Linear(width, 2 * cfg.width, bias=cfg.bias)
        self.down = nn.Linear(cfg.width, width, bias=cfg.bias)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(self.act(gate) * up)


def make_mlp(width, cfg):
    """The MLP module that `cfg` names."""
    return GatedMLP(width, cfg) if cfg.gated else MLP(width, cfg)


class AdaLNZero(nn.Module):
    """cond (B,D) -> six (B,1,D): shift, scale, gate of attention, then of the MLP; starts at zero, so a block starts as identity."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cond):
        return self.linear(F.silu(cond))[:, None].chunk(6, -1)


class SharedAdaLN(nn.Module):
    """cond (B,6,D), made once for all blocks, plus this block's own table -> six (B,1,D), order as AdaLNZero."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, width) / width ** 0.5)

    def forward(self, cond):
        return (self.table + cond)[:, None].unbind(2)                                # (B, 1, 6, D) -> six (B, 1, D)


def modulate(x, shift, scale):
    """x (B,T,D), shift and scale (B,1,D): the affine part of an adaptive norm."""
    return torch.addcmul(shift, x, 1 + scale)
