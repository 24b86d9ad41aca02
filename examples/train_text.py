"""Trains a language model from nothing on your text, and samples from it while it learns.

    python examples/train_text.py                                   Python's own standard library as text: minutes on a CPU
    python examples/train_text.py --data FOLDER --out runs/mine     .txt files in a folder, or parquet with a text column
    python examples/train_text.py --data FOLDER --preset novelist   a model of the size of the novelist that ships: hours on a CPU
    python examples/train_text.py --data FOLDER --base novelist     goes on from a model's weights, tokenizer and shape on other text
    python examples/train_text.py width=192 train.steps=2000        any field of TextRun or gencore.train.TrainConfig
    torchrun --nproc-per-node 2 examples/train_text.py ...          in two processes, as the other training scripts; on CPUs as well

Ctrl-C saves; the same command with --resume goes on, for longer with another train.steps. The run folder holds the loss plot, samples/,
metrics.jsonl, checkpoints/ and in the end model/, a folder that CausalLM.from_pretrained and transformers' AutoModelForCausalLM open.
Without a column "split", the last twentieth of each text is held out, and bits per byte are measured on it."""
import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gencore.attention import AttentionConfig
from gencore.check import command
from gencore.config import Share, check_fields, override
from gencore.data import TokenWindows
from gencore.data_folder import learn_and_held_out
from gencore.layers import MLPConfig, NormConfig
from gencore.positions import RotaryConfig
from gencore.tokenizer import train_bpe
from gencore.train import Run, TrainConfig, fit
from gencore.transformer import TransformerConfig
from textgen import CausalLM
from textgen.evaluate import bits_per_byte
from textgen.model import CausalLMConfig


@dataclass(frozen=True)
class TextRun:
    """Size of the model, and how it is trained."""
    vocab: int = 2048               # tokens of the byte-level BPE
    context: int = 256              # tokens of a training window
    width: int = 128                # D
    layers: int = 4
    heads: int = 4
    mlp: int = 344                  # width of the gated MLP
    tied: bool = True               # the head is the token table
    dropout: Share = 0.0            # on what each sublayer adds, in training: for a text that is read many times
    prompt: str = "def "            # of the samples
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch=16, lr=3e-3, muon_lr=1e-2, warmup=20, decay=0.4,
                                                                   eval_every=100, save_every=100))

    def __post_init__(self):
        check_fields(self)


NOVELIST = TextRun(vocab=8192, context=512, width=320, layers=6, heads=5, mlp=896, prompt="It was a dark night, and",
                   train=TrainConfig(steps=5000, batch=8, lr=3e-3, muon_lr=6e-3, warmup=50, decay=0.5, precision="auto", eval_every=200,
                                     save_every=200))
PRESETS = {"small": TextRun(), "novelist": NOVELIST}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of .txt files, one text file, or parquet; default: Python's standard library")
    parser.add_argument("--out", type=Path, default=Path("runs/text"), help="run folder (default runs/text)")
    parser.add_argument("--preset", choices=PRESETS, default="small",
                        help="size of the model, default small; novelist: that of the one that ships (context 512; its card has the second stage)")
    parser.add_argument("--base", "--start",                            # torchrun would take --start for its own --start-method
                        help="a model to go on from: a shipped name, a folder, or a Hub id; shape and tokenizer stay, its context grows")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of TextRun, or train.<field of TrainConfig>")
    return parser.parse_intermixed_args()


def new(cfg, tokenizer):
    """A model that knows nothing yet."""
    stack = TransformerConfig(width=cfg.width, layers=cfg.layers, attention=AttentionConfig(heads=cfg.heads),
                              mlp=MLPConfig(cfg.mlp, gated=True, activation="silu"), norm=NormConfig(eps=1e-5), rotary=RotaryConfig())
    return CausalLM(CausalLMConfig(vocab=len(tokenizer), context=cfg.context, transformer=stack, tied=cfg.tied, bos=tokenizer.bos_id,
                                   eos=(tokenizer.eos_id,), pad=tokenizer.pad_id), tokenizer)


@command
def main():
    args = arguments()
    cfg = override(PRESETS[args.preset], args.settings)
    texts, held_out, what = learn_and_held_out(args.data)
    print(f"{what}: {sum(map(len, texts)):,} characters to learn from, {sum(map(len, held_out)):,} held out", file=sys.stderr)
    torch.manual_seed(cfg.train.seed)
    lm = CausalLM.from_pretrained(args.base).trainable(cfg.context) if args.base else new(cfg, train_bpe(texts, cfg.vocab, length=cfg.context))
    ids = [token for text in texts for token in [lm.tokenizer.eos_id, *lm.tokenizer.encode(text)]]
    for block in lm.transformer.blocks:                             # of training alone: no folder says it
        block.dropout = cfg.dropout
    print(f"{sum(p.numel() for p in lm.parameters()):,} parameters, {len(ids):,} tokens in windows of {cfg.context}", file=sys.stderr)

    def loss(model, batch, generator):
        return model.loss(batch["ids"][:, :-1], batch["ids"][:, 1:])

    evaluate = lambda model: {"bits_per_byte": bits_per_byte(model, ["\n\n".join(held_out)], limit=32)}

    def sample(model, folder, step):
        text = model.generate(cfg.prompt, max_new_tokens=120, seed=0)
        print(f"\n--- step {step} ---\n{text}\n", flush=True)
        (folder / f"{step:06d}.txt").write_text(text, encoding="utf-8")

    run = Run(args.out, resume=args.resume, extend=True, plan={"dropout": cfg.dropout, "context": cfg.context}, evaluate=evaluate, sample=sample,
              export=lambda model: model.files(dtype=torch.bfloat16),
              card={"title": args.out.name, "Data": what})
    fit(lm, loss, TokenWindows(torch.tensor(ids), cfg.context, cfg.train.batch, cfg.train.seed), cfg.train, run=run)
    print(f'done: CausalLM.from_pretrained("{args.out}/model")', file=sys.stderr)


if __name__ == "__main__":
    main()
