"""Which optimizer moves which weight, how the rate runs over the steps, and the running average of the weights.

Muon (Jordan et al. 2024) moves the matrices inside the blocks, AdamW everything else: embeddings, norms, biases, heads, the first and last
convolution."""
from contextlib import contextmanager

import torch
from torch import nn

from gencore.check import ConfigError
from gencore.muon import Muon


def schedule(step, config):
    """Step (from 0) -> share of the peak rate: linear warm-up, constant, linear decay over the last `config.decay` of all steps."""
    rise = (step + 1) / max(1, config.warmup)
    fall = (config.steps - step) / max(1, round(config.decay * config.steps))
    return min(1.0, rise, fall)


def split_parameters(model, muon):
    """Trainable parameters -> (matrices for Muon, decayed for AdamW, plain for AdamW), each in the model's order.

    A matrix is Muon's when it is the weight of a linear layer or an ungrouped convolution (out, in x kernel) inside something called
    `blocks` or `..._block(s)`; a tied weight is seen once."""
    inside, outside = set(), set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)):
            held = any(part == "blocks" or part.endswith(("_block", "_blocks")) for part in name.split("."))
            fits = not isinstance(module, nn.Embedding) and getattr(module, "groups", 1) == 1
            (inside if held and fits else outside).add(id(module.weight))
    matrices, decayed, plain = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if muon and id(parameter) in inside - outside:
            matrices.append(parameter)
        else:
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    return matrices, decayed, plain


class Optimizers:
    """Several torch optimizers that act as one; every group remembers its peak rate."""

    def __init__(self, parts):
        self.parts = list(parts)

    def set_share(self, share):
        """Sets every group's rate to `share` of its peak (the value of `schedule`)."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * share

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state):
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def make_optimizer(model, config, *, betas=(0.9, 0.95), momentum=0.95):
    """Model + TrainConfig (lr, muon_lr, weight_decay) -> Optimizers. Without `muon_lr` AdamW moves everything.

    betas: AdamW's; momentum: Muon's."""
    matrices, decayed, plain = split_parameters(model, config.muon_lr is not None)
    if not matrices + decayed + plain:
        raise ConfigError("the model has no trainable parameter: set requires_grad on what should be trained")
    groups = [{"params": params, "weight_decay": decay, "peak": config.lr}
              for params, decay in ((decayed, config.weight_decay), (plain, 0.0)) if params]
    parts = []
    if matrices:
        group = {"params": matrices, "peak": config.muon_lr}
        parts.append(Muon([group], config.muon_lr, momentum=momentum, weight_decay=config.weight_decay))
    if groups:
        parts.append(torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=1e-8, fused=True))
    return Optimizers(parts)


class EMA:
    """Running average of the trainable parameters; decay min(decay, (1 + n) / (10 + n)) at update n, so that the start is forgotten."""

    def __init__(self, model, decay):
        if not 0 < decay < 1:
            raise ConfigError(f"ema should lie between 0 and 1, got {decay}: use 0.999, or None for no average")
        self.decay, self.updates = decay, 0
        self.weights = {name: p.detach().clone() for name, p in self._trained(model)}

    @staticmethod
    def _trained(model):
        return [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, model):
        """Moves the average towards the model's weights; call once after each step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for _, p in self._trained(model)], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model):
        for name, p in self._trained(model):
            p.copy_(self.weights[name])

    @contextmanager
    def applied(self, model):
        """While open, the model carries the averaged weights; afterwards its own come back, to the bit."""
        kept = {name: p.detach().clone() for name, p in self._trained(model)}
        self.copy_to(model)
        try:
            yield model
        finally:
            with torch.no_grad():
                for name, p in self._trained(model):
                    p.copy_(kept[name])

    def state_dict(self):
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state):
        self.updates = state["updates"]
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])


def scale_gradients(parameters, factor):
    """Multiplies every gradient in place."""
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


