"""Prompts -> states that a picture or sound model looks at: the encoder of T5 (Raffel et al. 2020), on the core's Transformer.

Two-way attention without scale, a learned bias by distance, RMS norms, gated MLPs; the folder opens as transformers' T5EncoderModel."""
from dataclasses import dataclass, replace

from torch import nn

from gencore import transformer
from gencore.attention import AttentionConfig
from gencore.check import InputError, dims
from gencore.config import Few, Share, Size, check_fields
from gencore.data import right_padded
from gencore.layers import MLPConfig, NormConfig
from gencore.masks import padding
from gencore.positions import RelativeConfig
from gencore.tokenizer import Tokenizer, train_bpe
from gencore.transformer import Transformer, TransformerConfig

END, PAD = "</s>", "<pad>"


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the encoder; the rest is T5's."""
    vocab: Size = 3072           # V
    width: Size = 192            # D
    layers: Few = 2
    heads: Few = 4               # N
    head_width: Size = 48        # E; N * E need not be D
    mlp: Size = 512              # width of the MLP
    gated: bool = True           # gelu(gate) * up (T5 v1.1); False: relu
    buckets: Size = 32           # of the bias by distance
    distance: Size = 128         # beyond it all distances are one
    eps: Share = 1e-6            # of the norms

    def __post_init__(self):
        check_fields(self)

    @property
    def transformer(self):
        """The core's configuration."""
        return TransformerConfig(
            width=self.width, layers=self.layers,
            attention=AttentionConfig(heads=self.heads, head_width=self.head_width, scale=1.0),
            mlp=MLPConfig(self.mlp, gated=self.gated, activation="gelu_tanh" if self.gated else "relu"),
            norm=NormConfig("rms", eps=self.eps),
            relative=RelativeConfig("t5", self.buckets, self.distance, two_way=True))


class TextEncoder(nn.Module):
    """ids (B,T), keep (B,T) -> states (B,T,D)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tokens = nn.Embedding(cfg.vocab, cfg.width)
        self.transformer = Transformer(cfg.transformer)

    def forward(self, ids, keep=None):
        dims("ids", ids, "B T")
        return self.transformer(self.tokens(ids), None if keep is None else padding(keep))


def deeper(encoder, layers):
    """TextEncoder -> a new one of so many layers that gives the same states (gencore.transformer.deeper)."""
    new = TextEncoder(replace(encoder.cfg, layers=layers))
    new.tokens.load_state_dict(encoder.tokens.state_dict())
    new.transformer = transformer.deeper(encoder.transformer, layers)
    return new


def train_prompt_tokenizer(captions, vocab=3072, length=32):
    """Captions -> Tokenizer in T5's manner: lower case, a space before the first word, </s> at the end; "" is </s> alone."""
    from tokenizers import normalizers, pre_tokenizers, processors
    tokenizer = train_bpe((" " + text.lower() for text in captions), vocab, specials=(PAD, END), length=length)
    engine = tokenizer.engine
    engine.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    engine.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, engine.token_to_id(END))])
    config = tokenizer.config | {"pad_token": PAD, "eos_token": END, "unk_token": PAD}
    config.pop("bos_token")
    return Tokenizer(engine, config)


def encode_prompts(tokenizer, prompts, length):
    """Texts -> (ids (B,T) long, keep (B,T) bool, which prompts were cut); T is the longest prompt's, at most `length`."""
    if isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts):
        raise InputError(f"expected a list of texts, got {type(prompts).__name__}")
    if tokenizer.pad_id is None:
        raise InputError("this tokenizer has no padding token: name one as pad_token in tokenizer_config.json")
    rows = [tokenizer.encode(text.strip(), special=True) for text in prompts]
    cut = [i for i, row in enumerate(rows) if len(row) > length]
    rows = [row if len(row) <= length else row[:length - 1] + row[-1:] for row in rows]
    return *right_padded(rows, tokenizer.pad_id), cut
