"""Figures of the shipped reader on pictures it has never seen: digits, emoji concepts and skin tones; with figures to compare.

    python -m benchmarks.reader --data FOLDER         (mnist/ and emoji/ inside, parquet with a train and a test split)

Beside it: independent classifiers (digit, concept, skin tone), each trained for the one question on the same training pictures and kept in
--judges: where they are ahead, the pictures tell more than the reader finds. Emoji that the reader was trained on. The caption of the nearest
training picture (16x16 averages), which knows a concept by its drawing and mixes up the tones: the test emoji are training drawings in another
tone or gender.
A concept is right when the words of the name without "... skin tone" and without man, woman, person, boy, girl, child and their
plurals are the same, in the same order; a skin tone when the name says that tone (counted over the pictures that have one).
Writes benchmarks/results/reader.json."""
import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.image_judges import DigitJudge, EmojiJudge, kept_judge, verdicts
from gencore.check import command
from gencore.data_folder import image_folder
from gencore.recipe import versions
from imagegen.data import to_bytes
from multimodal import Captioner
from multimodal.data import DIGITS, VARIATION_DRAWS, emoji_rows, mnist_rows, softened, vary
from multimodal.evaluate import concept_of, name_figures, share, tone_of

RESULTS = Path(__file__).parent / "results" / "reader.json"
COLUMNS = ("digit", "concept", "skin_tone", "name")


@command
def main():
    args = arguments()
    reader = Captioner.from_pretrained(args.model)
    digits, emoji = load(args.data, "test")
    known_digits, known_emoji = load(args.data, "train")
    some = torch.randperm(len(known_emoji["captions"]), generator=torch.Generator().manual_seed(0))[:args.train_rows].tolist()
    seen = picked(known_emoji, some)

    begun = time.process_time()
    words = read(reader, emoji)
    figures = {"reader, test": {**digit_figures(read(reader, digits), digits), **emoji_figures(words, emoji)}}
    each = (time.process_time() - begun) / (len(digits["captions"]) + len(emoji["captions"]))
    few = picked(digits, range(0, len(digits["captions"]), 5))
    figures["reader, test, blurred (one digit in five)"] = {**digit_figures(read(reader, few, blur=1.0), few),
                                                            **emoji_figures(read(reader, emoji, blur=1.0), emoji)}
    known = read(reader, seen)
    figures[f"reader, {len(some):,} emoji of train"] = emoji_figures(known, seen)
    kinds = {"in a skin tone": lambda i: seen["tones"][i] != "none", "flags": lambda i: seen["groups"][i] == "Flags",
             "all others": lambda i: seen["tones"][i] == "none" and seen["groups"][i] != "Flags"}
    for kind, holds in kinds.items():
        own = [i for i in range(len(some)) if holds(i)]
        row = emoji_figures([known[i] for i in own], picked(seen, own))
        figures[f"  {len(own)} of them {kind}"] = row if kind == "in a skin tone" else {"concept": row["concept"], "name": row["name"]}
    other = other_digits()
    figures["scikit-learn's digits, enlarged"] = digit_figures(reader(other["pictures"], batch=BATCH, progress=False), other)
    figures["compare: nearest training picture"] = {**digit_figures(nearest(digits, known_digits), digits),
                                                  **emoji_figures(nearest(emoji, known_emoji), emoji)}
    figures["compare: a classifier for each question"] = classified(args.judges, (digits, emoji), (known_digits, known_emoji))
    by_style = {}
    for style in sorted(set(emoji["styles"])):
        own = [i for i, s in enumerate(emoji["styles"]) if s == style]
        by_style[style] = emoji_figures([words[i] for i in own], picked(emoji, own))
    print(table(figures | {f"  {style}": row for style, row in by_style.items()}))
    wrong = [(said, name) for said, name in zip(words, emoji["captions"]) if said != name]
    person = share(concept_of(said) == concept_of(name) and tone_of(said) == tone_of(name) for said, name in wrong)
    print(f"\nof {len(wrong)} wrong names of test {100 * person:.0f} % have concept and skin tone right: only who it is differs")
    print(f"{1000 * each:.1f} ms of CPU time a picture in batches of {BATCH}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"figures": figures, "by style": by_style, "wrong only in who it is": person,
                                   "test digits": len(digits["captions"]), "test emoji": len(emoji["captions"]),
                                   "cpu_ms_a_picture": round(1000 * each, 2),
                                   "versions": versions()}, indent=2) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/ and emoji/, parquet with a train and a test split")
    parser.add_argument("--model", default="reader", help="shipped name or folder (default: reader)")
    parser.add_argument("--judges", type=Path, default=Path("runs/judges/reader"), help="where the trained classifiers are kept")
    parser.add_argument("--train-rows", type=int, default=1000, help="training emoji that are read (default: 1000)")
    return parser.parse_args()


BATCH = 100


def load(data, split):
    """(digits, emoji) of a split, each {"rows": pictures by number, "captions", "styles"}."""
    digits = mnist_rows(image_folder(data / "mnist", split, text=None, check=False), negatives=False)
    rows = image_folder(data / "emoji", split, text="name", check=False)
    emoji = emoji_rows(rows)
    return ({"rows": [digits.picture] * len(digits), "places": range(len(digits)), "captions": digits.captions},
            {"rows": [emoji.picture] * len(emoji), "places": range(len(emoji)), "captions": emoji.captions, "styles": rows.column("style"),
             "groups": rows.column("group"), "tones": rows.column("skin_tone")})


def other_digits():
    """scikit-learn's digits (8x8, another making): dark on white, 56 pixels in a sheet of 64, as MNIST's are prepared."""
    from PIL import Image
    from sklearn.datasets import load_digits
    source, sheets = load_digits(), []
    for ink in source.images:
        sheet = Image.new("RGB", (64, 64), "white")
        grey = Image.fromarray((255 - ink * 255 / 16).astype("uint8"))
        sheet.paste(grey.resize((56, 56), Image.Resampling.BICUBIC).convert("RGB"), (4, 4))
        sheets.append(sheet)
    return {"pictures": sheets, "captions": [f"a handwritten {DIGITS[label]}" for label in source.target]}


def picked(rows, places):
    return {name: [values[i] for i in places] for name, values in rows.items()}


def pictures(rows, start, blur=0.0):
    """A batch of rows -> (B,3,64,64) on white."""
    rgba = torch.stack([picture(i) for picture, i in zip(rows["rows"][start:start + BATCH], rows["places"][start:start + BATCH])])
    plain = vary(rgba, torch.zeros(len(rgba), VARIATION_DRAWS))
    return softened(plain, torch.full((len(plain),), blur)) if blur else plain


def read(reader, rows, blur=0.0):
    """Captions of all rows."""
    return [caption for start in range(0, len(rows["captions"]), BATCH)
            for caption in reader(list(pictures(rows, start, blur)), batch=BATCH, progress=False)]


def nearest(asked, known):
    """Caption of the nearest training picture for each row, by squares of differences of 16x16 averages."""
    def small(rows):
        return torch.cat([F.avg_pool2d(pictures(rows, start), 4).flatten(1) for start in range(0, len(rows["captions"]), BATCH)])

    train = small(known)
    norms = train.square().sum(1)
    places = torch.cat([(norms - 2 * part @ train.T).argmin(1) for part in small(asked).split(500)])
    return [known["captions"][i] for i in places.tolist()]


def classified(folder, test, train):
    """Figures of a classifier of its own for each question: what the test pictures tell one who learns only that from the training pictures."""
    (digits, emoji), (known_digits, known_emoji) = test, train
    some = picked(known_digits, range(0, len(known_digits["captions"]), 3))
    toned = picked(emoji, [i for i, name in enumerate(emoji["captions"]) if tone_of(name) != "none"])
    return {"digit": judged(folder / "digit", digits, some, str, steps=1600, augment=False),
            "concept": judged(folder / "concept", emoji, known_emoji, concept_of, steps=6000),
            "skin_tone": judged(folder / "skin-tone", toned, known_emoji, tone_of, steps=2500)}


def judged(place, asked, known, answer, **training):
    """Share of `asked` whose answer(caption) a classifier finds that has learnt answers from `known`."""
    answers = sorted({answer(caption) for caption in known["captions"]})
    number = {words: i for i, words in enumerate(answers)}

    def examples():
        pixels = torch.cat([to_bytes(pictures(known, start)) for start in range(0, len(known["captions"]), BATCH)])
        return pixels, torch.tensor([number[answer(caption)] for caption in known["captions"]])

    judge = kept_judge(DigitJudge() if answer is str else EmojiJudge(len(answers)), place, examples, **training)
    found = [answers[i] for start in range(0, len(asked["captions"]), BATCH) for i in verdicts(judge, pictures(asked, start)).tolist()]
    return share(words == answer(caption) for words, caption in zip(found, asked["captions"]))


def digit_figures(read, rows):
    return {"digit": share(r == c for r, c in zip(read, rows["captions"]))}


def emoji_figures(read, rows):
    return name_figures(read, rows["captions"])


def table(figures):
    lines = [f"{'':42}" + "".join(f"{name:>11}" for name in COLUMNS)]
    for name, row in figures.items():
        lines.append(f"{name:42}" + "".join(f"{100 * row[c]:10.1f}%" if c in row else f"{'':>11}" for c in COLUMNS))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
