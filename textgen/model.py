"""CausalLM: token embedding, gencore.Transformer, head (Radford et al. 2019; Touvron et al. 2023)."""
from dataclasses import dataclass, field

import torch
from torch import nn

from gencore.check import dims
from gencore.embeddings import LearnedPositions
from gencore.loss import chunked_cross_entropy
from gencore.masks import causal
from gencore.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class CausalLMConfig:
    """A language model of any family that textgen knows."""
    vocab: int = 8192                                            # V
    context: int = 512                                           # positions that it was made for
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    tied: bool = True                                            # the head is the token table
    learned_positions: bool = False                              # a table of `context` rows is added to the tokens (GPT-2)
    family: str = "llama"                                        # layout of the folder that save_pretrained writes
    bos: int | None = None                                       # special ids, None = there is none
    eos: tuple[int, ...] = ()
    pad: int | None = None


class CausalLM(nn.Module):
    """ids (B,T) -> logits (B,T,V)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        D = cfg.transformer.width
        self.embedding = nn.Embedding(cfg.vocab, D)
        self.positions = LearnedPositions(cfg.context, D) if cfg.learned_positions else None
        self.transformer = Transformer(cfg.transformer)
        self.head = nn.Linear(D, cfg.vocab, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        if cfg.tied:
            self.head.weight = self.embedding.weight
        if self.positions is not None:
            nn.init.normal_(self.positions.table.weight, std=0.02)

    def forward(self, ids, *, mask=None, positions=None, cache=None):
        """ids (B,T) -> logits (B,T,V); with a cache they continue what it holds. mask: beside causal()."""
        return self.head(self.hidden(ids, mask=mask, positions=positions, cache=cache))

    def hidden(self, ids, *, mask=None, positions=None, cache=None):
        """ids (B,T) -> states before the head (B,T,D)."""
        _, T = dims("ids", ids, "B T")
        x = self.embedding(ids)                                                          # (B, T, D)
        if self.positions is not None:
            if positions is None:
                positions = torch.arange(T, device=ids.device) + (0 if cache is None else cache.length)
            x = x + self.positions(positions)
        mask = causal() if mask is None else causal() & mask
        return self.transformer(x, mask, positions=positions, cache=cache)

    def loss(self, ids, targets):
        """ids, targets (B,T), -100 = no target -> (summed cross-entropy, number of targets)."""
        return chunked_cross_entropy(self.hidden(ids).flatten(0, 1), self.head.weight, targets.flatten())
