"""Slow, exact, readable versions of what the core computes fast: loops, complex numbers, float64. Tests compare with these."""

import cmath
import math
from collections import Counter

import torch


def attention_by_loops(q, k, v, visible=None, *, bias=None, scale=None, softcap=None):
    """q (B,N,T,E) looks at k, v (B,G,S,E), one query at a time -> (B,N,T,E). visible(b, t, s) says which pairs; bias (N,T,S)."""
    B, N, T, E = q.shape
    G, S = k.shape[1], k.shape[2]
    out = torch.zeros(B, N, T, v.shape[-1], dtype=torch.float64)
    for b in range(B):
        for n in range(N):
            g = n // (N // G)                                              # neighbours share a key-value head
            for t in range(T):
                seen = [s for s in range(S) if visible is None or visible(b, t, s)]
                scores = []
                for s in seen:
                    score = float(q[b, n, t].double() @ k[b, g, s].double()) * (E ** -0.5 if scale is None else scale)
                    if softcap is not None:
                        score = softcap * math.tanh(score / softcap)
                    scores.append(score + (0.0 if bias is None else float(bias[n, t, s])))
                top = max(scores, default=0.0)
                weights = [math.exp(score - top) for score in scores]
                for s, weight in zip(seen, weights):
                    out[b, n, t] += weight / sum(weights) * v[b, g, s].double()
    return out


def additive_attention_by_loops(query, memory, parts, keep=None):
    """Bahdanau's score w . tanh(Wq q + Wk m + b) for each pair -> (context, weights). parts: Wq, Wk, b, w."""
    query_weight, key_weight, key_bias, score_weight = (p.double() for p in parts)
    B, T, S = query.shape[0], query.shape[1], memory.shape[1]
    weights = torch.zeros(B, T, S, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            for s in range(S):
                if keep is None or keep[b, s]:
                    mixed = torch.tanh(query_weight @ query[b, t].double() + key_weight @ memory[b, s].double() + key_bias)
                    weights[b, t, s] = torch.exp(score_weight @ mixed)
            weights[b, t] /= weights[b, t].sum()
    return weights @ memory.double(), weights


def visible_by_rules(rules, b, t, s):
    """Whether slot t sees slot s in row b. rules: any of causal, window, keep, documents, prefix, blocks, sparse."""
    causal, prefix = rules.get("causal", False), rules.get("prefix")
    near = "window" not in rules or (t - s < rules["window"] if causal else abs(t - s) < rules["window"])
    allowed = (s <= t or not causal) and near
    if "sparse" in rules:
        width, stride, first = rules["sparse"]
        allowed = allowed and (abs(t - s) < width or abs(t - s) % stride == 0 or t < first or s < first)
    if prefix is not None:                                                 # the prefix is open, whatever else holds
        allowed = allowed or (t < int(prefix[b]) and s < int(prefix[b]))
    if "keep" in rules:
        allowed = allowed and bool(rules["keep"][b, s])
    if "documents" in rules:
        allowed = allowed and int(rules["documents"][b, t]) == int(rules["documents"][b, s])
    if "blocks" in rules:
        allowed = allowed and bool(rules["blocks"][t, s])
    return allowed


def rotated(x, positions, rates, layout="half"):
    """x (T,E), positions (T,): each pair is a complex number, turned by exp(i position rate); dims beyond the pairs stay."""
    out, pairs = x.double().clone(), len(rates)
    for t in range(x.shape[0]):
        for i, rate in enumerate(rates):
            a, b = (i, i + pairs) if layout == "half" else (2 * i, 2 * i + 1)
            turned = complex(x[t, a], x[t, b]) * cmath.exp(1j * float(positions[t]) * float(rate))
            out[t, a], out[t, b] = turned.real, turned.imag
    return out


def rotary_rates(width, theta):
    return [theta ** (-2 * i / width) for i in range(width // 2)]


def t5_bucket(offset, buckets, distance, two_way):
    """One key - query -> its bucket, by the paper's words: near ones exact, then logarithmic, beyond `distance` the last."""
    first = 0
    if two_way:
        buckets //= 2
        first = buckets if offset > 0 else 0
        away = abs(offset)
    else:
        away = max(-offset, 0)
    exact = buckets // 2
    if away < exact:
        return first + away
    step = math.log(away / exact) / math.log(distance / exact) * (buckets - exact)
    return first + min(exact + int(step), buckets - 1)


def rms_norm(x, weight=None, eps=1e-6):
    x = x.double()
    normed = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight.double()


def layer_norm(x, weight=None, bias=None, eps=1e-6):
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps)
    normed = normed if weight is None else normed * weight.double()
    return normed if bias is None else normed + bias.double()


def sinusoid(position, channel, width, base=10000.0):
    """Entry of Vaswani et al.'s table: sin in even channels, cos in odd ones."""
    angle = position / base ** (2 * (channel // 2) / width)
    return math.sin(angle) if channel % 2 == 0 else math.cos(angle)


def nearest_codes(vectors, table):
    """vectors (P,D), table (V,D) -> index of the nearest row by squared distance, first of equals, (P,)."""
    best = []
    for vector in vectors.double():
        distances = [float(((vector - row) ** 2).sum()) for row in table.double()]
        best.append(distances.index(min(distances)))
    return torch.tensor(best)


def greedy(step, ids, count):
    """step(ids (1,T)) -> logits (1,T,V) without a cache; ids grows by the most likely token `count` times."""
    for _ in range(count):
        ids = torch.cat((ids, step(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids


def byte_pairs_by_counting(words, merges):
    """{tuple of symbols: count} -> the first `merges` merges of Sennrich et al. 2016, algorithm 1.

    Of equal pairs the one whose symbols rank first: by their place in the vocabulary, the alphabet sorted, then each as it is made."""
    rank = {symbol: place for place, symbol in enumerate(sorted({symbol for word in words for symbol in word}))}
    found = []
    while len(found) < merges:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], rank[pair[0]], rank[pair[1]]))
        found.append(best)
        rank.setdefault("".join(best), len(rank))
        words = Counter({_merged(word, best): count for word, count in words.items()})
    return found


def _merged(word, pair):
    symbols, i = [], 0
    while i < len(word):
        joined = tuple(word[i:i + 2]) == pair
        symbols.append("".join(pair) if joined else word[i])
        i += 1 + joined
    return tuple(symbols)
