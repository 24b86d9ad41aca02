"""word2vec's own two formats, text and binary, as the original tool and gensim read and write them: a header "words width", then word and numbers."""
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from gencore.check import DataError, InputError
from gencore.folder import write_file, writing
from textgen.negative_sampling import Word2VecConfig
from textgen.word2vec import Word2Vec

LONGEST = 1000                                           # bytes of a word; more is not this format


def save_word2vec(w2v, path, *, binary=False):
    """Word2Vec -> a file for gensim's KeyedVectors.load_word2vec_format(path, binary=binary)."""
    wrong = [word for word in w2v.words if not word or any(c in " \t\n\r\v\f" for c in word)]
    if wrong:
        raise InputError(f"word2vec's format parts words by white space, it can't hold {wrong[0]!r}: use save_pretrained")
    rows, head = w2v.vectors.float().numpy().astype("<f4"), f"{len(w2v.words)} {w2v.vectors.shape[1]}\n".encode()
    if binary:
        lines = (word.encode() + b" " + row.tobytes() for word, row in zip(w2v.words, rows))
    else:
        lines = (f"{word} {' '.join(map(repr, row.tolist()))}\n".encode() for word, row in zip(w2v.words, rows))
    with writing(path):
        write_file(Path(path), head + b"".join(lines))


def load_word2vec(path, *, binary=False):
    """A file in word2vec's format -> Word2Vec. DataError says where it breaks off or what is no number."""
    if not Path(path).is_file():
        raise DataError(f"no file {path}: give a file in word2vec's format")
    data = Path(path).read_bytes()
    head = data[:LONGEST].partition(b"\n")[0]
    try:
        count, width = (int(number) for number in head.split())
    except ValueError:
        raise DataError(f'{path}: the first line should be "words width", got {head[:60]!r}') from None
    smallest = count * (4 * width + 2 if binary else 2 * width + 1)
    if count < 1 or width < 1 or smallest > len(data):
        raise DataError(f"{path}: the header promises {count:,} words of {width} numbers, the file has {len(data):,} bytes: it is cut off, "
                        f"{'or text (binary=False)' if binary else 'or binary (binary=True)'}")
    words, vectors = (read_binary if binary else read_text)(path, data[len(head) + 1:], count, width)
    if not np.isfinite(vectors).all():
        raise DataError(f'{path}: the vector of "{words[int((~np.isfinite(vectors)).any(1).argmax())]}" has numbers that are not finite')
    if len(set(words)) < len(words):
        raise DataError(f'{path}: "{Counter(words).most_common(1)[0][0]}" is there twice')
    return Word2Vec(words, torch.from_numpy(vectors), cfg=Word2VecConfig(width=width))


def read_binary(path, data, count, width):
    """bytes after the header -> words, vectors (count, width)."""
    words, vectors, place = [], np.empty((count, width), dtype=np.float32), 0
    for row in range(count):
        place += data[place:place + 1] == b"\n"                                          # the original tool ends a row with it
        end = data.find(b" ", place, place + LONGEST)
        if end < 0 or len(data) < end + 1 + 4 * width:
            raise DataError(f"{path}: broken off or not binary at word {row + 1} of {count}")
        words.append(decoded(path, data[place:end]))
        place = end + 1 + 4 * width
        vectors[row] = np.frombuffer(data, "<f4", width, end + 1)
    return words, vectors


def read_text(path, data, count, width):
    """bytes after the header -> words, vectors (count, width)."""
    words, vectors = [], np.empty((count, width), dtype=np.float32)
    lines = data.split(b"\n")[:-1] if data.endswith(b"\n") else data.split(b"\n")
    if len(lines) < count:
        raise DataError(f"{path}: the header promises {count:,} words, there are {len(lines):,} lines")
    for row, line in enumerate(lines[:count]):
        word, *numbers = line.rstrip().split(b" ")
        try:
            if len(numbers) != width:
                raise ValueError
            vectors[row] = [float(number) for number in numbers]
        except ValueError:
            raise DataError(f"{path}: line {row + 2} should be a word and {width} numbers, got {len(numbers)} fields after the word") from None
        words.append(decoded(path, word))
    return words, vectors


def decoded(path, word):
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: the word {word[:40]!r} is not UTF-8") from None
