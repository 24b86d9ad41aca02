"""The U-Net of diffusion models: pictures or latents, a noise level, and maybe a class or a prompt -> what was asked for (noise, v, ...).

Ho et al. 2020 (convolutions down and up again, with skips between equal grids); Rombach et al. 2022 (blocks of a transformer that look at the
prompt). The structure is that of diffusers' UNet2DModel and, with `context`, of UNet2DConditionModel, which is Stable Diffusion 1.5's."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import Attention, AttentionConfig
from gencore.check import ConfigError, InputError, dims
from gencore.config import Few, Share, Size, check_fields
from gencore.embeddings import TimestepEmbedding, rows_of
from gencore.layers import MLPConfig, NormConfig
from gencore.transformer import Transformer, TransformerConfig
from imagegen.doubling import doubled_conv


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network."""
    channels: Size = 3                              # of the pictures or latents
    out_channels: Size = 3
    size: Size = 32                                 # side in training
    widths: tuple[Size, ...] = (64, 128, 128)       # channels on each grid; every next one has half the side
    attention: tuple[bool, ...] = (False, True, True)        # where places look at each other
    middle_attention: bool = True                   # on the coarsest grid, between its two blocks
    layers: Few = 2                                 # residual blocks on each grid; one more on the way up
    heads: Few | None = None                        # N; or
    head_width: Size | None = 32                    # E, which divides every width with attention
    groups: Size = 32                               # of the group norms
    eps: Share = 1e-5                               # of the residual blocks' norms
    classes: Size | None = None                     # labels 0..classes-1
    context: Size | None = None                     # width of the prompt's states
    original: bool = False                          # as Ho et al.'s own weights want it: sines before cosines, halved grids padded right and below
    linear: bool = False                            # projections around a transformer as matrices (Stable Diffusion 2), else 1x1 convolutions

    def __post_init__(self):
        check_fields(self)
        if len(self.attention) != len(self.widths) or not self.widths:
            raise ConfigError(f"UNet attention should have one entry for each of {len(self.widths)} widths, got {len(self.attention)}")
        if any(width % self.groups for width in self.widths):
            raise ConfigError(f"UNet groups should divide every entry of widths {self.widths}, got {self.groups}")
        if (self.heads is None) == (self.head_width is None):
            raise ConfigError(f"UNet takes heads or head_width, the other None, got {self.heads} and {self.head_width}")

    def heads_of(self, width):
        """N of an attention over that many channels."""
        heads = self.heads or width // self.head_width
        if not heads or width % heads:
            raise ConfigError(f"UNet: {width} channels can't be shared among {heads} heads: change heads or head_width")
        return heads


class ResidualBlock(nn.Module):
    """h (B,I,H,W), level (B,L) -> (B,O,H,W)."""

    def __init__(self, inside, outside, cfg):
        super().__init__()
        self.norm1 = nn.GroupNorm(cfg.groups, inside, eps=cfg.eps)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * cfg.widths[0], outside)
        self.norm2 = nn.GroupNorm(cfg.groups, outside, eps=cfg.eps)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else None

    def forward(self, h, level):
        out = self.conv1(F.silu(self.norm1(h))) + self.time_emb_proj(F.silu(level))[:, :, None, None]
        out = self.conv2(F.silu(self.norm2(out)))
        return out + (h if self.conv_shortcut is None else self.conv_shortcut(h))


class PlaceAttention(nn.Module):
    """h (B,C,H,W) -> the same: every place looks at every other."""

    def __init__(self, width, cfg):
        super().__init__()
        self.group_norm = nn.GroupNorm(cfg.groups, width, eps=cfg.eps)
        self.attention = Attention(width, AttentionConfig(heads=cfg.heads_of(width), bias=True, out_bias=True))

    def forward(self, h, memory=None):
        places = self.group_norm(h).flatten(2).transpose(1, 2)                         # (B, HW, C)
        return h + self.attention(places).transpose(1, 2).reshape(h.shape)             # (B, C, H, W)


class PromptAttention(nn.Module):
    """h (B,C,H,W), Memory of the prompt -> the same: a block of the core's transformer over the places, which look at the prompt as well."""

    def __init__(self, width, cfg):
        super().__init__()
        self.linear = cfg.linear
        self.norm = nn.GroupNorm(cfg.groups, width, eps=1e-6)
        self.proj_in, self.proj_out = (nn.Linear(width, width) if cfg.linear else nn.Conv2d(width, width, 1) for _ in range(2))
        self.transformer = Transformer(TransformerConfig(
            width, 1, AttentionConfig(heads=cfg.heads_of(width), out_bias=True), MLPConfig(4 * width, gated=True, activation="gelu", bias=True),
            NormConfig("layer", eps=1e-5), cross=cfg.context, final_norm=False))

    def forward(self, h, memory):
        B, C, H, W = h.shape
        places = self.norm(h)
        places = places if self.linear else self.proj_in(places)
        places = places.flatten(2).transpose(1, 2)                                     # (B, HW, C)
        places = self.transformer(self.proj_in(places) if self.linear else places, memory=memory)
        places = self.proj_out(places) if self.linear else places
        places = places.transpose(1, 2).reshape(B, C, H, W)
        return h + (places if self.linear else self.proj_out(places))


class Grid(nn.Module):
    """The blocks on one grid, on the way down (change "down"), up ("up") or in the middle (""); `sizes`: (inside, outside) of each block."""

    def __init__(self, sizes, cfg, *, attention, change):
        super().__init__()
        width, look = sizes[-1][1], PromptAttention if cfg.context else PlaceAttention
        self.resnets = nn.ModuleList(ResidualBlock(inside, outside, cfg) for inside, outside in sizes)
        self.attentions = nn.ModuleList(look(width, cfg) for _ in range(attention))
        if change == "down":
            self.downsamplers = nn.ModuleList([Down(width, cfg.original)])
        if change == "up":
            self.upsamplers = nn.ModuleList([Up(width)])


class Down(nn.Module):
    """Half the side."""

    def __init__(self, width, original):
        super().__init__()
        self.original = original
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if original else 1)

    def forward(self, h):
        return self.conv(F.pad(h, (0, 1, 0, 1)) if self.original else h)


class Up(nn.Module):
    """Twice the side, or that of the skip that comes next where it is odd."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h, side):
        if tuple(side) == (2 * h.shape[2], 2 * h.shape[3]):
            return doubled_conv(h, self.conv.weight, self.conv.bias)
        return self.conv(F.interpolate(h, size=side, mode="nearest"))


class UNet(nn.Module):
    """pictures (B,C,H,W), t (B,), labels (B,) where it has classes, Memory of the prompt where it has a context -> (B,out_channels,H,W)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, W, last = cfg, cfg.widths, len(cfg.widths) - 1
        self.conv_in = nn.Conv2d(cfg.channels, W[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(4 * W[0], W[0], float(cfg.original), order="sin|cos" if cfg.original else "cos|sin")
        self.class_embedding = nn.Embedding(cfg.classes, 4 * W[0]) if cfg.classes else None
        self.down_blocks = nn.ModuleList(
            Grid([(width if j else W[max(i - 1, 0)], width) for j in range(cfg.layers)], cfg,
                 attention=cfg.layers * cfg.attention[i], change="down" if i < last else "") for i, width in enumerate(W))
        self.mid_block = Grid([(W[-1], W[-1])] * 2, cfg, attention=int(cfg.middle_attention), change="")
        self.up_blocks = nn.ModuleList(
            Grid(up_sizes(W[::-1], i, cfg.layers), cfg, attention=(cfg.layers + 1) * cfg.attention[last - i], change="up" if i < last else "")
            for i in range(len(W)))
        self.conv_norm_out = nn.GroupNorm(cfg.groups, W[0], eps=cfg.eps)
        self.conv_out = nn.Conv2d(W[0], cfg.out_channels, 3, padding=1)

    def forward(self, pictures, t, labels=None, memory=None):
        dims("pictures", pictures, "B C H W", C=self.cfg.channels)
        level = self._level(t, labels, memory)
        h = self.conv_in(pictures)
        skips = [h]
        for grid in self.down_blocks:
            for j, block in enumerate(grid.resnets):
                h = block(h, level)
                h = grid.attentions[j](h, memory) if grid.attentions else h
                skips.append(h)
            if hasattr(grid, "downsamplers"):
                h = grid.downsamplers[0](h)
                skips.append(h)
        h = self.mid_block.resnets[0](h, level)
        h = self.mid_block.attentions[0](h, memory) if self.mid_block.attentions else h
        h = self.mid_block.resnets[1](h, level)
        for grid in self.up_blocks:
            for j, block in enumerate(grid.resnets):
                h = block(torch.cat((h, skips.pop()), 1), level)
                h = grid.attentions[j](h, memory) if grid.attentions else h
            if hasattr(grid, "upsamplers"):
                h = grid.upsamplers[0](h, skips[-1].shape[-2:])
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def _level(self, t, labels, memory):
        """-> (B,L), what every residual block is told."""
        for name, given, part, wanted in (("labels", labels, "classes", self.cfg.classes), ("memory", memory, "context", self.cfg.context)):
            if given is None and wanted is not None:
                raise InputError(f"this U-Net has {part}: {name} should be given")
            if given is not None and wanted is None:
                raise InputError(f"this U-Net has no {part}: {name} should not be given")
        level = self.time_embedding(t)
        return level if labels is None else level + rows_of(self.class_embedding, labels, "labels")


def up_sizes(widths, place, layers):
    """(inside, outside) of the blocks on one grid of the way up; each takes a skip from the way down beside what comes from below."""
    below, own, skip = widths[max(place - 1, 0)], widths[place], widths[min(place + 1, len(widths) - 1)]
    return [((own if j else below) + (skip if j == layers else own), own) for j in range(layers + 1)]
