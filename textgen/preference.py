"""DPO: a language model learns which of two answers people prefer, without a reward model (Rafailov et al. 2023).

    rows = Preferences(lm, examples)                       # [{"prompt": messages, "chosen": text, "rejected": text}, ...]
    fit(lm, preference_loss(beta=0.1), Batches(rows, 8), config, run=run)

The reference is the model as it is when the rows are made: its log-probabilities are computed once, so that no second model is kept."""
import torch
import torch.nn.functional as F

from gencore.check import DataError, InputError, dims, in_range
from gencore.data import right_padded
from gencore.decode import resting
from gencore.loss import IGNORED
from textgen.conversations import conversation_row


def dpo_loss(policy, reference, *, beta=0.1, smoothing=0.0):
    """policy, reference (B,2): log-probability of the chosen and the rejected answer -> (losses (B,), margins (B,)); eq. 7.

    beta: how dear it is to leave the reference. smoothing: share of the preferences that are wrong (Mitchell 2023).
    The margin is the difference of the two implicit rewards, beta * (policy - reference)."""
    B, _ = dims("policy", policy, "B 2")
    dims("reference", reference, "B 2", B=B)
    rewards = beta * (policy - reference)                                            # (B, 2)
    margins = rewards[:, 0] - rewards[:, 1]                                          # (B,)
    return -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins), margins


def answer_logprobs(model, ids, targets):
    """ids, targets (B,T), -100 = not of the answer -> log-probability of each answer (B,): the sum over its tokens."""
    logits = model(ids)                                                              # (B, T, V)
    return -F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none").sum(1)


class Preferences:
    """Pairs of answers to one prompt, as a data set for Batches: {"ids", "targets" (2,T) long, "reference" (2,)}.

    Every row has the width of the longest; an answer that does not fit the model's context is refused, not cut."""

    def __init__(self, lm, examples, *, batch=8):
        if not examples:
            raise DataError("no preferences: the list is empty")
        lm.check_tokenizer()
        rows = [row for number, example in enumerate(examples) for row in pair(lm, example, number)]
        pad = lm.cfg.pad if lm.cfg.pad is not None else 0
        ids, _ = right_padded([inputs for inputs, _ in rows], pad)
        targets, _ = right_padded([targets for _, targets in rows], IGNORED)
        self.ids, self.targets = ids.unflatten(0, (-1, 2)), targets.unflatten(0, (-1, 2))            # (rows, 2, T)
        self.reference = self.rated(lm, batch)                                                       # (rows, 2)

    @torch.no_grad()
    def rated(self, lm, batch=8):
        """Log-probabilities of both answers (rows,2) by a model, `batch` answers at once."""
        device, parts = lm.embedding.weight.device, zip(self.ids.flatten(0, 1).split(batch), self.targets.flatten(0, 1).split(batch))
        with resting(lm):
            return torch.cat([answer_logprobs(lm, ids.to(device), targets.to(device)).cpu() for ids, targets in parts]).unflatten(0, (-1, 2))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"ids": self.ids[index], "targets": self.targets[index], "reference": self.reference[index]}


def pair(lm, example, number):
    """One preference -> its two rows (inputs, targets), the chosen first: the last turn is the answer, and it alone counts."""
    if not isinstance(example, dict) or set(example) != {"prompt", "chosen", "rejected"}:
        raise DataError(f'preference {number} should be {{"prompt": messages, "chosen": text, "rejected": text}}, got {example!r:.80}')
    if example["chosen"] == example["rejected"]:
        raise DataError(f"preference {number}: both answers are the same: nothing is preferred")
    rows = []
    for kind in ("chosen", "rejected"):
        opened = lm.tokenizer.chat_ids(example["prompt"])
        inputs, targets = conversation_row(lm.tokenizer, [*example["prompt"], {"role": "assistant", "content": example[kind]}])
        if len(inputs) > lm.cfg.context:
            raise DataError(f"preference {number}: prompt and {kind} answer have {len(inputs)} tokens, the model reads "
                            f"{lm.cfg.context}: leave it out")
        rows.append((inputs, [IGNORED] * (len(opened) - 1) + targets[len(opened) - 1:]))
    return rows


def preference_loss(*, beta=0.1, smoothing=0.0, likelihood=0.0):
    """-> loss(model, batch, generator) for fit() over Preferences.

    likelihood: weight of the chosen answer's own cross-entropy a token, which keeps it from becoming unlikely together with the rejected one (Pang
    et al. 2024, eq. 1)."""
    for name, value, most in (("beta", beta, 1e9), ("smoothing", smoothing, 0.5), ("likelihood", likelihood, 1e9)):
        in_range(name, value, 0, most)
    if beta == 0 or smoothing == 0.5:
        raise InputError(f"beta should be above 0 and smoothing below 0.5, got {beta} and {smoothing}")

    def loss(model, batch, generator):
        counts = batch["targets"] != IGNORED                                          # (B, 2, T)
        B, read = len(counts), int(counts.any(1).any(0).nonzero().max()) + 1          # what stands behind every answer is not read
        policy = answer_logprobs(model, *(batch[name][..., :read].flatten(0, 1) for name in ("ids", "targets"))).view(B, 2)
        losses, _ = dpo_loss(policy, batch["reference"], beta=beta, smoothing=smoothing)
        tokens = counts[:, 0].sum(1)                                                  # (B,)
        return (losses - likelihood * policy[:, 0] / tokens).sum(), B

    return loss


@torch.no_grad()
def margins(lm, preferences, *, beta=0.1):
    """How much better the chosen answers are rated than the rejected ones, (rows,): 0 before training, above 0 = the order is right."""
    return dpo_loss(preferences.rated(lm), preferences.reference, beta=beta)[1]
