"""Makes one part of a prompt count for more: guidance away from a prompt without it, learnt into the weights.

"apple, noto style" is often drawn as other designs have it. Led away from "apple" while it draws, or from "apple, twemoji style", a painter keeps the
design far oftener, and every step takes a third call of the network. Here it learns to say at once what it would say so led,

    v(prompt) + strength * (v(prompt) - v(other prompt))

and of a prompt that has no such part what it says anyway. That is Meng et al. 2023, "On Distillation of Guided Diffusion Models", for one scale; the
other prompt has the place of the empty one (as an instruction's picture has in Brooks et al. 2023, "InstructPix2Pix"). What is drawn is decided at
much noise, how it is drawn later: led at the lower levels alone, it keeps its names (Kynkaanniemi et al. 2024 guide in an interval as well)."""
import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from gencore.diffusion import FLOW, logit_normal
from gencore.text_encoder import encode_prompts
from gencore.train import fit
from gencore.transformer import Memory
from imagegen.training import latent_batches


class Emphasis(nn.Module):
    """A painter whose transformer learns, and beside it the transformer as it was."""

    def __init__(self, painter, strength, below=1.0):
        """below: the noise level, of 0 to 1, from which on nothing is led."""
        super().__init__()
        self.painter, self.strength, self.below = painter.requires_grad_(False), strength, below
        self.before = copy.deepcopy(painter.transformer).eval()
        painter.transformer.requires_grad_(True)

    @torch.no_grad()
    def led(self, x, times, prompts, has_other):
        """x (B,C,h,w), times (B,), Memories of prompts and of others, has_other (B,): where they differ -> velocities (B,C,h,w) to be learnt."""
        prompt, other = prompts
        said, led = self.before(x, times, prompt), has_other & (times < self.below * 1000)                                 # (B, C, h, w), (B,)
        if not led.any():
            return said
        away = self.before(x[led], times[led], Memory(other.states[led], other.keep[led]))                                 # of those alone
        return said.index_put((led,), torch.lerp(away, said[led], 1 + self.strength).to(said))


def emphasis_loss(model, batch, generator):
    """Squared distance to what is learnt -> (sum, pictures). Three levels of four or more are led; of these most are of much noise, where a lead
    is largest."""
    latents, encoder = batch["latents"], model.painter.text_encoder
    with torch.no_grad():
        prompts = [Memory(encoder(batch[ids], batch[keep]), batch[keep]) for ids, keep in (("ids", "keep"), ("other_ids", "other_keep"))]
    middle = 1.0 if model.below == 1 else math.log(model.below / (1 - model.below)) - 1
    levels = logit_normal(len(latents), generator, mean=middle, std=1.5).to(latents)
    x = FLOW.mix(latents, torch.randn(latents.shape, generator=generator).to(latents), levels)
    wanted = model.led(x, levels * 1000, prompts, batch["has_other"])
    errors = (model.painter.transformer(x, levels * 1000, prompts[0]) - wanted).square()
    return errors.flatten(1).mean(1).sum(), len(latents)


class Lead(NamedTuple):
    """Away from what a painter is led, how far, and at which noise levels."""
    other_of: Callable          # caption -> the same without the part that is to count for more, or with another in its place
    strength: float
    below: float = 1.0


def train_emphasis(painter, tokenizer, data, lead, *, config, run):
    """A trained Painter + Captioned + Lead -> the same, for which that part of a caption counts for more."""
    length = tokenizer.config["model_max_length"]

    def beside(rows, captions):
        others = [lead.other_of(caption) for caption in captions]
        ids, keep, _ = encode_prompts(tokenizer, others, length)
        return {"other_ids": ids, "other_keep": keep, "has_other": torch.tensor([caption != other for caption, other in zip(captions, others)])}

    batches = latent_batches(painter, tokenizer, data, config, beside=beside)
    fit(Emphasis(painter, lead.strength, lead.below), emphasis_loss, batches, config, run=run)
    return painter.eval().requires_grad_(False)
