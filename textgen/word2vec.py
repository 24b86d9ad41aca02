"""Word2Vec: a vector for every word, learnt from the company it keeps (Mikolov et al. 2013), its neighbours, and its files.

    w2v = Word2Vec.train([["the", "cat", "sat"], ...], Word2VecConfig(width=100))
    w2v.most_similar(positive=["king", "woman"], negative=["man"])          # [(word, cosine), ...]"""
import re
import unicodedata
from array import array
from collections import Counter
from dataclasses import asdict
from functools import cache

import torch
import torch.nn.functional as F

from gencore.check import CheckpointError, DataError, InputError, UnknownNameError, floating, nearest, whole
from gencore.checkpoint import load_tensors, read_json, resolve, save_folder
from gencore.config import from_dict
from gencore.folder import save_figure
from gencore.kinds import expect_kind
from textgen.negative_sampling import BLOCK, Trainer, Word2VecConfig

CHUNK = 200_000                                          # words of text held as ids at a time


class Word2Vec:
    """words (V,), most frequent first, and their vectors (V,D); counts (V,) where they are known."""

    def __init__(self, words, vectors, *, counts=None, cfg=None):
        self.words, self.vectors, self.counts = list(words), vectors, counts
        self.cfg = cfg or Word2VecConfig(width=vectors.shape[1])
        self.index = {word: i for i, word in enumerate(self.words)}
        if len(self.index) != len(self.words) or len(self.words) != len(vectors):
            raise InputError(f"there should be one vector for each word and no word twice, got {len(self.words)} words "
                             f"({len(self.index)} different) and {len(vectors)} vectors")
        self._unit = None

    # ---- learning ----

    @classmethod
    def train(cls, sentences, cfg=None, *, progress=True):
        """sentences: lists of words, gone through 1 + cfg.epochs times (a list, or an object that begins anew in each `for`)."""
        from tqdm import tqdm
        cfg = cfg or Word2VecConfig()
        if not hasattr(sentences, "__iter__") or iter(sentences) is sentences:
            raise InputError("sentences are gone through several times: give a list, or an object with __iter__, not a generator")
        counts = count_words(sentences, cfg.min_count)
        index = {word: i for i, (word, _) in enumerate(counts)}
        trainer = Trainer(torch.tensor([count for _, count in counts]), cfg)
        total, done = sum(count for _, count in counts) * cfg.epochs, 0
        with tqdm(total=total, unit="word", unit_scale=True, disable=not progress, mininterval=0.5) as bar:
            for _ in range(cfg.epochs):
                for ids, owners in chunks(sentences, index):
                    kept, owner = trainer.thinned(ids, owners)
                    share = len(ids) / max(1, len(kept))                                 # words of the text for each that stays
                    for around, owner_of in trainer.parts(kept, owner):
                        trainer.step(around, owner_of, lr=max(cfg.min_lr, cfg.lr + (cfg.min_lr - cfg.lr) * min(1.0, done / total)))
                        done += len(around) * BLOCK * share
                    bar.update(len(ids))
        return cls([word for word, _ in counts], trainer.vectors, counts=torch.tensor([count for _, count in counts]), cfg=cfg)

    # ---- asking ----

    def __contains__(self, word):
        return word in self.index

    def __getitem__(self, word):
        """word -> its vector (D,)."""
        return self.vectors[self.row(word)]

    def row(self, word):
        if word not in self.index:
            raise UnknownNameError(f'"{word}" is not among the {len(self.words):,} words{nearest(word, self.words)}')
        return self.index[word]

    def similarity(self, one, other):
        """Cosine of two words' vectors, -1 to 1."""
        return float(F.cosine_similarity(self[one], self[other], dim=0))

    def most_similar(self, positive=(), negative=(), *, topn=10, among=None):
        """Words whose vectors point where the sum of `positive` minus `negative` does -> [(word, cosine), ...], given words left out.

        Each is a word or a list of them. among: only the so many most frequent words."""
        for words in (positive, negative):
            if not isinstance(words, (str, list, tuple)):
                raise InputError(f"most_similar takes a word or a list of them, got {words!r:.80}")
        plus, minus = ([words] if isinstance(words, str) else list(words) for words in (positive, negative))
        if not plus and not minus:
            raise InputError("most_similar needs a word: most_similar('king'), or positive=[...], negative=[...]")
        topn, among = whole("topn", topn, 1), None if among is None else whole("among", among, 1)
        given, unit = [self.row(word) for word in plus + minus], self.unit()
        signs = torch.tensor([1.0] * len(plus) + [-1.0] * len(minus))
        scores = unit[:among] @ F.normalize(signs @ unit[given], dim=0)                  # (V,)
        scores[[row for row in given if row < len(scores)]] = -2.0
        best = scores.topk(min(topn, len(scores) - len({row for row in given if row < len(scores)})))
        return [(self.words[i], float(score)) for score, i in zip(best.values, best.indices)]

    def unit(self):
        """Vectors (V,D) of length 1."""
        if self._unit is None:
            self._unit = F.normalize(self.vectors.float(), dim=1)
        return self._unit

    def draw(self, path, words):
        """A picture of these words in the plane of their two principal directions -> path (PNG, SVG or PDF)."""
        from matplotlib.figure import Figure
        if isinstance(words, str) or len(words) < 2:
            raise InputError(f"a picture takes two words or more, in a list, got {words!r:.80}")
        points = self.unit()[[self.row(word) for word in words]]
        points = points - points.mean(0)
        plane = points @ torch.linalg.svd(points, full_matrices=False).Vh[:2].mT         # (words, 2)
        axes = Figure(figsize=(8, 8)).subplots()
        axes.scatter(*plane.mT.tolist(), s=8)
        for word, place in zip(words, plane.tolist()):
            axes.annotate(word, place, xytext=(3, 3), textcoords="offset points")
        return save_figure(axes.figure, path, margin="tight")

    # ---- files ----

    @classmethod
    def from_pretrained(cls, name_or_folder):
        """A shipped name ("word-vectors") or a folder that save_pretrained wrote."""
        folder = resolve(name_or_folder, "textgen", hub=False)
        expect_kind(folder, "textgen.Word2Vec")
        config = read_json(folder / "config.json")
        words = config.get("words")
        if config.get("kind") != "word2vec" or not isinstance(config.get("training"), dict) or not isinstance(words, list) \
                or not all(isinstance(word, str) for word in words):
            raise CheckpointError(f"{folder / 'config.json'} is not the configuration of word vectors (kind, training and words)")
        cfg, tensors = from_dict(Word2VecConfig, config["training"]), load_tensors(folder / "model.safetensors")
        if tensors.keys() - {"counts"} != {"vectors"} or tuple(tensors["vectors"].shape) != (len(config["words"]), cfg.width):
            raise CheckpointError(f"{folder}: expected vectors of shape {(len(config['words']), cfg.width)}, "
                                  f"got { {name: tuple(t.shape) for name, t in tensors.items()} }")
        return cls(config["words"], tensors["vectors"].float(), counts=tensors.get("counts"), cfg=cfg)

    def save_pretrained(self, folder, *, dtype=None):
        """Writes config.json (with the words) and model.safetensors; dtype: of the vectors in the file."""
        tensors = {"vectors": self.vectors.to(floating(dtype) or self.vectors.dtype).contiguous()}
        if self.counts is not None:
            tensors["counts"] = self.counts
        save_folder(folder, {"config.json": {"kind": "word2vec", "training": asdict(self.cfg), "words": self.words}, "model.safetensors": tensors})


PLAIN = re.compile(r"[a-z]+(?:'[a-z]+)?")                # what word_pattern finds in ASCII, faster


def sentences_of(text):
    """Text -> its sentences as lists of lower-case words, letters of any script with their marks ("l'été", "हिन्दी" are one each); a sentence ends
    with . ! ? or its line."""
    text = unicodedata.normalize("NFC", text.lower()).replace("\u2019", "'")
    pattern = PLAIN if text.isascii() else word_pattern()
    return [words for line in re.split(r"[.!?\n]+", text) if (words := pattern.findall(line))]


@cache
def word_pattern():
    """Letters and the marks on them, with one apostrophe inside; for re a mark (Unicode's M*) is no part of a word."""
    marks = "".join(mark for mark in map(chr, range(0x300, 0x1F000)) if unicodedata.category(mark)[0] == "M")
    letters = rf"[^\W\d_]+(?:[{marks}]+[^\W\d_]*)*"
    return re.compile(rf"{letters}(?:'{letters})?")


def count_words(sentences, min_count):
    """Sentences -> [(word, count), ...], most frequent first, those rarer than min_count left out."""
    counter = Counter()
    for sentence in sentences:
        if iter(sentence) is sentence:
            raise DataError("a sentence should be a list of words that can be read several times, got an iterator: put list() around it")
        if isinstance(sentence, str):
            raise DataError(f"a sentence should be a list of words, got the text {sentence[:40]!r}: split it, for example text.lower().split()")
        counter.update(sentence)
    counts = sorted(((word, count) for word, count in counter.items() if count >= min_count), key=lambda item: (-item[1], item[0]))
    if len(counts) < 2:
        raise DataError(f"no two words occur {min_count} times in these {sum(counter.values()):,} words: give more text, or a smaller min_count")
    return counts


def chunks(sentences, index):
    """Sentences -> (ids (n,), number of the sentence of each (n,)) of CHUNK known words or a little more; unknown words are skipped."""
    ids, ends, read = array("q"), [0], 0                         # a tensor takes an array as it is, a list number by number
    numbered = lambda: torch.arange(read, read + len(ends) - 1).repeat_interleave(torch.tensor(ends).diff())
    for sentence in sentences:
        ids.fromlist([i for i in map(index.get, sentence) if i is not None])
        ends.append(len(ids))
        if len(ids) >= CHUNK:
            yield torch.frombuffer(ids, dtype=torch.long), numbered()
            ids, ends, read = array("q"), [0], read + len(ends) - 1
    if ids:
        yield torch.frombuffer(ids, dtype=torch.long), numbered()
