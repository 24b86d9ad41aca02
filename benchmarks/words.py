"""Word vectors: textgen.Word2Vec against gensim on the same sentences and settings: words per second, and the three standard tests.

    python -m benchmarks.words --data novels.parquet --tasks FOLDER      FOLDER holds wordsim353.tsv, simlex999.tsv, questions-words.txt

Both sides learn in turn in this one process, once for each seed; medians count. Writes benchmarks/results/words.json."""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from gencore.check import command
from gencore.data import text_folder
from gencore.recipe import versions
from textgen import Word2Vec, Word2VecConfig
from textgen.word2vec import sentences_of
from textgen.word_tasks import analogies, pair_score, read_analogies, read_pairs

RESULTS = Path(__file__).parent / "results" / "words.json"
PAIRS = ("wordsim353.tsv", "simlex999.tsv")


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="text: a folder of .txt files, one text file, or parquet with a text column")
    parser.add_argument("--tasks", type=Path, help="folder of the three tests (default: wordvec beside the data)")
    parser.add_argument("--objective", choices=["skip-gram", "cbow"], default="skip-gram")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", help="judge these vectors alone, a shipped name or a folder, and train nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tasks = args.tasks or args.data.parent / "wordvec"
    if args.model:
        w2v = Word2Vec.from_pretrained(args.model)
        found = judged(w2v, tasks)
        for figure, value in found.items():
            print(f"{figure:28} {value:12,.3f}")
        if "rank of queen" in found:
            nearest = w2v.most_similar(["king", "woman"], ["man"], topn=3)
            print("king - man + woman:", ", ".join(f"{word} {value:.2f}" for word, value in nearest))
        return keep({args.model: found})
    rows = text_folder(args.data)
    splits = rows.column("split") if "split" in rows.columns else ["train"] * len(rows)
    sentences = [words for text, part in zip(rows.column("text"), splits) if part == "train" for words in sentences_of(text)]
    print(f"{len(sentences):,} sentences, {sum(map(len, sentences)):,} words")
    rows = {"commonthread": [], "gensim": []}
    for seed in range(1, args.seeds + 1):
        cfg = Word2VecConfig(args.objective, epochs=args.epochs, seed=seed)
        for name, learn in (("commonthread", ours), ("gensim", theirs)):
            w2v, speed = learn(sentences, cfg, args.threads)
            rows[name].append({"words per second": speed, **judged(w2v, tasks)})
    table = {name: {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]} for name, runs in rows.items()}
    for figure in table["gensim"]:
        print(f"{figure:28} " + "   ".join(f"{name} {row[figure]:12,.3f}" for name, row in table.items()))
    print(f"words per second: {table['commonthread']['words per second'] / table['gensim']['words per second']:.2f} x gensim, {args.threads} threads")
    keep({args.objective: {"median": table, "runs": rows, "threads": args.threads}})


def keep(results):
    """Adds {name: figures} to what the file holds, each with the machine that gave it."""
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(kept | {name: {"versions": versions(), **row} for name, row in results.items()}, indent=2) + "\n")


def ours(sentences, cfg, threads):
    """-> (vectors, words of text a second)."""
    begun = time.perf_counter()
    w2v = Word2Vec.train(sentences, cfg, progress=False)
    return w2v, int(w2v.counts.sum()) * cfg.epochs / (time.perf_counter() - begun)


def theirs(sentences, cfg, threads):
    """The same by gensim, its vectors held by the same class, so that the same code judges them."""
    from gensim.models import Word2Vec as Gensim
    begun = time.perf_counter()
    model = Gensim(sentences, vector_size=cfg.width, window=cfg.window, negative=cfg.negative, min_count=cfg.min_count, sample=cfg.sample,
                   epochs=cfg.epochs, alpha=cfg.lr, min_alpha=cfg.min_lr, sg=int(cfg.objective == "skip-gram"), seed=cfg.seed, workers=threads)
    seconds, words = time.perf_counter() - begun, model.wv.index_to_key
    counted = sum(model.wv.get_vecattr(word, "count") for word in words)
    return Word2Vec(words, torch.from_numpy(model.wv.vectors.copy())), counted * cfg.epochs / seconds


def judged(w2v, tasks):
    """Word2Vec -> its figures."""
    figures = {}
    for name in PAIRS:
        score = pair_score(w2v, read_pairs(tasks / name))
        figures |= {f"{name} Spearman": score.spearman, f"{name} pairs": score.pairs}
    asked = analogies(w2v, read_analogies(tasks / "questions-words.txt"))
    figures["analogies right"], figures["analogies asked"] = (sum(part[i] for part in asked.values()) for i in (0, 1))
    if all(word in w2v for word in ("king", "man", "woman", "queen")):
        ranked = [word for word, _ in w2v.most_similar(["king", "woman"], ["man"], topn=len(w2v.words))]
        figures["rank of queen"] = ranked.index("queen") + 1
    return figures


if __name__ == "__main__":
    main()
