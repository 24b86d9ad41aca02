"""Words in context: is this "bark" a tree's or a dog's? A linear probe asks the states of a language model; a static vector can't tell.

    python examples/text/word_senses.py                      trains a small model on sentences made here, then probes it: a minute or two
    python examples/text/word_senses.py --model novelist     probes a model that is there: a shipped name, a folder, or a Hub id

The model reads unlabelled sentences ("First came the oak, then the elm, and last of all the bark roots boughs."). The probe learns from
half of the frames and cue words which sense a word has, and is judged on the other half (textgen/word_senses.py). Expect above 95 % by the
contextual vectors of the small model, 70 % by the novelist's, 50 % by static ones. Draws the test sentences by what the probe says of them."""
import argparse
import tempfile
from pathlib import Path

import torch

from gencore.check import InputError, command, seeds_of
from gencore.data import right_padded
from gencore.folder import file_for
from gencore.layers import MLPConfig
from gencore.positions import RotaryConfig
from gencore.tokenizer import train_bpe
from gencore.train import Run, TrainConfig, fit
from gencore.transformer import TransformerConfig
from textgen import CausalLM
from textgen.model import CausalLMConfig
from textgen.word_senses import SENSES, judged, unlabelled


class Sentences:
    """Batches of new unlabelled sentences, for fit."""

    def __init__(self, tokenizer, rows):
        self.tokenizer, self.rows = tokenizer, rows

    def batch(self, step, rank=0, world=1):
        ids, keep = right_padded([self.tokenizer.encode(text) for text in unlabelled(self.rows, seed=step)], 0)
        return {"ids": ids[:, :-1], "targets": ids[:, 1:].masked_fill(~keep[:, 1:], -100)}


def trained(steps):
    """A model of two blocks that has read `steps` times 64 sentences."""
    tokenizer = train_bpe(unlabelled(4000, seed=10 ** 6), 1024)
    stack = TransformerConfig(width=96, layers=2, mlp=MLPConfig(256, gated=True, activation="silu"), rotary=RotaryConfig())
    torch.manual_seed(0)
    lm = CausalLM(CausalLMConfig(vocab=len(tokenizer), context=64, transformer=stack), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        return fit(lm, lambda model, batch, generator: model.loss(batch["ids"], batch["targets"]), Sentences(tokenizer, 64),
                   TrainConfig(steps=steps, batch=64, lr=3e-3, muon_lr=1e-2, warmup=20, save_every=0), run=Run(folder, kept=False))


def draw(results, path):
    """{word: what judged gives} -> a PNG: a row for each word, its test sentences left and right of the probe's border."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row, (word, (_, margins, senses)) in enumerate(results.items()):
        for sense, name in enumerate(SENSES[word]):
            chosen, colour = senses == sense, ("tab:blue", "tab:orange")[sense]
            axes.scatter(margins[chosen], row + torch.linspace(-0.25, 0.25, int(chosen.sum())), s=6, color=colour)
            axes.annotate(name, ((0.01, 0.99)[sense], row), xycoords=("axes fraction", "data"), ha=("left", "right")[sense], color=colour)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(results)), [f"{word} ({right['contextual']:.0%})" for word, (right, _, _) in results.items()])
    axes.set(xlabel="what the probe says of sentences whose frames and cues it has not seen")
    figure.savefig(path, dpi=120)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a causal model that is there, instead of training one")
    parser.add_argument("--steps", type=int, default=250, help="of training, 64 sentences each")
    parser.add_argument("--seed", type=int, default=0, help="which half of frames and cue words the probe learns from")
    parser.add_argument("--out", type=Path, default=Path("senses.png"), help="picture (default senses.png)")
    args = parser.parse_args()
    seeds_of(args.seed)
    if args.out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"--out should end in .png, .jpg, .pdf or .svg, got {args.out.name}")
    file_for(args.out)
    lm = CausalLM.from_pretrained(args.model) if args.model else trained(args.steps)
    results = {word: judged(lm, word, args.seed) for word in SENSES}
    for word, (right, _, _) in results.items():
        print(f"{word:8} ({' or '.join(SENSES[word])}): " + ", ".join(f"{name} {share:.1%}" for name, share in right.items()))
    print("all      : " + ", ".join(f"{name} {sum(right[name] for right, _, _ in results.values()) / len(results):.1%}"
                                    for name in ("bag of words", "static", "contextual")))
    draw(results, args.out)


if __name__ == "__main__":
    main()
