"""How good word vectors are, by the field's three tests: WordSim-353 and SimLex-999 (people's judgement of pairs), and the analogy questions."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gencore.check import DataError
from gencore.data_folder import text_of_file


@dataclass(frozen=True)
class PairScore:
    """How the vectors' order of the pairs agrees with people's."""
    spearman: float
    pairs: int                                           # of which both words are known
    unknown: int


def pair_score(w2v, pairs):
    """[(word, word, people's score), ...] -> PairScore; pairs with an unknown word are left out and counted. Words are met in capitals or not."""
    index, unit = in_any_case(w2v), w2v.unit()
    known = [(one.lower(), other.lower(), score) for one, other, score in pairs if {one.lower(), other.lower()} <= index.keys()]
    if len(known) < 2:
        raise DataError(f"{len(known)} of {len(pairs)} pairs have two known words: nothing to compare")
    mine = torch.stack([unit[index[one]] @ unit[index[other]] for one, other, _ in known])
    return PairScore(spearman(mine, torch.tensor([float(score) for *_, score in known])), len(known), len(pairs) - len(known))


def in_any_case(w2v):
    """{word in small letters: its row}, of several spellings the most frequent one's, as gensim's evaluations have it."""
    index = {}
    for row, word in enumerate(w2v.words):
        index.setdefault(word.lower(), row)
    return index


def spearman(a, b):
    """Rank correlation of a (n,) and b (n,); equal values share their mean rank."""
    a, b = (ranks(x) - ranks(x).mean() for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


def ranks(x):
    """x (n,) -> rank of each value (n,), ties in the middle of their places."""
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2.0)[inverse]


def read_pairs(path):
    """A table with a word, a word and a number in each row, parted by tabs or commas; lines without a number are headers -> triples."""
    pairs = []
    for line in text_of_file(path).splitlines():
        fields = line.replace(",", "\t").split("\t")
        numbers = [field for field in fields[2:] if is_number(field)]
        if len(fields) >= 3 and numbers:
            pairs.append((fields[0].strip().lower(), fields[1].strip().lower(), float(numbers[0])))
    if not pairs:
        raise DataError(f"{path}: no line with two words and a number")
    return pairs


def read_analogies(path):
    """word2vec's questions-words.txt: ": section" lines, then four words a line -> {section: [(a, b, c, d), ...]}."""
    sections, section = {}, None
    for number, line in enumerate(text_of_file(path).splitlines(), 1):
        words = line.lower().split()
        if line.startswith(":"):
            section = sections.setdefault(line[1:].strip(), [])
        elif len(words) == 4 and section is not None:
            section.append(tuple(words))
        elif words:
            raise DataError(f'{path}: line {number} should be ": section" or four words, got {line[:60]!r}')
    return sections


def analogies(w2v, sections, *, among=30000):
    """{section: questions "a is to b as c is to d"} -> {section: (right, asked)}; asked are those whose words are among the most frequent.

    As gensim counts: in capitals or not a word is the same, of several spellings the most frequent one is asked, and none of a given word answers."""
    unit, results, index = w2v.unit()[:among], {}, in_any_case(w2v)
    spelling = torch.tensor([index[word.lower()] for word in w2v.words[:among]])             # row -> that of the word's first spelling
    for section, questions in sections.items():
        asked = [[word.lower() for word in question] for question in questions]
        rows = [[index[word] for word in question] for question in asked if all(index.get(word, among) < among for word in question)]
        right = 0
        for a, b, c, d in (torch.tensor(rows[i:i + 256]).mT for i in range(0, len(rows), 256)):
            scores = F.normalize(unit[b] - unit[a] + unit[c], dim=1) @ unit.mT           # (questions, V)
            scores[(spelling == a[:, None]) | (spelling == b[:, None]) | (spelling == c[:, None])] = -2.0         # a given word is no answer
            right += int((spelling[scores.argmax(1)] == d).sum())
        results[section] = (right, len(rows))
    return results


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
