"""A chat model on conversations that it was not trained on: is what was said kept, and does it say so when it doesn't know?

    python -m benchmarks.chat --data dialogues.parquet                                   the chat that ships; --model runs/chat/model: another
    python -m benchmarks.chat --data dialogues.parquet --questions nq_open_dev.parquet   and questions of another kind (a column question)

Slots kept: of the test conversations (source sgd), every turn in which the assistant asks to confirm a table, a hotel or a ride, with six or more
messages before it. Its slots are the times, dates, numbers and names in that turn that were said before (textgen.slots). The model reads the
conversation up to there and the turn's first words, up to "confirm" ("Please confirm" where those name a slot), and goes on with its likeliest
words; a slot is kept if it is there, as whole words. "kept_free": the same when it is not told to confirm and may ask something else. Ceiling: the
people's turn itself, 1.0 by definition; floor: the same model's answer when it reads the last message alone.

Doesn't know: share of the questions outside its data (of the sources dolly_subset and self_instruct, test split, whose like it was trained on, and
of --questions, whose like it was not) that are answered with "don't know"; too_long: how many fill half the context and are left out. False
alarms: share of the assistant's turns in booking conversations where it says so. Writes benchmarks/results/chat.json."""
import argparse
import json
import random
import re
from collections import Counter
from itertools import takewhile
from pathlib import Path

import torch

from gencore.check import command
from gencore.choose import Sampling
from gencore.recipe import versions
from textgen import Chat
from textgen.conversations import read_conversations
from textgen.slots import slots
from textgen.text import Settings, run

RESULTS = Path(__file__).parent / "results" / "chat.json"
SERVICES = {"Restaurants", "Hotels", "RideSharing"}
BOOKING = re.compile(r"\b(?:tables?|reserv\w+|restaurant|hotel|rooms?|house|stay\w*|rides?|cab|taxi)\b", re.IGNORECASE)
OTHERS = re.compile(r"\b(?:pick\w*.?up|drop\w*|rent\w*|insurance|SUV|sedan|hatchback|tickets?|bus|appointment|play\w*|song|movie|flights?|train|"
                    r"event|visit|property)\b", re.IGNORECASE)               # a conversation may go on to another service


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="parquet with the columns messages, source, topic and split")
    parser.add_argument("--questions", type=Path, help="parquet with a column question")
    parser.add_argument("--model", default="chat", help="a chat model, by name or folder (default: chat)")
    parser.add_argument("--limit", type=int, default=300, help="turns of each kind, the same each time (default 300)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chat, rows = Chat.from_pretrained(args.model), [row for row in read_conversations(args.data) if row["split"] == "test"]
    results = {"versions": versions(), "model": args.model, "slots": slots_kept(chat, rows, args.limit), "unknown": {}}
    asked = {source: [row["messages"][0]["content"] for row in rows if row["source"] == source] for source in ("dolly_subset", "self_instruct")}
    if args.questions:
        import pyarrow.parquet
        asked[args.questions.stem] = pyarrow.parquet.read_table(args.questions).column("question").to_pylist()
    for source, questions in asked.items():
        short = [text for text in questions if len(chat.lm.tokenizer.encode(text)) < chat.lm.cfg.context // 2]
        results["unknown"][source] = share_unknown(chat, [[{"role": "user", "content": text}] for text in chosen(short, args.limit)])
        results["too_long"] = results.get("too_long", 0) + len(questions) - len(short)
    talks = [row["messages"] for row in rows if row["source"] == "sgd"]
    turns = [talk[:place] for talk in talks for place in range(1, len(talk), 2)]
    results["false_alarms"] = share_unknown(chat, chosen(turns, args.limit))
    for name, value in results.items():
        print(f"{name}: {value}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def chosen(items, limit):
    """`limit` of the items, the same each time."""
    return random.Random(0).sample(items, min(limit, len(items)))


def confirmations(rows):
    """Rows -> [(messages before it, the people's turn, its slots)] of every turn that asks to confirm a booking."""
    found = []
    for row in rows:
        if row["source"] != "sgd" or not SERVICES & set(row["topic"].split(", ")):
            continue
        for place, message in enumerate(row["messages"]):
            before = row["messages"][:place]
            text = message["content"]
            asks = re.search(r"\bconfirm\b", text, re.IGNORECASE) and BOOKING.search(text) and not OTHERS.search(text)
            if message["role"] == "assistant" and place > 5 and asks:
                said = "\n".join(each["content"] for each in before)
                kept = [slot for slot in slots(text) if holds(said, slot)]
                if kept:
                    found.append((before, text, sorted(kept)))
    return found


def holds(text, slot):
    """Whether these words are in the text, as whole words, in capitals or not."""
    return re.search(rf"(?<!\w){re.escape(slot)}(?!\w)", text, re.IGNORECASE) is not None


def slots_kept(chat, rows, limit):
    """-> shares of the slots kept, of the turns that kept all of theirs, without the first words, and of the floor; some turns, to look at."""
    turns, shown, sums = chosen(confirmations(rows), limit), [], Counter()
    for before, theirs, wanted in turns:
        mine, free, blind = opened(chat, before, theirs), str(chat(before, temperature=0)), opened(chat, before[-1:], theirs)
        hits = [slot for slot in wanted if holds(mine, slot)]
        sums.update(slots=len(wanted), kept=len(hits), whole=len(hits) == len(wanted))
        sums.update(free=sum(holds(free, slot) for slot in wanted), floor=sum(holds(blind, slot) for slot in wanted))
        shown.append({"asked": before[-1]["content"], "people": theirs, "model": mine, "lost": [slot for slot in wanted if slot not in hits]})
    share = lambda name: round(sums[name] / sums["slots"], 4)
    return {"turns": len(turns), "slots": sums["slots"], "kept": share("kept"), "turns_that_kept_all": round(sums["whole"] / len(turns), 4),
            "kept_free": share("free"), "floor": share("floor"), "examples": shown[:12]}


def opened(chat, before, theirs):
    """The model's turn when it begins with the people's words up to "confirm", or with "Please confirm" where those name a slot."""
    lm, begun = chat.lm, theirs[:re.search("confirm", theirs, re.IGNORECASE).end()]
    begun = "Please confirm" if slots(begun) else begun                                # nothing that counts is given away
    ids = chat.fitted(before, lm.cfg.context - 128)[0] + lm.tokenizer.encode(begun)
    steps = run(lm, [ids], Sampling(temperature=0), seeds=[0], settings=Settings(max_new_tokens=96, temperature=0.0))
    return begun + lm.tokenizer.decode(list(takewhile(lambda token: token not in (*lm.cfg.eos, chat.end), (row[0] for row in steps))))


def share_unknown(chat, conversations):
    """Share of the conversations that are answered with "don't know"."""
    return round(sum("don't know" in chat(messages, temperature=0, max_new_tokens=40) for messages in conversations) / len(conversations), 4)


if __name__ == "__main__":
    main()
