"""Attention before the Transformer: a GRU reads both ways, a GRU writes and looks back at what was read (Bahdanau, Cho & Bengio 2015).

    model.generate("Ein Hund läuft.")                   # "A dog runs."
    model.draw_alignment("Ein Hund läuft.", "alignment.png")"""
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gencore.attention import AdditiveAttention
from gencore.check import InputError, dims, floating
from gencore.checkpoint import load_tensors, naming, read_json, resolve, save_folder
from gencore.config import Share, Size, check_fields, check_ids, from_dict, to_dict
from gencore.decode import resting
from gencore.embeddings import rows_of
from gencore.folder import save_figure
from gencore.kinds import expect_kind
from textgen.folders import tokenizer_of
from textgen.seq2seq import likeliest, shifted, smoothed_cross_entropy, translated


@dataclass(frozen=True)
class AttentionSeq2SeqConfig:
    """Sizes, and whether there is attention at all."""
    vocab: Size = 8192                                           # V, of both languages
    context: Size = 512                                          # most tokens of either side
    width: Size = 256                                            # D, of the token table
    hidden: Size = 256                                           # H, of the states
    attention: Literal["additive", "none"] = "additive"          # none: all that is known of the source is its last state (Cho et al. 2014)
    dropout: Share = 0.2
    smoothing: Share = 0.1                                       # of the targets when training
    start: int = 1                                               # id that the decoder begins with
    eos: tuple[int, ...] = (0,)
    pad: int = 1

    def __post_init__(self):
        check_fields(self)
        check_ids(self, {"start": self.start, "eos": self.eos, "pad": self.pad})


class Read(NamedTuple):
    """A source that was read."""
    states: torch.Tensor                 # (B, S, 2H), forwards and backwards
    keep: torch.Tensor                   # (B, S) bool
    keys: torch.Tensor                   # (B, S, H): the states as the attention compares them
    first: torch.Tensor                  # (B, H), the decoder's first state

    def select(self, rows):
        return Read(*(t[rows] for t in self))


class AttentionSeq2Seq(nn.Module):
    """Source ids (B,S), target ids (B,T) -> logits (B,T,V) of the next target token, and the alignment (B,T,S)."""

    def __init__(self, cfg, tokenizer=None):
        super().__init__()
        self.cfg, self.tokenizer, D, H = cfg, tokenizer, cfg.width, cfg.hidden
        self.embedding = nn.Embedding(cfg.vocab, D)
        self.reader = nn.GRU(D, H, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * H, H)
        self.attention = AdditiveAttention(H, 2 * H, H)
        self.writer = nn.GRUCell(D + 2 * H, H)
        self.readout = nn.Linear(D + 3 * H, D)                       # of the state, the context and the last token (appendix A.2.2)
        self.bias = nn.Parameter(torch.zeros(cfg.vocab))             # of the head, whose matrix is the token table
        nn.init.normal_(self.embedding.weight, std=D ** -0.5)

    def forward(self, source, target, keep=None):
        """keep (B,S): real tokens of the source, which fill its beginning."""
        B, _ = dims("source", source, "B S")
        _, T = dims("target", target, "B T", B=B)
        if not T:
            raise InputError("target has no tokens: give one or more in each row")
        read = self.encode(source, torch.ones_like(source, dtype=torch.bool) if keep is None else keep)
        state, states, weights = read.first, [], []
        words = self._drop(rows_of(self.embedding, target, "target"))                             # (B, T, D)
        for word in words.unbind(1):
            state, seen, weight = self.step(word, state, read)
            states.append(torch.cat((word, seen, state), -1))
            weights.append(weight)
        return self.logits(torch.stack(states, 1)), torch.stack(weights, 1)

    def encode(self, source, keep):
        """source (B,S), keep (B,S) -> Read."""
        B, S = source.shape
        dims("keep", keep, "B S", B=B, S=S)
        if not B:
            raise InputError("source has no rows: give one or more")
        if not S or not keep[:, 0].all() or (keep[:, 1:] > keep[:, :-1]).any():
            raise InputError("keep should be True at the beginning of each source, of one token or more, and False behind it")
        if source.shape[1] > self.cfg.context:
            raise InputError(f"{source.shape[1]} tokens are more than the {self.cfg.context} that this model reads: cut the text")
        lengths = keep.sum(1)
        packed = pack_padded_sequence(self._drop(rows_of(self.embedding, source, "source")), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, last = self.reader(packed)
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])     # (B, S, 2H)
        if self.cfg.attention == "none":
            states, keep = last.transpose(0, 1).flatten(1)[:, None], keep[:, :1]                     # (B, 1, 2H): one place to look at
        first = torch.tanh(self.bridge(last.transpose(0, 1).flatten(1)))
        return Read(states, keep, self.attention.key(states), first)

    def step(self, word, state, read):
        """word (B,D), state (B,H) -> (next state (B,H), what was looked at (B,2H), alignment (B,S))."""
        seen, weights = self.attention(state[:, None], read.states, read.keep, keys=read.keys)
        return self.writer(torch.cat((word, seen[:, 0]), -1), state), seen[:, 0], weights[:, 0]

    def logits(self, states):
        """(...,D+3H) -> (...,V)."""
        return F.linear(self._drop(torch.tanh(self.readout(states))), self.embedding.weight, self.bias)

    def loss(self, source, target, keep=None):
        """source (B,S), target (B,T) with its end, padded by cfg.pad -> (summed label-smoothed cross-entropy, number of target tokens)."""
        return smoothed_cross_entropy(self(source, shifted(target, self.cfg.start), keep)[0], target, self)

    def _drop(self, x):
        return F.dropout(x, self.cfg.dropout, self.training)

    # ---- words ----

    @torch.inference_mode()
    def generate(self, texts, *, max_new_tokens=None, beams=1, length_penalty=1.0):
        """A text, or a list of them -> what the decoder writes for each; as Seq2SeqLM.generate."""
        return translated(self, texts, max_new_tokens, beams=beams, length_penalty=length_penalty)

    def write(self, source, keep, *, beams=1, limit=100, length_penalty=1.0):
        """source (B,S), keep (B,S) -> a list of ids a row, with its end."""
        read = self.encode(source, keep)
        read = read.select(torch.arange(len(source), device=source.device).repeat_interleave(beams))
        state = read.first

        def step(tokens, parents=None):
            nonlocal state
            word = self.embedding(tokens)
            state, seen, _ = self.step(word, state if parents is None else state[parents], read)     # beams stay with their row's source
            return self.logits(torch.cat((word, seen, state), -1))

        first = step(torch.full((len(state),), self.cfg.start, device=source.device))
        return likeliest(first, step, self.cfg.eos, beams=beams, limit=limit, length_penalty=length_penalty)

    @torch.inference_mode()
    def align(self, source, target=None):
        """Two texts (target: default what `generate` writes) -> (source tokens, target tokens, weights (T,S)): where each was written from."""
        if self.cfg.attention == "none":
            raise InputError('this network has no attention (attention="none"), so nothing that a word was written from')
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer: AttentionSeq2Seq(cfg, tokenizer), or load a folder that has one")
        target = self.generate(source) if target is None else target
        read, written = (self.tokenizer.encode(text, special=True) for text in (source, target))
        with resting(self):
            device = self.embedding.weight.device
            _, weights = self(torch.tensor([read], device=device), shifted(torch.tensor([written], device=device), self.cfg.start))
        return (*([self.tokenizer.decode([i], keep_special=True) for i in ids] for ids in (read, written)), weights[0])

    def draw_alignment(self, source, path, *, target=None):
        """The alignment as a heat map -> path (PNG, SVG or PDF)."""
        from matplotlib.figure import Figure
        read, written, weights = self.align(source, target)
        figure = Figure(figsize=(1.5 + 0.45 * len(read), 1.5 + 0.35 * len(written)))
        axes = figure.subplots()
        axes.imshow(weights, cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(read)), read, rotation=90)
        axes.set_yticks(range(len(written)), written)
        axes.xaxis.tick_top()
        return save_figure(figure, path, margin="tight")

    # ---- folders ----

    @classmethod
    def from_pretrained(cls, folder):
        """A folder that save_pretrained wrote -> the model with its tokenizer, in eval mode."""
        folder = resolve(folder, "textgen", hub=False)
        expect_kind(folder, "textgen.AttentionSeq2Seq")
        with torch.device("meta"), naming(folder):
            model = cls(from_dict(AttentionSeq2SeqConfig, read_json(folder / "config.json")))
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = load_tensors(folder / "model.safetensors", expect=shapes)
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
        model.requires_grad_(True)
        model.tokenizer = tokenizer_of(folder, model.cfg.vocab)
        return model.eval()

    def save_pretrained(self, folder, *, dtype=None):
        """Writes config.json, model.safetensors and the tokenizer. dtype: of the weights in the file."""
        save_folder(folder, self.files(dtype=dtype))

    def files(self, *, dtype=None):
        """What save_pretrained writes, for fit's export."""
        weights = {name: tensor.detach().to(floating(dtype)) for name, tensor in self.state_dict().items()}
        return {"config.json": to_dict(self.cfg), "model.safetensors": weights, **(self.tokenizer.files() if self.tokenizer else {})}
