"""How a network learns to take the noise from pictures of classes, or of none, in the form of `gencore.train.fit`.

What the network says and along which path is its Schedule's, for drawing has to know it too; which noise it is shown while it learns, and how errors
count, is its Lesson's, which is over when it has learnt. Pixels or latents: whatever the batches hold."""
import math
from dataclasses import dataclass
from typing import Literal

import torch

from gencore.check import ConfigError
from gencore.config import Positive, Share, check_fields
from gencore.diffusion import data_from, edm_loss, log_normal, logit_normal, min_snr, spread, target
from imagegen.data import to_unit
from imagegen.training import encode_all


@dataclass(frozen=True)
class Lesson:
    """Which noise is shown, how often the class is hidden, how errors count."""
    levels: Literal["normal", "uniform"] = "normal"       # "normal": most in the middle; of EDM's logarithms, as in Karras et al. 2022
    mean: float = 0.0                                     # of the normal; above 0: more noise
    std: Positive = 1.0                                   # of the normal
    hidden: Share = 0.1                                   # of the pictures without their class: what guidance compares with (Ho & Salimans 2022)
    min_snr: Positive | None = None                       # errors of the data count by min(SNR, this) (Hang et al. 2023); None: all as they are

    def __post_init__(self):
        check_fields(self)

    def drawn(self, schedule, count, generator):
        """-> (levels (count,), what the network is told of them (count,))."""
        if schedule.path == "ve":
            if self.levels == "normal":
                levels = log_normal(count, generator, mean=self.mean - 1.2, std=self.std * 1.2)
            else:
                levels = 0.002 * 40_000 ** torch.rand(count, generator=generator)                # logarithms between those of 0.002 and 80
            return levels, levels.log() / 4
        places = torch.rand(count, generator=generator)
        if self.levels == "normal":
            places = logit_normal(count, generator, mean=self.mean, std=self.std)
        if schedule.path == "flow":
            return places, places * 1000
        steps = (places * schedule.count).long().clamp(max=schedule.count - 1)
        return schedule.table[steps], steps.float()


def check_lesson(lesson, schedule, cfg):
    """ConfigError for what can't be learnt together; cfg: of the network."""
    if lesson.min_snr and schedule.path == "ve":
        raise ConfigError("EDM weighs its errors itself: leave min_snr out")
    if cfg.out_channels > cfg.channels and schedule.path != "vp":
        raise ConfigError(f'a variance is learnt on the path "vp" alone: give the network {cfg.channels} out_channels')


def denoising_loss(model, batch, generator, *, schedule, lesson, none=None):
    """batch: pixels (B,C,H,W) uint8 or latents (B,C,h,w), labels (B,) -> (sum over pictures, pictures) of the mean squared error.

    none: the class that stands for none of them, for a share of the pictures (imagegen.diffusion.none_of); None: labels stay."""
    data = batch["latents"] if "latents" in batch else to_unit(batch["pixels"])
    levels, times = (drawn.to(data) for drawn in lesson.drawn(schedule, len(data), generator))
    noise = torch.randn(data.shape, generator=generator).to(data)
    hidden = (torch.rand(len(data), generator=generator) < lesson.hidden).to(data.device)
    labels = batch["labels"] if none is None else batch["labels"].masked_fill(hidden, none)

    def say(x):
        return (model(x, times, labels) if model.cfg.classes else model(x, times)).float()

    if schedule.path == "ve":
        return edm_loss(lambda x, _: say(x), data, noise, levels, spread_of_data=schedule.deviation).sum(), len(data)
    scales = schedule.mixture.scales(levels)
    x = schedule.mixture.mix(data, noise, levels)
    said, variance = say(x).split(data.shape[1], 1) if model.cfg.out_channels > data.shape[1] else (say(x), None)
    losses = (said - target(schedule.predicts, data, noise, scales)).square().flatten(1).mean(1)
    if lesson.min_snr:
        losses = losses * min_snr(schedule.predicts, levels, path=schedule.mixture, most=lesson.min_snr)
    if variance is not None:
        found = data_from(schedule.predicts, said.detach(), x, scales)
        losses = losses + variance_loss((variance + 1) / 2, found - data, times.long(), schedule)
    return losses.sum(), len(data)


def variance_loss(share, error, steps, schedule):
    """share (B,C,H,W) of the way from the least variance of a step back to the most, error of the data there, steps (B,) -> bits a number, (B,).

    What the chain's step there costs beyond the best one (Nichol & Dhariwal 2021, eq. 4 and 15; step 0, which draws nothing, costs nothing here). The
    error comes without gradient: it has its own loss."""
    table = schedule.table.to(share)
    now, before = (schedule.mixture.scales(spread(table[rows], share)) for rows in (steps, (steps - 1).clamp(min=0)))
    (alpha, sigma), (alpha_before, sigma_before) = now, before
    fresh = sigma ** 2 - (alpha / alpha_before * sigma_before) ** 2                               # the variance of the step towards noise
    fresh = fresh.clamp(min=1e-12)                                                                # of step 0, where now is before
    ratio = 2 * (sigma_before / sigma).log()
    apart = share * -ratio                                                                        # of the logarithms of both variances
    least = fresh.log() + ratio
    moved = (alpha_before * fresh / sigma ** 2 * error).square()
    bits = 0.5 * (apart + torch.exp(-apart) + moved * torch.exp(-least - apart) - 1) / math.log(2)
    return bits.flatten(1).mean(1) * (steps > 0)


def latents_of(autoencoder, pixels):
    """pixels (N,C,S,S) uint8 -> what a denoiser sees of them, (N,c,s,s)."""
    return encode_all(autoencoder, pixels) * autoencoder.cfg.scaling
