"""The tiny autoencoder (Bohan 2023, TAESD): convolutions and ReLUs alone, a fast decoder for the latents of a large one. diffusers' AutoencoderTiny
to the letter; pictures in [-1,1] here as everywhere."""
from dataclasses import dataclass

import torch
from torch import nn

from gencore.check import ConfigError, dims
from gencore.config import Few, Positive, Size, check_fields
from imagegen.parts import Component

MAGNITUDE = 3.0                     # latents beyond it are squeezed before they are decoded; diffusers does so whatever its configuration says


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Sizes of the two halves, from the picture to the latents and back."""
    picture_channels: Few = 3
    latent: Size = 4                                 # C of the latents
    encoder: tuple[Size, ...] = (64, 64, 64, 64)     # channels on each grid; every next one has half the side
    encoder_blocks: tuple[Few, ...] = (1, 3, 3, 3)   # residual blocks there
    decoder: tuple[Size, ...] = (64, 64, 64, 64)     # from coarse to fine
    decoder_blocks: tuple[Few, ...] = (3, 3, 3, 1)
    scaling: Positive = 1.0                          # latents that a denoiser sees = scaling * latents here

    def __post_init__(self):
        check_fields(self)
        for half in ("encoder", "decoder"):
            widths, blocks = getattr(self, half), getattr(self, f"{half}_blocks")
            if not widths or len(widths) != len(blocks):
                raise ConfigError(f"{half}_block_out_channels and num_{half}_blocks ({half}, {half}_blocks) should have one entry for each grid, "
                                  f"got {len(widths)} and {len(blocks)}")
            if len(set(widths)) > 1:
                raise ConfigError(f"{half}_block_out_channels: every grid should have as many channels, got {widths}")

    @property
    def shrink(self):
        """Picture side / latent side."""
        return 2 ** (len(self.decoder) - 1)


class Residual(nn.Module):
    """h (B,C,H,W) -> the same: three convolutions beside a skip, ReLU after the sum."""

    def __init__(self, width):
        super().__init__()
        convolution = lambda: nn.Conv2d(width, width, 3, padding=1)
        self.conv = nn.Sequential(convolution(), nn.ReLU(), convolution(), nn.ReLU(), convolution())

    def forward(self, h):
        return torch.relu(self.conv(h) + h)


class TinyAutoencoder(Component):
    """pictures (B,3,H,W) in [-1,1] <-> latents (B,C,h,w)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        W, last = cfg.encoder[0], len(cfg.decoder) - 1
        down = [nn.Conv2d(cfg.picture_channels, W, 3, padding=1)]
        for i, blocks in enumerate(cfg.encoder_blocks):
            down += [nn.Conv2d(W, W, 3, stride=2, padding=1, bias=False)] * (i > 0) + [Residual(W) for _ in range(blocks)]
        self.encoder = Layers(*down, nn.Conv2d(W, cfg.latent, 3, padding=1))
        W = cfg.decoder[0]
        up = [nn.Conv2d(cfg.latent, W, 3, padding=1), nn.ReLU()]
        for i, blocks in enumerate(cfg.decoder_blocks):
            up += [Residual(W) for _ in range(blocks)]
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(W, W, 3, padding=1, bias=False)] if i < last else []
        self.decoder = Layers(*up, nn.Conv2d(W, cfg.picture_channels, 3, padding=1))

    def encode(self, pictures):
        """pictures -> latents."""
        dims("pictures", pictures, "B C H W", C=self.cfg.picture_channels)
        return self.encoder((pictures + 1) / 2)

    def decode(self, latents):
        """latents -> pictures, not clamped."""
        dims("latents", latents, "B C H W", C=self.cfg.latent)
        return self.decoder(torch.tanh(latents / MAGNITUDE) * MAGNITUDE) * 2 - 1

    @staticmethod
    def layout():
        from imagegen.families.autoencoder_tiny import AUTOENCODER_TINY
        return AUTOENCODER_TINY


@torch.no_grad()
def passes_through(channels):
    """-> a TinyAutoencoder that hands pixels through: latents times its scaling are the pictures, up to rounding.

    So small they lie where the squeeze before decoding does nothing, and what ReLUs would cut off is lifted over them. Powers of two, which bfloat16
    holds as well."""
    far, lift = 1024.0, 4.0
    model = TinyAutoencoder(TinyAutoencoderConfig(channels, channels, (channels,), (1,), (channels,), (1,), scaling=far))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for half, into, out, lifted in ((model.encoder, 1.0, 2 / far, (0.0, -1 / far)), (model.decoder, far, 0.5, (lift, (1 - lift) / 2))):
        for layer, factor, bias in ((half.layers[0], into, lifted[0]), (half.layers[-1], out, lifted[1])):
            nn.init.dirac_(layer.weight).mul_(factor)
            nn.init.constant_(layer.bias, bias)
    return model.eval().requires_grad_(False)


class Layers(nn.Module):
    """A row of layers under the name that diffusers has for it."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h):
        return self.layers(h)
