"""How a painter is trained from captioned pictures, in parts that `fit` runs one after another.

    autoencoder    pictures <-> latents, then standardised
    prompts        the prompt encoder, contrastively against the pictures
    reading        what thing each word of a caption is about, where captions tell it (imagegen/reading.py)
    transformer    flow matching on the latents, under the prompts' states; the prompt encoder learns on with it
    decoder        goes on alone, if wanted: latents stay what the transformer knows, pictures get sharper

examples/train_image.py does it for any folder, imagegen/train_painter.py for the painter that ships. imagegen/lora.py and control.py teach a
finished painter more by the same batches and losses."""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gencore.diffusion import flow_loss, logit_normal
from gencore.text_encoder import encode_prompts
from gencore.train import fit
from gencore.transformer import Memory
from imagegen.alignment import alignment_loss
from imagegen.autoencoder import autoencoder_loss, picture_loss
from imagegen.autoencoder_files import first_of
from imagegen.captioned import CaptionedBatches
from imagegen.data import to_unit
from imagegen.reading import Reader, meanings_of, values_of

# ---- the parts ----

def train_autoencoder(model, data, config, *, run):
    """Autoencoder + Captioned -> the trained Autoencoder, its latents standardised."""
    def loss(model, batch, generator):
        pictures = to_unit(batch["pixels"]).contiguous(memory_format=torch.channels_last)
        return autoencoder_loss(model, pictures, generator) * len(pictures), len(pictures)

    batches = CaptionedBatches(data, config.batch, config.seed, lambda rows, rng: {"pixels": data.pixels[rows]})
    model = fit(model.to(memory_format=torch.channels_last), loss, batches, config, run=run).eval()
    return standardised(model, data.pixels[data.draw(1024, np.random.default_rng(config.seed))]).requires_grad_(False)


def train_prompts(model, tokenizer, data, config, *, run):
    """Alignment + Captioned -> the trained Alignment; its encoder is what the painter reads with."""
    length = tokenizer.config["model_max_length"]

    def columns(rows, rng):
        ids, keep, _ = encode_prompts(tokenizer, [data.caption(row, rng) for row in rows], length)
        things = data.things[rows]
        return {"ids": ids, "keep": keep, "pixels": data.pixels[rows], "same": things[:, None] == things[None]}

    def loss(model, batch, generator):
        pictures = {"pictures": to_unit(batch["pixels"])}
        return alignment_loss(model, batch | pictures) * len(batch["ids"]), len(batch["ids"])

    return fit(model, loss, CaptionedBatches(data, config.batch, config.seed, columns), config, run=run).eval().requires_grad_(False)


def train_transformer(painter, tower, tokenizer, data, *, config, run):
    """Painter whose encoder and autoencoder are trained + Captioned -> the painter, its transformer trained and its encoder with it: names are learnt
    by contrast, whose colour it is and what is above what by drawing."""
    places = places_of(tower, data.pixels)
    beside = lambda rows, captions: {"places": places[rows].float()} | ({} if data.cells is None else {"cells": data.cells[rows].long()})
    batches = latent_batches(painter, tokenizer, data, config, beside=beside)
    painter.text_encoder.requires_grad_(True)
    kinds = [] if data.cells is None else [int(part.max()) + 1 for part in data.cells.unbind(1)]
    meanings = values_of(data.words) if data.words else []
    fit(Learner(painter, places.shape[1], kinds, meanings), transformer_loss, batches, config, run=run)
    return painter.eval().requires_grad_(False)


def latent_batches(painter, tokenizer, data, config, *, beside=lambda rows, captions: {}):
    """Captioned -> batches of latents and encoded captions; beside(picture numbers, captions) -> what else a batch holds."""
    length = tokenizer.config["model_max_length"]
    latents = encode_all(painter.autoencoder, data.pixels) * painter.autoencoder.cfg.scaling
    details = None if data.variants is None else details_of(latents, data.variants)

    def columns(rows, rng):
        captions = ["" if rng.random() < 0.1 else data.caption(row, rng) for row in rows]             # "" teaches guidance its null
        ids, keep, _ = encode_prompts(tokenizer, captions, length)
        said = {"words": meanings_of(tokenizer, captions, data.words, ids.shape[1])} if data.words else {}
        differs = {} if details is None else {"details": details[rows]}
        return {"latents": latents[rows], "ids": ids, "keep": keep} | said | differs | beside(rows, captions)

    return CaptionedBatches(data, config.batch, config.seed, columns)


class Learner(nn.Module):
    """A painter, and three lines that are not exported: one compares an early layer with the picture tower (REPA, Yu et al. 2025), one tells from a
    later layer what will lie on each cell, one from the prompt's states what the thing is like that a word is about, where these are known. Which of
    two things is red is little of a picture's error, and all of these two."""

    def __init__(self, painter, tower_width, kinds=(), meanings=()):
        """kinds: how many values each property of a cell has; meanings: those of a word's thing."""
        super().__init__()
        self.painter, self.kinds = painter, list(kinds)
        width, blocks = painter.transformer.cfg.width, painter.transformer.transformer.blocks
        self.match, self.tell = nn.Linear(width, tower_width), nn.Linear(width, sum(kinds)) if kinds else None
        self.reader = Reader(painter.text_encoder.cfg.width, meanings) if meanings else None
        self.early = self.late = self.states = None
        painter.text_encoder.register_forward_hook(lambda encoder, inputs, states: setattr(self, "states", states))
        blocks[len(blocks) // 3].register_forward_hook(lambda block, inputs, states: setattr(self, "early", states))
        blocks[2 * len(blocks) // 3].register_forward_hook(lambda block, inputs, states: setattr(self, "late", states))

    def likeness(self, places):
        """places (B,W,h,w) of the clean picture -> cosine to the early layer, mean over places (B,)."""
        side = int(self.early.shape[1] ** 0.5)
        wanted = F.adaptive_avg_pool2d(places, side).flatten(2).transpose(1, 2)         # (B, P, W)
        return F.cosine_similarity(self.match(self.early), wanted, dim=-1).mean(1)

    def misnamed(self, cells):
        """cells (B,K,h,w) -> cross-entropy of what lies where (B,), 0 where it is not known; empty cells, which are many, count a quarter."""
        side = int(self.late.shape[1] ** 0.5)
        wanted = F.interpolate(cells.float(), (side, side)).long().flatten(2)           # (B, K, P), the nearest cell
        said = self.tell(self.late).transpose(1, 2).float().split(self.kinds, 1)                           # K times (B, values, P)
        losses = torch.stack([F.cross_entropy(part, want, reduction="none", ignore_index=-1) for part, want in zip(said, wanted.unbind(1))], 1)
        return (losses * torch.where(wanted > 0, 1.0, 0.25)).mean((1, 2))


def transformer_loss(model, batch, generator, *, alignment=0.5, naming=1.0, reading=1.0):
    """The losses of drawing, half of one minus the likeness, what is misnamed and what is misread -> (sum, pictures)."""
    losses = drawing_losses(model.painter, batch, generator) + alignment * (1 - model.likeness(batch["places"]))
    if "cells" in batch:
        losses = losses + naming * model.misnamed(batch["cells"])
    if "words" in batch:
        losses = losses + reading * model.reader.misread(model.states, batch["words"])
    return losses.sum(), len(losses)


def drawing_losses(painter, batch, generator, *, transformer=None, detail=4.0):
    """Flow matching -> (B,). transformer(x, t, prompt): another one than the painter's, which goes with it.

    detail: how much more an error counts where a picture's variants differ most: a skin tone is little of a picture's error. Most levels are of
    much noise: there a prompt's words are worth most, the loss with another picture's prompt less the loss with its own."""
    latents, transformer = batch["latents"], transformer or painter.transformer
    prompt = Memory(painter.text_encoder(batch["ids"], batch["keep"]), batch["keep"])
    levels = logit_normal(len(latents), generator, mean=1.0, std=1.2).to(latents)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    weights = 1 + detail * batch["details"] if "details" in batch else 1.0
    return flow_loss(lambda x, t: transformer(x, t, prompt), latents, noise, levels, weights=weights)


def train_decoder(autoencoder, data, config, *, run):
    """A trained Autoencoder + Captioned -> the same with a better decoder; its latents stay, so a transformer that draws them stays as well.

    The decoder sees latents a little beside the true ones, as a transformer draws them."""
    for part in (autoencoder.decoder, autoencoder.post_quant_conv):
        part.requires_grad_(True)

    def loss(model, batch, generator):
        pictures = to_unit(batch["pixels"]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents, _ = model.encode(pictures)
        latents = latents + 0.1 * torch.randn(latents.shape, generator=generator).to(latents)
        return picture_loss(model.decode(latents), pictures) * len(pictures), len(pictures)

    batches = CaptionedBatches(data, config.batch, config.seed, lambda rows, rng: {"pixels": data.pixels[rows]})
    return fit(autoencoder.to(memory_format=torch.channels_last), loss, batches, config, run=run).eval().requires_grad_(False)


# ---- made once ----

def standardised(autoencoder, pixels):
    """The Autoencoder, its latents of these pictures brought to mean 0 and spread 1."""
    latents = encode_all(autoencoder, pixels)
    autoencoder.standardise(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    return autoencoder


@torch.no_grad()
def encode_all(autoencoder, pixels):
    """pixels (N,3,S,S) uint8 -> mean latents (N,C,h,w)."""
    return torch.cat([first_of(autoencoder.encode(to_unit(part))) for part in pixels.split(64)])


def details_of(latents, variants):
    """latents (N,C,h,w), variants (N,) -> where the pictures of one number differ (N,1,h,w): 1 where their variance is largest, 0 where they
    are alike, and everywhere for a picture that has no variants."""
    groups = variants.unique(return_inverse=True)[1]                                    # (N,), without gaps
    counts = groups.bincount()[:, None, None, None]
    sums = lambda values: torch.zeros(len(counts), *latents.shape[1:]).index_add_(0, groups, values) / counts
    spread = (sums(latents ** 2) - sums(latents) ** 2).clamp(min=0).mean(1, keepdim=True)                   # (groups, 1, h, w)
    return (spread / spread.amax((2, 3), keepdim=True).clamp(min=0.02))[groups]


@torch.no_grad()
def places_of(tower, pixels):
    """pixels (N,3,S,S) uint8 -> the tower's places (N,W,4,4), unit length, float16."""
    return torch.cat([F.normalize(tower.eval().places(to_unit(part)), dim=1).half() for part in pixels.split(256)])
