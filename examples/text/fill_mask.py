"""Trains a two-way encoder that fills in hidden words (BERT's objective, masks drawn anew each time), from nothing, on your text.

    python examples/text/fill_mask.py                                        Python's own standard library as text: minutes on a CPU
    python examples/text/fill_mask.py --data FOLDER --ask "It was a [MASK] night."
    python examples/text/fill_mask.py width=256 layers=6 train.steps=5000    any field of MaskedRun or gencore.train.TrainConfig

Ctrl-C saves; the same command with --resume goes on. The run folder holds the loss plot, samples/ (what it fills in as it learns, and for the
shortest text an attention.png: the row [MASK] shows which words each head of the last layer looks at to fill it in), metrics.jsonl,
checkpoints/ and in the end model/, which MaskedLM.from_pretrained and transformers' AutoModelForMaskedLM open."""
import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from gencore.attention_maps import ROOM, draw_attention, watched
from gencore.check import DataError, command
from gencore.config import override
from gencore.data import TokenWindows
from gencore.data_folder import learn_and_held_out
from gencore.train import Run, TrainConfig, fit
from textgen import MaskedLM
from textgen.masked import CLS, EncoderConfig, bert_stack, mask_tokens, train_masked_tokenizer

ASKED = ("for i in [MASK](len(rows)):", "if value is [MASK]:", "import [MASK]")


@dataclass(frozen=True)
class MaskedRun:
    """Size of the model, and how it is trained."""
    vocab: int = 2048               # tokens of the byte-level BPE
    context: int = 128              # tokens of a training window
    width: int = 128                # D
    layers: int = 4
    heads: int = 4
    mlp: int = 512
    dropout: float = 0.0            # on what each sublayer adds
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=600, batch=32, lr=2e-3, muon_lr=6e-3, warmup=50, decay=0.5, eval_every=150,
                                                                   save_every=150))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of .txt files, one text file, or parquet; default: Python's standard library")
    parser.add_argument("--ask", action="append", help="a text with one [MASK], filled in as it learns; may be given several times")
    parser.add_argument("--out", type=Path, default=Path("runs/fill-mask"), help="run folder (default runs/fill-mask)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of MaskedRun, or train.<field of TrainConfig>")
    return parser.parse_intermixed_args()


def filled(model, text):
    """What stands at each mask of a text, likeliest first."""
    found = model.fill_mask(text)
    masks = found if isinstance(found[0], list) else [found]
    return " | ".join(", ".join(f"{word} {p:.2f}" for word, p in words) for words in masks)


@command
def main():
    args = arguments()
    cfg = override(MaskedRun(), args.settings)
    texts, held_out, what = learn_and_held_out(args.data)
    torch.manual_seed(cfg.train.seed)
    tokenizer = train_masked_tokenizer(texts, cfg.vocab, cfg.context)
    stack = replace(bert_stack(cfg.width, cfg.layers, cfg.heads, cfg.mlp), dropout=cfg.dropout)
    lm = MaskedLM(EncoderConfig(len(tokenizer), cfg.context, transformer=stack, pad=tokenizer.pad_id), tokenizer)
    learnt, unseen = (torch.tensor([i for text in part for i in tokenizer.encode(text, special=True)]) for part in (texts, held_out))
    print(f"{what}: {len(learnt):,} tokens to learn from, {len(unseen):,} held out; {sum(p.numel() for p in lm.parameters()):,} parameters",
          file=sys.stderr)
    if len(unseen) < cfg.context:
        raise DataError(f"{len(unseen)} tokens are held out, a window has {cfg.context}: give more text, or a smaller context")
    windows = unseen[:len(unseen) // cfg.context * cfg.context].view(-1, cfg.context)[:64]           # (windows, T)
    asked, answers = mask_tokens(windows, tokenizer, torch.Generator().manual_seed(0))

    def evaluate(model):
        right, count = 0, 0
        for ids, wanted in zip(asked.split(16), answers.split(16)):
            real = wanted != -100
            right += int((model.logits(model.encoder(ids)[real]).argmax(-1) == wanted[real]).sum())
            count += int(real.sum())
        return {"filled_in_right": right / count}

    def sample(model, folder, step):
        said = "\n".join(f"{text}   {filled(model, text)}" for text in args.ask or ASKED)
        print(f"\n--- step {step} ---\n{said}\n", flush=True)
        (folder / f"{step:06d}.txt").write_text(said + "\n", encoding="utf-8")
        shortest = min(args.ask or ASKED, key=len)
        with watched(model.encoder.transformer) as seen:
            model.fill_mask(shortest)
        tokens = [tokenizer.decode([i], keep_special=True) for i in tokenizer.encode(shortest, special=True)]
        if len(tokens) <= ROOM:
            draw_attention(seen.attention, tokens, folder / f"{step:06d}-attention.png")

    def loss(model, batch, generator):
        ids = batch["ids"][:, :-1]
        ids[:, 0] = tokenizer.id(CLS)                                   # a text begins so when it is filled in or classified
        return model.loss(*mask_tokens(ids, tokenizer, generator))

    for text in args.ask or ASKED:
        lm.fill_mask(text)                                              # one that can't be filled in is said before the training
    run = Run(args.out, resume=args.resume, extend=True, export=MaskedLM.files, evaluate=evaluate, sample=sample,
              card={"title": args.out.name, "Data": what})
    fit(lm, loss, TokenWindows(learnt, cfg.context, cfg.train.batch, cfg.train.seed), cfg.train, run=run)
    print(f'done: MaskedLM.from_pretrained("{args.out}/model")', file=sys.stderr)


if __name__ == "__main__":
    main()
