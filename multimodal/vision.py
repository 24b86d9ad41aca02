"""A picture as a row of vectors: the vision tower of SigLIP on the core.

Dosovitskiy et al. 2021 (patches), Zhai et al. 2023 (SigLIP: no class token, learned places, a final norm)."""
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from gencore.attention import AttentionConfig
from gencore.check import ConfigError, dims
from gencore.config import Few, Share, Size, Within, check_fields
from gencore.embeddings import LearnedPositions, PatchEmbedding2D
from gencore.layers import MLPConfig, NormConfig, make_norm
from gencore.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class VisionConfig:
    """Shape of a vision tower."""
    image: Annotated[int, Within(1, 4096)] = 64        # height and width of the pictures it reads
    patch: Few = 16                    # side of a patch; divides image
    channels: Few = 3
    width: Size = 192                  # D
    layers: Few = 5
    heads: Few = 6                     # N
    mlp: Size = 768                    # width inside an MLP
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"] = "gelu_tanh"
    eps: Share = 1e-6                  # of the norms

    def __post_init__(self):
        check_fields(self)
        if self.image % self.patch:
            raise ConfigError(f"vision.patch should divide image {self.image}, got {self.patch}")

    @property
    def patches(self):
        """P: vectors for one picture."""
        return (self.image // self.patch) ** 2

    @property
    def transformer(self):
        """The stack of blocks; its final norm is the tower's own, since LLaVA reads the states before it."""
        return TransformerConfig(width=self.width, layers=self.layers, final_norm=False,
                                 attention=AttentionConfig(self.heads, bias=True, out_bias=True),
                                 mlp=MLPConfig(self.mlp, activation=self.activation, bias=True), norm=NormConfig("layer", eps=self.eps))


class VisionTower(nn.Module):
    """Pictures (B,C,H,W) in [-1,1] -> one vector a patch (B,P,D), row by row."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.patches = PatchEmbedding2D(cfg.channels, cfg.patch, cfg.width)
        self.places = LearnedPositions(cfg.patches, cfg.width)
        self.encoder = Transformer(cfg.transformer)
        self.norm = make_norm(cfg.width, cfg.transformer.norm)
        nn.init.normal_(self.places.table.weight, std=0.02)

    def features(self, pictures):
        """States after the last block, before the final norm (B,P,D): what LLaVA projects into the words' space."""
        dims("pictures", pictures, "B C H W", C=self.cfg.channels, H=self.cfg.image, W=self.cfg.image)
        x = self.patches(pictures)                                                   # (B, P, D)
        return self.encoder(x + self.places(torch.arange(x.shape[1], device=x.device)))

    def forward(self, pictures):
        return self.norm(self.features(pictures))                                    # (B, P, D)
