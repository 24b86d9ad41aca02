"""MaskedLM: a two-way encoder that fills in what is hidden (Devlin et al. 2019; masks drawn anew each time: Liu et al. 2019).

    lm = MaskedLM.from_pretrained(folder)
    lm.fill_mask("It was a [MASK] night.")              # [("dark", 0.41), ("cold", 0.07), ...]"""
import warnings
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import AttentionConfig
from gencore.check import DataError, InputError, dims, whole
from gencore.checkpoint import save_folder
from gencore.config import Few, Share, Size, check_fields, check_ids
from gencore.decode import resting
from gencore.embeddings import LearnedPositions, rows_of
from gencore.layers import ACTIVATIONS, MLPConfig, NormConfig, make_norm
from gencore.loss import IGNORED, check_targets
from gencore.masks import padding
from gencore.positions import sinusoidal
from gencore.text_encoder import encode_prompts
from gencore.tokenizer import Tokenizer, train_bpe
from gencore.transformer import Transformer, TransformerConfig
from textgen.folders import files_of, open_folder
from textgen.text import as_list

CLS, SEP, PAD, MASK = "[CLS]", "[SEP]", "[PAD]", "[MASK]"


def bert_stack(width=128, layers=4, heads=4, mlp=512):
    """BERT's blocks: norms after the sum, biases everywhere, plain MLPs."""
    return TransformerConfig(width, layers, AttentionConfig(heads, bias=True, out_bias=True), MLPConfig(mlp, activation="gelu", bias=True),
                             NormConfig("layer", "post", eps=1e-12))


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder, and of what stands on it."""
    vocab: Size = 8192                                           # V
    context: Size = 512                                          # positions
    types: Few = 2                                               # kinds of segments: first and second sentence
    transformer: TransformerConfig = field(default_factory=bert_stack)
    dropout: Share = 0.1                                         # before a classifier
    labels: tuple[str, ...] = ()                                 # of a classifier
    pad: int | None = 0
    family: str = "bert"                                         # layout of the folder that save_pretrained writes

    def __post_init__(self):
        check_fields(self)
        check_ids(self, {"pad_token_id": self.pad})


class Encoder(nn.Module):
    """ids (B,T), keep (B,T), types (B,T) -> states (B,T,D): tokens, places and types summed and normed, then the blocks."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, D = cfg, cfg.transformer.width
        self.embedding = nn.Embedding(cfg.vocab, D)
        self.positions = LearnedPositions(cfg.context, D)
        self.types = nn.Embedding(cfg.types, D)
        self.norm = make_norm(D, cfg.transformer.norm)
        self.transformer = Transformer(cfg.transformer)
        for table in (self.embedding, self.types):
            nn.init.normal_(table.weight, std=0.02)
        with torch.no_grad():                                        # neighbours are alike from the start: words beside are found sooner
            self.positions.table.weight.copy_(0.03 * sinusoidal(torch.arange(cfg.context), D))

    def forward(self, ids, keep=None, types=None):
        _, T = dims("ids", ids, "B T")
        if T > self.cfg.context:
            raise InputError(f"ids: {T} tokens are more than the {self.cfg.context} positions of this encoder: cut the text")
        x = rows_of(self.embedding, ids, "ids") + self.positions(torch.arange(T, device=ids.device))                 # (B, T, D)
        x = self.norm(x + rows_of(self.types, torch.zeros_like(ids) if types is None else types, "types"))
        x = F.dropout(x, self.cfg.transformer.dropout, self.training)
        return self.transformer(x, None if keep is None else padding(keep))


class MaskedLM(nn.Module):
    """ids (B,T) with masks -> logits (B,T,V) of what stands there."""
    def __init__(self, cfg, tokenizer=None):
        super().__init__()
        self.cfg, self.tokenizer, D = cfg, tokenizer, cfg.transformer.width
        self.encoder = Encoder(cfg)
        self.dense = nn.Linear(D, D)
        self.norm = make_norm(D, cfg.transformer.norm)
        self.bias = nn.Parameter(torch.zeros(cfg.vocab))                 # of the head, whose matrix is the token table

    def forward(self, ids, keep=None, types=None):
        return self.logits(self.encoder(ids, keep, types))

    def logits(self, states):
        """states (...,D) -> (...,V)."""
        act = ACTIVATIONS[self.cfg.transformer.mlp.activation]
        return F.linear(self.norm(act(self.dense(states))), self.encoder.embedding.weight, self.bias)

    def loss(self, ids, targets, keep=None):
        """ids (B,T), targets (B,T) -100 = not asked -> (summed cross-entropy, number asked); only what is asked goes through the head."""
        check_targets(targets, self.cfg.vocab)
        asked = targets != IGNORED
        logits = self.logits(self.encoder(ids, keep)[asked])                                         # (asked, V)
        return F.cross_entropy(logits.float(), targets[asked], reduction="sum"), asked.sum()

    @torch.no_grad()
    def fill_mask(self, text, *, topn=5):
        """A text with one [MASK] -> [(what stands there, probability), ...]; with several: a list of such lists, each filled alone."""
        if self.tokenizer is None or self.tokenizer.mask_id is None:
            raise InputError("this model has no tokenizer with a mask token: MaskedLM(cfg, tokenizer), or load a folder that has one")
        whole("topn", topn, 1)
        ids = torch.tensor([self.tokenizer.encode(text, special=True)])
        places = (ids[0] == self.tokenizer.mask_id).nonzero()[:, 0]
        if not len(places):
            raise InputError(f'the text has no {self.tokenizer.mask}: put one where a word should be, "It was a {self.tokenizer.mask} night."')
        with resting(self):
            chances = self(ids.to(self.bias.device))[0, places].float().softmax(-1)                  # (masks, V)
        best = chances.topk(min(topn, chances.shape[-1]))
        written = lambda i: self.tokenizer.decode([i], keep_special=True).strip()
        found = [[(written(i), float(p)) for i, p in zip(ids, row)] for ids, row in zip(best.indices, best.values)]
        return found[0] if len(found) == 1 else found

    @classmethod
    def from_pretrained(cls, name_or_folder, *, dtype=torch.float32, device="cpu"):
        """A folder or Hub id in BERT's layout -> the model with its tokenizer, in eval mode."""
        return open_folder(cls, name_or_folder, dtype=dtype, device=device)

    def save_pretrained(self, folder, *, dtype=None):
        """Writes a folder that transformers' AutoModelForMaskedLM opens."""
        save_folder(folder, self.files(dtype=dtype))

    def files(self, *, dtype=None):
        """What save_pretrained writes, for fit's export."""
        return files_of(self, dtype)


class TextClassifier(nn.Module):
    """ids (B,T) -> logits (B, labels), from the state of the first token."""
    def __init__(self, cfg, tokenizer=None):
        super().__init__()
        if len(cfg.labels) < 2:
            raise InputError(f"a classifier needs at least two labels, got {cfg.labels}")
        self.cfg, self.tokenizer, D = cfg, tokenizer, cfg.transformer.width
        self.encoder = Encoder(cfg)
        self.pooler = nn.Linear(D, D)
        self.head = nn.Linear(D, len(cfg.labels))
        for layer in (self.pooler, self.head):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, ids, keep=None, types=None):
        first = torch.tanh(self.pooler(self.encoder(ids, keep, types)[:, 0]))                        # (B, D)
        return self.head(F.dropout(first, self.cfg.dropout, self.training))

    def loss(self, ids, labels, keep=None):
        """ids (B,T), labels (B,), -100 where none is known -> (summed cross-entropy, number of known ones)."""
        check_targets(labels, len(self.cfg.labels))
        return F.cross_entropy(self(ids, keep).float(), labels, reduction="sum"), (labels != IGNORED).sum()

    @torch.no_grad()
    def classify(self, texts):
        """A text -> (label, probability); a list of them -> a list. Texts longer than the context are cut to it, with a warning."""
        rows = as_list(texts)
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer: give it one, or load a folder that has one")
        ids, keep, cut = encode_prompts(self.tokenizer, rows, self.cfg.context)
        if cut:
            warnings.warn(f'{len(cut)} text(s) have more than {self.cfg.context} tokens and are cut there, the first: "{rows[cut[0]]:.60}"',
                          stacklevel=2)
        with resting(self):
            chances = self(ids.to(self.head.weight.device), keep.to(self.head.weight.device)).float().softmax(-1)
        found = [(self.cfg.labels[int(row.argmax())], float(row.max())) for row in chances]
        return found[0] if isinstance(texts, str) else found

    @classmethod
    def from_pretrained(cls, name_or_folder, *, dtype=torch.float32, device="cpu"):
        """A folder or Hub id in the layout of BertForSequenceClassification -> the model with its tokenizer, in eval mode."""
        return open_folder(cls, name_or_folder, dtype=dtype, device=device)

    def save_pretrained(self, folder, *, dtype=None):
        """Writes a folder that transformers' AutoModelForSequenceClassification opens."""
        save_folder(folder, self.files(dtype=dtype))

    def files(self, *, dtype=None):
        """What save_pretrained writes, for fit's export."""
        return files_of(self, dtype)

    @classmethod
    def on(cls, encoder, labels, tokenizer=None):
        """An Encoder that has learnt (MaskedLM.encoder) and labels -> a classifier with a copy of it, to be fine-tuned."""
        model = cls(replace(encoder.cfg, labels=tuple(labels)), tokenizer)
        model.encoder.load_state_dict(encoder.state_dict())
        return model


def mask_tokens(ids, tokenizer, generator, *, share=0.15):
    """ids (B,T) -> (ids with masks, targets with -100 elsewhere). Of a `share` of the tokens 80 % are hidden, 10 % replaced, 10 % left."""
    if tokenizer.mask_id is None:
        raise DataError("this tokenizer has no mask token: use train_masked_tokenizer, or a folder whose tokenizer_config.json names mask_token")
    special = torch.tensor(tokenizer.special_ids, device=ids.device)
    drawn, fate = (torch.rand(ids.shape, generator=generator).to(ids.device) for _ in range(2))                # on the CPU, as the generator is
    chosen = (drawn < share) & ~torch.isin(ids, special)
    other = torch.randint(0, len(tokenizer), ids.shape, generator=generator).to(ids.device)
    hidden = torch.where(chosen & (fate < 0.8), tokenizer.mask_id, ids)
    return torch.where(chosen & (fate >= 0.9), other, hidden), torch.where(chosen, ids, IGNORED)


def train_masked_tokenizer(texts, vocab=8192, length=512):
    """Texts -> Tokenizer in BERT's manner: byte-level BPE, [CLS] before and [SEP] after a text, a [MASK] that takes the space before it along."""
    from tokenizers import AddedToken, processors
    tokenizer = train_bpe(texts, vocab - 1, specials=(CLS, SEP, PAD), length=length)
    engine = tokenizer.engine
    engine.add_special_tokens([AddedToken(MASK, lstrip=True, special=True)])
    engine.post_processor = processors.TemplateProcessing(single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
                                                          special_tokens=[(token, engine.token_to_id(token)) for token in (CLS, SEP)])
    roles = {"cls_token": CLS, "sep_token": SEP, "pad_token": PAD, "mask_token": MASK, "unk_token": PAD}
    config = {key: value for key, value in tokenizer.config.items() if key not in ("bos_token", "eos_token")}
    return Tokenizer(engine, {**config, **roles})
