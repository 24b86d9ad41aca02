"""The Transformer: one class for words, patches, codes and noise; causal or two-way is the mask's business.

A structure that differs is another class. x (B,T,D) is the residual stream."""
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import CAUSAL, Attention, AttentionConfig, CrossAttention, head_sizes
from gencore.check import ConfigError, InputError, dims
from gencore.config import Few, Share, Size, check_fields
from gencore.layers import AdaLNZero, MLPConfig, NormConfig, SharedAdaLN, make_mlp, make_norm, modulate
from gencore.masks import Mask
from gencore.positions import RelativeBias, RelativeConfig, Rotary, RotaryConfig
from gencore.tiles import tiles_of


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that distinguishes one stack of blocks from another."""
    width: Size = 128                                            # D
    layers: Few = 2
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    mlp: MLPConfig = field(default_factory=MLPConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    rotary: RotaryConfig | None = None                           # None = positions come with the embeddings, or not at all
    local_rotary: RotaryConfig | None = None                     # of the layers with a window (Gemma 3); None = as `rotary`
    relative: RelativeConfig | None = None                       # a bias by distance: T5, ALiBi
    windows: tuple[Size | None, ...] | None = None               # one per layer, repeated; None = the mask as it comes
    cross: Size | None = None                                    # width of the memory; None = no cross-attention
    cross_norm: bool = True                                      # a norm before cross-attention (PixArt has none)
    condition: Literal["none", "adaln_zero", "adaln_shared"] = "none"
    dropout: Share = 0.0                                         # on what a sublayer adds
    final_norm: bool = True                                      # after the last block

    def __post_init__(self):
        check_fields(self)
        head_sizes(self.width, self.attention)
        if self.condition != "none" and self.norm.place != "pre":
            raise ConfigError(f'adaptive norm needs norm.place="pre", got "{self.norm.place}"')

    def window_of(self, layer):
        """Window of that layer, or None."""
        return self.windows[layer % len(self.windows)] if self.windows else None

    @property
    def rotaries(self):
        """Those of all layers and of layers with a window, as far as there are."""
        return [rotary for rotary in (self.rotary, self.local_rotary) if rotary is not None]

    @property
    def by_length(self):
        """Whether positions turn by how long the text is."""
        return any(rotary.by_length for rotary in self.rotaries)


class Memory(NamedTuple):
    """What cross-attention looks at."""
    states: torch.Tensor                     # (B, S, M)
    keep: torch.Tensor | None = None         # (B, S) bool, True = real

    @property
    def seen(self):
        """`keep` as attention takes it (B,1,1,S)."""
        return None if self.keep is None else self.keep.bool()[:, None, None, :]


class Inputs(NamedTuple):
    """What every block of one forward gets besides x; made once, by the Transformer."""
    seen: object = None                      # None, CAUSAL, Tiles, bool or float tensor: see `attend`
    rotary: tuple | None = None
    memory: torch.Tensor | None = None       # (B, S, M)
    memory_seen: torch.Tensor | None = None  # (B, 1, 1, S)
    cond: torch.Tensor | None = None         # (B, D), or (B, 6, D) for shared adaLN


class Block(nn.Module):
    """Attention, cross-attention when there is a memory, MLP; norms before, after or around."""

    def __init__(self, cfg):
        super().__init__()
        width, self.place, self.dropout = cfg.width, cfg.norm.place, cfg.dropout
        self.attention_norm = make_norm(width, cfg.norm)
        self.attention = Attention(width, cfg.attention, cfg.norm.eps)
        self.mlp_norm = make_norm(width, cfg.norm)
        self.mlp = make_mlp(width, cfg.mlp)
        self.cross = CrossAttention(width, cfg.attention, cfg.cross) if cfg.cross else None
        self.cross_norm = make_norm(width, cfg.norm) if cfg.cross and cfg.cross_norm else None
        self.modulation = None if cfg.condition == "none" else {"adaln_zero": AdaLNZero, "adaln_shared": SharedAdaLN}[cfg.condition](width)
        sandwich = self.place == "sandwich"
        self.attention_after = make_norm(width, cfg.norm) if sandwich else None
        self.mlp_after = make_norm(width, cfg.norm) if sandwich else None

    def forward(self, x, inputs, cache=None):
        if self.modulation is not None:
            return self._adaptive(x, inputs, cache)
        if self.place == "post":
            x = self.attention_norm(x + self._attend(x, inputs, cache))
            if self.cross is not None:
                x = x + self._cross(x, inputs, cache)
                x = x if self.cross_norm is None else self.cross_norm(x)
            return self.mlp_norm(x + self._drop(self.mlp(x)))
        added = self._attend(self.attention_norm(x), inputs, cache)
        x = x + (added if self.attention_after is None else self.attention_after(added))
        if self.cross is not None:
            x = x + self._cross(x if self.cross_norm is None else self.cross_norm(x), inputs, cache)
        added = self._drop(self.mlp(self.mlp_norm(x)))
        return x + (added if self.mlp_after is None else self.mlp_after(added))

    def _adaptive(self, x, inputs, cache):
        """adaLN: shift, scale and gate come from the condition (a noise level, a label)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(inputs.cond)        # each (B, 1, D)
        x = x + gate * self._attend(modulate(self.attention_norm(x), shift, scale), inputs, cache)
        if self.cross is not None:
            x = x + self._cross(x if self.cross_norm is None else self.cross_norm(x), inputs, cache)
        return x + mlp_gate * self._drop(self.mlp(modulate(self.mlp_norm(x), mlp_shift, mlp_scale)))

    def _attend(self, x, inputs, cache):
        return self._drop(self.attention(x, inputs.seen, rotary=inputs.rotary, cache=cache))

    def _cross(self, x, inputs, cache):
        return self._drop(self.cross(x, inputs.memory, inputs.memory_seen, cache=cache))

    def _drop(self, x):
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class Transformer(nn.Module):
    """A stack of blocks. x (B,T,D) -> (B,T,D)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = make_norm(cfg.width, cfg.norm) if cfg.final_norm and cfg.norm.place != "post" else nn.Identity()
        self.relative = RelativeBias(cfg.attention.heads, cfg.relative) if cfg.relative else None
        head_width = head_sizes(cfg.width, cfg.attention)[2]
        self.rotary = Rotary(head_width, cfg.rotary) if cfg.rotary else None
        self.local_rotary = Rotary(head_width, cfg.local_rotary) if cfg.local_rotary else self.rotary
        self._start()

    def forward(self, x, mask=None, *, positions=None, cache=None, memory=None, cond=None):
        """mask: a Mask of gencore.masks, None = everything. positions (T,), (B,T) or (...,A): default the slots.
        cache: filled and advanced. memory: a Memory. cond: (B,D), or (B,6,D) for shared adaLN."""
        B, T, _ = dims("x", x, "B T D", D=self.cfg.width)
        if cache is None:
            query = key = torch.arange(T, device=x.device)
        else:
            cache.check(B, len(self.blocks), x.dtype)
            query, key = cache.reserve(T)
        positions = query if positions is None else positions
        self._check(B, T, positions, memory=memory, cond=cond)
        masks = _Masks(mask, self.relative, (B, query, key), cache)
        tables, shared = {}, {}                                     # layers of one window share mask and table
        for i, block in enumerate(self.blocks):
            window = self.cfg.window_of(i)
            if window not in shared:
                rotary = self.rotary if window is None else self.local_rotary
                if rotary is not None and rotary not in tables:
                    tables[rotary] = rotary(positions)
                shared[window] = Inputs(masks.of(window), tables.get(rotary), *masks.of_memory(memory), cond)
            x = block(x, shared[window], None if cache is None else cache.layers[i])
        if cache is not None:
            cache.advance(T)
        return self.norm(x)

    def _check(self, B, T, positions, *, memory, cond):
        """What a forward was given, against what the configuration needs."""
        axes = self.cfg.rotary.axes if self.cfg.rotary else None
        shape = positions.shape if axes is None else positions.shape[:-1]
        if shape not in ((T,), (1, T), (B, T)):
            raise InputError(f"positions should be ({T},) or ({B}, {T}){' and an axis' if axes else ''}, got {tuple(positions.shape)}")
        if (memory is None) != (self.cfg.cross is None):
            raise InputError("this transformer has cross-attention: give memory=Memory(states, keep)" if self.cfg.cross else
                             "this transformer has no cross-attention: memory can't be used (TransformerConfig.cross is its width)")
        if memory is not None and memory.keep is not None:
            dims("memory.keep", memory.keep, "B S", B=B, S=memory.states.shape[1])
        if (cond is None) != (self.cfg.condition == "none"):
            raise InputError(f'condition is "{self.cfg.condition}": cond should {"not " * (cond is not None)}be given')
        if cond is not None:
            dims("cond", cond, "B D" if self.cfg.condition == "adaln_zero" else "B 6 D", B=B, D=self.cfg.width)

    def _start(self):
        """Weights of a model that is to be trained."""
        zeros = {module.linear for module in self.modules() if isinstance(module, AdaLNZero)}       # a block starts as identity
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and module not in zeros:
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:                                   # what is added 2L times starts smaller (GPT-2)
            for last in (block.attention.out, block.mlp.down):
                nn.init.normal_(last.weight, std=0.02 / (2 * self.cfg.layers) ** 0.5)


@torch.no_grad()
def deeper(stack, layers):
    """Transformer -> a new one of `layers` blocks, at least as many, that gives the same as it did.

    An added block is a copy of the one below it, whose last matrices are zero until they are trained (Wu et al. 2024, LLaMA Pro)."""
    cfg = stack.cfg
    if layers < cfg.layers or cfg.norm.place == "post" or cfg.windows is not None:
        raise ConfigError(f"only a stack without windows and without norms after its blocks can grow, to {cfg.layers} layers or more; got "
                          f'layers={layers}, norm.place="{cfg.norm.place}", windows={cfg.windows}')
    new = Transformer(replace(cfg, layers=layers))
    below = [place * cfg.layers // layers for place in range(layers)]                           # 6 to 8: 0, 0, 1, 2, 3, 3, 4, 5
    for place, (block, source) in enumerate(zip(new.blocks, below)):
        block.load_state_dict(stack.blocks[source].state_dict())
        if place and below[place - 1] == source:
            lasts = [block.attention.out, block.mlp.down, *([block.cross.out] if block.cross is not None else [])]
            for weight in (weight for last in lasts for weight in last.parameters()):
                weight.zero_()
    others = {name: tensor for name, tensor in stack.state_dict().items() if not name.startswith("blocks.")}
    new.load_state_dict({**new.state_dict(), **others})
    return new.to(next(stack.parameters()))


class _Masks:
    """The mask of one forward in the form that kernels take."""

    def __init__(self, mask, relative, slots, cache):
        self.mask, (self.rows, self.query, self.key) = mask, slots
        self.newest = cache is None or cache.newest
        if cache is not None and cache.window is not None:                               # a rolling cache forgets the rest
            self.mask = (mask or Mask()).with_window(cache.window)
        self.bias = None if relative is None else relative(self.query, self.key)         # (1, N, T, S)

    def of(self, window):
        """The mask of layers with this window, as `attend` takes it."""
        mask = self.mask if window is None else (self.mask or Mask()).with_window(window)
        if mask is None:
            return self.bias
        if self.bias is None and mask.only_causal and self.newest and len(self.query) == len(self.key) > 1:
            return CAUSAL
        tiles = None if self.bias is not None else tiles_of(mask, self.query, self.key, rows=self.rows)
        if tiles is not None:
            return tiles
        seen = mask.dense(self.query, self.key, self.newest)
        if self.bias is None or seen is None:
            return self.bias if seen is None else seen
        return self.bias.masked_fill(~seen, torch.finfo(self.bias.dtype).min)            # (B or 1, N, T, S)

    @staticmethod
    def of_memory(memory):
        """memory -> (its states, which of them are real (B,1,1,S))."""
        return (None, None) if memory is None else (memory.states, memory.seen)
