"""Scaling laws: the loss of models of several sizes as a power law of their size, which foretells that of another.

Kaplan et al. 2020, L(N) = A / N^alpha; with a floor, L(N) = E + A / N^alpha, Hoffmann et al. 2022."""
import math

import torch

from gencore.check import InputError


def power_law(sizes, losses, floor):
    """Losses at sizes -> (E, A, alpha) by least squares in log L; floor=False: E = 0."""
    if len(sizes) != len(losses) or len(set(sizes)) < 2 or not all(0 < value < math.inf for value in (*sizes, *losses)):
        raise InputError(f"a power law needs as many losses as sizes, at least two different ones, all above 0, got {sizes} and {losses}")
    log_n, log_l = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(losses, dtype=torch.float64).log()
    E = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1, None] * min(losses) if floor else torch.zeros(1, 1, dtype=torch.float64)
    y, x = (log_l.exp() - E).log(), log_n - log_n.mean()                                # (floors, sizes), (sizes,)
    alpha = -(y * x).sum(1) / x.square().sum()                                          # slope of log (L - E), for each floor
    log_a = y.mean(1) + alpha * log_n.mean()
    errors = ((E + (log_a[:, None] - alpha[:, None] * log_n).exp()).log() - log_l).square().sum(1)
    best = int(errors.argmin())
    return float(E[best]), math.exp(log_a[best]), float(alpha[best])


def foretold(law, size):
    E, A, alpha = law
    return E + A / size ** alpha


def chosen_law(sizes, losses):
    """The form that foretells the last of these better from the others, fitted to all of them -> (E, A, alpha)."""
    misses = [abs(foretold(power_law(sizes[:-1], losses[:-1], floor), sizes[-1]) / losses[-1] - 1) for floor in (False, True)]
    return power_law(sizes, losses, floor=misses[1] < misses[0])
