"""The scaling hypothesis, measured: five sizes read the same tokens; a power law through four of them foretells the loss of the fifth.

    python examples/text/scaling_laws.py                             Python's own standard library as text: minutes on a CPU
    python examples/text/scaling_laws.py --data FOLDER --steps 1000  .txt files in a folder, or parquet with a text column
    python examples/text/scaling_laws.py --widths 64 96 128 192 256  other sizes; the last is the one that is foretold

The law is Kaplan's A / N^alpha or Hoffmann's E + A / N^alpha (textgen/scaling.py); N counts the parameters without the token table. The fifth
has no say in which of the two: it is the one that foretells the fourth better from the first three. Aim: within 2 %. Draws scaling.png."""
import argparse
import json
import math
import tempfile
from pathlib import Path

import torch

from gencore.attention import AttentionConfig
from gencore.check import DataError, InputError, command
from gencore.data import TokenWindows
from gencore.data_folder import learn_and_held_out
from gencore.folder import file_for
from gencore.layers import MLPConfig
from gencore.positions import RotaryConfig
from gencore.recipe import versions
from gencore.tokenizer import train_bpe
from gencore.train import Run, TrainConfig, fit
from gencore.transformer import TransformerConfig
from textgen import CausalLM
from textgen.model import CausalLMConfig
from textgen.scaling import chosen_law, foretold

CONTEXT, BATCH, LAYERS = 128, 16, 4


def model(width, vocab):
    torch.manual_seed(0)
    stack = TransformerConfig(width=width, layers=LAYERS, attention=AttentionConfig(heads=max(1, width // 32)), rotary=RotaryConfig(),
                              mlp=MLPConfig(8 * width // 3, gated=True, activation="silu"))
    return CausalLM(CausalLMConfig(vocab=vocab, context=CONTEXT, transformer=stack))


def next_token_loss(lm, batch, generator):
    return lm.loss(batch["ids"][:, :-1], batch["ids"][:, 1:])


@torch.no_grad()
def held_out_loss(lm, ids):
    """Nats per token over the whole of `ids`, in windows."""
    windows = ids.unfold(0, CONTEXT + 1, CONTEXT)                                              # (windows, CONTEXT + 1)
    parts = [lm.loss(part[:, :-1], part[:, 1:]) for part in windows.split(32)]
    return float(sum(summed for summed, _ in parts) / sum(count for _, count in parts))


def measured(args):
    """-> (sizes, losses): a training for each width."""
    learn, judge = ("\n".join(texts) for texts in learn_and_held_out(args.data)[:2])
    tokenizer = train_bpe([learn], args.vocab)
    learn, judge = torch.tensor(tokenizer.encode(learn)), torch.tensor(tokenizer.encode(judge[:args.judge]))
    if len(judge) <= CONTEXT:
        raise DataError(f"{len(judge)} tokens are held out to judge on, a window takes {CONTEXT + 1}: give more text")
    sizes, losses = [], []
    print(f"{args.steps * BATCH * CONTEXT:,} of {len(learn):,} tokens for each size, judged on {len(judge):,}", flush=True)
    for width in args.widths:
        lm = model(width, len(tokenizer))
        config = TrainConfig(steps=args.steps, batch=BATCH, lr=3e-3, muon_lr=1e-2, warmup=min(20, args.steps // 10), decay=0.5, save_every=0)
        with tempfile.TemporaryDirectory() as folder:
            fit(lm, next_token_loss, TokenWindows(learn, CONTEXT, BATCH), config, run=Run(folder, progress=False, kept=False))
        sizes.append(sum(p.numel() for p in lm.transformer.parameters()))
        losses.append(held_out_loss(lm, judge))
        print(f"width {width:4}: {sizes[-1]:10,} parameters, {losses[-1]:.4f} nats a token", flush=True)
    return sizes, losses


def draw(sizes, losses, law, path):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    line = torch.logspace(math.log10(sizes[0] / 1.5), math.log10(sizes[-1] * 3), 100).tolist()
    axes.plot(line, [foretold(law, size) for size in line], color="0.6", label="L(N) = {:.2f} + {:.3g} / N^{:.3f}".format(*law))
    axes.scatter(sizes[:-1], losses[:-1], label="fitted")
    axes.scatter(sizes[-1:], losses[-1:], marker="*", s=120, label=f"not fitted: foretold {foretold(law, sizes[-1]):.3f}")
    axes.set(xscale="log", yscale="log", xlabel="parameters without the token table", ylabel="nats per token, held out")
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter("{x:.3g}")
    axes.legend()
    figure.savefig(path, dpi=120)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of .txt files, one text file, or parquet; default: Python's standard library")
    parser.add_argument("--widths", type=int, nargs=5, default=[32, 48, 64, 96, 128], metavar="D")
    parser.add_argument("--steps", type=int, default=300, help=f"of {BATCH} x {CONTEXT} tokens")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--judge", type=int, default=200_000, help="characters that are held out and judged on")
    parser.add_argument("--out", type=Path, default=Path("scaling.png"), help="picture; the numbers go beside it as JSON")
    args = parser.parse_args()
    if args.out.suffix not in ("", ".png", ".pdf", ".svg"):                # without one it is a PNG
        raise InputError(f"--out should end in .png, .pdf or .svg, got {args.out.name}")
    if len(set(args.widths)) < 5:
        raise InputError(f"--widths should be five different ones, got {' '.join(map(str, args.widths))}")
    file_for(args.out)
    with torch.device("meta"):
        for width in args.widths:
            model(width, args.vocab)                                       # one that can't be is said before the first training
    sizes, losses = measured(args)
    law = chosen_law(sizes[:4], losses[:4])
    guess = foretold(law, sizes[4])
    print(f"{'with a floor' if law[0] else 'without a floor'}: L(N) = {law[0]:.3f} + {law[1]:.4g} / N^{law[2]:.4f}; foretold {guess:.4f}, "
          f"measured {losses[4]:.4f}: {guess / losses[4] - 1:+.2%} (aim within 2 %)")
    found = {"sizes": sizes, "losses": losses, "law": law, "foretold": guess, "versions": versions()}
    args.out.with_suffix(".json").write_text(json.dumps(found) + "\n")
    draw(sizes, losses, law, args.out)


if __name__ == "__main__":
    main()
