"""Learns a vector for every word of your text from the company it keeps, shows neighbours, and draws the space.

    python examples/text/word_vectors.py                                     Python's own standard library as text: a minute on a CPU
    python examples/text/word_vectors.py --data FOLDER --words king,queen    .txt files in a folder, or parquet with a text column
    python examples/text/word_vectors.py objective=cbow width=200 epochs=10  any field of Word2VecConfig

Writes --out: a folder that Word2Vec.from_pretrained opens, vectors.bin (word2vec's own format, which gensim opens) and space.png: the words
of --words with their neighbours in the plane of their two principal directions."""
import argparse
from pathlib import Path

import torch

from gencore.check import command
from gencore.config import override
from gencore.data_folder import learn_and_held_out
from gencore.folder import folder_for
from textgen import Word2Vec, Word2VecConfig
from textgen.word2vec import sentences_of
from textgen.word_files import save_word2vec

WRITTEN = ("config.json", "model.safetensors", "digests.json", "vectors.bin", "space.png")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of .txt files, one text file, or parquet; default: Python's standard library")
    parser.add_argument("--out", type=Path, default=Path("runs/word-vectors"), help="folder (default runs/word-vectors)")
    parser.add_argument("--words", default="", help="words to show, with commas between; default: some that are neither rare nor everywhere")
    parser.add_argument("--neighbours", type=int, default=6, help="of each word (default 6)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Word2VecConfig")
    return parser.parse_intermixed_args()


@command
def main():
    args = arguments()
    args.out = folder_for(args.out, only=WRITTEN)
    texts, held_out, what = learn_and_held_out(args.data)
    sentences = [words for text in (*texts, *held_out) for words in sentences_of(text)]
    print(f"{what}: {len(sentences):,} sentences, {sum(map(len, sentences)):,} words")
    w2v = Word2Vec.train(sentences, override(Word2VecConfig(), args.settings))
    asked = [word.strip() for word in args.words.split(",") if word.strip()]
    for word in asked:
        if word not in w2v:
            print(f"{word:>16}: not among the {len(w2v.words):,} words")
    shown = [word for word in asked if word in w2v] or w2v.words[100:2100:250] or w2v.words[:8]
    w2v.save_pretrained(args.out, dtype=torch.bfloat16)
    save_word2vec(w2v, args.out / "vectors.bin", binary=True)
    drawn = []
    for word in shown:
        near = [neighbour for neighbour, _ in w2v.most_similar(word, topn=args.neighbours)]
        drawn += [word, *near]
        print(f"{word:>16}: {', '.join(near)}")
    w2v.draw(args.out / "space.png", list(dict.fromkeys(drawn)))
    print(f'done: Word2Vec.from_pretrained("{args.out}")')


if __name__ == "__main__":
    main()
