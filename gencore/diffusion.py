"""Paths from data to noise, what a network predicts on them, and the losses.

A path says x = alpha * data + sigma * noise at each level. Flow (Lipman et al. 2023; Liu et al. 2023): alpha = 1 - sigma. Variance exploding
(Karras et al. 2022): alpha = 1. Variance preserving (Ho et al. 2020): alpha^2 + sigma^2 = 1. Whatever a network predicts - noise, data,
velocity - determines the other two, so samplers ask for data only: a denoiser is `denoise(x, level) -> data`."""
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from gencore.check import ConfigError, InputError, in_range, whole


@dataclass(frozen=True)
class Path:
    """Which mixtures of data and noise there are. A level is sigma / alpha for "ve" and "vp", and sigma itself for "flow"."""
    kind: Literal["flow", "ve", "vp"] = "flow"

    def scales(self, level):
        """level (tensor or float) -> (alpha, sigma) of the mixture."""
        if self.kind == "flow":
            return 1 - level, level
        if self.kind == "ve":
            return torch.ones_like(level) if torch.is_tensor(level) else 1.0, level
        alpha = (1 + level ** 2) ** -0.5
        return alpha, level * alpha

    def mix(self, data, noise, level):
        """data, noise (B,...), level (B,) -> x (B,...)."""
        alpha, sigma = (spread(s, data) for s in self.scales(level))
        return alpha * data + sigma * noise


FLOW, VE, VP = Path("flow"), Path("ve"), Path("vp")


def target(predicts, data, noise, scales):
    """What a network that predicts "data", "noise", "velocity" (flow) or "v" (Salimans & Ho 2022) should say; scales = (alpha, sigma)."""
    alpha, sigma = (spread(s, data) for s in scales)
    if predicts == "data":
        return data
    if predicts == "noise":
        return noise
    if predicts == "velocity":
        return noise - data                                       # dx / dsigma on the flow path
    if predicts == "v":
        return alpha * noise - sigma * data
    raise ConfigError(f'a network predicts "data", "noise", "velocity" or "v", got "{predicts}"')


def data_from(predicts, said, x, scales):
    """What the network said at x -> its estimate of the data; scales = (alpha, sigma) of the path there."""
    alpha, sigma = (spread(s, x) for s in scales)
    if predicts == "data":
        return said
    if predicts == "noise":
        return (x - sigma * said) / alpha
    if predicts == "velocity":
        return (x - sigma * said) / (alpha + sigma)               # alpha + sigma is 1 on the flow path
    if predicts == "v":
        return (alpha * x - sigma * said) / (alpha ** 2 + sigma ** 2)
    raise ConfigError(f'a network predicts "data", "noise", "velocity" or "v", got "{predicts}"')


def spread(value, like):
    """A float, or (B,) -> (B,1,...), to go with `like` (B,...)."""
    if not torch.is_tensor(value) or value.dim() == 0:
        return value
    return value.view(-1, *[1] * (like.dim() - 1)).to(like)


# ---- levels ----

def logit_normal(count, generator, *, mean=0.0, std=1.0):
    """Levels (count,) in (0, 1) for training on the flow path: most in the middle (Esser et al. 2024)."""
    return torch.sigmoid(torch.randn(count, generator=generator) * std + mean)


def log_normal(count, generator, *, mean=-1.2, std=1.2):
    """Levels (count,) for training on the "ve" path (Karras et al. 2022, table 1)."""
    return torch.exp(torch.randn(count, generator=generator) * std + mean)


def flow_levels(steps, shift=1.0):
    """steps -> (levels (steps+1,) falling from about 1 to 0, times (steps,) that the network is told).

    Those of diffusers' DPMSolverMultistepScheduler(use_flow_sigmas=True), to the bit. shift > 1 spends more steps at much noise, as
    large pictures need (Esser et al. 2024, eq. 23)."""
    check_steps(steps)
    levels = 1 - np.linspace(1, 1 / 1000, steps + 1)
    levels = np.flip(shift * levels / (1 + (shift - 1) * levels))[:-1].copy()
    times = torch.from_numpy((levels * 1000).astype(np.int64))
    return torch.from_numpy(np.append(levels, 0).astype(np.float32)), times


def flow_euler_levels(steps, shift=1.0):
    """As `flow_levels`, those of diffusers' FlowMatchEulerDiscreteScheduler (Stable Diffusion 3), to the bit; times are 1000 * levels, unrounded."""
    check_steps(steps)
    shifted = lambda level: shift * level / (1 + (shift - 1) * level)
    first, final = (shifted(torch.tensor(level, dtype=torch.float32)).item() for level in (1.0, 1 / 1000))
    levels = torch.from_numpy(shifted(np.linspace(first * 1000, final * 1000, steps) / 1000)).float()          # shifted twice, as there
    return torch.cat((levels, torch.zeros(1))), levels * 1000


def karras_levels(steps, low=0.002, high=80.0, rho=7.0):
    """steps -> levels (steps+1,) for the "ve" path, the last 0 (Karras et al. 2022, eq. 5)."""
    check_steps(steps)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat((levels, torch.zeros(1, dtype=torch.float64))).float()


def vp_levels(betas):
    """Noise schedule (N,) of a discrete diffusion -> its levels sigma / alpha (N,), rising."""
    kept = torch.cumprod(1 - betas.double(), 0)
    return ((1 - kept) / kept).sqrt().float()


def linear_betas(count=1000, low=1e-4, high=0.02):
    """Betas (count,) of Ho et al. 2020."""
    return torch.linspace(low, high, count, dtype=torch.float64)


def scaled_linear_betas(count=1000, low=0.00085, high=0.012):
    """Betas (count,) of Stable Diffusion (Rombach et al. 2022): their roots lie on a line."""
    return torch.linspace(low ** 0.5, high ** 0.5, count, dtype=torch.float64) ** 2


def cosine_betas(count=1000, most=0.999):
    """Betas (count,) of Nichol & Dhariwal 2021."""
    kept = torch.cos((torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=most)


def check_steps(steps):
    """`steps` as an int, or InputError."""
    return whole("steps", steps, 1, 1000)


def noise_interval(interval):
    """(low, high), two shares of noise from 0 to 1, in which there is guidance -> the same, or InputError (Kynkaanniemi et al. 2024)."""
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise InputError(f"guidance_interval should be two noise levels, (low, high), got {interval!r:.80}")
    low = in_range("guidance_interval's low", interval[0], 0, 1)
    return low, in_range("guidance_interval's high", interval[1], low, 1)


# ---- losses ----

def flow_loss(network, data, noise, levels, *, weights=1.0):
    """data, noise (B,...), levels (B,) -> mean squared error of the velocity, (B,). network(x, t) with t = 1000 * level.

    weights: of every error, broadcast to data."""
    errors = squared_errors(lambda x, level: network(x, level * 1000), data, noise, levels, predicts="velocity", path=FLOW)
    return (errors * weights).flatten(1).mean(1)


def path_loss(network, data, noise, levels, *, predicts="noise", path=VP):
    """data, noise (B,...), levels (B,) -> mean squared error of what the network predicts at x, (B,). network(x, levels)."""
    return squared_errors(network, data, noise, levels, predicts=predicts, path=path).flatten(1).mean(1)


def squared_errors(network, data, noise, levels, *, predicts, path):
    """As `path_loss`, of every number alone: (B,...)."""
    said = network(path.mix(data, noise, levels), levels)
    return (said - target(predicts, data, noise, path.scales(levels))).square()


def min_snr(predicts, levels, *, path=VP, most=5.0):
    """levels (B,) -> weights (B,) of path_loss: as if errors of the data counted by min(SNR, most), so that no level rules (Hang et al. 2023)."""
    alpha, sigma = path.scales(levels)
    snr = (alpha / sigma) ** 2
    of_data = {"data": 1.0, "noise": 1 / snr, "v": (sigma / (alpha ** 2 + sigma ** 2)) ** 2, "velocity": (sigma / (alpha + sigma)) ** 2}
    if predicts not in of_data:
        raise ConfigError(f'a network predicts "data", "noise", "velocity" or "v", got "{predicts}"')
    return snr.clamp(max=most) * of_data[predicts]


def edm_loss(network, data, noise, levels, *, spread_of_data=0.5):
    """Karras et al. 2022, eq. 8: data, noise (B,...), levels (B,) -> weighted squared error, (B,).

    network(x, c_noise) is the bare network; see `edm_denoiser`."""
    denoised = edm_denoiser(network, spread_of_data)(VE.mix(data, noise, levels), levels)
    weight = (levels ** 2 + spread_of_data ** 2) / (levels * spread_of_data) ** 2
    return weight.to(data) * (denoised - data).square().flatten(1).mean(1)


def edm_denoiser(network, spread_of_data=0.5):
    """Bare network -> denoiser with inputs, outputs and errors of unit size (Karras et al. 2022, eq. 7)."""
    def denoise(x, level):
        level = torch.as_tensor(level, device=x.device).expand(len(x))
        sigma, s = spread(level, x), spread_of_data
        total = (sigma ** 2 + s ** 2) ** 0.5
        said = network(x / total, level.log() / 4)
        return s ** 2 / total ** 2 * x + sigma * s / total * said
    return denoise


def denoiser(network, predicts="velocity", path=FLOW, *, time=None):
    """network(x, t, ...) -> denoise(x, level, ...); time: level -> t (default: 1000 * level on the flow path, the level elsewhere)."""
    def denoise(x, level, *condition):
        t = time(level) if time else level * 1000 if path.kind == "flow" else level
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        return data_from(predicts, network(x, t, *condition), x, path.scales(level))
    return denoise
