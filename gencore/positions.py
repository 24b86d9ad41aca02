"""Positions: rotary in one, two and three dimensions, sinusoids, ALiBi, and T5's relative buckets.

Su et al. 2021 (rotary), Vaswani et al. 2017 (sinusoids), Press et al. 2022 (ALiBi), Raffel et al. 2020 (buckets). Positions are
explicit numbers, not the length of the call: ragged prompts and caches need that."""
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from gencore.check import ConfigError, InputError, nearest, whole
from gencore.config import Few, Positive, Share, Size, check_fields, check_values

SCALING = {name: hint for hint, names in (                     # what the fields of a scaling rule hold
    (Positive, "factor low_freq_factor high_freq_factor attention_factor beta_fast beta_slow"),
    (Size, "original_max_position_embeddings max_position_embeddings"), (float, "mscale mscale_all_dim"), (bool, "truncate"),
    (tuple[Positive, ...], "short_factor long_factor")) for name in names.split()}


@dataclass(frozen=True)
class RotaryConfig:
    """Rotary positions of one kind of layer."""
    theta: Positive = 10000.0                                  # base of the wavelengths
    partial: Share = 1.0                                       # share of the head that turns, its first dims
    layout: Literal["half", "interleaved"] = "half"            # pairs (i, i + r/2) as Llama, or (2i, 2i + 1)
    axes: tuple[Few, ...] | None = None                        # dims per axis for positions (..., A); None = one axis
    scaling: dict | None = None                                # transformers' rope_parameters without theta: {"rope_type": ...}

    def __post_init__(self):
        check_fields(self)
        check_values(self.scaling or {}, SCALING, "RotaryConfig.scaling.")

    @property
    def by_length(self):
        """Whether the rates depend on how long the text is."""
        return scaling_type(self) in ("dynamic", "longrope")

    @property
    def border(self):
        """The length beyond which every place of a text turns otherwise than before, those that a cache holds as well; or None."""
        return self.scaling["original_max_position_embeddings"] if scaling_type(self) == "longrope" else None


class Rotary:
    """Tables of one configuration for heads of `width`; what does not depend on the positions is made once."""

    def __init__(self, width, cfg):
        self.cfg, self.width = cfg, int(width * cfg.partial)
        axes = (self.width,) if cfg.axes is None else cfg.axes
        if sum(axes) != self.width or any(a % 2 for a in axes):
            raise ConfigError(f"rotary axes should be even and sum to {self.width}, got {axes} (of the width of a head, head_dim {width})")
        self.rates, self.factor = self._rates(1)

    def _rates(self, length):
        """(rates (r,) of every dim, factor on cos and sin); the rate of a pair's first dim is negative: see `rotate`."""
        if self.cfg.axes is None:
            rates, factor = scaled_rates(self.width, self.cfg, length)
        else:
            rates, factor = torch.cat([rates_of(a, self.cfg.theta) for a in self.cfg.axes]), 1.0
        pair = (-rates, rates)
        return torch.cat(pair) if self.cfg.layout == "half" else torch.stack(pair, -1).flatten(), factor

    def __call__(self, positions):
        """positions (T,), (B,T), or (...,T,A) with axes -> (cos, sin, interleaved); cos, sin (B or 1, 1, T, r).

        sin carries the sign of the rotation, so that `rotate` is one product and one fused multiply-add."""
        rates, factor = self._by_row(positions) if self.cfg.by_length else (self.rates, self.factor)
        if rates.device != positions.device:
            rates = rates.to(positions.device)
            self.rates = self.rates if self.cfg.by_length else rates
        spread = positions[..., None] if self.cfg.axes is None else self._by_axis(positions)
        angles = spread * rates                                                               # (..., T, r)
        angles = angles.view(-1, 1, *angles.shape[-2:])                                       # (B or 1, 1, T, r)
        cos, sin = angles.cos(), angles.sin()
        if factor != 1.0:
            cos, sin = cos * factor, sin * factor
        return cos, sin, self.cfg.layout == "interleaved"

    def _by_row(self, positions):
        """positions (...,T) of texts -> (rates (r,) or (...,1,r), factor): each text's length decides for itself."""
        lengths = positions.amax(-1) + 1                                                      # (...)
        if self.cfg.border is not None:                                                       # of two tables
            lengths = torch.where(lengths > self.cfg.border, self.cfg.border + 1, 1)
        found = {length: self._rates(length) for length in set(lengths.flatten().tolist())}
        (_, factor), *_ = found.values()                                                      # no rule has a factor that follows the length
        if len(found) == 1:
            return found.popitem()[1]
        rates = torch.stack([found[length][0] for length in lengths.flatten().tolist()])
        return rates.view(*lengths.shape, 1, -1), factor

    def _by_axis(self, positions):
        """positions (...,T,A) -> the position that each dim turns by, (...,T,r)."""
        if positions.dim() < 2 or positions.shape[-1] != len(self.cfg.axes):
            raise InputError(f"positions: rotary over {len(self.cfg.axes)} axes reads (T, {len(self.cfg.axes)}) or (B, T, "
                             f"{len(self.cfg.axes)}), got shape {tuple(positions.shape)}")
        pairs = torch.cat([positions[..., i, None].expand(*positions.shape[:-1], a // 2) for i, a in enumerate(self.cfg.axes)], -1)
        return torch.cat((pairs, pairs), -1) if self.cfg.layout == "half" else pairs.repeat_interleave(2, -1)


def restarting(documents):
    """documents (B,T), numbers of packed documents -> positions (B,T) that count from 0 in each."""
    B, T = documents.shape
    slots = torch.arange(T, device=documents.device).expand(B, T)
    same = F.pad(documents[:, 1:] == documents[:, :-1], (1, 0))                               # as the token before; the first is not
    return slots - slots.masked_fill(same, 0).cummax(1).values


def rotary_table(positions, width, cfg):
    """The table of `Rotary(width, cfg)` for these positions."""
    return Rotary(width, cfg)(positions)


def rotate(x, cos, sin, interleaved=False):
    """x (B,N,T,E) turned by its positions; only the first cos.shape[-1] dims turn."""
    r = cos.shape[-1]
    if cos.dtype != x.dtype:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    turning = x if r == x.shape[-1] else x[..., :r]
    if interleaved:
        partner = turning.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)                         # pairs exchanged
    else:
        partner = turning.roll(r // 2, -1)                                                    # halves exchanged
    turned = torch.addcmul(turning * cos, partner, sin)
    return turned if r == x.shape[-1] else torch.cat((turned, x[..., r:]), -1)


def rates_of(width, theta):
    """Radians per position of each pair: theta^(-2i/width), (width/2,)."""
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)


class _Rule(dict):
    """A scaling rule whose missing fields are named."""

    def __missing__(self, key):
        raise ConfigError(f"rotary scaling {scaling_type(self)} needs the field {key}, got {dict(self)}")


def scaling_type(rule):
    """The type that a rule (or a RotaryConfig) names; old files say `type`."""
    rule = (rule.scaling or {}) if isinstance(rule, RotaryConfig) else rule
    return rule.get("rope_type", rule.get("type", "default"))


def scaled_rates(width, cfg, length=1):
    """(rates (width/2,), factor on cos and sin) under cfg.scaling for a text of `length`, as transformers defines the types."""
    plain, rule = rates_of(width, cfg.theta), _Rule((name, value) for name, value in (cfg.scaling or {}).items() if value is not None)
    kind = scaling_type(rule)
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / rule["factor"], 1.0
    if kind == "dynamic":                                       # NTK: a longer base once the text is longer than the training's
        most = rule["original_max_position_embeddings"]
        length = max(length, most)
        stretch = rule["factor"] * length / most - (rule["factor"] - 1)
        return rates_of(width, cfg.theta * stretch ** (width / (width - 2))), 1.0
    if kind == "llama3":
        return _llama3(plain, rule), 1.0
    if kind == "yarn":
        return _yarn(plain, rule, width, cfg.theta)
    if kind == "longrope":
        return _longrope(plain, rule, length)
    known = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    raise ConfigError(f'rotary scaling "{kind}" is unknown{nearest(kind, known)}: expected as rope_type {", ".join(known)}')


def _llama3(plain, rule):
    """Long waves stretched by the factor, short ones kept, a smooth passage between."""
    old = rule["original_max_position_embeddings"]
    low, high = rule["low_freq_factor"], rule["high_freq_factor"]
    wave = 2 * math.pi / plain
    smooth = ((old / wave - low) / (high - low)).clamp(0, 1)    # 0: wave > old/low, 1: wave < old/high
    return (1 - smooth) * plain / rule["factor"] + smooth * plain


def _yarn(plain, rule, width, theta):
    """Peng et al. 2023: a ramp over the dims between beta_fast and beta_slow turns, and a temperature on the scores."""
    old, factor = rule["original_max_position_embeddings"], rule["factor"]
    if theta <= 1:
        raise ConfigError(f"rotary scaling yarn needs a rope_theta above 1, got {theta}")

    def dim_of(turns):
        return width * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_of(rule.get("beta_fast") or 32), dim_of(rule.get("beta_slow") or 1)
    if rule.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = ((torch.arange(width // 2, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    rates = plain / factor * ramp + plain * (1 - ramp)

    def temperature(mscale):
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rule.get("attention_factor") is not None:
        return rates, rule["attention_factor"]
    if rule.get("mscale") and rule.get("mscale_all_dim"):
        return rates, temperature(rule["mscale"]) / temperature(rule["mscale_all_dim"])
    return rates, temperature(1)


def _longrope(plain, rule, length):
    """Ding et al. 2024: one list of factors for short texts, one for long."""
    old = rule["original_max_position_embeddings"]
    sizes = tuple(len(rule[name]) for name in ("short_factor", "long_factor"))
    if old < 2 or sizes != (len(plain), len(plain)):
        raise ConfigError(f"rotary scaling longrope needs {len(plain)} factors in short_factor and in long_factor, and "
                          f"original_max_position_embeddings above 1, got {sizes} and {old}")
    factors = torch.tensor(rule["long_factor"] if length > old else rule["short_factor"], dtype=torch.float32, device="cpu")
    factor = rule.get("factor") or rule.get("max_position_embeddings", old) / old
    scale = rule.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0
    return plain / factors, scale


def sinusoidal(positions, width, layout="interleaved", *, shift=0.0, base=10000.0):
    """positions (...,) -> (..., width). Layouts: "interleaved" (sin, cos, sin, ... of the Transformer paper), "sin|cos", "cos|sin".

    shift: 1 makes the last wavelength exactly `base` (the exponent runs to 1: MusicGen, DiT's timesteps)."""
    half = width // 2
    if half <= shift:
        raise InputError(f"sinusoids of width {width} with shift {shift} have no wavelengths: the width should be at least {2 * int(shift) + 2}")
    rates = torch.exp(-math.log(base) * torch.arange(half, dtype=torch.float32, device=positions.device) / (half - shift))
    angles = positions[..., None].float() * rates                                             # (..., half)
    sin, cos = angles.sin(), angles.cos()
    if layout == "interleaved":
        table = torch.stack((sin, cos), -1).flatten(-2)
    elif layout in ("sin|cos", "cos|sin"):
        table = torch.cat((sin, cos) if layout == "sin|cos" else (cos, sin), -1)
    else:
        raise ConfigError(f'sinusoidal layout should be interleaved, sin|cos or cos|sin, got "{layout}"')
    return nn.functional.pad(table, (0, width % 2))


def sincos_2d(height, width, channels, base_size=None, *, interpolation=1.0):
    """Table (height*width, channels) of a picture's patches, row by row: first half of the channels from the column,
    second from the row, each sin|cos (diffusers' order). base_size: patches per side in training."""
    if channels < 4 or channels % 4:
        raise InputError(f"channels should be a multiple of 4 (sin and cos of columns and of rows), got {channels}")
    base = base_size or max(height, width)
    rows = torch.arange(height, dtype=torch.float64) / (height / base) / interpolation
    columns = torch.arange(width, dtype=torch.float64) / (width / base) / interpolation
    y, x = torch.meshgrid(rows, columns, indexing="ij")                                       # (H, W)
    omega = 1.0 / 10000 ** (torch.arange(channels // 4, dtype=torch.float64) / (channels / 4))
    halves = []
    for axis in (x, y):
        angles = axis.reshape(-1, 1) * omega                                                  # (HW, channels/4)
        halves.append(torch.cat((angles.sin(), angles.cos()), -1))
    return torch.cat(halves, -1).float()                                                      # (HW, channels)


def grid_positions(*sizes):
    """(H, W) or (F, H, W) -> positions (H*W or F*H*W, axes) for rotary axes, last axis fastest."""
    axes = torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij")
    return torch.stack([a.reshape(-1) for a in axes], -1)


@dataclass(frozen=True)
class RelativeConfig:
    """A bias on the scores that depends only on key - query."""
    kind: Literal["t5", "alibi"] = "t5"
    buckets: Size = 32                 # t5: rows of the table
    distance: Size = 128               # t5: beyond it all distances share the last bucket
    two_way: bool = True               # t5: half of the buckets for keys after the query

    def __post_init__(self):
        check_fields(self)
        exact = self.buckets // (2 if self.two_way else 1) // 2
        if self.kind == "t5" and not 1 <= exact < self.distance:
            raise ConfigError(f"buckets should leave some for distances from 1 to {self.distance}, half of those of a side, got {self.buckets}")


class RelativeBias(nn.Module):
    """query (T,), key (S,) slots -> bias (1, N, T, S)."""

    def __init__(self, heads, cfg):
        super().__init__()
        self.cfg, self.heads = cfg, heads
        self.table = nn.Embedding(cfg.buckets, heads) if cfg.kind == "t5" else None

    def forward(self, query, key):
        offset = key[None, :] - query[:, None]                                                # (T, S)
        if self.table is None:
            return -offset.abs() * alibi_slopes(self.heads).to(offset.device)[None, :, None, None]   # (1, N, T, S)
        return self.table(t5_bucket(offset, self.cfg)).permute(2, 0, 1)[None]                 # (1, N, T, S)


def t5_bucket(offset, cfg):
    """key - query -> bucket: exact for small distances, then logarithmic."""
    buckets, first = cfg.buckets, 0
    if cfg.two_way:
        buckets //= 2
        first = (offset > 0).long() * buckets
        distance = offset.abs()
    else:
        distance = (-offset).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(cfg.distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return first + torch.where(distance < exact, distance, far)


def alibi_slopes(heads):
    """Slopes 2^(-8i/N) of Press et al.; for other counts than powers of two the published interleaving."""
    def powers(n):
        return [2 ** (-8 * (i + 1) / n) for i in range(n)]
    near = 2 ** math.floor(math.log2(whole("heads", heads, 1)))
    return torch.tensor(powers(near) + powers(2 * near)[0::2][:heads - near])
