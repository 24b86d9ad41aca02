"""Figures of the shipped painter: digits and emoji read by independent judges, ceilings and floors beside; speed against diffusers.

    python -m benchmarks.image --data FOLDER          (a folder with mnist/ and emoji/, each with train.parquet and test.parquet)
    python -m benchmarks.image                        (without data: speed alone, equal shapes; --speed measures it beside the figures)

Trains the judges first (six CPU minutes; kept in --judges for the next time). Writes benchmarks/results/image.json and grids beside it:
digits, twenty common names, and twenty-four prompts of all kinds, drawn once with the given seed."""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks.image_judges import DigitJudge, EmojiJudge, kept_judge, verdicts
from gencore.check import command
from gencore.recipe import versions
from imagegen import TextToImage
from imagegen.data import DIGIT_WORDINGS, DIGITS, STYLES, cached, digits, emoji, grid, labelled_grid, to_pil, to_unit
from imagegen.emoji_names import COMMON
from imagegen.training import encode_all

RESULTS = Path(__file__).parent / "results"
TWENTY = ("red apple", "pizza", "dog face", "sunflower", "red heart", "house", "rocket", "grinning face", "automobile", "star", "ghost",
          "soccer ball", "penguin", "cherries", "birthday cake", "umbrella", "robot", "tropical fish", "light bulb", "guitar")
TWENTY_FOUR = (
    "a handwritten seven", "digit 4", "red apple, noto style", "red apple, openmoji style", "slice of pizza, noto style", "pizza, twemoji style",
    "penguin, noto style", "cat face, fluent 3d style", "rocket, fluent flat style", "sunflower, twemoji style", "grinning face, noto style",
    "ghost, openmoji style", "umbrella, fluent 3d style", "guitar, noto style", "thumbs up: medium-dark skin tone, noto style",
    "woman: light skin tone, twemoji style", "a small red circle above a large blue square", "three green stars", "a purple ring",
    "a yellow triangle left of a small black ring", "four pink crosses", "a large orange star in the middle",
    "a black cross in the top right corner", "a blue circle and a green triangle")


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with mnist/ and emoji/")
    parser.add_argument("--speed", action="store_true", help="time against diffusers too")
    parser.add_argument("--painter", default="painter")
    parser.add_argument("--style", default="noto", help="of the emoji that are asked for")
    parser.add_argument("--judges", type=Path, default=Path("runs/judges/image"), help="where the trained judges and the pictures are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.data:
        print("no --data FOLDER (mnist/ and emoji/): quality is left out, speed alone is measured")
    parts = {**({"quality": quality(args)} if args.data else {}), **({"speed": speed(args.painter)} if args.speed or not args.data else {})}
    path, what = RESULTS / "image.json", {"of": args.painter, "style": args.style, "seed": args.seed}
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept = {part: figures for part, figures in kept.items() if part in ("quality", "speed")}        # whole parts only: no figure outlives its name
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept | {part: {**figures, **what, "versions": versions()} for part, figures in parts.items()}, indent=2) + "\n")
    for figures in parts.values():
        for name, value in figures.items():
            print(f"{name:54} {value:.3f}")


def quality(args):
    """Shares of drawn pictures that the judges read as asked."""
    real = {"mnist": lambda split: cached(args.judges, f"mnist-{split}", lambda: digits(args.data / "mnist", split),
                                           source=args.data / "mnist" / f"{split}.parquet"),
            "emoji": lambda split: cached(args.judges, f"emoji-{split}", lambda: emoji(args.data / "emoji", split),
                                           source=args.data / "emoji" / f"{split}.parquet")}
    digit_judge, emoji_judge = judges(args.judges, real)
    painter = TextToImage.from_pretrained(args.painter)
    labelled_grid(painter(TWENTY_FOUR, seed=args.seed), TWENTY_FOUR, columns=8, side=140, room=50).save(RESULTS / "twenty-four.png")
    return {**digit_figures(painter, digit_judge, real["mnist"]("test"), args.seed),
            **emoji_figures(painter, emoji_judge, real["emoji"]("train"), args),
            **autoencoder_figures(painter.painter.autoencoder, real["emoji"]), **design_figures(painter, emoji_judge, args)}


def judges(folder, real):
    """The two judges, trained or read."""
    def written():
        pictures = real["mnist"]("train")
        return pictures.pixels, torch.tensor([row["label"] for row in pictures.rows])

    def common():
        pictures = real["emoji"]("train").where(lambda row: row["name"] in COMMON)
        return pictures.pixels, torch.tensor([COMMON.index(row["name"]) for row in pictures.rows])

    return (kept_judge(DigitJudge(), folder / "digit", written, steps=1600, augment=False),
            kept_judge(EmojiJudge(len(COMMON)), folder / "emoji", common, steps=2500))


def draw(painter, prompts, seed):
    """Prompts -> pictures (B,3,64,64) in [-1,1]."""
    return painter(prompts, seed=seed, output_type="pt") * 2 - 1


def digit_figures(painter, judge, test, seed):
    """500 digits in every wording; ceilings: real test digits, and those after the autoencoder."""
    labels = torch.tensor([row["label"] for row in test.rows])
    asked = [(i % 10, DIGIT_WORDINGS[i // 10 % len(DIGIT_WORDINGS)]) for i in range(500)]
    drawn = draw(painter, [wording.format(word=DIGITS[digit], figure=digit) for digit, wording in asked], seed)
    to_pil(grid(drawn[:100], 20)[None])[0].save(RESULTS / "digits.png")
    through = lambda pixels: painter.painter.autoencoder.decode(encode_all(painter.painter.autoencoder, pixels))
    read = lambda pictures: share(torch.cat([verdicts(judge, pictures(part)) for part in test.pixels.split(250)]), labels)
    wanted = torch.tensor([digit for digit, _ in asked])
    return {"digits: 500 drawn, read as asked": share(verdicts(judge, drawn), wanted),
            "digits: real test pictures (ceiling)": read(to_unit),
            "digits: through the autoencoder (ceiling)": read(through)}


def emoji_figures(painter, judge, real, args):
    """The 200 common names drawn once; ceilings: the real pictures, and those after the autoencoder; floor: chance."""
    place = {row["name"]: i for i, row in enumerate(real.rows) if row["style"] == args.style}
    truth = real.pixels[[place[name] for name in COMMON]]
    drawn = draw(painter, [f"{name}, {args.style.replace('-', ' ')} style" for name in COMMON], args.seed)
    twenty = draw(painter, [f"{name}, {args.style.replace('-', ' ')} style" for name in TWENTY], args.seed)
    to_pil(grid(twenty, 5)[None])[0].resize((660, 528)).save(RESULTS / "twenty.png")
    wanted = torch.arange(len(COMMON))
    autoencoder = painter.painter.autoencoder
    return {"emoji: 200 common names drawn, named right": share(verdicts(judge, drawn), wanted),
            "emoji: right among the judge's first five": share_of_five(judge, drawn),
            "emoji: real pictures (ceiling)": share(verdicts(judge, to_unit(truth)), wanted),
            "emoji: through the autoencoder (ceiling)": share(verdicts(judge, autoencoder.decode(encode_all(autoencoder, truth))), wanted),
            "emoji: chance (floor)": 1 / len(COMMON)}


@torch.no_grad()
def autoencoder_figures(autoencoder, real):
    """PSNR in dB (peak 2), the mean over pictures: emoji of the test part, which nothing was trained on, and the common ones in Noto's design."""
    common = real("train").where(lambda row: row["name"] in COMMON and row["style"] == "noto")
    figures = {}
    for name, pictures in (("test emoji", real("test").pixels), ("200 common emoji", common.pixels)):
        error = torch.cat([(autoencoder.decode(encode_all(autoencoder, part)).clamp(-1, 1) - to_unit(part)).square().mean((1, 2, 3))
                           for part in pictures.split(256)])
        figures[f"autoencoder: PSNR, {name}"] = float((10 * torch.log10(4 / error)).mean())
    return figures


def design_figures(painter, judge, args):
    """The 200 common names once in every design, named right."""
    wanted, figures = torch.arange(len(COMMON)), {}
    for style in STYLES.values():
        drawn = draw(painter, [f"{name}, {style} style" for name in COMMON], args.seed)
        figures[f"emoji: 200 common names, {style}, named right"] = share(verdicts(judge, drawn), wanted)
    return figures


def share(found, wanted):
    return float((found == wanted).float().mean())


@torch.no_grad()
def share_of_five(judge, pictures):
    best = torch.cat([judge(part).topk(5).indices for part in pictures.split(200)])
    return float((best == torch.arange(len(pictures))[:, None]).any(1).float().mean())


def speed(name, rounds=7):
    """Seconds for one batch of eight prompts, 20 steps, guidance 3: ours and diffusers' pipeline on the same folder, alternating; medians."""
    from diffusers import DiffusionPipeline

    from gencore.checkpoint import resolve
    prompts = ["a handwritten seven", "slice of pizza, noto style"] * 4
    ours, theirs = TextToImage.from_pretrained(name), DiffusionPipeline.from_pretrained(resolve(name, "imagegen"))
    theirs.set_progress_bar_config(disable=True)
    ways = {"ours": lambda: ours(prompts, seed=0, progress=False, output_type="np"),
            "diffusers": lambda: theirs(prompts, num_inference_steps=20, guidance_scale=3.0, height=64, width=64, output_type="np",
                                        use_resolution_binning=False, clean_caption=False, max_sequence_length=32)}
    times = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            began = time.process_time()
            run()
            if turn:                                                        # the first round warms up
                times[way].append(time.process_time() - began)
    middle = {way: statistics.median(values) for way, values in times.items()}
    return {"speed: ours, CPU-s for 8 pictures": middle["ours"], "speed: diffusers, CPU-s for 8 pictures": middle["diffusers"],
            "speed: times as fast as diffusers": middle["diffusers"] / middle["ours"]}


if __name__ == "__main__":
    main()
