"""Translators that examples/text/translate.py trained, on the same test pairs: BLEU, greedy and by beams, and the loss by length.

    given="--data multi30k_de_en.parquet --from de --to en vocab=6000 width=256 dropout=0.3"
    given="$given train.batch=128 train.decay=0.6 train.ema=0.998 train.precision=auto"
    python examples/text/translate.py $given --model transformer layers=3 mlp=768 train.steps=3200 train.muon_lr=4e-3 train.warmup=300
    python examples/text/translate.py $given --model attention hidden=320 train.steps=1600       --model recurrent: the same without attention
    python -m benchmarks.translate --data multi30k_de_en.parquet --from de --to en runs/translate-*/model

BLEU is sacrebleu's, on cased text with its tokenization 13a. The ceiling is the reference itself (100); the floor, the source copied as it is.
Writes benchmarks/results/translate.json, and by-length.png beside it."""
import argparse
import json
from pathlib import Path

import torch

from gencore.check import command
from gencore.checkpoint import read_json
from gencore.recipe import versions
from textgen import AttentionSeq2Seq, Seq2SeqLM
from textgen.pairs import PairBatches, read_pairs

RESULTS = Path(__file__).parent / "results" / "translate.json"


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="folders that it wrote (default: runs/translate-*/model)")
    parser.add_argument("--data", type=Path, required=True, help="pairs: parquet or .tsv")
    parser.add_argument("--from", dest="source", default="source", help="column of a parquet file")
    parser.add_argument("--to", dest="target", default="target", help="column of a parquet file")
    parser.add_argument("--split", default="test")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs = read_pairs(args.data, args.source, args.target, None if args.data.suffix == ".tsv" else args.split)
    results = {"versions": versions(), "pairs": len(pairs), "floor": bleu([source for source, _ in pairs], pairs), "models": {}}
    print(f"{len(pairs):,} pairs; BLEU of the source as it is: {results['floor']['bleu']:.2f} ({results['floor']['signature']})")
    for folder in args.models or sorted(Path("runs").glob("translate-*/model")):
        model = opened(folder)
        row = {"parameters": sum(p.numel() for p in model.parameters()), "greedy": bleu(translations(model, pairs), pairs),
               f"{args.beams} beams": bleu(translations(model, pairs, args.beams), pairs), "loss_by_length": by_length(model, pairs)}
        results["models"][str(folder)] = row
        print(f"{folder}: {row['parameters']:,} parameters, BLEU {row['greedy']['bleu']:.2f} greedy, {row[f'{args.beams} beams']['bleu']:.2f} "
              f"with {args.beams} beams; nats per token by length: " + ", ".join(f"{n}: {v:.2f}" for n, v in row["loss_by_length"].items()))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    draw(results["models"], RESULTS.with_name("by-length.png"))


def opened(folder):
    """Either kind of translator."""
    return (Seq2SeqLM if "model_type" in read_json(folder / "config.json") else AttentionSeq2Seq).from_pretrained(folder)


def translations(model, pairs, beams=1):
    """Translations in the order of the pairs, made in batches of about one length."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    made = {}
    for start in range(0, len(order), 50):
        part = order[start:start + 50]
        made |= zip(part, model.generate([pairs[i][0] for i in part], beams=beams, max_new_tokens=min(model.cfg.context, 80)))
    return [made[i] for i in range(len(pairs))]


def bleu(made, pairs):
    from sacrebleu.metrics import BLEU
    metric = BLEU()
    score = metric.corpus_score(made, [[target for _, target in pairs]])
    return {"bleu": round(score.score, 2), "signature": str(metric.get_signature())}


@torch.no_grad()
def by_length(model, pairs):
    """{words in the source, up to: nats per target token}."""
    found = {}
    for least, most in zip((0, 8, 11, 14, 18), (8, 11, 14, 18, 99)):
        group = [pair for pair in pairs if least < len(pair[0].split()) <= most]
        if group:
            sums = [model.loss(**batch) for batch in PairBatches(group, model.tokenizer, min(32, len(group))).in_order()]
            found[most] = float(sum(s for s, _ in sums) / sum(n for _, n in sums))
    return found


def draw(rows, path):
    from matplotlib.figure import Figure
    axes = Figure(figsize=(6, 4)).subplots()
    for name, row in rows.items():
        axes.plot(range(len(row["loss_by_length"])), list(row["loss_by_length"].values()), "o-", label=name)
    lengths = max((list(row["loss_by_length"]) for row in rows.values()), key=len)
    axes.set_xticks(range(len(lengths)), [f"to {n}" if n < 99 else "longer" for n in lengths])
    axes.set(xlabel="words in the source", ylabel="nats per target token")
    axes.legend()
    axes.figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
