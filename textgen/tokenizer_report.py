"""How a tokenizer cuts text, beside the three baselines: bytes, characters, whole words.

Fertility is tokens per word (Rust et al. 2021); a word is what stands between white space."""
import re
from collections import Counter
from dataclasses import dataclass

from gencore.check import DataError, InputError
from gencore.tokenizer import Tokenizer, check_texts

UNKNOWN = "\ufffd"
WORDS = ("understanding", "unprecedented")


@dataclass(frozen=True)
class Report:
    """One tokenizer on one text."""
    name: str
    vocab: int
    fertility: float                             # tokens per word
    bytes_per_token: float                       # UTF-8
    unknown: float                               # share of the tokens that stand for something the tokenizer can't spell
    splits: dict[str, list[str]]                 # word -> its pieces, as they are inside a sentence


class BytePieces:
    """Every byte is a token: 256 of them, nothing unknown, long texts."""
    vocab = 256

    def pieces(self, text):
        return [bytes([byte]).decode("latin-1") for byte in text.encode("utf-8")]


class CharacterPieces:
    """Every character seen in training is a token."""

    def __init__(self, texts):
        self.known = {character for text in texts for character in text}
        self.vocab = len(self.known) + 1

    def pieces(self, text):
        return [character if character in self.known else UNKNOWN for character in text]


class WordPieces:
    """The most frequent words and marks of training are tokens, all others are one unknown token; white space is not told apart."""

    def __init__(self, texts, vocab):
        counts = Counter(piece for text in texts for piece in self._cut(text))
        self.known = {piece for piece, _ in counts.most_common(vocab - 1)}
        self.vocab = len(self.known) + 1

    def pieces(self, text):
        return [piece if piece in self.known else UNKNOWN for piece in self._cut(text)]

    @staticmethod
    def _cut(text):
        return re.findall(r"\w+|[^\w\s]", text)


class TokenizerPieces:
    """A gencore Tokenizer under the same two names."""

    def __init__(self, tokenizer):
        self.tokenizer, self.vocab = tokenizer, len(tokenizer)

    def pieces(self, text):
        ids = self.tokenizer.encode(text)
        unknown = None if self.tokenizer.unk_id in (self.tokenizer.eos_id, self.tokenizer.pad_id) else self.tokenizer.unk_id
        return [UNKNOWN if i == unknown else self._spelt(i) for i in ids]

    def _spelt(self, i):
        """The piece as text; a piece that is no whole character as its token's own name."""
        text = self.tokenizer.decode([i], keep_special=True)
        return self.tokenizer.engine.id_to_token(i) if UNKNOWN in text else text


def report(name, cutter, text, words=WORDS):
    """Any of the four classes above on a text that it was not trained on -> Report."""
    count = len(text.split())
    if not count:
        raise DataError("the text to report on has no words: give some text that the tokenizer was not trained on")
    pieces = cutter.pieces(text)
    return Report(name, cutter.vocab, len(pieces) / count, len(text.encode("utf-8")) / len(pieces),
                  pieces.count(UNKNOWN) / len(pieces), {word: in_sentence(cutter, word) for word in words})


def compare(tokenizer, texts, held_out, words=WORDS):
    """A Tokenizer, the texts it was trained on, a text it was not -> Reports of it and of the baselines; as many words as it has tokens."""
    check_texts(texts)
    texts = list(texts)
    if not isinstance(held_out, str):
        raise InputError(f"held_out should be one text, got {type(held_out).__name__}: join several by blank lines")
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(f"expected a gencore Tokenizer, got {type(tokenizer).__name__}: Tokenizer.from_folder(folder)")
    rows = {"words": WordPieces(texts, len(tokenizer)), "byte pairs": TokenizerPieces(tokenizer), "characters": CharacterPieces(texts),
            "bytes": BytePieces()}
    return [report(name, cutter, held_out, words) for name, cutter in rows.items()]


def in_sentence(cutter, word):
    """The pieces of a word after a space, without the space."""
    pieces = [piece.lstrip(" ") for piece in cutter.pieces(" " + word)]
    return [piece for piece in pieces if piece]


def table(reports):
    """Reports -> lines of text."""
    reports = list(reports)
    yield f"{'':12} {'tokens':>8} {'per word':>9} {'bytes each':>11} {'unknown':>8}"
    for row in reports:
        yield f"{row.name:12} {row.vocab:8,} {row.fertility:9.2f} {row.bytes_per_token:11.2f} {row.unknown:8.2%}"
    for word in reports[0].splits:
        yield ""
        for row in reports:
            yield f"{row.name:12} {' '.join(row.splits[word])}"
