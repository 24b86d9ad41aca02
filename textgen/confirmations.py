"""Turns of a booking in which the assistant asks to confirm, what they have to keep, and how a model says them."""
import re
from itertools import takewhile

from gencore.choose import Sampling
from textgen.run import run
from textgen.slots import slots
from textgen.text import Settings

SERVICES = {"Restaurants", "Hotels", "RideSharing"}
BOOKING = re.compile(r"\b(?:tables?|reserv\w+|restaurant|hotel|rooms?|house|stay\w*|rides?|cab|taxi)\b", re.IGNORECASE)
OTHERS = re.compile(r"\b(?:pick\w*.?up|drop\w*|rent\w*|insurance|SUV|sedan|hatchback|tickets?|bus|appointment|play\w*|song|movie|flights?|train|"
                    r"event|visit|property)\b", re.IGNORECASE)               # a conversation may go on to another service


def bookings(rows, split):
    """Rows -> the recorded conversations of a split in which a table, a hotel or a ride is booked."""
    return [row["messages"] for row in rows if row["split"] == split and row["source"] == "sgd" and SERVICES & set(row["topic"].split(", "))]


def confirmations(messages, *, least=6):
    """A conversation -> [(messages before it, the people's turn, its slots)] of every turn that asks to confirm a table, a hotel or a ride.

    least: how many messages stand before it at least. Its slots are the times, dates, numbers and names in it that were said before."""
    found = []
    for place, message in enumerate(messages):
        before, text = messages[:place], message["content"]
        asks = re.search(r"\bconfirm\b", text, re.IGNORECASE) and BOOKING.search(text) and not OTHERS.search(text)
        if message["role"] == "assistant" and place >= least and asks:
            said = "\n".join(each["content"] for each in before)
            kept = [slot for slot in slots(text) if holds(said, slot)]
            if kept:
                found.append((before, text, sorted(kept)))
    return found


def service(text):
    """A turn that asks to confirm -> what is booked in it."""
    words = {"ride": r"\b(?:rides?|cab|taxi)\b", "hotel": r"\b(?:hotel|rooms?|house|stay\w*)\b"}
    return next((name for name, word in words.items() if re.search(word, text, re.IGNORECASE)), "table")


def holds(text, slot):
    """Whether these words are in the text, as whole words, in capitals or not."""
    return times(text, slot) > 0


def times(text, slot):
    """How often these words are in the text, as `holds` finds them."""
    return len(re.findall(rf"(?<!\w){re.escape(slot)}(?!\w)", text, re.IGNORECASE))


def confirm(chat, before, theirs, *, ways=1, temperature=0.0, seed=0):
    """The model's turn, `ways` times, begun with the people's words up to "confirm", or with "Please confirm" where those name a slot."""
    lm, begun = chat.lm, theirs[:re.search("confirm", theirs, re.IGNORECASE).end()]
    begun = "Please confirm" if slots(begun) else begun                                # nothing that counts is given away
    ids = chat.fitted(before, lm.cfg.context - 128)[0] + lm.tokenizer.encode(begun)
    settings = Settings(max_new_tokens=96, temperature=temperature)
    ends, rows = {*lm.cfg.eos, chat.end}, [[] for _ in range(ways)]
    for step in run(lm, [ids] * ways, Sampling(temperature=temperature), seeds=range(seed, seed + ways), settings=settings):
        for row, token in zip(rows, step):
            row.append(token)
        if all(ends & set(row) for row in rows):
            break
    return [begun + lm.tokenizer.decode(list(takewhile(lambda token: token not in ends, row))) for row in rows]
