"""Teaches a chat model by preference (DPO) to keep what was said when it confirms a booking.

    python -m textgen.prefer_chat --data dialogues.parquet --base chat --out runs/chat-kept

Of several ways in which the model itself confirms a booking of the training part, most of them told with other times, dates, numbers and names, the
one that keeps the most is preferred to the one that loses, invents or repeats the most; where none is faultless, the people's own turn is, if it
keeps as much. After a change (changes=0.85: mostly such turns) what the change leaves as it was counts as well. Then again from there, as often
as --base and --out say: the pairs are the model's own, so each round has what it still gets wrong. Rounds can be averaged:
`python -m gencore.average`."""
import argparse
import random
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from gencore.check import DataError, command
from gencore.config import Positive, Share, Size, check_fields, override
from gencore.data import Batches
from gencore.run_folder import open_run
from gencore.train import Run, TrainConfig, fit
from textgen.chat import Chat
from textgen.confirmations import bookings, confirm, confirmations, holds, service, times
from textgen.conversations import read_conversations
from textgen.made_bookings import made_talks
from textgen.preference import Preferences, preference_loss
from textgen.slots import Swaps, in_small_letters, recounted, slots
from textgen.train_chat import QUESTIONS, TASKS

REPEATED = re.compile(r"\b(\w[\w'&-]*(?:\W+\w[\w'&-]*){0,3})\W+\1\b", re.IGNORECASE)                # up to four words, and at once again


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    turns: Size = 2500              # confirmations that the model is asked for
    ways: Size = 6                  # how often each
    temperature: Positive = 0.8
    swaps: Share = 0.7              # share of the conversations that are told with other values
    made: Share = 0.5               # share of the turns that are of made bookings (`made_talks`)
    changes: Share = 0.0            # how often only a turn after a change will do
    hotels: Share = 0.0             # how often only a turn that books a hotel will do
    small: Share = 0.1              # share of the turns that are in small letters
    beta: Positive = 0.1
    likelihood: float = 1.0         # how much the preferred answer's own likelihood counts beside the preference
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch=8, lr=1e-4, decay=0.7, warmup=20, weight_decay=0.0,
                                                                   precision="auto", save_every=200))

    def __post_init__(self):
        check_fields(self)


def asked(rows, plan, seed):
    """Rows of conversations -> (messages before, the people's turn, its slots) for ever, in random order."""
    draw = random.Random(seed)
    heard = [row["messages"] for row in rows if row["split"] == "train" and row["source"] in (*TASKS, *QUESTIONS)]
    learnt = [row["messages"] for row in rows if row["split"] == "train" and row["source"] == "sgd"]
    rows = bookings(rows, "train")
    confirmed = {service(theirs) for messages in rows for _, theirs, _ in confirmations(messages, least=3)}
    if not confirmed or plan.hotels and "hotel" not in confirmed:
        what = "a hotel's booking" if confirmed else "a booking"
        raise DataError(f"no conversation of source sgd, split train, in which {what} is confirmed: nothing to learn from")
    swapped = Swaps(rows, others=heard)
    made = made_talks(learnt, swapped, draw)
    while True:
        if draw.random() < plan.made:
            talk = next(made)
        else:
            talk = draw.choice(rows)
            talk = swapped(recounted(talk, draw), draw) if draw.random() < plan.swaps else talk
        turns, after_change, of_hotels = confirmations(talk, least=3), draw.random() < plan.changes, draw.random() < plan.hotels
        turns = [turn for turn in turns if unchanged(*turn[:2])] if after_change else turns
        turns = [turn for turn in turns if service(turn[1]) == "hotel"] if of_hotels else turns
        if turns:
            before, theirs, wanted = draw.choice(turns)
            kept = [slot for slot in unchanged(before, theirs) if slot not in wanted]
            if draw.random() < plan.small:
                *before, last = in_small_letters([*before, {"role": "assistant", "content": theirs}])
                theirs = last["content"]
            yield before, theirs, [slot for slot in wanted if holds(theirs, slot)] + kept                # not the 1 of "1st"


def unchanged(before, theirs):
    """After a turn that asked to confirm and a change: what was asked there and the change leaves as it is, kind by kind. People often repeat the
    change alone, and then nobody knows whether the rest was kept."""
    asked = confirmations(before[:-1], least=0)
    if not asked or len(asked[-1][0]) != len(before) - 2:
        return []
    text, reply = asked[-1][1], before[-1]["content"]
    changed = {*slots(reply).values()} | ({"date"} if re.search("day|tomorrow", reply, re.IGNORECASE) else set())
    said = changed | ({*slots(theirs).values()} - {"name"})
    if not changed:
        return []
    return [slot for slot, kind in slots(text).items() if kind not in said and holds(text, slot)]


def preferred(chat, turns, plan):
    """Turns to confirm -> [{"prompt", "chosen", "rejected"}], and the share of the slots that the model kept."""
    pairs, kept, total = [], 0, 0
    for number, (before, theirs, wanted) in zip(tqdm(range(plan.turns), desc="confirmations"), turns):
        ways = confirm(chat, before, theirs, ways=plan.ways, temperature=plan.temperature, seed=number * plan.ways)
        scores = [worth(way, before, theirs, wanted) for way in ways]
        kept, total = kept + sum(holds(way, slot) for way in ways for slot in wanted), total + len(wanted) * len(ways)
        best, theirs_worth = max(scores), worth(theirs, before, theirs, wanted)
        chosen = ways[scores.index(best)] if best == len(wanted) or best > theirs_worth else theirs
        rows = {"prompt": before, "chosen": chosen, "rejected": ways[scores.index(min(scores))]}
        if min(scores) < max(best, theirs_worth) and fits(chat.lm, rows):
            pairs.append(rows)
    return pairs, kept / total


def worth(way, before, theirs, wanted):
    """How many of the slots a way keeps, less the values that nobody has said and what it says more often than people's own turn."""
    said, found = "\n".join((*(message["content"] for message in before), theirs)), slots(way)
    invented = sum(not holds(said, value) for value in found)
    again = sum(max(0, times(way, value) - max(1, times(theirs, value))) for value, kind in found.items() if kind != "number")
    looped = max(0, len(REPEATED.findall(way)) - len(REPEATED.findall(theirs)))
    return sum(holds(way, slot) for slot in wanted) - invented - again - looped


def fits(lm, pair):
    """Whether both answers fit into the context with what stands before them."""
    longest = max(pair["chosen"], pair["rejected"], key=lambda text: len(lm.tokenizer.encode(text)))
    return len(lm.tokenizer.chat_ids([*pair["prompt"], {"role": "assistant", "content": longest}], prompt=False)) <= lm.cfg.context


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=".jsonl or .parquet with the columns messages, source, topic and split")
    parser.add_argument("--base", default="chat", help="the chat model that is taught, by name or folder (default: chat)")
    parser.add_argument("--out", type=Path, default=Path("runs/chat-kept"), help="run folder (default runs/chat-kept)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, or train.<field of TrainConfig>")
    args = parser.parse_intermixed_args()
    plan = override(Plan(), args.settings)
    chat, rows = Chat.from_pretrained(args.base), read_conversations(args.data, columns=("source", "topic", "split"))
    torch.set_num_threads(plan.train.threads or torch.get_num_threads())
    run = Run(args.out, export=lambda model: model.files(dtype=torch.bfloat16),
              card={"title": args.out.name, "Data": args.data.name, "Command": "python -m textgen.prefer_chat " + shlex.join(sys.argv[1:])})
    open_run(run)                                              # before the long work
    pairs, kept = preferred(chat, asked(rows, plan, plan.train.seed), plan)
    print(f"{plan.turns} turns, {kept:.3f} of their slots kept; {len(pairs)} pairs to learn from", file=sys.stderr)
    lm = chat.lm.trainable()
    fit(lm, preference_loss(beta=plan.beta, likelihood=plan.likelihood), Batches(Preferences(lm, pairs), plan.train.batch, plan.train.seed),
        plan.train, run=run)
    print(f'done: Chat.from_pretrained("{args.out}/model")', file=sys.stderr)


if __name__ == "__main__":
    main()
