"""Trains a chat model that books tables, hotels and taxis, and says so when it doesn't know.

    python -m textgen.train_chat --data dialogues.parquet --out runs/chat-base                          learns the language of all speakers
    python -m textgen.train_chat --data dialogues.parquet --out runs/chat --base runs/chat-base/model speakers=assistant swaps=0.9 made=8000

dialogues.parquet has the columns messages, source and split. Conversations of the sources in TASKS are learnt as they are; of QUESTIONS only what
the user asks, and the answer is one of UNKNOWN: so the model learns to say that it doesn't know, alone and in the middle of a booking. With swaps
other times, numbers and names are put into a share of the bookings: what the user said has to be looked up, not guessed. Made bookings
(textgen/made_bookings.py) have that as well, and hotels by nights, rides to places that came up before and changes of mind; a tenth of them are in
small letters."""
import argparse
import random
import shlex
import sys
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from gencore.check import DataError, InputError, command
from gencore.config import Count, check_fields, override
from gencore.data import Batches
from gencore.tokenizer import train_bpe, with_chat
from gencore.train import Run, TrainConfig, fit
from textgen.chat import Chat, turn_end
from textgen.conversations import Packed, conversation_row, packed_loss, read_conversations, split_turns
from textgen.made_bookings import made_talks
from textgen.model import CausalLM
from textgen.presets import llama_shape
from textgen.slots import Swaps, in_small_letters

TASKS, QUESTIONS = ("sgd", "star"), ("dolly_subset", "self_instruct")
HEARD = ("speakers", "swaps", "made", "asides", "context")      # what a resumed run goes on under: the lessons
UNKNOWN = ["I'm sorry, I don't know that. I can help you to book a table, a hotel or a taxi.", "I'm afraid I don't know. Is there something to book?",
           "Sorry, I don't know about that. I only know about bookings.", "I don't know, sorry. I can find you a restaurant, a hotel or a ride.",
           "That I don't know, I'm sorry. Can I help you with a reservation?", "I'm sorry, I don't know the answer to that."]


@dataclass(frozen=True)
class ChatRun:
    """Size of the model, and how it is trained."""
    vocab: int = 4096               # tokens of the byte-level BPE, before those of the chat template
    context: int = 512              # tokens of a training window
    width: int = 256                # D
    layers: int = 6
    heads: int = 4
    mlp: int = 704                  # width of the gated MLP
    speakers: Literal["all", "assistant"] = "all"               # whose words are learnt
    asides: float = 0.15            # share of the conversations that a question interrupts that can't be answered
    swaps: float = 0.0              # share of the conversations that are told with other times, dates, numbers and names
    made: Count = 0                 # made conversations beside the recorded ones
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=5000, batch=8, lr=3e-3, muon_lr=6e-3, decay=0.6, weight_decay=0.2,
                                                                   precision="auto", eval_every=500, save_every=500))

    def __post_init__(self):
        check_fields(self)


def lessons(rows, split, asides, *, swaps=0.0, made=0, seed=0):
    """Rows of conversations -> lists of messages to learn from, of that split."""
    draw = random.Random(seed)
    rows = [row for row in rows if row["split"] == split and row["source"] in (*TASKS, *QUESTIONS)]
    questions = [row["messages"][0]["content"] for row in rows if row["source"] in QUESTIONS]
    aside = lambda: [{"role": "user", "content": draw.choice(questions)}, {"role": "assistant", "content": draw.choice(UNKNOWN)}]
    tasks, talks = [row for row in rows if row["source"] in TASKS], []
    swapped = Swaps([row["messages"] for row in tasks], others=[row["messages"] for row in rows]) if swaps or made else None
    for row in tasks:
        messages = list(swapped(row["messages"], draw)) if draw.random() < swaps else list(row["messages"])
        place = 2 * draw.randrange(len(messages) // 2 + 1)
        talks.append(messages[:place] + aside() + messages[place:] if questions and draw.random() < asides else messages)
    if made:
        recorded = made_talks([row["messages"] for row in tasks], swapped, draw)
        talks += [in_small_letters(talk) if draw.random() < 0.1 else talk for talk in islice(recorded, made)]
    talks += [[{"role": "user", "content": question}, {"role": "assistant", "content": draw.choice(UNKNOWN)}] for question in questions]
    if not talks:
        raise DataError(f'no row has the split "{split}" and one of the sources {", ".join((*TASKS, *QUESTIONS))}, which are learnt from; for any '
                        "other conversations: examples/text/finetune_lora.py")
    return talks


def windows(tokenizer, talks, cfg):
    """Lists of messages -> Packed windows; speakers="all": every token is a target."""
    parts = [part for talk in talks for part in split_turns(tokenizer, talk, cfg.context)]
    if cfg.speakers == "all":
        rows = [(ids[:-1], ids[1:]) for ids in (tokenizer.chat_ids(part, prompt=False) for part in parts)]
    else:
        rows = [conversation_row(tokenizer, part) for part in parts]
    return Packed(rows, cfg.context, pad=tokenizer.pad_id or 0)


def new(cfg, talks):
    """A model that knows nothing yet, with a tokenizer of these conversations."""
    tokenizer = with_chat(train_bpe((message["content"] for talk in talks for message in talk), cfg.vocab, length=cfg.context))
    shape = llama_shape(cfg.width, cfg.layers, cfg.heads, cfg.mlp, vocab=len(tokenizer), context=cfg.context)
    return CausalLM(replace(shape, bos=tokenizer.bos_id, eos=(tokenizer.eos_id, turn_end(tokenizer)), pad=tokenizer.pad_id), tokenizer)


def further(base, cfg):
    """A chat model by name or folder -> the copy that goes on, with the layers and the context that it lacks."""
    lm = CausalLM.from_pretrained(base)
    return lm.trainable(cfg.context, max(cfg.layers, lm.cfg.transformer.layers))


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=".jsonl or .parquet with the columns messages, source and split")
    parser.add_argument("--out", type=Path, default=Path("runs/chat"), help="run folder (default runs/chat)")
    parser.add_argument("--base", "--start", help="a chat model to go on from, by name or folder: its shape stays, but layers and context it lacks")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of ChatRun, or train.<field of TrainConfig>")
    args = parser.parse_intermixed_args()
    cfg = override(ChatRun(), args.settings)
    rows = read_conversations(args.data, columns=("source", "split"))
    learnt = lessons(rows, "train", cfg.asides, swaps=cfg.swaps, made=cfg.made, seed=cfg.train.seed)
    held = lessons(rows, "validation", cfg.asides, seed=cfg.train.seed)
    torch.manual_seed(cfg.train.seed)
    lm = further(args.base, cfg) if args.base else new(cfg, learnt)
    data, unseen = (windows(lm.tokenizer, talks, cfg) for talks in (learnt, held[:300]))
    print(f"{len(learnt):,} conversations in {len(data):,} windows of {cfg.context} tokens ({data.cut} exchanges cut); "
          f"{sum(p.numel() for p in lm.parameters()):,} parameters", file=sys.stderr)

    def evaluate(model):
        sums = [packed_loss(model, {name: value[None] for name, value in unseen[i].items()}, None) for i in range(len(unseen))]
        return {"held_out_loss": float(sum(s for s, _ in sums) / sum(n for _, n in sums))}

    def sample(model, folder, step):
        chat, messages, asked = Chat(model), [], [message["content"] for message in held[0] if message["role"] == "user"]
        for line in [*asked, "Who was the first man on the moon?"]:
            messages.append({"role": "user", "content": line})
            try:
                reply = str(chat(messages, temperature=0))
            except InputError as error:                         # too long to answer: no reason to stop
                reply = str(error)
            messages.append({"role": "assistant", "content": reply})
        said = "\n".join(("> " if message["role"] == "user" else "  ") + message["content"] for message in messages)
        print(f"\n--- step {step} ---\n{said}\n", flush=True)
        (folder / f"{step:06d}.txt").write_text(said, encoding="utf-8")

    run = Run(args.out, resume=args.resume, extend=True, plan={name: getattr(cfg, name) for name in HEARD}, evaluate=evaluate, sample=sample,
              export=lambda model: model.files(dtype=torch.bfloat16),
              card={"title": args.out.name, "Data": args.data.name, "Command": "python -m textgen.train_chat " + shlex.join(sys.argv[1:])})
    fit(lm, packed_loss, Batches(data, cfg.train.batch, cfg.train.seed), cfg.train, run=run)
    print(f'done: Chat.from_pretrained("{args.out}/model")', file=sys.stderr)


if __name__ == "__main__":
    main()
