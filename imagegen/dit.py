"""The painter's transformer: noisy latents, a noise level and a prompt -> velocity. PixArt-alpha's structure (Chen et al. 2024) on the core.

Patches of latents are its tokens; one small network turns the noise level into the norms' shifts, scales and gates of all blocks
(shared adaLN); every block looks at the prompt's states by cross-attention."""
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from gencore import transformer
from gencore.attention import AttentionConfig
from gencore.check import ConfigError, dims
from gencore.config import Few, Positive, Share, Size, check_fields
from gencore.embeddings import PatchEmbedding2D, TimestepEmbedding, unpatchify
from gencore.layers import MLPConfig, NormConfig, modulate
from gencore.positions import sincos_2d
from gencore.transformer import Memory, Transformer, TransformerConfig


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the transformer."""
    channels: Size = 16             # C of the latents
    size: Few = 8                   # side of the latents in training; other sizes stretch the positions
    patch: Few = 2                  # latents per side of a token
    width: Size = 256               # D
    layers: Few = 7
    heads: Few = 4                  # N
    captions: Size = 192            # width of the prompt's states
    out_channels: Size = 16         # C, or 2C when the second half (a variance) is left unused
    interpolation: Positive = 1.0   # divides positions: PixArt at 1024 pixels has 2
    eps: Share = 1e-6               # of the blocks' norms

    def __post_init__(self):
        check_fields(self)
        if self.size % self.patch:
            raise ConfigError(f"DiT size should be a multiple of patch {self.patch}, got {self.size}")

    @property
    def transformer(self):
        """The core's configuration."""
        return TransformerConfig(
            width=self.width, layers=self.layers, attention=AttentionConfig(heads=self.heads, bias=True, out_bias=True),
            mlp=MLPConfig(4 * self.width, activation="gelu_tanh", bias=True),
            norm=NormConfig("layer", eps=self.eps, affine=False), cross=self.width, cross_norm=False, condition="adaln_shared")


class CaptionProjection(nn.Module):
    """Prompt states (B,S,M) -> (B,S,D)."""

    def __init__(self, inside, width):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inside, width), nn.Linear(width, width)

    def forward(self, states):
        return self.linear_2(F.gelu(self.linear_1(states), approximate="tanh"))


class DiT(nn.Module):
    """latents (B,C,H,W), t (B,) in 0..1000, Memory of the prompt -> velocity (B,C,H,W)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.patches = PatchEmbedding2D(cfg.channels, cfg.patch, cfg.width)
        self.time = TimestepEmbedding(cfg.width)
        self.modulation = nn.Linear(cfg.width, 6 * cfg.width)
        self.captions = CaptionProjection(cfg.captions, cfg.width)
        self.transformer = Transformer(cfg.transformer)
        self.transformer.norm.eps = 1e-6                                               # of the last norm, whatever the others have
        self.out_table = nn.Parameter(torch.zeros(2, cfg.width))                       # shift, scale
        self.out = nn.Linear(cfg.width, cfg.patch ** 2 * cfg.out_channels)
        self._start()

    def forward(self, latents, t, prompt):
        return self.velocity(latents, self.level(t), self.project(prompt))

    def level(self, t):
        """t (B,) -> ((B,D) of the level, (B,6,D) for the blocks). It does not depend on the latents: a sampler asks for all steps at once."""
        level = self.time(t)
        return level, self.modulation(F.silu(level)).unflatten(-1, (6, -1))

    def project(self, prompt):
        """Memory of the encoder's states -> Memory of this width; once a prompt."""
        return Memory(self.captions(prompt.states), prompt.keep)                       # (B, S, D)

    def velocity(self, latents, level, memory, *, cache=None):
        """level and memory as `level` and `project` give them; cache: a PromptCache over the steps of one drawing."""
        x = self.transformer(self.enter(latents), memory=memory, cond=level[1], cache=cache)
        return self.leave(x, latents.shape, level)

    def enter(self, latents):
        """latents (B,C,H,W) -> tokens with their places (B,P,D)."""
        h, w = self._sides(dims("latents", latents, "B C H W", C=self.cfg.channels))
        places = sincos_2d(h, w, self.cfg.width, self.cfg.size // self.cfg.patch, interpolation=self.cfg.interpolation)
        return self.patches(latents) + places.to(latents)

    def leave(self, x, shape, level):
        """Tokens (B,P,D) after the blocks, the latents' shape and level -> velocity (B,C,H,W)."""
        shift, scale = (self.out_table + level[0][:, None])[:, :, None].unbind(1)      # each (B, 1, D)
        patches = self.out(modulate(x, shift, scale))                                  # (B, P, p*p*C)
        return unpatchify(patches, *self._sides(shape), self.cfg.patch)[:, :self.cfg.channels]

    def _sides(self, shape):
        return shape[2] // self.cfg.patch, shape[3] // self.cfg.patch

    @torch.no_grad()
    def _start(self):
        """Norms start unmoved and gates open: what a block adds is small by its last matrix (see Transformer)."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        for block in self.transformer.blocks:
            block.modulation.table.zero_()
            block.modulation.table[[2, 5]] = 1.0


@torch.no_grad()
def finer(dit):
    """DiT -> a new one whose tokens are single latents, to be trained on: more of them, each with less to do.

    The blocks stay. Positions keep their units (a patch of before is one), a token enters as a patch of which all latents are like it, and leaves as
    the mean of a patch's."""
    p, cfg = dit.cfg.patch, replace(dit.cfg, patch=1, interpolation=dit.cfg.interpolation * dit.cfg.patch)
    new, weights = DiT(cfg), dit.state_dict()
    weights["patches.projection.weight"] = weights["patches.projection.weight"].sum((2, 3), keepdim=True)
    for name in ("out.weight", "out.bias"):
        weights[name] = weights[name].unflatten(0, (p * p, -1)).mean(0)
    new.load_state_dict(weights)
    return new


def deeper(dit, layers):
    """DiT -> a new one of `layers` blocks that gives the same velocities until it is trained on (gencore.transformer.deeper)."""
    new = DiT(replace(dit.cfg, layers=layers))
    others = {name: tensor for name, tensor in dit.state_dict().items() if not name.startswith("transformer.")}
    new.transformer = transformer.deeper(dit.transformer, layers)
    new.load_state_dict({**new.state_dict(), **others})
    return new


class PromptCache:
    """Keeps the prompt's keys and values over the steps of one drawing; the patches are new at each step and are not kept."""
    newest, window = True, None

    def __init__(self):
        self.layers = defaultdict(PromptLayer)

    def check(self, batch, layers, dtype):
        """Any batch will do; the layers are the transformer's."""

    def reserve(self, count):
        places = torch.arange(count)
        return places, places

    def advance(self, count):
        """Nothing moves: every step sees the same places."""


class PromptLayer:
    """One layer's part: CrossAttention fills `memory`."""
    memory = None

    def put(self, k, v):
        return k, v
