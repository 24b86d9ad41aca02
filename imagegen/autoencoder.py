"""Pictures <-> a small grid of latent numbers: the convolutional KL autoencoder of latent diffusion (Rombach et al. 2022).

The structure is diffusers' AutoencoderKL to the letter, so that the weights move both ways without change.
What the denoiser sees are standardised latents: after training, their mean and spread are folded into the two 1x1 convolutions."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import attend
from gencore.check import ConfigError, InputError, dims
from gencore.config import Few, Positive, Size, check_fields
from imagegen.doubling import doubled_conv
from imagegen.parts import Component


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the two halves."""
    channels: tuple[Size, ...] = (16, 32, 64, 128)     # of each level; every level but the last halves the picture
    layers: Few = 1                                    # residual blocks a level; the decoder has one more
    latent: Size = 16                                  # C of the latents
    groups: Size = 4                                   # of the group norms; divides every channel count
    middle_attention: bool = True                      # one head over the coarsest grid
    size: Size = 64                                    # side of the training pictures
    picture_channels: Few = 3
    scaling: Positive = 1.0                            # latents that a denoiser sees = scaling * (latents here - shift)
    shift: float = 0.0                                 # Stable Diffusion 3's; the pipelines of classes and of PixArt know none
    quant_convs: bool = True                           # 1x1 convolutions around the latents; Stable Diffusion 3 has none

    def __post_init__(self):
        check_fields(self)
        if not 1 <= len(self.channels) <= 10:
            raise ConfigError(f"autoencoder channels should have one entry for each of 1 to 10 levels, got {len(self.channels)}")
        if any(c % self.groups for c in self.channels):
            raise ConfigError(f"autoencoder groups should divide every entry of channels {self.channels}, got {self.groups}")

    @property
    def shrink(self):
        """Picture side / latent side."""
        return 2 ** (len(self.channels) - 1)


class ResidualBlock(nn.Module):
    """h (B,I,H,W) -> (B,O,H,W): norm, SiLU, convolution, twice, beside a skip."""

    def __init__(self, inside, outside, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inside, eps=1e-6)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outside, eps=1e-6)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else None

    def forward(self, h):
        out = self.conv1(F.silu(self.norm1(h)))
        out = self.conv2(F.silu(self.norm2(out)))
        return out + (h if self.conv_shortcut is None else self.conv_shortcut(h))


class GridAttention(nn.Module):
    """h (B,C,H,W) -> the same: every place of the grid looks at every other, one head."""

    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, h):
        places = self.group_norm(h).flatten(2).transpose(1, 2)[:, None]            # (B, 1, HW, C)
        out = self.to_out[0](attend(self.to_q(places), self.to_k(places), self.to_v(places)))
        return h + out[:, 0].transpose(1, 2).reshape(h.shape)                      # (B, C, H, W)


class Middle(nn.Module):
    """Two residual blocks at the coarsest grid, attention between them."""

    def __init__(self, channels, groups, attention):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([GridAttention(channels, groups)] if attention else [])

    def forward(self, h):
        h = self.resnets[0](h)
        for attention in self.attentions:
            h = attention(h)
        return self.resnets[1](h)


class Resample(nn.Module):
    """Halves or doubles the grid, then (or while) convolving."""

    def __init__(self, channels, up):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if up else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, h):
        if self.up:
            return doubled_conv(h, self.conv.weight, self.conv.bias)               # (B, C, 2H, 2W)
        return self.conv(F.pad(h, (0, 1, 0, 1)))                                   # (B, C, H/2, W/2)


class Level(nn.Module):
    """Residual blocks at one resolution, then the change to the next."""

    def __init__(self, inside, outside, cfg, *, layers, change):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(outside if i else inside, outside, cfg.groups) for i in range(layers))
        if change:
            setattr(self, f"{change}samplers", nn.ModuleList([Resample(outside, change == "up")]))
        self.change = change

    def forward(self, h):
        for block in self.resnets:
            h = block(h)
        return getattr(self, f"{self.change}samplers")[0](h) if self.change else h


class Encoder(nn.Module):
    """pictures (B,3,H,W) -> (B,outputs,h,w), before the 1x1 convolution; outputs: 2C unless told otherwise."""

    def __init__(self, cfg, outputs=None):
        super().__init__()
        sizes = cfg.channels
        self.conv_in = nn.Conv2d(cfg.picture_channels, sizes[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(sizes[max(i - 1, 0)], size, cfg, layers=cfg.layers, change="down" if i + 1 < len(sizes) else "")
            for i, size in enumerate(sizes))
        self.mid_block = Middle(sizes[-1], cfg.groups, cfg.middle_attention)
        self.conv_norm_out = nn.GroupNorm(cfg.groups, sizes[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(sizes[-1], outputs or 2 * cfg.latent, 3, padding=1)

    def forward(self, pictures):
        h = self.conv_in(pictures)
        for level in self.down_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """latents (B,C,h,w), after the 1x1 convolution -> pictures (B,3,H,W)."""

    def __init__(self, cfg):
        super().__init__()
        sizes = cfg.channels[::-1]
        self.conv_in = nn.Conv2d(cfg.latent, sizes[0], 3, padding=1)
        self.mid_block = Middle(sizes[0], cfg.groups, cfg.middle_attention)
        self.up_blocks = nn.ModuleList(
            Level(sizes[max(i - 1, 0)], size, cfg, layers=cfg.layers + 1, change="up" if i + 1 < len(sizes) else "")
            for i, size in enumerate(sizes))
        self.conv_norm_out = nn.GroupNorm(cfg.groups, sizes[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(sizes[-1], cfg.picture_channels, 3, padding=1)

    def forward(self, latents):
        h = self.mid_block(self.conv_in(latents))
        for level in self.up_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Autoencoder(Component):
    """pictures (B,3,H,W) in [-1,1] <-> latents (B,C,H/8,W/8)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.latent, 2 * cfg.latent, 1) if cfg.quant_convs else nn.Identity()
        self.post_quant_conv = nn.Conv2d(cfg.latent, cfg.latent, 1) if cfg.quant_convs else nn.Identity()
        self._start()

    @torch.no_grad()
    def _start(self):
        """Residual branches begin at zero, and latents with little noise: colours come through from the first steps."""
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
        last = self.quant_conv if self.cfg.quant_convs else self.encoder.conv_out
        nn.init.constant_(last.bias[self.cfg.latent:], -6.0)                           # log-variance

    def encode(self, pictures):
        """pictures -> (mean, log-variance) of the latents, each (B,C,h,w)."""
        _, _, H, W = dims("pictures", pictures, "B C H W", C=self.cfg.picture_channels)
        if min(H, W) < self.cfg.shrink:
            raise InputError(f"pictures should have sides of {self.cfg.shrink} pixels or more, got {H} x {W}")
        mean, logvar = self.quant_conv(self.encoder(pictures)).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, latents):
        """latents -> pictures, not clamped."""
        dims("latents", latents, "B C H W", C=self.cfg.latent)
        return self.decoder(self.post_quant_conv(latents))

    @torch.no_grad()
    def standardise(self, mean, std):
        """Folds z -> (z - mean) / std, both (C,), into the 1x1 convolutions: from now on latents have mean 0 and spread 1."""
        if not self.cfg.quant_convs:
            raise ConfigError("an autoencoder without quant_convs has nothing that its latents could be standardised in: set its `scaling`")
        C = self.cfg.latent
        mean, std = mean.to(self.quant_conv.weight), std.to(self.quant_conv.weight)
        scale, shift = mean.new_ones(2 * C), mean.new_zeros(2 * C)
        scale[:C], shift[:C], shift[C:] = 1 / std, -mean / std, -2 * std.log()      # the log-variance moves along
        self.quant_conv.weight.mul_(scale[:, None, None, None])
        self.quant_conv.bias.mul_(scale).add_(shift)
        self.post_quant_conv.bias.add_(self.post_quant_conv.weight[:, :, 0, 0] @ mean)
        self.post_quant_conv.weight.mul_(std[None, :, None, None])

    @staticmethod
    def layout():
        from imagegen.families.autoencoder_kl import AUTOENCODER_KL
        return AUTOENCODER_KL


def draw_latents(mean, logvar, generator):
    """A sample of the posterior (B,C,h,w)."""
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return mean + noise * (logvar / 2).exp()


def autoencoder_loss(model, pictures, generator, *, kl=1e-4):
    """pictures (B,3,H,W) -> scalar: the pictures that come back against those that went in, and a light KL."""
    made, divergence = rebuilt(model, pictures, generator, kl=kl)
    return divergence + picture_loss(made, pictures)


def rebuilt(model, pictures, generator, *, kl=1e-4):
    """pictures -> (those that come back from drawn latents, kl times the KL of the latents to a standard normal)."""
    mean, logvar = model.encode(pictures)
    made = model.decode(draw_latents(mean, logvar, generator))
    return made, 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean() * kl


def picture_loss(made, pictures):
    """Both (B,C,H,W) -> scalar: L1, differences of neighbours, and colour differences, at three scales.

    Colours are weighted apart since errors of lightness outweigh them: without it red and green end as brown for a long time."""
    loss, error = 0.0, made - pictures
    for scale in range(3):
        if min(error.shape[-2:]) < 2:                          # a small picture has fewer scales
            break
        loss = loss + error.abs().mean() * (1.0 if scale == 0 else 0.5)
        if error.shape[1] > 1:
            loss = loss + 0.5 * error.diff(dim=1).abs().mean()
        for axis in (2, 3):
            loss = loss + 0.5 * error.diff(dim=axis).abs().mean()
        error = F.avg_pool2d(error, 2)
    return loss
