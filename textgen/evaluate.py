"""How well a language model foretells text: bits per byte, which do not depend on the tokenizer."""
import math

import torch

from gencore.check import DataError, InputError, in_range, whole
from gencore.decode import resting
from gencore.tokenizer import check_characters, check_texts


@torch.no_grad()
def bits_per_byte(lm, texts, *, overlap=0.0, batch=8, limit=None):
    """lm (a CausalLM), texts -> bits per byte of UTF-8; each text begins after the model's beginning-of-text token.

    Windows are as long as the context; overlap: share of a window that is only looked at, having been counted before (0 = every window
    starts blind). limit: only so many windows of each text, evenly spread."""
    if in_range("overlap", overlap, 0, 1) == 1:
        raise InputError("overlap should be from 0 to below 1, got 1: nothing would count")
    whole("batch", batch, 1)
    if limit is not None:
        whole("limit", limit, 1)
    lm.check_tokenizer()
    check_texts(texts)
    bits = counted = 0.0
    with resting(lm):
        for text in texts:
            ids, sizes = _ids_and_bytes(lm, text)
            rows = windows(len(ids), lm.cfg.context, overlap)
            if limit is not None and len(rows) > limit:
                rows = [rows[i * len(rows) // limit] for i in range(limit)]
            for start in range(0, len(rows), batch):
                part_bits, part_bytes = _score(lm, ids, sizes, rows[start:start + batch])
                bits, counted = bits + part_bits, counted + part_bytes
    if not counted:
        raise DataError("no text to evaluate on: every text is empty")
    return bits / counted


def windows(length, context, overlap):
    """[(start, end, first target that counts), ...]: every token after the first is a target exactly once."""
    rows, new = [], max(1, round(context * (1 - overlap)))
    known = 1                                                                # tokens whose probability needs no telling
    while known < length:
        end = min(length, known + (context if known == 1 else new))
        rows.append((max(0, end - context - 1), end, known))
        known = end
    return rows


def _ids_and_bytes(lm, text):
    """Text -> ids (T,) with a beginning, bytes (T,) that each stands for."""
    check_characters("the text", text)
    encoding = lm.tokenizer.engine.encode(text, add_special_tokens=False)
    starts = [start for start, _ in encoding.offsets]
    prefix = [0]                                                             # bytes before each character
    for character in text:
        prefix.append(prefix[-1] + len(character.encode("utf-8")))
    sizes = [prefix[b] - prefix[a] for a, b in zip([0, *starts[1:]], [*starts[1:], len(text)])] if starts else []
    begin = next((i for i in (lm.cfg.bos, *lm.cfg.eos, lm.cfg.pad) if i is not None), 0)
    return torch.tensor([begin, *encoding.ids]), torch.tensor([0, *sizes])


def _score(lm, ids, sizes, rows):
    """(bits, bytes) of the targets of these windows, in one batch."""
    longest = max(end - start for start, end, _ in rows)
    inputs = torch.zeros(len(rows), longest - 1, dtype=torch.long)
    targets = torch.full((len(rows), longest - 1), -100)
    counted = 0
    for row, (start, end, known) in enumerate(rows):                         # causal: filling at the end changes nothing before it
        inputs[row, :end - start - 1] = ids[start:end - 1]
        targets[row, known - start - 1:end - start - 1] = ids[known:end]
        counted += int(sizes[known:end].sum())
    inputs, targets = inputs.to(lm.embedding.weight.device), targets.to(lm.embedding.weight.device)
    nats, _ = lm.loss(inputs, targets)
    return float(nats) / math.log(2), counted
