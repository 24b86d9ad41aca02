"""Samplers: each is a function of a denoiser, `sampler(denoise, x, levels)`, and yields the way to the sample step by step.

`denoise(x, level) -> data`; levels (S+1,) fall, the last may be 0. `last(...)` runs one to its end; guidance makes a denoiser of a denoiser.
On the flow path and the "ve" path dx/dlevel = (x - data) / level, so Euler and Heun are the same lines for both."""
import torch

from gencore.check import InputError
from gencore.diffusion import FLOW, VP


def euler(denoise, x, levels):
    """Flow or "ve" path, first order: the straight way along the velocity."""
    for now, after in pairs(levels):
        x = x + (after - now) * (x - denoise(x, now)) / now
        yield x


def heun(denoise, x, levels):
    """Flow or "ve" path, second order (Karras et al. 2022, algorithm 1)."""
    for now, after in pairs(levels):
        slope = (x - denoise(x, now)) / now
        guess = x + (after - now) * slope
        if after > 0:                                                         # second order, except into 0
            slope = (slope + (guess - denoise(guess, after)) / after) / 2
        x = x + (after - now) * slope
        yield x


def ddim(denoise, x, levels, path=VP, *, clip=None):
    """Any path: back to data, and out again along the same noise (Song et al. 2021, eta = 0).

    clip: data is kept between -clip and clip, and the noise stays as it was said: diffusers' clip_sample."""
    for now, after in pairs(levels):
        (alpha, sigma), (alpha_after, sigma_after) = path.scales(now), path.scales(after)
        data = denoise(x, now)
        x = alpha_after * clipped(data, clip) + sigma_after / sigma * (x - alpha * data)
        yield x


def ddpm(denoise, x, levels, generator, *, path=VP, clip=None):
    """Any path: the ancestral chain with fresh noise at each step (Ho et al. 2020, eq. 7); generator: one, or one for each row.

    Its variance is the posterior's, unless `denoise` says (data, share), share a tensor or a number from 0 to 1: then as far as that on the way
    from there, by logarithms, to all the noise that this step takes away (Nichol & Dhariwal 2021, eq. 15). Into 0 the posterior has none."""
    for now, after in pairs(levels):
        (alpha, sigma), (alpha_after, sigma_after) = path.scales(now), path.scales(after)
        said = denoise(x, now)
        data, share = said if isinstance(said, tuple) else (said, 0.0)
        kept = alpha / alpha_after                                            # x_now = kept * x_after + fresh noise
        fresh = sigma ** 2 - (kept * sigma_after) ** 2
        x = (kept * sigma_after ** 2 * x + alpha_after * fresh * clipped(data, clip)) / sigma ** 2
        if after > 0 or isinstance(said, tuple):
            deviation = fresh ** 0.5 * (sigma_after / sigma) ** (1 - share)
            x = x + deviation * noise_like(x, generator)
        yield x


def euler_ancestral(denoise, x, levels, generator):
    """"ve" path: an Euler step further down than the next level, and fresh noise up to it: k-diffusion's `sample_euler_ancestral`.

    generator: one, or one for each row."""
    for now, after in pairs(levels):
        fresh = after * (1 - (after / now) ** 2) ** 0.5
        down = (after ** 2 - fresh ** 2) ** 0.5
        x = x + (down - now) * (x - denoise(x, now)) / now
        if after > 0:
            x = x + fresh * noise_like(x, generator)
        yield x


def dpm_solver(denoise, x, levels, path=FLOW):
    """Any path: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order at one call a step; first order at the start and into 0.

    Step for step diffusers' DPMSolverMultistepScheduler in its defaults (midpoint)."""
    before, step_before = None, None
    for now, after in pairs(levels):
        (alpha, sigma), (alpha_after, sigma_after) = path.scales(now), path.scales(after)
        data = denoise(x, now)
        if after == 0:
            x = data if alpha_after == 1 else alpha_after * data
        else:
            step = log_ratio(alpha_after, sigma_after) - log_ratio(alpha, sigma)      # of lambda = log(alpha / sigma)
            slope = data if before is None else data + (data - before) * step / (2 * step_before)
            x = sigma_after / sigma * x - alpha_after * torch.expm1(-step) * slope
            before, step_before = data, step
        yield x


def last(way):
    """Runs a sampler to its end -> the sample."""
    x = None
    for x in way:                                                             # the generator's last value
        pass
    if x is None:
        raise InputError("levels should hold at least two values: nothing was sampled")
    return x


def guided(denoise, cond, null, scale, *, within=(0.0, float("inf"))):
    """denoise(x, level, condition) -> denoise(x, level) that leans from `null` towards `cond` (Ho & Salimans 2022); two calls.

    scale 1 is `cond` alone, as are levels outside `within` = (low, high] (Kynkaanniemi et al. 2024: guidance in the middle alone)."""
    def guide(x, level):
        if scale == 1 or not within[0] < level <= within[1]:
            return denoise(x, level, cond)
        return torch.lerp(denoise(x, level, null), denoise(x, level, cond), scale)
    return guide


def keeping(denoise, known, redrawn):
    """denoise(x, level) -> one that knows the data (B,...) where `redrawn` (bool, broadcasts to it) is False: inpainting. What is known stays on
    the path from its noise to itself, and the rest is drawn to go with it."""
    return lambda x, level: torch.where(redrawn, denoise(x, level), known)


def clipped(data, most):
    """Data between -most and most; None: as it is."""
    return data if most is None else data.clamp(-most, most)


def noise_like(x, generator):
    """x (B,...) -> as much noise, drawn on the CPU by one generator, or each row by its own: a row is then the same alone and among others."""
    if isinstance(generator, (list, tuple)):
        return torch.stack([torch.randn(x.shape[1:], generator=own) for own in generator]).to(x)
    return torch.randn(x.shape, generator=generator).to(x)


def pairs(levels):
    """levels (S+1,) -> (now, after) float tensors, falling."""
    levels = torch.as_tensor(levels)
    if levels.dim() != 1 or not bool((levels.diff() < 0).all()) or not bool((levels >= 0).all()):
        raise InputError(f"levels should be one falling row, none below 0, got {levels.tolist()!r:.80}")
    return zip(levels[:-1], levels[1:])


def log_ratio(alpha, sigma):
    """lambda = log(alpha / sigma)."""
    return torch.log(alpha) - torch.log(sigma) if torch.is_tensor(alpha) else -torch.log(sigma)
