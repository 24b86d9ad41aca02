"""Beam search: the likeliest whole texts instead of the likeliest next token (Graves 2012).

A text is scored by its log-probability over a power of its length, as transformers does (a simpler form of Wu et al. 2016, eq. 14)."""
from dataclasses import dataclass, field

import torch

from gencore.choose import check_finite


@dataclass
class Hypotheses:
    """The best finished texts of one row, at most `beams`, each (score, ids)."""
    beams: int
    found: list = field(default_factory=list)

    def add(self, score, ids):
        self.found = sorted([*self.found, (score, ids)], key=lambda item: -item[0])[:self.beams]

    def full(self, best):
        """Whether there are `beams` of them, and a running text of score `best` can't displace one."""
        return len(self.found) == self.beams and best <= self.found[-1][0]


@torch.inference_mode()
def beam_search(logits, step, *, beams, limit, eos, length_penalty=1.0):
    """logits (B*beams, V) of the first token, every row `beams` times -> [(score, ids), ...] a row, the best first; ids with their end.

    step(tokens (R,), rows (R,)) -> logits (R,V): the texts `rows` go on with `tokens`. A score is the log-probability / length ** length_penalty."""
    B = len(logits) // beams
    done, finished = [False] * B, [Hypotheses(beams) for _ in range(B)]
    texts = [[[] for _ in range(beams)] for _ in range(B)]
    sums = torch.full((B, beams), float("-inf"))                                          # log-probability of each running text
    sums[:, 0] = 0.0                                                                      # all beams are one text at first
    for length in range(1, limit + 1):
        scores = logits.float().log_softmax(-1).view(B, beams, -1).cpu()                  # (B, beams, V)
        check_finite(scores[..., 0].clamp(min=0))                                         # a bad row is NaN throughout, what is masked -inf
        total = sums[..., None] + scores                                                  # (B, beams, V)
        V = total.shape[-1]
        best = total.flatten(1).topk(min((1 + len(eos)) * beams, beams * V))              # `beams` go on, however many are ends
        rows, tokens = torch.zeros(B, beams, dtype=torch.long), torch.zeros(B, beams, dtype=torch.long)
        sums = torch.full((B, beams), float("-inf"))
        for b in range(B):
            running = []
            for rank, (value, place) in enumerate(zip(best.values[b].tolist(), best.indices[b].tolist())):
                beam, token = divmod(place, V)
                if token in eos and rank < beams and not done[b] and value > float("-inf"):
                    finished[b].add(value / length ** length_penalty, [*texts[b][beam], token])
                elif token not in eos and len(running) < beams:
                    rows[b, len(running)], tokens[b, len(running)], sums[b, len(running)] = b * beams + beam, token, value
                    running.append([*texts[b][beam], token])
            texts[b] = running
            done[b] = done[b] or finished[b].full(float(sums[b, 0]) / length ** length_penalty)
        if all(done):
            break
        if length < limit:
            logits = step(tokens.flatten().to(logits.device), rows.flatten().to(logits.device))
    for b in range(B):
        for value, ids in zip(sums[b].tolist(), texts[b]) if not done[b] else ():
            finished[b].add(value / limit ** length_penalty, ids)
    return [hypotheses.found for hypotheses in finished]
