"""What is said in a booking and has to be kept: times, dates, numbers and names, found in a text; and the same conversation with others.

    Swaps(talks)(messages, random.Random(0))        # "a table at Sino at 11:30" -> "a table at Oakwood at 7 pm", everywhere in it

A model that has seen a restaurant's name a hundred times says it without looking; of a name put there at random it has to keep track."""
import re
from collections import Counter

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
NAME = r"[A-Z][\w'&-]*(?: (?:(?:of|the|and|de|&) )?[A-Z][\w'&-]*)*"
VALUE = re.compile(rf"(?P<time>\d{{1,2}}:\d\d(?: ?[ap]\.?m\b)?|\d{{1,2}} ?[ap]\.?m\b)|(?P<date>(?:{MONTHS}) \d{{1,2}}(?:st|nd|rd|th)?)|"
                   rf"(?P<number>\d+)|(?P<name>(?<![.?!:] )(?<!^){NAME})", re.MULTILINE)          # a name: capitals inside a sentence
NO_NAMES = {"I", "I'm", "I'll", "I've", "I'd", "OK", "Okay", "Please", "Is"}
WORD = re.compile(r"\b[A-Za-z][a-z]{2,11}\b")
COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen")
COUNTED = re.compile(rf"\b(?P<count>[1-9]|{'|'.join(COUNTS[:9])})(?P<between> (?:hotel )?)(?P<noun>room|day|night)s?\b", re.IGNORECASE)
JOINTS = ("at", "on", "by", "in", "of", "of the", "and", "&", "+", "The", "/")


def slots(text):
    """A text -> {value: its kind}: "time", "date", "number" or "name"."""
    return {found[0]: found.lastgroup for found in VALUE.finditer(text) if found[0] not in NO_NAMES}


def shared(messages):
    """-> {value: (its kind, the role that said it first)} of the values that a later message takes up."""
    kinds, first, count = {}, {}, Counter()
    for message in messages:
        for value, kind in slots(message["content"]).items():
            kinds[value] = kind
            first.setdefault(value, message["role"])
            count[value] += 1
    return {value: (kind, first[value]) for value, kind in kinds.items() if count[value] > 1}


def recounted(messages, draw):
    """A conversation -> the same for other numbers of rooms and of nights, in words where the user says "two rooms" and the assistant "2 rooms".

    A number that the assistant says first, such as after a bare "three", stays."""
    first = {}
    for message in messages:
        for found in COUNTED.finditer(message["content"]):
            first.setdefault(of_count(found), message["role"])
    others = {key: key for key, role in first.items() if role != "user"}
    for noun, number in (key for key in first if key not in others):
        free = [n for n in range(1, 5 if noun == "room" else 10) if (noun, n) not in others.values()]
        others[noun, number] = noun, draw.choice(free or [number])

    def said(found):
        number = others[of_count(found)][1]
        word = str(number) if found["count"].isdigit() else COUNTS[number - 1]
        return f"{word.capitalize() if found['count'][0].isupper() else word}{found['between']}{found['noun']}{'s' * (number > 1)}"

    return [{**message, "content": COUNTED.sub(said, message["content"])} for message in messages]


def of_count(found):
    """A match of COUNTED -> ("room" or "night", how many)."""
    count = found["count"].lower()
    return "room" if found["noun"].lower() == "room" else "night", int(count) if count.isdigit() else 1 + COUNTS.index(count)


class Swaps:
    """Conversations -> a function that puts others of their values into one of them.

    What the assistant says first stays, it may spell out what the user said ("SF", "half past two"); only names that few conversations know,
    such as a restaurant's that it offers, are replaced in any case.
    others: conversations on anything, whose words go into names too: a name is any words, not those alone that names had so far."""

    def __init__(self, talks, few=20, *, others=()):
        self.few, self.pools = few, {"time": Counter(), "date": Counter(), "number": Counter(), "name": Counter()}
        for messages in talks:
            for value, (kind, _) in shared(messages).items():
                self.pools[kind][value] += 1
        self.drawn = {kind: sorted(pool) if kind == "name" else sorted(pool.elements()) for kind, pool in self.pools.items()}
        heard = {word for messages in others for message in messages for word in WORD.findall(message["content"])}
        self.words = sorted({word for name in self.pools["name"] for word in name.split()} | {word.capitalize() for word in heard})

    def __call__(self, messages, draw):
        """[{"role", "content"}, ...], random.Random -> the same, each such value replaced by one of its kind, the same one everywhere."""
        others = {value: self._other(value, kind, draw) for value, (kind, first) in shared(messages).items()
                  if self.drawn[kind] and (first == "user" or kind == "name" and self.pools[kind][value] < self.few)}
        if not others:
            return messages
        longest = sorted(others, key=len, reverse=True)
        known = re.compile(rf"(?<![\w:$.-])(?:{'|'.join(map(re.escape, longest))})(?![\w:-])")
        return [{**message, "content": known.sub(lambda found: others[found[0]], message["content"])} for message in messages]

    def _other(self, value, kind, draw):
        """A value of that kind: one that was heard, or a number as long, or a name made of words of several and of words that nobody has heard."""
        if kind == "number" and len(value) > 2:
            return str(draw.randrange(10 ** (len(value) - 1), 10 ** len(value)))
        if kind == "name" and draw.random() < 0.7:
            return made_name(self.words, draw)
        return draw.choice(self.drawn[kind])


def made_name(words, draw, least=1, most=5):
    """A name of so many of the words, or of words that nobody has heard; a longer one may be joined ("Chancellor Hotel on Union Square")."""
    parts = [some_word(words, draw) for _ in range(draw.randint(least, most))]
    if len(parts) > 2 and draw.random() < 0.4:
        parts.insert(draw.randint(1, len(parts) - 1), draw.choice(JOINTS))
    name = " ".join(parts)
    return name[0].upper() + name[1:]


def some_word(words, draw):
    """One of the words, or one that nobody has heard: the beginning of one with the end of another ("Silverlisco")."""
    word = draw.choice(words)
    if draw.random() < 0.5:
        other = draw.choice(words)
        word = word[:draw.randint(1, max(1, len(word) - 1))] + other[draw.randint(0, len(other) - 1):].lower()
    return word


def in_small_letters(messages):
    """As some people write; the assistant takes up their values as they wrote them, and writes the rest as ever."""
    asked, answered, written = "", "", []
    for message in messages:
        text = message["content"].lower() if message["role"] == "user" else message["content"]
        if message["role"] == "user":
            asked += f"{text}\n"
        else:
            for value in sorted(slots(text), key=len, reverse=True):
                text = text if value in answered else text.replace(value, value.lower()) if value.lower() in asked else text
            answered += f"{text}\n"
        written.append({**message, "content": text})
    return written
