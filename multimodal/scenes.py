"""Scenes of coloured shapes, drawn exactly: what is where is known, said in several wordings, and every object has its mask.

    python -m multimodal.scenes --out FOLDER/scenes --count 12000        train.parquet: image, text, captions, words, scene (JSON), cells

A `Request` is what a caption asks for; `compose` fills in what it leaves open and makes a `Scene`; `paint` draws it, `masks` says which pixels are
whose, `answered` compares any list of objects (a scene's own, or what a recogniser sees in somebody's drawing) with the request. Some pairs of
colour and shape (`HELD_OUT`) are left out of what is written for training: what is drawn of them was composed, not remembered."""
import argparse
import io
import itertools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gencore.check import InputError, command, whole

COLOURS = {"red": (214, 40, 40), "orange": (245, 140, 20), "yellow": (250, 208, 40), "green": (40, 160, 70), "blue": (40, 90, 215),
           "purple": (140, 60, 180), "pink": (245, 140, 190), "black": (35, 35, 35)}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": (0.1, 0.115), "large": (0.175, 0.195)}            # half the side of an object, as a share of the picture's
HELD_OUT = frozenset((colour, SHAPES[(2 * i + 1 + i // 3) % len(SHAPES)]) for i, colour in enumerate(COLOURS))
NUMBERS = ("one", "two", "three", "four")
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}                       # of the first to the second
PLACES = {"at the top": (0, -1), "at the bottom": (0, 1), "on the left": (-1, 0), "on the right": (1, 0), "in the middle": (0, 0),
          "in the top left corner": (-1, -1), "in the top right corner": (1, -1), "in the bottom left corner": (-1, 1),
          "in the bottom right corner": (1, 1)}
ASPECTS = ("presence", "count", "colour", "shape", "size", "position")
OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
APART = 0.12                                     # two centres this far from each other are above, below, left, right


@dataclass(frozen=True)
class Thing:
    """One object; x, y its centre from the left and the top, radius half its side, all as shares of the picture's side."""
    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Group:
    """So many objects of one kind, as a caption names them; size None: not said."""
    colour: str
    shape: str
    size: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Request:
    """What a caption asks for: one group, perhaps with its place, or two, perhaps with how the first lies to the second."""
    groups: tuple[Group, ...]
    relation: str | None = None
    place: str | None = None

    def __post_init__(self):
        for kind, known in (("colour", COLOURS), ("shape", SHAPES), ("size", (None, *SIZES))):
            for group in self.groups:
                _known(kind, getattr(group, kind), known)
        _known("relation", self.relation, (None, *RELATIONS))
        _known("place", self.place, (None, *PLACES))
        counts = [whole("count", group.count, 1, len(NUMBERS)) for group in self.groups]
        if not 1 <= len(counts) <= 2 or min(counts) < 1 or sum(counts) > len(NUMBERS):
            raise InputError(f"a scene has one or two groups and at most {len(NUMBERS)} things, got groups of {counts}")
        if self.relation and counts != [1, 1] or self.place and counts != [1]:
            raise InputError(f"a relation lies between two things, a place belongs to one, got {self}")

    @property
    def held_out(self):
        """Whether it names a pair that was left out of training."""
        return any((group.colour, group.shape) in HELD_OUT for group in self.groups)


def _known(kind, value, known):
    if value not in known:
        raise InputError(f"{kind} should be one of {', '.join(map(str, known))}, got {value!r}")


# ---- asked for ----

def requests(rng, *, held_out=False):
    """Draws requests for ever: one thing (often with its place), two to four alike, two that differ (mostly with their relation).

    held_out: only requests that name a pair of HELD_OUT; else none of them."""
    kinds = [pair for pair in itertools.product(COLOURS, SHAPES) if held_out or pair not in HELD_OUT]
    while True:
        kind = rng.choice(("one", "several", "two"), p=(0.3, 0.25, 0.45))
        first, second = (Group(*kinds[rng.integers(len(kinds))], size=(None, "small", "large")[rng.integers(3)]) for _ in range(2))
        if kind == "one":
            request = Request((first,), place=str(rng.choice(list(PLACES))) if rng.random() < 0.6 else None)
        elif kind == "several":
            request = Request((replace(first, count=int(rng.integers(2, 5))),))
        else:
            request = Request((first, second), relation=str(rng.choice(list(RELATIONS))) if rng.random() < 0.8 else None)
        if kind == "two" and first == second or held_out and not request.held_out:
            continue
        yield request


def caption(request, rng):
    """Request -> one of its wordings."""
    return " ".join(text for text, _, _ in wording(request, rng))


def wording(request, rng):
    """Request -> a caption in parts: (text, the group that it names or None, how that lies: a relation to the other, a place, or None)."""
    names = [(_named(group, rng), group) for group in request.groups]
    if len(names) == 1:
        return [(*names[0], request.place)] + ([] if request.place is None else [(request.place, None, None)])
    if request.relation is None:
        return [(*names[0], None), ("and", None, None), (*names[1], None)]
    if rng.random() < 0.25:                                                          # the same from the other's side
        names, relation = names[::-1], OPPOSITE[request.relation]
    else:
        relation = request.relation
    longer = {"above": "over", "below": "under", "left of": "to the left of", "right of": "to the right of"}[relation]
    return [(*names[0], relation), (relation if rng.random() < 0.5 else longer, None, None), (*names[1], OPPOSITE[relation])]


def meanings(parts):
    """A `wording` -> int8 (its words, 5): shape, colour, size, count of the thing that a word describes and how it lies (0: not said); -1: none."""
    known = ((*SHAPES,), (*COLOURS,), (None, *SIZES), range(1, len(NUMBERS) + 1), (None, *RELATIONS, *PLACES))
    rows = []
    for text, group, lies in parts:
        values = None if group is None else (group.shape, group.colour, group.size, group.count, lies)
        row = [-1] * len(known) if values is None else [list(all_of).index(value) for all_of, value in zip(known, values)]
        rows += [row] * len(text.split())
    return np.array(rows, np.int8)


def _named(group, rng):
    words = ([group.size] if group.size else []) + [group.colour, group.shape]
    if group.count == 1:
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article, *words])
    number = NUMBERS[group.count - 1] if rng.random() < 0.8 else str(group.count)
    return " ".join([number, *words[:-1], group.shape + ("es" if group.shape == "cross" else "s")])


# ---- composed ----

def compose(request, rng):
    """Request -> a tuple of Things that answer it, without overlap, all inside the picture."""
    kinds = [replace(group, size=group.size or str(rng.choice(list(SIZES)))) for group in request.groups]
    kinds = [group for group in kinds for _ in range(group.count)]
    radii = [float(rng.uniform(*SIZES[kind.size])) for kind in kinds]
    if len(request.groups) == 1:                                                     # those of one kind are alike
        radii = radii[:1] * len(kinds)
    for _ in range(20_000):
        centres = [rng.uniform(r + 0.03, 0.97 - r, 2) for r in radii] if len(kinds) < 3 else _in_quarters(radii, rng)
        things = tuple(Thing(kind.colour, kind.shape, kind.size, float(x), float(y), r) for kind, (x, y), r in zip(kinds, centres, radii))
        if _apart(things) and _lies_as_said(request.relation, request.place, things):
            return things
    raise InputError(f"no room for {request}: ask for fewer or smaller things")


def _in_quarters(radii, rng):
    """Each in a quarter of the picture of its own: more than two large ones hardly find room elsewhere. Of three one is above, in the middle:
    were any of the quarters left empty, three would look on the average like four, and guidance would draw four."""
    quarters = ((0.5, 0), (0, 1), (1, 1)) if len(radii) == 3 else ((0, 0), (1, 0), (0, 1), (1, 1))
    for place, r in zip(rng.permutation(len(radii)), radii, strict=True):
        yield rng.uniform(r + 0.03, 0.475 - r, 2) + 0.5 * np.array(quarters[place])


def _apart(things):
    return all(max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius + 0.04 for a, b in itertools.combinations(things, 2))


def _lies_as_said(relation, place, things, margin=APART):
    """Whether the relation or the place holds. A thing is above another if it lies higher by a margin, and no more beside it than over it."""
    if relation:
        dx, dy = RELATIONS[relation]
        a, b = things
        along, across = (a.x - b.x) * dx + (a.y - b.y) * dy, (a.x - b.x) * dy + (a.y - b.y) * dx
        return along > margin and abs(across) <= along
    if place:
        return all(_third(at) == wanted for at, wanted in zip((things[0].x, things[0].y), PLACES[place]))
    return True


def _third(at):
    """0..1 -> -1, 0 or 1: the picture's thirds; the middle one is a little wider."""
    return (at > 0.62) - (at < 0.38)


# ---- drawn ----

def paint(things, size=64):
    """Things -> PIL image (size x size) on white, smooth edges."""
    from PIL import Image
    picture = Image.new("RGB", (size, size), "white")
    for thing, coverage in zip(things, _coverage(things, size)):
        picture.paste(COLOURS[thing.colour], mask=coverage)
    return picture


def masks(things, size=64):
    """Things -> bool (n, size, size): the pixels of each, those that it covers by half or more."""
    covered = [np.asarray(coverage) >= 128 for coverage in _coverage(things, size)]
    return np.stack(covered) if covered else np.zeros((0, size, size), bool)


def cells(things, side=8):
    """Things -> int8 (3, side, side): shape, colour and size (from 1, in the order of SHAPES, COLOURS, SIZES) of what lies on a cell; 0: nothing."""
    found = np.zeros((3, side, side), np.int8)
    for thing, mask in zip(things, masks(things, 8 * side)):
        on = mask.reshape(side, 8, side, 8).mean((1, 3)) >= 0.25
        found[:, on] = np.array([[list(known).index(value) + 1] for known, value in
                                 ((SHAPES, thing.shape), (COLOURS, thing.colour), (SIZES, thing.size))])
    return found


def _coverage(things, size, finer=8):
    """How much of each pixel each thing covers, as grey PIL images."""
    from PIL import Image, ImageDraw
    for thing in things:
        sheet = Image.new("L", (size * finer, size * finer))
        _outline(ImageDraw.Draw(sheet), thing, size * finer)
        yield sheet.resize((size, size), Image.Resampling.BOX)


def _outline(pen, thing, side):
    x, y, r = thing.x * side, thing.y * side, thing.radius * side
    if thing.shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if thing.shape == "ring":
            pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=0)
    elif thing.shape == "square":
        pen.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=255)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=255)
    elif thing.shape == "star":
        turns = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2, 0.45, 1.1) * r
        pen.polygon([(x + a * np.sin(t), y - a * np.cos(t)) for a, t in zip(reach, turns)], fill=255)
    else:
        pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=255)
        pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=255)


# ---- known and judged ----

def relations(things):
    """Things -> every (i, relation, j) that holds between two of them."""
    pairs = itertools.permutations(range(len(things)), 2)
    return [(i, name, j) for i, j in pairs for name in RELATIONS if _lies_as_said(name, None, (things[i], things[j]))]


def graph(things):
    """Things -> JSON-able scene graph."""
    return {"things": [asdict(thing) for thing in things], "relations": relations(things)}


def answered(request, things):
    """Request, Things that were seen -> {aspect: whether it is as asked} for ASPECTS and "joint": all of them.

    What is seen is laid beside what was asked for in the way that agrees best. Presence: at least as many things as asked for; count: no more and no
    fewer; colour, shape, size: right for each thing asked for (a size that was not said is right); position: relation or place as said, a thing
    being where it is seen (relations with half the margin of `compose`)."""
    wanted = [group for group in request.groups for _ in range(group.count)]
    if len(things) < len(wanted):
        return dict.fromkeys((*ASPECTS, "joint"), False)
    best = max(itertools.permutations(things[:6], len(wanted)), key=lambda seen: _agreement(request, wanted, seen))
    pairs = list(zip(wanted, best))
    verdict = {"presence": True, "count": len(things) == len(wanted),
               "colour": all(w.colour == s.colour for w, s in pairs), "shape": all(w.shape == s.shape for w, s in pairs),
               "size": all(w.size in (None, s.size) for w, s in pairs), "position": _lies_as_said(request.relation, request.place, best, APART / 2)}
    return verdict | {"joint": all(verdict.values())}


def _agreement(request, wanted, seen):
    right = sum((w.colour == s.colour) + (w.shape == s.shape) + (w.size in (None, s.size)) for w, s in zip(wanted, seen))
    return right + 0.5 * _lies_as_said(request.relation, request.place, seen, APART / 2)


# ---- written ----

@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    whole("count", args.count, 1, 10_000_000)
    whole("size", args.size, 16, 1024)
    write(args.out / "train.parquet", args.count, size=args.size, seed=whole("seed", args.seed, 0))
    print(f"{args.count:,} scenes in {args.out / 'train.parquet'}")


def write(path, count, *, size=64, seed=0):
    """A parquet file of scenes without held-out pairs: image (PNG), captions (four wordings; text: the first), words (bytes of each one's
    `meanings`), scene (JSON), cells (bytes)."""
    import pyarrow
    import pyarrow.parquet as parquet
    rng, rows = np.random.default_rng(seed), []
    for request in itertools.islice(requests(rng), count):
        things, file = compose(request, rng), io.BytesIO()
        paint(things, size).save(file, "PNG")
        wordings = [wording(request, rng) for _ in range(4)]
        texts = [" ".join(text for text, _, _ in parts) for parts in wordings]
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "text": texts[0], "captions": texts,
                     "words": [meanings(parts).tobytes() for parts in wordings],
                     "scene": json.dumps(graph(things)), "cells": cells(things).tobytes()})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


if __name__ == "__main__":
    main()
