"""A chat model on conversations that it was not trained on: is what was said kept, and does it say so when it doesn't know?

    python -m benchmarks.chat --data dialogues.parquet                                   the chat that ships; --model runs/chat/model: another
    python -m benchmarks.chat --data dialogues.parquet --questions nq_open_dev.parquet   and questions of another kind (a column question)
    python -m benchmarks.chat --data dialogues.parquet --names novels.parquet            of the validation part: as it is, and with other names

Slots kept: of the test conversations (source sgd), every turn in which the assistant asks to confirm a table, a hotel or a ride, with six or more
messages before it. Its slots are the times, dates, numbers and names in that turn that were said before (textgen.slots). The model reads the
conversation up to there and the turn's first words, up to "confirm" ("Please confirm" where those name a slot), and goes on with its likeliest
words; a slot is kept if it is there, as whole words. "kept_free": the same when it is not told to confirm and may ask something else. Ceiling: the
people's turn itself, 717 of 719; floor: the same model's answer when it reads the last message alone.

Doesn't know: share of the questions outside its data (of the sources dolly_subset and self_instruct, test split, whose like it was trained on, and
of --questions, whose like it was not) that are answered with "don't know"; too_long: how many fill half the context and are left out. False
alarms: share of the assistant's turns in booking conversations where it says so. Writes benchmarks/results/chat.json.

--names: slots kept in conversations of the validation split as they are, and told with other values, whose names are of words of these texts (their
validation split): how much it leans on names that it knows. Only printed: versions of a model are chosen by it."""
import argparse
import json
import random
from collections import Counter
from pathlib import Path

import torch

from gencore.check import command
from gencore.data import text_folder
from gencore.recipe import versions
from textgen import Chat
from textgen.confirmations import bookings, confirm, confirmations, holds, service
from textgen.conversations import read_conversations
from textgen.slots import Swaps

RESULTS = Path(__file__).parent / "results" / "chat.json"

@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="parquet with the columns messages, source, topic and split")
    parser.add_argument("--questions", type=Path, help="parquet with a column question")
    parser.add_argument("--model", default="chat", help="a chat model, by name or folder (default: chat)")
    parser.add_argument("--names", type=Path, help="text, as CausalLM is trained on, whose words are names that nobody has heard")
    parser.add_argument("--limit", type=int, default=300, help="turns of each kind, the same each time (default 300)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = read_conversations(args.data, columns=("source", "topic", "split"))
    chat = Chat.from_pretrained(args.model)
    if args.names:
        return print(kept_by_names(chat, bookings(rows, "validation"), text_folder(args.names, "validation").column("text"), args.limit))
    rows = [row for row in rows if row["split"] == "test"]
    results = {"versions": versions(), "model": args.model, "slots": slots_kept(chat, bookings(rows, "test"), args.limit), "unknown": {}}
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


def kept_by_names(chat, talks, texts, limit):
    """-> {whose names: share of the slots kept}."""
    swapped, draw, shares = Swaps(talks, others=[[{"content": text}] for text in texts]), random.Random(0), {}
    for whose, told in (("their own", talks), ("of other words", [swapped(talk, draw) for talk in talks])):
        turns = chosen([turn for talk in told for turn in confirmations(talk)], limit)
        said = [(confirm(chat, before, theirs)[0], wanted) for before, theirs, wanted in turns]
        hits = [holds(mine, slot) for mine, wanted in said for slot in wanted]
        shares[whose] = round(sum(hits) / len(hits), 4)
    return shares


def slots_kept(chat, talks, limit):
    """-> shares of the slots kept, of the turns that kept all of theirs, without the first words, and of the floor; some turns, to look at."""
    turns, shown, sums, booked = chosen([turn for talk in talks for turn in confirmations(talk)], limit), [], Counter(), {}
    for before, theirs, wanted in turns:
        (mine,), free, (blind,) = confirm(chat, before, theirs), str(chat(before, temperature=0)), confirm(chat, before[-1:], theirs)
        hits = [slot for slot in wanted if holds(mine, slot)]
        sums.update(slots=len(wanted), kept=len(hits), whole=len(hits) == len(wanted))
        sums.update(free=sum(holds(free, slot) for slot in wanted), floor=sum(holds(blind, slot) for slot in wanted))
        booked.setdefault(service(theirs), []).extend(slot in hits for slot in wanted)
        shown.append({"asked": before[-1]["content"], "people": theirs, "model": mine, "lost": [slot for slot in wanted if slot not in hits]})
    share = lambda name: round(sums[name] / sums["slots"], 4)
    return {"turns": len(turns), "slots": sums["slots"], "kept": share("kept"), "turns_that_kept_all": round(sums["whole"] / len(turns), 4),
            "by_service": {name: {"slots": len(kept), "kept": round(sum(kept) / len(kept), 4)} for name, kept in sorted(booked.items())},
            "kept_free": share("free"), "floor": share("floor"), "examples": shown[:12]}


def share_unknown(chat, conversations):
    """Share of the conversations that are answered with "don't know"."""
    return round(sum("don't know" in chat(messages, temperature=0, max_new_tokens=40) for messages in conversations) / len(conversations), 4)


if __name__ == "__main__":
    main()
