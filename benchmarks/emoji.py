"""Figures of the painter's emoji beyond the common ones: 500 names, five designs, tones and genders that were never seen together, copies.

    python -m benchmarks.emoji --data FOLDER                  (a folder with emoji/, train.parquet and test.parquet)
    python -m benchmarks.emoji --data FOLDER --only names     the first half: two of the four judges

Four judges learn from real training pictures, disturbed, and from nothing that a model made (forty minutes of CPU time; kept in --judges): which of
500 names, which design, which concept (a name without tone and gender), which skin tone. Ceilings: real pictures (for names and designs those that
the judges learnt from; for concepts and tones the held-out test pictures), and those after the autoencoder. Floors: each drawing judged by another's
request. Copies: how near drawings of held-out combinations lie to their nearest training picture, beside real held-out pictures
(imagegen.evaluate.copies, 16 x 16 averages).
Writes benchmarks/results/emoji.json and a grid beside it."""
import argparse
import json
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.image_judges import DesignJudge, EmojiJudge, kept_judge, verdicts
from gencore.check import command
from gencore.recipe import versions
from imagegen import TextToImage
from imagegen.data import STYLES, cached, emoji, grid, to_pil, to_unit
from imagegen.emoji_names import COMMON
from imagegen.evaluate import copies
from imagegen.training import encode_all
from multimodal.evaluate import concept_of, tone_of

RESULTS = Path(__file__).parent / "results"
NAMES = 500


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with emoji/")
    parser.add_argument("--painter", default="painter")
    parser.add_argument("--judges", type=Path, default=Path("runs/judges/emoji"), help="where the trained judges and the pictures are kept")
    parser.add_argument("--only", choices=["names", "combinations"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, test = (cached(args.judges, split, lambda split=split: emoji(args.data / "emoji", split), source=args.data / "emoji" / f"{split}.parquet")
                   for split in ("train", "test"))
    painter = TextToImage.from_pretrained(args.painter)
    wanted = {"names": ("name", "design"), "combinations": ("concept", "tone", "design"), None: tuple(Judge.steps)}[args.only]
    judges = {kind: Judge(kind, answer, train, args.judges) for kind, answer in answers(train).items() if kind in wanted}
    parts = {"names": lambda: names_and_designs(painter, judges, train, args.seed),
             "combinations": lambda: combinations(painter, judges, train, test, args.seed)}
    path = RESULTS / "emoji.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    for part in [args.only] if args.only else parts:
        figures = parts[part]()
        kept[part] = figures | {"of": args.painter, "seed": args.seed, "versions": versions()}
        for name, value in figures.items():
            print(f"{name:72} {value:.3f}")
    path.write_text(json.dumps(kept, indent=2) + "\n")


def five_hundred(rows):
    """Names that all designs have, without tone, no flags: the common ones, and others by their checksum."""
    styles = {}
    for row in rows:
        if row["skin_tone"] == "none" and row["group"] != "Flags":
            styles.setdefault(row["name"], set()).add(row["style"])
    others = [name for name, own in styles.items() if len(own) == len(STYLES) and name not in COMMON]
    return [*COMMON, *sorted(others, key=lambda name: zlib.crc32(name.encode()))[:NAMES - len(COMMON)]]


def answers(train):
    """{kind of judge: row -> what it should say, or None where the row is not for it}."""
    names = set(five_hundred(train.rows))
    return {"name": lambda row: row["name"] if row["name"] in names else None, "design": lambda row: row["style"],
            "concept": lambda row: " ".join(concept_of(row["name"])), "tone": lambda row: tone_of(row["name"])}


class Judge:
    """pictures -> answers of one kind."""
    steps = {"name": 4000, "design": 12000, "concept": 6000, "tone": 6000}

    def __init__(self, kind, answer, train, folder):
        self.answer = answer
        rows = [i for i, row in enumerate(train.rows) if answer(row) is not None]
        self.said = sorted({answer(train.rows[i]) for i in rows})
        number = {words: i for i, words in enumerate(self.said)}
        examples = lambda: (train.pixels[rows], torch.tensor([number[answer(train.rows[i])] for i in rows]))
        network = DesignJudge if kind == "design" else EmojiJudge
        self.network = kept_judge(network(len(self.said)), folder / kind, examples, steps=self.steps[kind])

    def right(self, pictures, rows):
        """Share of the pictures (N,3,64,64) in [-1,1] of which it says what the rows say."""
        found = [self.said[i] for i in verdicts(self.network, pictures).tolist()]
        return sum(word == self.answer(row) for word, row in zip(found, rows)) / len(rows)


def names_and_designs(painter, judges, train, seed):
    """500 names drawn once, each fifth in another design."""
    place = {(row["name"], row["style"]): i for i, row in enumerate(train.rows) if row["skin_tone"] == "none"}
    asked = [place[name, list(STYLES)[i % len(STYLES)]] for i, name in enumerate(five_hundred(train.rows))]
    rows, real = [train.rows[i] for i in asked], to_unit(train.pixels[asked])
    drawn = draw(painter, rows, seed)
    to_pil(grid(drawn[:40], 10)[None])[0].save(RESULTS / "emoji.png")
    rebuilt, figures = through(painter, train.pixels[asked]), {}
    for kind in ("name", "design"):
        figures |= {f"500 names in five designs: {kind} right": judges[kind].right(drawn, rows),
                    f"500 names in five designs: {kind} right, real pictures (ceiling)": judges[kind].right(real, rows),
                    f"500 names in five designs: {kind} right, through the autoencoder (ceiling)": judges[kind].right(rebuilt, rows),
                    f"500 names in five designs: {kind} right, of another's request (floor)": judges[kind].right(drawn[mixed(rows)], rows)}
    return figures


def combinations(painter, judges, train, test, seed):
    """Every held-out combination of concept, tone and gender drawn once, each fifth in another design."""
    names, chosen = sorted({row["name"] for row in test.rows}), []
    for i, name in enumerate(names):
        of_name = [j for j, row in enumerate(test.rows) if row["name"] == name]
        chosen.append(next((j for j in of_name if test.rows[j]["style"] == list(STYLES)[i % len(STYLES)]), of_name[0]))
    rows, real, figures = [test.rows[j] for j in chosen], to_unit(test.pixels[chosen]), {}
    drawn, rebuilt = draw(painter, rows, seed), through(painter, test.pixels[chosen])
    for kind in ("concept", "tone", "design"):
        asked = [i for i, row in enumerate(rows) if kind != "tone" or row["skin_tone"] != "none"]
        share = lambda pictures, kind=kind, asked=asked: judges[kind].right(pictures[asked], [rows[i] for i in asked])
        figures |= {f"{len(asked)} held-out combinations: {kind} right": share(drawn),
                    f"{len(asked)} held-out combinations: {kind} right, real pictures (ceiling)": share(real),
                    f"{len(asked)} held-out combinations: {kind} right, through the autoencoder (ceiling)": share(rebuilt),
                    f"{len(asked)} held-out combinations: {kind} right, of another's request (floor)": share(drawn[mixed(rows)])}
    seen = copies(small(drawn), small(real), small(to_unit(train.pixels)))
    return figures | {"held-out combinations: chance to be nearer to a training picture than a real one is (0.5: no copies)": seen.nearer,
                      "held-out combinations: share nearer than all but 1 % of the real ones (0.01: no copies)": seen.close}


def draw(painter, rows, seed):
    """Rows -> pictures (B,3,64,64) in [-1,1], each by its name and design."""
    return painter([f"{row['name'].lower()}, {STYLES[row['style']]} style" for row in rows], seed=seed, output_type="pt") * 2 - 1


def mixed(rows):
    """The numbers of the rows in another order, the same each time."""
    return torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))


def through(painter, pixels):
    """Pictures after the painter's autoencoder."""
    autoencoder = painter.painter.autoencoder
    return torch.cat([autoencoder.decode(encode_all(autoencoder, part)) for part in pixels.split(100)])


def small(pictures):
    """(N,3,64,64) -> 16 x 16 averages (N,768)."""
    return F.avg_pool2d(pictures.clamp(-1, 1), 4).flatten(1)


if __name__ == "__main__":
    main()
