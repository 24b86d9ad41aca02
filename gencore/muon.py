"""Muon: momentum, then the nearest orthogonal matrix as the step (Jordan et al. 2024)."""
import torch

from gencore.processor import multiplies_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)            # of Jordan's quintic: steep at 0, and near 1 only roughly 1


def orthogonal(matrix, steps=5):
    """(m,n) -> roughly the orthogonal matrix nearest to it: all singular values near 1.

    In bfloat16 where the processor multiplies it faster than float32; where it is only emulated it would be many times slower."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()              # (m, n), m <= n
    x = wide.float()
    x = x / x.norm().clamp(min=1e-7)
    x = newton_schulz(x.bfloat16(), steps) if multiplies_bfloat16(matrix.device.type) else newton_schulz_by_gram(x, steps)
    return (x if wide is matrix else x.t()).to(matrix.dtype)


def newton_schulz(x, steps):
    """x (m,n), norm 1: `steps` times x <- (a + b x x' + c (x x')^2) x."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.t()                                                             # (m, m)
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def newton_schulz_by_gram(x, steps):
    """The same on the Gram matrix of the short side: the long side enters two products instead of 2 x steps.

    For float32: a Gram matrix squares the singular values, and in bfloat16 the small ones drown (error 1.2 on rank 16)."""
    a, b, c = COEFFICIENTS
    gram, turn = x @ x.t(), None                                                     # (m, m)
    for step in range(steps):
        poly = torch.addmm(gram, gram, gram, beta=b, alpha=c)                        # b G + c G^2
        poly.diagonal().add_(a)                                                      # a + b G + c G^2; x becomes poly x
        turn = poly if turn is None else poly @ turn
        if step + 1 < steps:
            gram = poly @ gram @ poly                                                # they commute: all are polynomials of G
    return turn @ x


class Muon(torch.optim.Optimizer):
    """For matrices, and convolutions as (out, in x kernel). Momentum by Nesterov.

    The rate is scaled by 0.2 sqrt(max(m, n)), so that AdamW's rates and decay fit (Liu et al. 2025)."""

    def __init__(self, params, lr=1e-3, *, momentum=0.95, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(buffer, group["momentum"]).flatten(1))           # Nesterov
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)
