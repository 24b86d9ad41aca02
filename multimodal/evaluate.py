"""How well a reader reads: the digit in a caption, the concept and the skin tone in an emoji's name."""
import re

TONES = ("medium-light", "medium-dark", "light", "medium", "dark")        # the longer ones first
GENDERS = frozenset("man men woman women person people boy boys girl girls child children".split())


def tone_of(name):
    """Emoji name -> "light", "medium-light", ..., "none", or "mixed" when it names two different ones."""
    found = set(re.findall(rf"\b({'|'.join(TONES)}) skin tone", name))
    return "none" if not found else found.pop() if len(found) == 1 else "mixed"


def concept_of(name):
    """Emoji name -> its words without skin tone and gender, in order: "woman firefighter: dark skin tone" -> ("firefighter",)."""
    bare = re.sub(rf"\b({'|'.join(TONES)}) skin tone", " ", name.lower())
    return tuple(word for word in re.findall(r"[^\s:,]+", bare) if word not in GENDERS)


def name_figures(read, names):
    """Captions read and the true names -> shares of right concepts, tones (of the toned), and whole names."""
    toned = [(r, n) for r, n in zip(read, names) if tone_of(n) != "none"]
    return {"concept": share(concept_of(r) == concept_of(n) for r, n in zip(read, names)),
            "skin_tone": share(tone_of(r) == tone_of(n) for r, n in toned),
            "skin_tone_all": share(tone_of(r) == tone_of(n) for r, n in zip(read, names)),
            "name": share(r == n for r, n in zip(read, names))}


def share(truths):
    """Share of true values; 0 of none."""
    truths = list(truths)
    return sum(truths) / max(1, len(truths))
