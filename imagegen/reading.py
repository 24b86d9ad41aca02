"""What thing each word of a prompt is about, learnt by the prompt encoder itself: in "a red circle above a blue square" that the square is blue.

A picture tells it slowly: one colour in the place of another is little of its error. Captions whose words are labelled (`multimodal.scenes` writes
them) tell it without pictures, in minutes. The encoder's bias by distance moves faster than its other weights: it is a small table of numbers that
have to become large before a word looks at the one before it."""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from gencore.optim import Optimizers
from gencore.text_encoder import encode_prompts
from gencore.train import fit
from imagegen.captioned import CaptionedBatches

FASTER = 30                          # the bias by distance, to the other weights


class Reader(nn.Module):
    """One line from an encoder's states to the L properties of the thing that a word is about."""

    def __init__(self, width, meanings):
        """meanings: how many values each property has."""
        super().__init__()
        self.meanings, self.line = list(meanings), nn.Linear(width, sum(meanings))

    def misread(self, states, words):
        """states (B,T,D), words (B,T,L) long, -1 where it is not known -> cross-entropy, mean over what is known (B,), 0 where nothing is."""
        said = self.line(states).float().split(self.meanings, -1)                      # L times (B, T, values)
        losses = torch.stack([F.cross_entropy(part.transpose(1, 2), want, reduction="none", ignore_index=-1)
                              for part, want in zip(said, words.unbind(-1))], -1)      # (B, T, L)
        return losses.mean(-1).sum(1) / (words[..., 0] >= 0).sum(1).clamp(min=1)


class Reading(nn.Module):
    """A prompt encoder and its Reader as one model for `fit`."""

    def __init__(self, encoder, meanings):
        super().__init__()
        self.encoder, self.reader = encoder, Reader(encoder.cfg.width, meanings)


def values_of(words):
    """{caption: (words, L)} -> how many values each of the L properties has."""
    return [int(part.max()) + 1 for part in torch.cat(list(words.values())).unbind(1)]


def meanings_of(tokenizer, captions, words, length):
    """Captions, {caption: (words, L)} -> (B,length,L) long: what the word is about that each token is of; -1 where that is not known."""
    found = torch.full((len(captions), length, next(iter(words.values())).shape[1]), -1)
    for row, text in zip(found, captions):
        if text in words:
            places = tokenizer.engine.encode(text).word_ids[:length]                   # None: of no word
            own = [i for i, word in enumerate(places) if word is not None]
            row[own] = words[text][[places[i] for i in own]].long()
    return found


def train_reading(encoder, tokenizer, data, config, *, run):
    """TextEncoder + Captioned with labelled words -> the encoder, whose states tell what the words of such captions are about.

    Half of a batch are such captions. Of the other half, drawn like pictures, the states of those that have no labels stay near what they were."""
    length, labelled = tokenizer.config["model_max_length"], list(data.words)
    before = copy.deepcopy(encoder).eval().requires_grad_(False)

    def columns(rows, rng):
        half = len(rows) // 2
        captions = [labelled[i] for i in rng.integers(len(labelled), size=half)] + [data.caption(row, rng) for row in rows[half:]]
        ids, keep, _ = encode_prompts(tokenizer, captions, length)
        return {"ids": ids, "keep": keep, "words": meanings_of(tokenizer, captions, data.words, ids.shape[1])}

    def loss(model, batch, generator):
        ids, keep, words = batch["ids"], batch["keep"], batch["words"]
        states, there = model.encoder(ids, keep), before.to(ids.device)(ids, keep)
        counted = keep & (words[..., 0] < 0).all(1, keepdim=True)
        moved = ((states - there).float().square().mean(-1) * counted).sum(1) / counted.sum(1).clamp(min=1) / there.float().square().mean()
        return (model.reader.misread(states, words) + moved).sum(), len(ids)

    batches = CaptionedBatches(data, config.batch, config.seed, columns)
    fit(Reading(encoder.requires_grad_(True), values_of(data.words)), loss, batches, config, run=run, optimizer=optimizer)
    return encoder.eval().requires_grad_(False)


def optimizer(model, config):
    """AdamW; the bias by distance moves FASTER."""
    table = model.encoder.transformer.relative.table.weight
    rest = [p for p in model.parameters() if p is not table]
    groups = [{"params": rest, "peak": config.lr, "weight_decay": config.weight_decay},
              {"params": [table], "peak": FASTER * config.lr, "weight_decay": 0.0}]
    return Optimizers([torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), fused=True)])
