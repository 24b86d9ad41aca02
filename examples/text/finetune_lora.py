"""Teaches a language model to hold conversations: supervised fine-tuning, by LoRA or with all its weights.

    python examples/text/finetune_lora.py                              made conversations that book taxis: minutes on a CPU
    python examples/text/finetune_lora.py --data talks.jsonl           yours: {"messages": [{"role": "user", "content": ...}, ...]} a line, or parquet
    python examples/text/finetune_lora.py --base FOLDER --out runs/it  another model, any that CausalLM.from_pretrained opens
    python examples/text/finetune_lora.py rank=0 train.lr=1e-3         all weights instead of an adapter; any field of Tuning or TrainConfig

A base without a chat template gets one, and its special tokens; that base is saved too. Ctrl-C saves; the same command with --resume goes on.
The run folder holds base/, adapter/ (peft opens it on base/) and model/, in which both are one: python examples/text/chat.py RUN/model.
Expect of the defaults: four minutes on one CPU thread, a loss on held-out conversations below 0.01, 20 of 20 bookings repeated without a slip."""
import argparse
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gencore.check import InputError, command, whole
from gencore.checkpoint import save_folder
from gencore.config import override
from gencore.data import Batches, hold_out
from gencore.decode import resting
from gencore.train import Run, TrainConfig, fit
from textgen import CausalLM, Chat, LoRA
from textgen.chat import base_of_run
from textgen.conversations import ASKED, Packed, conversation_row, packed_loss, read_conversations, split_turns


@dataclass(frozen=True)
class Tuning:
    """The adapter, and how it is trained."""
    rank: int = 16                  # of the adapter; 0 = no adapter, all weights are trained
    alpha: float = 32.0             # the adapter counts alpha / rank times
    dropout: float = 0.0            # of the adapter's inputs
    context: int = 256              # tokens of a training window
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=220, batch=4, lr=3e-3, warmup=10, decay=0.5, weight_decay=0.0,
                                                                   eval_every=110, save_every=110))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=".jsonl or .parquet with a column messages (and split); default: made conversations")
    parser.add_argument("--base", default="novelist", help="the model to teach: a shipped name, a folder, or a Hub id (default novelist)")
    parser.add_argument("--out", type=Path, default=Path("runs/lora"), help="run folder (default runs/lora)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Tuning, or train.<field of TrainConfig>")
    return parser.parse_intermixed_args()


def booking(rng):
    """A conversation in which a taxi is booked; the answer repeats what was said."""
    place = rng.choice(["station", "old mill", "church", "harbour", "market", "castle", "bridge", "theatre", "hospital", "inn"])
    hour = rng.choice(["six", "seven", "eight", "nine", "ten", "eleven", "noon", "midnight"])
    people = rng.choice(["one", "two", "three", "four", "five"])
    said = [rng.choice(["I need a taxi from the {0}.", "Send a carriage to the {0}, please.", "Can you take me from the {0}?"]), "At what time?",
            rng.choice(["At {1}.", "I must leave at {1}.", "{1}, if you please."]), "For how many people?",
            rng.choice(["For {2}.", "There are {2} of us.", "{2}."]), "Very well: at {1}, from the {0}, for {2}."]
    return [{"role": ("user", "assistant")[turn % 2], "content": text.format(place, hour, people)} for turn, text in enumerate(said)]


def conversations(path, seed):
    """(to learn from, held out)."""
    if path is None:
        rng = random.Random(seed)
        talks = [booking(rng) for _ in range(400)]
        held = talks[:20]
        return [talk for talk in talks[20:] if talk not in held], held
    rows = read_conversations(path)
    splits = {row.get("split") for row in rows}
    if held := next((split for split in ("validation", "test") if {"train", split} <= splits), None):
        return tuple([row["messages"] for row in rows if row.get("split") == split] for split in ("train", held))
    return tuple(map(list, hold_out([row["messages"] for row in rows], min(0.1, 200 / len(rows)), seed)))


@command
def main():
    args = arguments()
    cfg = override(Tuning(), args.settings)
    learnt, held = conversations(args.data, cfg.train.seed)
    torch.manual_seed(cfg.train.seed)
    base = base_of_run(args.out, CausalLM.from_pretrained(args.base), seed=cfg.train.seed, resume=args.resume)
    lora = LoRA(base, rank=cfg.rank, alpha=cfg.alpha, dropout=cfg.dropout) if cfg.rank else None
    lm = lora.lm if lora else base.trainable()
    length = min(whole("context", cfg.context, 2), lm.cfg.context)
    rows, unseen = (Packed([conversation_row(lm.tokenizer, part) for talk in talks for part in split_turns(lm.tokenizer, talk, length)], length)
                    for talks in (learnt, held))
    trained = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    print(f"{len(learnt):,} conversations in {len(rows):,} windows ({rows.cut} exchanges cut), {len(held)} held out; {trained:,} of "
          f"{sum(p.numel() for p in lm.parameters()):,} weights are trained", file=sys.stderr)

    def evaluate(model):
        with resting(model):
            sums = [packed_loss(model, {name: value[None] for name, value in unseen[i].items()}, None) for i in range(min(64, len(unseen)))]
        return {"held_out_loss": sum(float(loss) for loss, _ in sums) / sum(int(count) for _, count in sums)}

    def sample(model, folder, step):
        asked = next((talk[:i + 1] for talk in held for i in reversed(range(len(talk))) if talk[i]["role"] == "user"), ASKED)
        try:
            reply = Chat(model)(asked, temperature=0)
        except InputError as error:                             # too long to answer: no reason to stop
            reply = str(error)
        print(f"\n--- step {step} ---\n" + "\n".join(m["content"] for m in asked) + f"\n-> {reply}\n", flush=True)
        (folder / f"{step:06d}.txt").write_text(reply, encoding="utf-8")

    export = lora.export if lora else lambda model: model.files()
    run = Run(args.out, resume=args.resume, extend=True, export=export, evaluate=evaluate, sample=sample,
              card={"title": args.out.name, "Data": str(args.data or "made conversations")}, plan={"dropout": cfg.dropout, "context": cfg.context})
    fit(lm, packed_loss, Batches(rows, cfg.train.batch, cfg.train.seed), cfg.train, run=run)
    if lora:
        lora.save_pretrained(args.out / "adapter")
        save_folder(args.out / "model", {**lora.merged().files(), "README.md": run.path("README.md").read_text(encoding="utf-8")})
    if args.data is None:
        right = sum(Chat(lm)(talk[:-1], temperature=0) == talk[-1]["content"] for talk in held)
        print(f"{right} of {len(held)} held-out bookings repeated without a slip")
    print(f'done: python examples/text/chat.py {args.out / "model"}', file=sys.stderr)


if __name__ == "__main__":
    main()
