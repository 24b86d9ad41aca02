"""Token model of speech: (word, voice) -> codes of the codec, step by step, on the core's Transformer.

After MusicGen (Copet et al. 2023): delay pattern, summed codebook embeddings, one head a codebook, the condition dropped for guidance."""
import re
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import AttentionConfig
from gencore.cache import Cache
from gencore.check import ConfigError, dims, in_range
from gencore.choose import Sampling
from gencore.config import Few, Share, Size, Within, check_fields
from gencore.decode import decode, guided, pick_by_pattern, picker
from gencore.embeddings import CodebookEmbedding, LabelEmbedding
from gencore.layers import MLPConfig
from gencore.masks import causal
from gencore.patterns import delay
from gencore.positions import RotaryConfig
from gencore.transformer import Transformer, TransformerConfig

PREFIX = 2                        # positions before the codes: word, voice
NEVER = -1e4                      # logit of what can't be said; finite, so that guidance may subtract it


def small_transformer():
    """The shape of the shipped speaker."""
    return TransformerConfig(width=192, layers=5, attention=AttentionConfig(heads=6), rotary=RotaryConfig(),
                             mlp=MLPConfig(width=448, gated=True, activation="silu"), dropout=0.1)


@dataclass(frozen=True)
class TokenModelConfig:
    """What is said, by whom, in which codes, and the transformer that predicts them."""
    words: tuple[str, ...]                     # words or phrases, each with an embedding of its own
    voices: tuple[str, ...]                    # speakers
    books: Few = 4                             # K, of the codec
    codes: Size = 256                          # in a book; the number `codes` itself is filler, and the end in book 0
    longest: Annotated[int, Within(1, 16384)] = 80       # frames of one clip, in training and at most when speaking
    unconditional: Share = 0.1                 # share of training clips without word and voice, for guidance
    weights: tuple[float, ...] = (2.0, 1.0, 1.0, 1.0)    # of each book in the loss: the first carries the word
    transformer: TransformerConfig = field(default_factory=small_transformer)

    def __post_init__(self):
        check_fields(self)
        for name in ("words", "voices"):
            if not getattr(self, name) or len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ConfigError(f"TokenModelConfig.{name} should be different names, at least one, got {getattr(self, name)}")
        if not all(keys := [spoken(word) for word in self.words]) or len(set(keys)) < len(keys):
            raise ConfigError(f"TokenModelConfig.words should differ in more than small letters and punctuation, and have letters, got {self.words}")
        if len(self.weights) != self.books or min(self.weights) < 0 or sum(self.weights) == 0:
            raise ConfigError(f"TokenModelConfig.weights should be {self.books}, one for each book, none below 0, got {self.weights}")

    @property
    def filler(self):
        return self.codes


def spoken(text):
    """A text -> its words in small letters, without punctuation but what lies inside them: ("don't", "forty-two")."""
    return tuple(re.findall(r"\w+(?:['-]\w+)*", text.lower()))


class TokenModel(nn.Module):
    """words (B,), voices (B,), steps (B,K,S) -> logits (B,K,S,codes+1) of the step that comes after each."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        width = cfg.transformer.width
        self.pattern = delay(cfg.books)
        self.word = LabelEmbedding(len(cfg.words), width)
        self.voice = LabelEmbedding(len(cfg.voices), width)
        self.embed = CodebookEmbedding(cfg.books, cfg.codes, width)
        self.transformer = Transformer(cfg.transformer)
        self.heads = nn.Linear(width, cfg.books * (cfg.codes + 1), bias=False)
        for table in (self.word.table, self.voice.table, *self.embed.tables):
            nn.init.normal_(table.weight, std=0.05)
        nn.init.normal_(self.heads.weight, std=0.02)

    def prefix(self, words, voices, dropped=None):
        """words, voices (B,) -> (B,PREFIX,D); dropped (B,) bool: rows without condition."""
        return torch.stack([self.word(words, dropped), self.voice(voices, dropped)], 1)

    def logits(self, x):
        """x (B,S,D) after the transformer -> (B,K,S,codes+1); only book 0 can end."""
        B, S, _ = x.shape
        logits = self.heads(x).view(B, S, self.cfg.books, -1).transpose(1, 2)     # (B, K, S, codes + 1)
        silent = torch.zeros(self.cfg.books, 1, self.cfg.codes + 1, dtype=torch.bool, device=x.device)
        silent[1:, :, self.cfg.filler] = True
        return logits.masked_fill(silent, NEVER)

    def forward(self, words, voices, steps, dropped=None):
        """steps (B,K,S), the first of them all filler. Logits at step s are those of step s + 1."""
        dims("steps", steps, "B K S", K=self.cfg.books)
        x = torch.cat([self.prefix(words, voices, dropped), self.embed(steps)], 1)           # (B, PREFIX + S, D)
        return self.logits(self.transformer(x, causal())[:, PREFIX:])                        # (B, K, S, codes + 1)


def padded_steps(model, codes, lengths):
    """codes (B,K,T) of `lengths` (B,) frames -> (steps (B,K,S+1) with a first step of filler, weights (B,K,S) of the targets).

    Book 0 says `filler` once after its last code: the end."""
    cfg = model.cfg
    _, K, T = dims("codes", codes, "B K T", K=cfg.books)
    frames = torch.arange(T + 1, device=codes.device)
    inside = frames < lengths[:, None, None]                                      # (B, 1, T + 1)
    codes = F.pad(codes, (0, 1)).masked_fill(~inside, cfg.filler)                 # (B, K, T + 1)
    weights = inside.expand(-1, K, -1) * codes.new_tensor(cfg.weights, dtype=torch.float)[:, None]
    ends = frames == lengths[:, None]                                             # (B, T + 1)
    weights[:, 0] = torch.where(ends, cfg.weights[0], weights[:, 0])
    steps = F.pad(model.pattern.spread(codes, cfg.filler), (1, 0), value=cfg.filler)
    return steps, model.pattern.spread(weights, 0.0)


def token_loss(model, batch, generator):
    """batch: codes (B,K,T), lengths, words, voices (B,) -> (weighted sum of cross-entropies, sum of weights)."""
    words = batch["words"]
    steps, weights = padded_steps(model, batch["codes"], batch["lengths"])
    dropped = None
    if model.training:
        dropped = (torch.rand(len(words), generator=generator) < model.cfg.unconditional).to(words.device)
    logits = model(words, batch["voices"], steps[:, :, :-1], dropped)             # (B, K, S, codes + 1)
    losses = F.cross_entropy(logits.flatten(0, 2), steps[:, :, 1:].flatten(), reduction="none").view_as(weights)
    return (losses * weights).sum(), weights.sum()


@dataclass(frozen=True)
class SpeechSettings:
    """How codes are drawn."""
    guidance: float = 3.0             # 1 = the model as it is; above, what speaks against word and voice is pushed away
    temperature: float = 0.8          # 0 = always the likeliest
    top_k: int | None = 50            # codes considered; None = all

    def __post_init__(self):
        in_range("guidance", self.guidance, 0, 20)
        Sampling(self.temperature, self.top_k)                                    # checks these two

    @property
    def sampling(self):
        return Sampling(self.temperature, self.top_k)


@torch.inference_mode()
def speak(model, words, voices, settings, *, seed):
    """words, voices (B,) -> list of codes (K,T), one clip each. Row i draws from its own generator, so a word alone is a word in a list."""
    cfg, B, device = model.cfg, len(words), model.heads.weight.device
    limit = model.pattern.steps(cfg.longest)
    cache = Cache(cfg.transformer, 2 * B, PREFIX + 1 + limit, device=device)

    def after(x):
        return model.logits(model.transformer(x, causal(), cache=cache)[:, -1:])[:, :, 0].cpu()     # (2B, K, codes + 1)

    both = [torch.cat([ids, ids]).to(device) for ids in (words, voices)]          # rows B..2B go without condition, for guidance
    silence = torch.full((2 * B, cfg.books, 1), cfg.filler, device=device)
    start = torch.cat([model.prefix(*both, dropped=torch.arange(2 * B, device=device) >= B), model.embed(silence)], 1)
    logits, step = guided(after(start), lambda codes: after(model.embed(codes[:, :, None].to(device))), settings.guidance)
    logits[:, 0, cfg.filler] = NEVER                                              # a clip has one frame at least
    generators = [torch.Generator().manual_seed(seed + i) for i in range(B)]
    pick = PickToEnd(pick_by_pattern(picker(settings.sampling, generators), model.pattern, cfg.filler), model, B)
    steps = torch.stack(list(decode(logits, step, pick, limit=limit, ended=pick.ended)), 2)         # (B, K, S)
    return [row[:, :frames] for row, frames in zip(model.pattern.gather(steps), pick.frames.tolist())]


class PickToEnd:
    """`pick` for `decode`: filler in book 0 ends a clip, and from that frame on its books are silent."""

    def __init__(self, pick, model, rows):
        self.pick, self.pattern, self.filler, self.steps = pick, model.pattern, model.cfg.filler, 0
        self.frames = torch.full((rows,), model.cfg.longest)                      # (B,), of each clip; all there may be until it ends

    def __call__(self, logits, n):
        """logits (B,K,V) of step n -> codes (B,K)."""
        codes, frame = self.pick(logits, n), self.pattern.grid(n + 1)[:, n]       # (B, K), (K,)
        ends = (codes[:, 0] == self.filler) & (frame[0] >= 0) & (frame[0] < self.frames)
        self.frames, self.steps = torch.where(ends, frame[0], self.frames), n + 1
        return codes.masked_fill(frame >= self.frames[:, None], self.filler)

    def ended(self, codes):
        """(B,): clips whose last frame is spoken in every book."""
        return self.pattern.frames(self.steps) >= self.frames
