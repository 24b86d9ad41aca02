"""Makes one part of a prompt count for more: guidance away from the prompt without it, learnt into the weights.

"apple, noto style" is often drawn as other designs have it. Led away from "apple" while it draws, a painter keeps the design far oftener, and every
step takes a third call of the network. Here it learns to say at once what it would say so led,

    v(prompt) + strength * (v(prompt) - v(rest))

and of a prompt that has no such part what it says anyway. That is Meng et al. 2023, "On Distillation of Guided Diffusion Models", for one scale; the
rest of the prompt has the place of the empty one (as an instruction's picture has in Brooks et al. 2023, "InstructPix2Pix")."""
import copy
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

    def __init__(self, painter, strength):
        super().__init__()
        self.painter, self.strength = painter.requires_grad_(False), strength
        self.before = copy.deepcopy(painter.transformer).eval()
        painter.transformer.requires_grad_(True)

    @torch.no_grad()
    def led(self, x, times, prompts, has_rest):
        """x (B,C,h,w), times (B,), Memories of prompts and of their rests, has_rest (B,): where they differ -> velocities (B,C,h,w) to be learnt."""
        prompt, rest = prompts
        said = self.before(x, times, prompt)                                              # (B, C, h, w)
        if not has_rest.any():
            return said
        without = self.before(x[has_rest], times[has_rest], Memory(rest.states[has_rest], rest.keep[has_rest]))            # of those alone
        return said.index_put((has_rest,), torch.lerp(without, said[has_rest], 1 + self.strength).to(said))


def emphasis_loss(model, batch, generator):
    """Squared distance to what is learnt -> (sum, pictures). Most levels are of much noise, where a lead is largest."""
    latents, encoder = batch["latents"], model.painter.text_encoder
    with torch.no_grad():
        prompts = [Memory(encoder(batch[ids], batch[keep]), batch[keep]) for ids, keep in (("ids", "keep"), ("rest_ids", "rest_keep"))]
    levels = logit_normal(len(latents), generator, mean=1.0, std=1.5).to(latents)
    x = FLOW.mix(latents, torch.randn(latents.shape, generator=generator).to(latents), levels)
    wanted = model.led(x, levels * 1000, prompts, batch["has_rest"])
    errors = (model.painter.transformer(x, levels * 1000, prompts[0]) - wanted).square()
    return errors.flatten(1).mean(1).sum(), len(latents)


class Lead(NamedTuple):
    """Away from what a painter is led, and how far."""
    rest_of: Callable           # caption -> the same without the part that is to count for more
    strength: float


def train_emphasis(painter, tokenizer, data, lead, *, config, run):
    """A trained Painter + Captioned + Lead -> the same, for which that part of a caption counts for more."""
    length = tokenizer.config["model_max_length"]

    def beside(rows, captions):
        rests = [lead.rest_of(caption) for caption in captions]
        ids, keep, _ = encode_prompts(tokenizer, rests, length)
        return {"rest_ids": ids, "rest_keep": keep, "has_rest": torch.tensor([caption != rest for caption, rest in zip(captions, rests)])}

    batches = latent_batches(painter, tokenizer, data, config, beside=beside)
    fit(Emphasis(painter, lead.strength), emphasis_loss, batches, config, run=run)
    return painter.eval().requires_grad_(False)
