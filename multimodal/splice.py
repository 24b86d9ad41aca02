"""Pictures among words: the vectors of a picture take the place of its placeholder tokens in a causal language model.

Liu et al. 2023 (LLaVA): a vision tower, a projector of two layers, a Llama-layout language model with one head for words."""
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import AttentionConfig
from gencore.check import InputError, dims
from gencore.config import Few, Share, Size, check_fields, check_ids
from gencore.layers import ACTIVATIONS, MLPConfig, NormConfig
from gencore.masks import causal, padding
from gencore.positions import RotaryConfig
from gencore.transformer import Transformer, TransformerConfig
from multimodal.vision import VisionConfig, VisionTower


@dataclass(frozen=True)
class SpliceConfig:
    """A vision tower, a projector, and a causal language model."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    vocab: Size = 1024                 # V
    width: Size = 192                  # D of the language model
    layers: Few = 2
    heads: Few = 6                     # N
    kv_heads: Few | None = None        # G; None = N
    mlp: Size = 384                    # width inside the gated MLP
    eps: Share = 1e-5                  # of the RMS norms
    rotary: RotaryConfig = field(default_factory=RotaryConfig)
    tied: bool = True                  # the head is the table of embeddings
    context: Size = 128                # positions, pictures included, that the language model was trained for
    image_token: int = 3               # id of the placeholder "<image>"

    def __post_init__(self):
        check_fields(self)
        check_ids(self, {"image_token_index": self.image_token})

    @property
    def transformer(self):
        """The language model's stack."""
        return TransformerConfig(width=self.width, layers=self.layers, attention=AttentionConfig(self.heads, self.kv_heads),
                                 mlp=MLPConfig(self.mlp, gated=True, activation="silu"), norm=NormConfig("rms", eps=self.eps),
                                 rotary=self.rotary)


class Projector(nn.Module):
    """Features of the tower (B,P,D of the tower) -> the language model's width."""

    def __init__(self, cfg):
        super().__init__()
        self.linear_1 = nn.Linear(cfg.vision.width, cfg.width)
        self.linear_2 = nn.Linear(cfg.width, cfg.width)

    def forward(self, features):
        return self.linear_2(ACTIVATIONS["gelu"](self.linear_1(features)))


class Spliced(nn.Module):
    """Tokens (B,T) with placeholders, and the pictures that belong there -> logits (B,T,V)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tower = VisionTower(cfg.vision)
        self.tower.norm.requires_grad_(False)                                        # no word sees it; DDP wants a gradient of all that learns
        self.projector = Projector(cfg)
        self.table = nn.Embedding(cfg.vocab, cfg.width)
        self.decoder = Transformer(cfg.transformer)
        self.head = nn.Linear(cfg.width, cfg.vocab, bias=False)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        if cfg.tied:
            self.head.weight = self.table.weight

    def forward(self, ids, pictures=None, keep=None, *, positions=None, cache=None):
        """ids (B,T); pictures (N,C,H,W) in the order of their placeholders; keep (B,S) marks real tokens, those in the cache included."""
        x = self.states(ids, pictures, keep, positions=positions, cache=cache)
        return self.head(x)                                                          # (B, T, V)

    def states(self, ids, pictures=None, keep=None, *, positions=None, cache=None):
        """As forward, before the head: (B,T,D)."""
        x = self.embed(ids, pictures)
        mask = causal() if keep is None else causal() & padding(keep)
        return self.decoder(x, mask, positions=positions, cache=cache)

    def embed(self, ids, pictures=None):
        """Embeddings (B,T,D) of the tokens, with the pictures' vectors in the places of image_token."""
        dims("ids", ids, "B T")
        x = self.table(ids)                                                          # (B, T, D)
        holes = ids == self.cfg.image_token                                          # (B, T)
        wanted = 0 if pictures is None else len(pictures) * self.cfg.vision.patches
        if int(holes.sum()) != wanted:
            given = 0 if pictures is None else len(pictures)
            raise InputError(f"ids hold {int(holes.sum())} placeholders, {given} pictures fill {wanted}: "
                             f"give {self.cfg.vision.patches} tokens {self.cfg.image_token} for each picture")
        if pictures is None:
            return x
        vectors = self.projector(self.tower.features(pictures))                      # (N, P, D)
        return x.masked_scatter(holes[..., None], vectors.flatten(0, 1).to(x.dtype))


def caption_loss(model, batch, generator=None):
    """batch: pictures (B,C,H,W), ids (B,T) = placeholders, caption, end; lengths (B,) of caption + end. -> (summed loss, targets).

    Only words are targets: the first is read off the picture's last vector."""
    ids, P = batch["ids"], model.cfg.vision.patches
    longest = P + int(batch["lengths"].max())                                        # no work on padding that no row needs
    states = model.states(ids[:, :longest - 1], batch["pictures"])                   # (B, T-1, D)
    targets = ids[:, P:longest]                                                      # (B, words)
    real = torch.arange(targets.shape[1], device=ids.device) < batch["lengths"][:, None]
    logits = model.head(states[:, P - 1:][real])                                     # (targets, V)
    return F.cross_entropy(logits.float(), targets[real], reduction="sum"), int(real.sum())
