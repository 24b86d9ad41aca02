"""The Transformer: one class for words, patches, codes and noise; causal or two-way is the mask's business.

A structure that differs is another class. x (B,T,D) is the residual stream."""
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import nn

from gencore.attention import CAUSAL, Attention, AttentionConfig, CrossAttention, head_sizes
from gencore.check import ConfigError, InputError, dims
from gencore.layers import AdaLNZero, MLPConfig, NormConfig, SharedAdaLN, make_mlp, make_norm, modulate
from gencore.positions import RelativeBias, RelativeConfig, RotaryConfig, rotary_table


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that distinguishes one stack of blocks from another."""
    width: int = 128                                             # D
    layers: int = 2
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mlp: MLPConfig = field(default_factory=MLPConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    rotary: RotaryConfig | None = None                           # None = positions come with the embeddings, or not at all
    local_rotary: RotaryConfig | None = None                     # of the layers with a window (Gemma 3); None = as `rotary`
    relative: RelativeConfig | None = None                       # a bias by distance: T5, ALiBi
    windows: tuple[int | None, ...] | None = None                # one per layer, repeated; None = the mask as it comes
    cross: int | None = None                                     # width of the memory; None = no cross-attention
    cross_norm: bool = True                                      # a norm before cross-attention (PixArt has none)
    condition: Literal["none", "adaln_zero", "adaln_shared"] = "none"
    dropout: float = 0.0                                         # on what a sublayer adds
    final_norm: bool = True                                      # after the last block

    def __post_init__(self):
        head_sizes(self.width, self.attention)
        if self.condition != "none" and self.norm.place != "pre":
            raise ConfigError(f'adaptive norm needs norm.place="pre", got "{self.norm.place}"')

    def window_of(self, layer):
        """Window of that layer, or None."""
        return self.windows[layer % len(self.windows)] if self.windows else None


class Memory(NamedTuple):
    """What cross-attention looks at."""
    states: torch.Tensor                     # (B, S, M)
    keep: torch.Tensor | None = None         # (B, S) bool, True = real


class Inputs(NamedTuple):
    """What every block of one forward gets besides x; made once, by the Transformer."""
    seen: object = None                      # None, CAUSAL, bool or float tensor: see `attend`
    rotary: tuple | None = None
    memory: torch.Tensor | None = None       # (B, S, M)
    memory_seen: torch.Tensor | None = None  # (B, 1, 1, S)
    cond: torch.Tensor | None = None         # (B, D), or (B, 6, D) for shared adaLN


class Block(nn.Module):
    """Attention, cross-attention when there is a memory, MLP; norms before, after or around."""

    def __init__(self, cfg):
        super().__init__()
        width, self.place = cfg.width, cfg.norm.place
        self.attention_norm = make_norm(width, cfg.norm)
        self.attention = Attention(width, cfg.attention)
        self.mlp_norm = make_norm(width, cfg.norm)
        self.mlp = make_mlp(width, cfg.mlp)
        self.drop = nn.Dropout(cfg.dropout)
        self.cross = CrossAttention(width, cfg.attention, cfg.cross) if cfg.cross else None
        self.cross_norm = make_norm(width, cfg.norm) if cfg.cross and cfg.cross_norm else nn.Identity()
        self.modulation = {"none": lambda _: None, "adaln_zero": AdaLNZero, "adaln_shared": SharedAdaLN}[cfg.condition](width)
        if self.place == "sandwich":
            self.attention_after, self.mlp_after = make_norm(width, cfg.norm), make_norm(width, cfg.norm)

    def forward(self, x, inputs, cache=None):
        if self.modulation is not None:
            return self._adaptive(x, inputs, cache)
        if self.place == "post":
            x = self.attention_norm(x + self._attend(x, inputs, cache))
            if self.cross is not None:
                x = self.cross_norm(x + self._cross(x, inputs, cache))
            return self.mlp_norm(x + self.drop(self.mlp(x)))
        after = (self.attention_after, self.mlp_after) if self.place == "sandwich" else (nn.Identity(), nn.Identity())
        x = x + after[0](self._attend(self.attention_norm(x), inputs, cache))
        if self.cross is not None:
            x = x + self._cross(self.cross_norm(x), inputs, cache)
        return x + after[1](self.drop(self.mlp(self.mlp_norm(x))))

    def _adaptive(self, x, inputs, cache):
        """adaLN: shift, scale and gate come from the condition (a noise level, a label)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(inputs.cond)        # each (B, 1, D)
        x = x + gate * self._attend(modulate(self.attention_norm(x), shift, scale), inputs, cache)
        if self.cross is not None:
            x = x + self._cross(self.cross_norm(x), inputs, cache)
        return x + mlp_gate * self.drop(self.mlp(modulate(self.mlp_norm(x), mlp_shift, mlp_scale)))

    def _attend(self, x, inputs, cache):
        return self.drop(self.attention(x, inputs.seen, rotary=inputs.rotary, cache=cache))

    def _cross(self, x, inputs, cache):
        return self.drop(self.cross(x, inputs.memory, inputs.memory_seen, cache=cache))


class Transformer(nn.Module):
    """A stack of blocks. x (B,T,D) -> (B,T,D)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = make_norm(cfg.width, cfg.norm) if cfg.final_norm and cfg.norm.place != "post" else nn.Identity()
        self.relative = RelativeBias(cfg.attention.heads, cfg.relative) if cfg.relative else None
        self.apply(self._start)
        for block in self.blocks:                                   # what is added 2L times starts smaller (GPT-2)
            for last in (block.attention.out, block.mlp.down):
                nn.init.normal_(last.weight, std=0.02 / (2 * cfg.layers) ** 0.5)

    def forward(self, x, mask=None, *, positions=None, cache=None, memory=None, cond=None):
        """mask: a Mask of gencore.masks, None = everything. positions (T,), (B,T) or (...,A): default the slots.
        cache: filled and advanced. memory: a Memory. cond: (B,D), or (B,6,D) for shared adaLN."""
        B, T, _ = dims("x", x, "B T D", D=self.cfg.width)
        if self.cfg.cross and memory is None:
            raise InputError("this transformer has cross-attention: give memory=Memory(states, keep)")
        if cache is None:
            query = key = torch.arange(T, device=x.device)
        else:
            query, key = cache.reserve(T)
        inputs = self._inputs(query if positions is None else positions, memory, cond)
        masks = _Dense(mask, self.relative, query, key, cache is None or cache.newest)
        local = self._rotary(query if positions is None else positions, self.cfg.local_rotary) or inputs.rotary
        for i, block in enumerate(self.blocks):
            window = self.cfg.window_of(i)
            inputs = inputs._replace(seen=masks(window))
            around = inputs if window is None else inputs._replace(rotary=local)
            x = block(x, around, None if cache is None else cache.layers[i])
        if cache is not None:
            cache.advance(T)
        return self.norm(x)

    def _inputs(self, positions, memory, cond):
        states, keep = memory if memory is not None else (None, None)
        return Inputs(rotary=self._rotary(positions, self.cfg.rotary), memory=states, cond=cond,
                      memory_seen=None if keep is None else keep.bool()[:, None, None, :])

    def _rotary(self, positions, cfg):
        return None if cfg is None else rotary_table(positions, head_sizes(self.cfg.width, self.cfg.attention)[2], cfg)

    @staticmethod
    def _start(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            if not isinstance(module, nn.Linear) or module.weight.abs().sum() != 0:      # adaLN-zero stays zero
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class _Dense:
    """The mask of one forward in the form that kernels take, made once for each window."""

    def __init__(self, mask, relative, query, key, newest):
        self.mask, self.query, self.key, self.newest = mask, query, key, newest
        self.bias = None if relative is None else relative(query, key)                   # (1, N, T, S)
        self.made = {}

    def __call__(self, window):
        if window not in self.made:
            self.made[window] = self._make(self.mask.with_window(window) if self.mask is not None else None)
        return self.made[window]

    def _make(self, mask):
        if mask is None:
            return self.bias
        if self.bias is None and mask.only_causal and self.newest and len(self.query) == len(self.key) > 1:
            return CAUSAL
        seen = mask.dense(self.query, self.key, self.newest)
        if self.bias is None or seen is None:
            return self.bias if seen is None else seen
        return self.bias.masked_fill(~seen, torch.finfo(self.bias.dtype).min)            # (B or 1, N, T, S)
