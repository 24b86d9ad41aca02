"""How a generator and a critic learn against each other, in the form of `gencore.train.fit`.

The modern game (Jolicoeur-Martineau 2019, Huang et al. 2024): a real picture and a made one are scored as a pair, and the slope of the critic is
kept small at both (R1 + R2), which makes the game stand still where it is won. The first one (Goodfellow et al. 2014, the non-saturating form)
scores each picture alone and has no such brake."""
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gencore.optim import make_optimizer
from gencore.train import fit
from imagegen.data import to_unit
from imagegen.labelled import LabelledBatches


class Game(nn.Module):
    """Generator and critic as one model for `fit`."""

    def __init__(self, generator, critic):
        super().__init__()
        self.generator, self.critic = generator, critic


def relativistic_loss(model, batch, generator, *, gamma=1.0):
    """batch: pixels (B,C,H,W) uint8, labels (B,) -> (sum over pairs, pairs): both sides' losses and half of gamma times R1 + R2.

    One backward serves both sides."""
    real, labels = to_unit(batch["pixels"]), batch["labels"]
    made = model.generator(*drawn(model.generator, labels, generator))
    critics, makers = relativistic(model.critic, real, made, (labels,), gamma=gamma)
    return (critics + makers).sum(), len(real)


def relativistic(critic, real, made, given=(), *, gamma=1.0):
    """real, made (B,C,H,W), what else the critic is given (each (B,...)) -> (what the critic loses, what the maker loses) on each pair, (B,) both.

    The critic scores a picture by itself (no batch norms); of one with scores for parts of a picture: the means over them."""
    with sdpa_kernel(SDPBackend.MATH):                                            # the slope is differentiated again: only this kernel can be
        shown = torch.cat((real, made.detach())).requires_grad_()
        scores = critic(shown, *(torch.cat((own, own)) for own in given))
        scores = scores.reshape(len(shown), -1)                                   # (2B, parts)
        slopes, = torch.autograd.grad(scores.mean(1).sum(), shown, create_graph=True)
    real_scores, made_scores = scores.float().chunk(2)
    steepness = slopes.float().square().flatten(1).sum(1).view(2, -1).sum(0)      # (B,), R1 + R2
    if scores.shape[1] == 1:                                                      # where a better score lies is known: at zero, with that slope
        towards = slopes.detach().chunk(2)[1].float() * (made - made.detach())
        judged = made_scores.detach() + towards.flatten(1).sum(1, keepdim=True)
    else:
        judged = frozen(critic, made, *given).float().reshape(len(made), -1)
    return F.softplus(made_scores - real_scores).mean(1) + gamma / 2 * steepness, F.softplus(real_scores.detach() - judged).mean(1)


def first_loss(model, batch, generator):
    """As `relativistic_loss`, the game of 2014: the critic tells real from made, the generator wants to be taken for real."""
    real, labels = to_unit(batch["pixels"]), batch["labels"]
    made = model.generator(*drawn(model.generator, labels, generator))
    critic = F.softplus(-model.critic(real, labels)) + F.softplus(model.critic(made.detach(), labels))
    return (critic + F.softplus(-frozen(model.critic, made, labels))).sum(), len(real)


def drawn(network, labels, generator):
    """-> (latents (B,Z), classes (B,Z) or None) of made pictures."""
    latents = torch.randn(len(labels), network.cfg.latent, generator=generator).to(labels.device)
    return latents, network.classes(labels)


def frozen(critic, pictures, *given):
    """Scores by the critic's weights as they are, which get no gradient from it."""
    return torch.func.functional_call(critic, {name: p.detach() for name, p in critic.named_parameters()}, (pictures, *given))


# how both sides are moved: where they move, yesterday's direction is wrong today (DCGAN's Adam had betas of 0.5 and 0.999)
without_momentum = partial(make_optimizer, betas=(0.0, 0.99), momentum=0.0)


class StackedBatches(LabelledBatches):
    """Grey pictures (N,1,H,W), three drawn at random as the colours of one: a thousand kinds, of which a collapsed generator makes few."""

    def batch(self, step, rank=0, world=1):
        rows = np.random.default_rng((self.seed, step, rank)).integers(len(self.values), size=(self.rows // world, 3))
        return {"pixels": self.values[rows][:, :, 0], "labels": torch.zeros(len(rows), dtype=torch.long)}


def train_gan(generator, critic, batches, config, *, run, loss=relativistic_loss):
    """-> the generator, its averaged weights in it when config.ema is set."""
    game = Game(generator, critic).to(memory_format=torch.channels_last)                       # four fifths of the time of a step on a CPU
    return fit(game, loss, batches, config, run=run, optimizer=without_momentum).generator.eval()
