"""Seq2SeqLM: the Transformer of "Attention Is All You Need": an encoder reads, a decoder that looks at it writes (Vaswani et al. 2017).

    lm = Seq2SeqLM.from_pretrained(folder)
    lm.generate("Ein Hund läuft durch den Schnee.", beams=4)          # "A dog is running through the snow." """
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from gencore import choose
from gencore.attention import AttentionConfig
from gencore.attention_maps import ROOM, draw_attention, watched
from gencore.beam import beam_search
from gencore.cache import Cache
from gencore.check import InputError, dims, in_range, whole
from gencore.checkpoint import save_folder
from gencore.config import Positive, Share, Size, check_fields, check_ids
from gencore.data import right_padded
from gencore.decode import Stepper, decode, resting
from gencore.embeddings import rows_of
from gencore.layers import MLPConfig, NormConfig
from gencore.loss import check_targets
from gencore.masks import causal, padding
from gencore.positions import sinusoidal
from gencore.tokenizer import Tokenizer, train_bpe
from gencore.transformer import Memory, Transformer, TransformerConfig
from textgen.folders import files_of, open_folder
from textgen.text import as_list

END, PAD = "</s>", "<pad>"


def transformer_stack(width=256, layers=3, heads=4, mlp=1024, *, dropout=0.1, cross=False):
    """The paper's blocks: norms after the sum, biases everywhere, ReLU."""
    return TransformerConfig(width, layers, AttentionConfig(heads, bias=True, out_bias=True), MLPConfig(mlp, activation="relu", bias=True),
                             NormConfig("layer", "post", eps=1e-5), cross=width if cross else None, dropout=dropout)


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Both stacks and what is around them."""
    vocab: Size = 8192                                           # V, of both languages
    context: Size = 512                                          # most tokens of either side
    encoder: TransformerConfig = field(default_factory=transformer_stack)
    decoder: TransformerConfig = field(default_factory=lambda: transformer_stack(cross=True))
    sinusoids: bool = True                                       # places added to the tokens; False: the stacks have their own (T5)
    embedding_scale: Positive | None = 16.0                      # on the token table; the paper: the square root of the width
    output_scale: Positive | None = None                         # on the decoder's states before the head (T5)
    tied: bool = True                                            # the head is the token table
    head_bias: bool = True
    smoothing: Share = 0.1                                       # of the targets when training
    start: int = 1                                               # id that the decoder begins with
    eos: tuple[int, ...] = (0,)
    pad: int = 1
    family: str = "marian"                                       # layout of the folder that save_pretrained writes

    def __post_init__(self):
        check_fields(self)
        check_ids(self, {"decoder_start_token_id": self.start, "eos_token_id": self.eos, "pad_token_id": self.pad})


class Seq2SeqLM(nn.Module):
    """Source ids (B,S), target ids (B,T) -> logits (B,T,V) of the next target token."""

    def __init__(self, cfg, tokenizer=None):
        super().__init__()
        self.cfg, self.tokenizer, D = cfg, tokenizer, cfg.encoder.width
        self.embedding = nn.Embedding(cfg.vocab, D)
        self.encoder, self.decoder = Transformer(cfg.encoder), Transformer(cfg.decoder)
        self.head = None if cfg.tied else nn.Linear(D, cfg.vocab, bias=False)
        self.register_buffer("bias", torch.zeros(1, cfg.vocab) if cfg.head_bias else None)       # not learnt: as Marian has it
        nn.init.normal_(self.embedding.weight, std=D ** -0.5 if cfg.embedding_scale else 0.02)

    def forward(self, source, target, keep=None):
        """keep (B,S): real tokens of the source."""
        return self.logits(self.decode(target, self.encode(source, keep)))

    def encode(self, source, keep=None):
        """source (B,S) -> Memory: states (B,S,D) and which of them are real."""
        dims("source", source, "B S")
        x = self.embed(source, torch.arange(source.shape[1], device=source.device))
        return Memory(self.encoder(x, None if keep is None else padding(keep)), keep)

    def decode(self, target, memory, *, cache=None):
        """target (B,T) -> states (B,T,D); with a cache they continue what it holds."""
        _, T = dims("target", target, "B T")
        places = torch.arange(T, device=target.device) + (0 if cache is None else cache.length)
        x = self.embed(target, places)
        return self.decoder(x, causal(), cache=cache, memory=memory)

    def embed(self, ids, places):
        """ids (B,T), places (T,) -> (B,T,D)."""
        if not len(places):
            raise InputError("no tokens: give one or more in each row")
        if int(places[-1]) >= self.cfg.context:
            raise InputError(f"{int(places[-1]) + 1} tokens are more than the {self.cfg.context} that this model reads: cut the text")
        x = rows_of(self.embedding, ids, "ids") * (self.cfg.embedding_scale or 1.0)
        if self.cfg.sinusoids:
            x = x + sinusoidal(places, x.shape[-1], "sin|cos").to(x.dtype)
        dropout = self.cfg.encoder.dropout
        return F.dropout(x, dropout) if self.training and dropout else x

    def logits(self, states):
        """states (...,D) -> (...,V)."""
        states = states * (self.cfg.output_scale or 1.0)
        found = F.linear(states, self.embedding.weight if self.head is None else self.head.weight)
        return found if self.bias is None else found + self.bias[0]

    def loss(self, source, target, keep=None):
        """source (B,S), target (B,T) with its end, padded by cfg.pad -> (summed label-smoothed cross-entropy, number of target tokens)."""
        return smoothed_cross_entropy(self(source, shifted(target, self.cfg.start), keep), target, self)

    # ---- words ----

    @property
    def forbidden(self):
        """Ids that are never written: Marian's padding, which published weights rate highest, so chances are of the others."""
        return [self.cfg.pad] if self.cfg.family == "marian" and self.cfg.pad not in self.cfg.eos else []

    @torch.inference_mode()
    def generate(self, texts, *, max_new_tokens=None, beams=1, length_penalty=1.0):
        """A text, or a list of them -> what the decoder writes for each. beams=1: the likeliest token each time; more: beam search.

        max_new_tokens: default cfg.context. length_penalty: above 0 longer texts are favoured (see beam_search)."""
        return translated(self, texts, max_new_tokens, beams=beams, length_penalty=length_penalty)

    def write(self, source, keep, *, beams=1, limit=100, length_penalty=1.0):
        """source (B,S), keep (B,S) -> a list of ids a row, with its end."""
        memory = Memory(*(t.repeat_interleave(beams, 0) for t in self.encode(source, keep)))
        rows = len(memory.states)
        cache = Cache(self.cfg.decoder, rows, limit, dtype=memory.states.dtype, device=source.device)

        def forward(ids, *, mask, positions, cache):
            logits = self.logits(self.decode(ids, memory, cache=cache)[:, -1:])
            if self.forbidden:
                logits[..., self.forbidden] = float("-inf")
            return logits

        stepper = Stepper(forward, cache)

        def step(tokens, parents=None):
            if parents is not None:
                cache.select(parents)
            return stepper.step(tokens)

        first = stepper.prefill(torch.full((rows, 1), self.cfg.start, device=source.device))
        return likeliest(first, step, self.cfg.eos, beams=beams, limit=limit, length_penalty=length_penalty)

    @torch.inference_mode()
    def draw_alignment(self, source, path, *, target=None, layer=-1):
        """What the decoder looks at while it writes, a heat map for each head of one layer -> path (PNG, SVG or PDF).

        target: default what `generate` writes. The picture has room for the first 64 tokens of each side."""
        target = self.generate(source) if target is None else target
        read, written = self.tokenizer.encode(source, special=True), self.tokenizer.encode(target, special=True)[:ROOM]
        device = self.embedding.weight.device
        with resting(self), watched(self.decoder) as seen:
            self(torch.tensor([read], device=device), shifted(torch.tensor([written], device=device), self.cfg.start))
        said = lambda ids: [self.tokenizer.decode([i], keep_special=True) for i in ids[:ROOM]]
        return draw_attention([weights[..., :ROOM] for weights in seen.cross], said(read), path, layer=layer, asking=said(written))

    @classmethod
    def from_pretrained(cls, name_or_folder, *, dtype=torch.float32, device="cpu"):
        """A folder or Hub id in the layout of Marian or T5 -> the model with its tokenizer, in eval mode."""
        return open_folder(cls, name_or_folder, dtype=dtype, device=device)

    def save_pretrained(self, folder, *, dtype=None):
        """Writes a folder that transformers' AutoModelForSeq2SeqLM opens."""
        save_folder(folder, self.files(dtype=dtype))

    def files(self, *, dtype=None):
        """What save_pretrained writes, for fit's export."""
        cfg, eos = self.cfg, list(self.cfg.eos)
        generation = {"decoder_start_token_id": cfg.start, "pad_token_id": cfg.pad, "eos_token_id": eos[0] if len(eos) == 1 else eos}
        banned = {"bad_words_ids": [[token] for token in self.forbidden]} if self.forbidden else {}
        return {**files_of(self, dtype), "generation_config.json": generation | banned}


def translated(model, texts, max_new_tokens, *, beams, length_penalty):
    """What `generate` of an encoder-decoder gives: texts -> ids -> model.write -> texts."""
    limit = model.cfg.context if max_new_tokens is None else whole("max_new_tokens", max_new_tokens, 1, model.cfg.context)
    whole("beams", beams, 1, 256)
    in_range("length_penalty", length_penalty, -20, 20)
    if model.tokenizer is None:
        raise InputError(f"this model has no tokenizer: {type(model).__name__}(cfg, tokenizer), or load a folder that has one")
    lists = [model.tokenizer.encode(text, special=True) for text in as_list(texts)]
    if not all(lists):
        raise InputError("an empty text: give at least one token to read")
    source, keep = (t.to(model.embedding.weight.device) for t in right_padded(lists, model.cfg.pad))
    with resting(model):
        made = [model.tokenizer.decode(ids).strip() for ids in model.write(source, keep, beams=beams, limit=limit, length_penalty=length_penalty)]
    return made[0] if isinstance(texts, str) else made


def likeliest(logits, step, eos, *, beams, limit, length_penalty):
    """logits (B*beams, V) of the first token -> a list of ids a row, with its end. step(tokens, rows=None) as beam_search and decode call it."""
    if beams > 1:
        found = beam_search(logits, step, beams=beams, limit=limit, eos=eos, length_penalty=length_penalty)
        return [hypotheses[0][1] for hypotheses in found]
    ends = torch.tensor(eos, device=logits.device)
    steps = decode(logits, step, lambda logits, n: choose.likeliest(logits), limit=limit, ended=lambda tokens: torch.isin(tokens, ends))
    rows = torch.stack(list(steps), 1).tolist()
    return [row[:next((n for n, token in enumerate(row) if token in eos), limit) + 1] for row in rows]


def smoothed_cross_entropy(logits, target, model):
    """logits (B,T,V), target (B,T) -> (summed loss over the real tokens, their number); targets are smoothed while training."""
    real = real_tokens(target, model.cfg)
    smoothing = model.cfg.smoothing if model.training else 0.0
    check_targets(target[real], model.cfg.vocab)
    return F.cross_entropy(logits[real].float(), target[real], reduction="sum", label_smoothing=smoothing), real.sum()


def shifted(target, start):
    """target (B,T) -> what the decoder reads when it is to say it: `start`, then all but the last."""
    return torch.cat((torch.full_like(target[:, :1], start), target[:, :-1]), 1)


def real_tokens(target, cfg):
    """target (B,T) -> (B,T) bool: up to and with the first end; what follows it is padding, whatever its id."""
    ends = torch.isin(target, torch.tensor(cfg.eos, device=target.device))
    return (ends.cumsum(1) - ends.long() == 0) & ((target != cfg.pad) | ends)


def train_pair_tokenizer(texts, vocab=8192, length=512):
    """Texts of both languages -> one Tokenizer; </s> (id 0) ends a text, <pad> (id 1) fills and starts the decoder."""
    from tokenizers import processors
    tokenizer = train_bpe(texts, vocab, specials=(END, PAD), length=length)
    tokenizer.engine.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, tokenizer.engine.token_to_id(END))])
    config = {key: value for key, value in tokenizer.config.items() if key != "bos_token"}
    return Tokenizer(tokenizer.engine, {**config, "eos_token": END, "pad_token": PAD, "unk_token": PAD})

