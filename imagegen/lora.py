"""PainterLoRA: a painter learns a new thing or look from a handful of pictures, by small matrices beside those of its transformer (Hu et al. 2021).

    lora = PainterLoRA(TextToImage.from_pretrained("painter"), rank=16)
    train_lora(lora, data, config, run=Run(folder, export=lora.export))          # data: Captioned pictures
    lora.painter("a zibble", seed=0)
    lora.save_pretrained("my-adapter")                                           # peft opens it on diffusers' PixArtTransformer2DModel
    lora = PainterLoRA.from_pretrained(TextToImage.from_pretrained("painter"), "my-adapter")
    lora.merged().save_pretrained("my-painter")

Text encoder and autoencoder stay as they are. Five pictures alone would pull everything towards themselves, so the painter's own drawings of
other prompts are shown among them (the prior preservation of Ruiz et al. 2023): `with_own_drawings`."""
import copy

import numpy as np
import torch

from gencore.check import in_range
from gencore.checkpoint import save_folder
from gencore.lora import Adapter, base_of, ranks_of, read_adapter
from gencore.train import fit
from imagegen.captioned import Captioned
from imagegen.data import to_bytes
from imagegen.dit import DiT
from imagegen.families.pixart import PIXART
from imagegen.text_to_image import Painter, TextToImage, without_adapter
from imagegen.training import drawing_losses, latent_batches

TARGETS = ("qkv", "out", "q", "kv", "up", "down")         # every matrix inside the blocks


class PainterLoRA:
    """`painter` is a TextToImage of its own with the adapter in it: it draws, and in training nothing but the adapter moves."""

    def __init__(self, painter, *, rank=8, alpha=8, dropout=0.0, targets=TARGETS):
        """rank: of the small matrices. alpha: the adapter counts alpha / rank times. targets: which matrices of a block."""
        network = painter.painter.transformer
        without_adapter(network)
        ranks, alpha = ranks_of(network, targets, rank, TARGETS), in_range("alpha", alpha, 1e-3, 1e6)
        self._hold(painter, Adapter(copy.deepcopy(network), PIXART, ranks, scale=alpha / rank, base=base_of(painter), dropout=dropout))

    def _hold(self, painter, adapter):
        self.adapter, self.painter = adapter, another(painter, adapter.network)

    def merged(self):
        """-> a TextToImage whose own weights are W + scale * B A; this one stays as it is."""
        transformer = DiT(self.adapter.network.cfg).to(next(self.adapter.network.parameters()).device)
        transformer.load_state_dict(self.adapter.merged_state())
        return another(self.painter, transformer.requires_grad_(False))

    def export(self, model):
        """Files of a peft adapter: the export of gencore.train.Run."""
        return self.adapter.files()

    def save_pretrained(self, folder):
        """Writes a folder that peft's PeftModel.from_pretrained opens on diffusers' PixArtTransformer2DModel of the painter's transformer/."""
        save_folder(folder, self.adapter.files())

    @classmethod
    def from_pretrained(cls, painter, folder):
        """The TextToImage that an adapter was made for, and the adapter's folder, from here or from peft -> PainterLoRA; another base is refused."""
        without_adapter(painter.painter.transformer)
        lora = cls.__new__(cls)
        lora._hold(painter, read_adapter(copy.deepcopy(painter.painter.transformer), PIXART, folder, base_of(painter)))
        return lora


def another(painter, transformer):
    """A TextToImage with other weights in its transformer, so without a name: its pictures carry no recipe until it is saved, merged."""
    parts = painter.painter
    return TextToImage(Painter(transformer, parts.text_encoder, parts.autoencoder), painter.tokenizer, shift=painter.shift)


def train_lora(lora, data, config, *, run):
    """PainterLoRA + Captioned -> the same, its adapter trained by flow matching."""
    painter = lora.painter.painter
    fit(painter, lambda model, batch, generator: (drawing_losses(model, batch, generator).sum(), len(batch["latents"])),
        latent_batches(painter, lora.painter.tokenizer, data, config), config, run=run)
    return lora


def with_own_drawings(painter, data, prompts, *, share=0.5, seed=0):
    """Captioned + prompts that should stay as they are -> Captioned with what the painter draws for them; `share` of a batch."""
    in_range("share", share, 0, 1)
    drawn = to_bytes(painter(prompts, seed=seed, output_type="pt", progress=False) * 2 - 1)
    own = np.full(len(prompts), share / len(prompts))
    caption = lambda i, rng: data.caption(i, rng) if i < len(data.pixels) else prompts[i - len(data.pixels)]
    return Captioned(torch.cat((data.pixels, drawn)), caption, torch.cat((data.things, data.things.max() + 1 + torch.arange(len(prompts)))),
                     np.concatenate((data.weights / data.weights.sum() * (1 - share), own)))
