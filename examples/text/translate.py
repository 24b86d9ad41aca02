"""Trains a translator on pairs of texts, and draws what it looks at: the Transformer of 2017, or the attention that came before it.

    python examples/text/translate.py                                        numbers into words, pairs that this script makes: minutes on a CPU
    python examples/text/translate.py --model attention                      a recurrent network with attention; recurrent: without
    python examples/text/translate.py --data pairs.tsv                       your own: two columns without a header, or parquet with --from, --to
    python examples/text/translate.py width=256 layers=3 train.steps=5000    any field of PairRun or gencore.train.TrainConfig

Ctrl-C saves; the same command with --resume goes on. The run folder holds the loss plot, samples/ (translations as it learns, and what is
looked at for each word), metrics.jsonl, checkpoints/ and in the end model/, which Seq2SeqLM.from_pretrained and transformers' AutoModelForSeq2SeqLM
open (AttentionSeq2Seq.from_pretrained for the other two)."""
import argparse
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gencore.check import command
from gencore.config import override
from gencore.data import hold_out
from gencore.train import Run, TrainConfig, fit
from textgen import AttentionSeq2Seq, Seq2SeqLM
from textgen.additive import AttentionSeq2SeqConfig
from textgen.pairs import PairBatches, fitting, pairs_to_learn
from textgen.seq2seq import Seq2SeqConfig, train_pair_tokenizer, transformer_stack


@dataclass(frozen=True)
class PairRun:
    """Size of the model, and how it is trained."""
    vocab: int = 400                # tokens of the BPE of both languages
    context: int = 128              # most tokens of either side
    width: int = 128                # D
    layers: int = 2                 # of the encoder, and of the decoder
    heads: int = 4
    mlp: int = 512
    hidden: int = 192               # states of the recurrent networks
    dropout: float = 0.1
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1500, batch=64, lr=2e-3, warmup=100, decay=0.5, weight_decay=0.01,
                                                                   eval_every=300, save_every=300))


ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(n):
    """123456 -> one hundred and twenty-three thousand four hundred and fifty-six."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    size, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    rest = "" if n % size == 0 else (" and " if n % size < 100 else " ") + in_words(n % size)
    return f"{in_words(n // size)} {name}{rest}"


def made_pairs(count=20000, seed=0):
    """Numbers of one to six digits, spelt with spaces so that each digit is a token, and their words."""
    draw = random.Random(seed)
    numbers = sorted({draw.randrange(10 ** draw.randint(1, 6)) for _ in range(count)})
    draw.shuffle(numbers)
    return [(" ".join(str(n)), in_words(n)) for n in numbers]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".tsv of two columns, or parquet; default: numbers and their words, made here")
    parser.add_argument("--from", dest="source", default="source", help="column of a parquet file (default: source)")
    parser.add_argument("--to", dest="target", default="target", help="column of a parquet file (default: target)")
    parser.add_argument("--model", choices=["transformer", "attention", "recurrent"], default="transformer")
    parser.add_argument("--out", type=Path, help="run folder (default runs/translate-MODEL)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of PairRun, or train.<field of TrainConfig>")
    return parser.parse_intermixed_args()


def new(kind, cfg, tokenizer):
    if kind == "transformer":
        encoder, decoder = (transformer_stack(cfg.width, cfg.layers, cfg.heads, cfg.mlp, dropout=cfg.dropout, cross=cross) for cross in (False, True))
        return Seq2SeqLM(Seq2SeqConfig(len(tokenizer), cfg.context, encoder, decoder, embedding_scale=cfg.width ** 0.5), tokenizer)
    sizes = (len(tokenizer), cfg.context, cfg.width, cfg.hidden, "additive" if kind == "attention" else "none", cfg.dropout)
    return AttentionSeq2Seq(AttentionSeq2SeqConfig(*sizes), tokenizer)


@command
def main():
    args = arguments()
    cfg, out = override(PairRun(), args.settings), args.out or Path(f"runs/translate-{args.model}")
    pairs, unseen = pairs_to_learn(args.data, args.source, args.target) if args.data else map(list, hold_out(made_pairs(), 0.05))
    what = args.data.name if args.data else "numbers and their words, made by this script"
    torch.manual_seed(cfg.train.seed)
    tokenizer = train_pair_tokenizer([text for pair in pairs for text in pair], cfg.vocab, cfg.context)
    pairs, unseen = (fitting(some, tokenizer, cfg.context) for some in (pairs, unseen))
    model = new(args.model, cfg, tokenizer)
    print(f"{what}: {len(pairs):,} pairs, {len(unseen):,} held out; {sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)

    def evaluate(model):
        sums = [model.loss(**batch) for batch in PairBatches(unseen, tokenizer, min(cfg.train.batch, len(unseen))).in_order()]
        made = model.generate([source for source, _ in unseen[:200]], max_new_tokens=cfg.context)
        right = sum(mine == theirs for mine, (_, theirs) in zip(made, unseen)) / len(made)
        return {"held_out_loss": float(sum(s for s, _ in sums) / sum(n for _, n in sums)), "exactly_right": right}

    def sample(model, folder, step):
        made = model.generate([source for source, _ in unseen[:6]], beams=4, max_new_tokens=cfg.context)
        said = "\n\n".join(f"{source}\n  {mine}\n  ({theirs})" for (source, theirs), mine in zip(unseen, made))
        print(f"\n--- step {step} ---\n{said}\n", flush=True)
        (folder / f"{step:06d}.txt").write_text(said + "\n", encoding="utf-8")
        if args.model != "recurrent":
            model.draw_alignment(unseen[0][0], folder / f"{step:06d}-alignment.png")

    run = Run(out, resume=args.resume, extend=True, export=type(model).files, evaluate=evaluate, sample=sample,
              card={"title": out.name, "Data": what})
    fit(model, lambda m, batch, generator: m.loss(**batch), PairBatches(pairs, tokenizer, cfg.train.batch, cfg.train.seed), cfg.train, run=run)
    print(f'done: {type(model).__name__}.from_pretrained("{out}/model")', file=sys.stderr)


if __name__ == "__main__":
    main()
