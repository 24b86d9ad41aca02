"""A tiny autoencoder learns to do what a large one does: the same pictures from the same latents, several times as fast (Bohan 2023, TAESD).

The large one says what is right, so pictures need no labels, and a denoiser that was trained in its latents draws with either."""
import time
from statistics import median

import torch
import torch.nn.functional as F

from imagegen.autoencoder import picture_loss
from imagegen.data import to_unit
from imagegen.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig


def pupil_of(teacher, width, blocks):
    """Autoencoder -> a new TinyAutoencoder between the same pictures and the latents that a denoiser sees; blocks: on each grid but the finest."""
    cfg = teacher.cfg
    counts = (*[blocks] * (len(cfg.channels) - 1), 1)                                   # from coarse to fine
    widths = (width,) * len(counts)
    return TinyAutoencoder(TinyAutoencoderConfig(cfg.picture_channels, cfg.latent, widths, counts[::-1], widths, counts))


@torch.no_grad()
def lesson(teacher, pictures):
    """pictures (B,C,H,W) -> (the teacher's latents as a denoiser sees them, the pictures that it makes of them); it goes where the pictures are."""
    latents = teacher.to(pictures.device).encode(pictures)[0]
    return (latents - teacher.cfg.shift) * teacher.cfg.scaling, teacher.decode(latents)


def pupil_loss(model, batch, generator, *, teacher):
    """batch: pixels (B,C,H,W) -> (sum over pictures, pictures): the teacher's pictures from its latents, and its latents of the pictures."""
    pictures = to_unit(batch["pixels"])
    latents, wanted = lesson(teacher, pictures)
    loss = picture_loss(model.decode(latents), wanted) + F.mse_loss(model.encode(pictures), latents)
    return loss * len(pictures), len(pictures)


@torch.no_grad()
def agreement(model, teacher, pixels):
    """pixels (N,C,H,W) uint8 -> decibels (peak 2) between what both make of the teacher's latents."""
    errors = []
    for part in pixels.split(64):
        latents, wanted = lesson(teacher, to_unit(part))
        errors.append((model.decode(latents).clamp(-1, 1) - wanted.clamp(-1, 1)).square().mean((1, 2, 3)))
    return float((10 * torch.log10(4 / torch.cat(errors).clamp(min=1e-10))).mean())


@torch.inference_mode()
def faster(model, teacher, pixels, rounds=9):
    """-> how many times as fast the pupil decodes: medians of as many rounds of both, in turn, on latents of these pixels."""
    latents, _ = lesson(teacher, to_unit(pixels))
    seconds = {one: [] for one in (model, teacher)}
    for _ in range(rounds + 1):
        for one, times in seconds.items():
            began = time.perf_counter()
            one.decode(latents)
            times.append(time.perf_counter() - began)
    return median(seconds[teacher][1:]) / median(seconds[model][1:])
