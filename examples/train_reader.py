"""Train a reader: a model that says what a picture shows, on your own pictures with captions.

    python examples/train_reader.py                                    on scenes that it draws itself: two minutes on one core
    python examples/train_reader.py --data FOLDER                      on an imagefolder: pictures beside a metadata.jsonl with
                                                                       {"file_name": "a.png", "text": "what it shows"} lines
    python examples/train_reader.py --resume                           goes on after Ctrl-C or a crash, or for longer with another
                                                                       training.steps
    python examples/train_reader.py training.steps=300 vision.layers=2     any setting, by name

Writes into --out: checkpoints/, samples/ (test pictures and what was read), loss.png, and model/, which both
multimodal.Captioner.from_pretrained and transformers' LlavaForConditionalGeneration open. After 500 steps on the drawn scenes about
98 of 100 that it has not seen are read right, word by word. A FOLDER with emoji/ and mnist/ inside trains the shipped reader."""
import argparse
import json
import random
from pathlib import Path

from gencore.check import command
from gencore.config import override
from gencore.data import hold_out
from gencore.data_folder import held_out_split, image_folder
from gencore.train import Run, new_accelerator
from multimodal.data import caption_rows, emoji_and_digits, folder_rows
from multimodal.learn import LearnConfig, learn

SMALL = ["vision.width=96", "vision.heads=3", "vision.layers=3", "vision.mlp=384", "width=96", "heads=3", "mlp=192", "vocab=400",
         "training.steps=500", "training.warmup=30", "training.ema=0.99", "training.eval_every=100", "training.save_every=100"]
COLOURS = {"red": "#d22", "green": "#2a2", "blue": "#24d", "yellow": "#fc0", "black": "#222", "purple": "#93c"}
SHAPES = ("circle", "square", "triangle", "cross")


def draw_scenes(folder: Path, count: int = 3000, seed: int = 0) -> None:
    """An imagefolder of drawn scenes: one shape, or two with where they lie."""
    from PIL import Image, ImageDraw
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        picture = Image.new("RGB", (64, 64), "white")
        pen = ImageDraw.Draw(picture)
        things = [(dice.choice(list(COLOURS)), dice.choice(SHAPES)) for _ in range(dice.choice((1, 2)))]
        layout = dice.choice((("left of", (17, 32), (47, 32)), ("above", (32, 17), (32, 47))))
        places = [(32, 32)] if len(things) == 1 else layout[1:]
        for (colour, shape), (x, y) in zip(things, places):
            draw_shape(pen, shape, COLOURS[colour], (x + dice.randint(-4, 4), y + dice.randint(-4, 4), dice.randint(8, 12)))
        text = f" {layout[0]} ".join(f"a {colour} {shape}" for colour, shape in things)
        picture.save(folder / f"{number:05d}.png")
        lines.append(json.dumps({"file_name": f"{number:05d}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw_shape(pen, shape: str, colour: str, place: tuple) -> None:
    x, y, r = place
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "triangle":
        pen.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=colour)
    else:
        pen.rectangle((x - r, y - r // 3, x + r, y + r // 3), fill=colour)
        pen.rectangle((x - r // 3, y - r, x + r // 3, y + r), fill=colour)


def sources(data: Path, size: int) -> tuple[list, list]:
    """Rows to train on and rows to judge by: the folder's own splits, or one picture in ten held out."""
    held = "test" if emoji_and_digits(data) else held_out_split(data)
    if held:
        return caption_rows(data, "train", size), caption_rows(data, held, size)
    rows = image_folder(data)
    kept, held = (rows.select(part.indices) for part in hold_out(rows))
    return [folder_rows(kept, size)], [folder_rows(held, size)]


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of captioned pictures (default: scenes that are drawn into the run folder)")
    parser.add_argument("--out", type=Path, default=Path("runs/train-reader"), help="run folder (default: runs/train-reader)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the run folder")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of multimodal.learn.LearnConfig, such as training.lr=1e-3")
    args = parser.parse_intermixed_args()

    shipped = args.data is not None and emoji_and_digits(args.data)
    config = override(LearnConfig(), [*([] if shipped else SMALL), *args.settings])
    if args.data is None:
        args.data = args.out / "scenes"
        with new_accelerator().main_process_first():                      # of several processes one draws, the others find them drawn
            if not (args.data / "metadata.jsonl").exists():
                draw_scenes(args.data)
    train, test = sources(args.data, config.vision.image)
    print(f"{sum(len(part.captions) for part in train):,} pictures to learn from, {sum(len(part) for part in test):,} to judge by")
    reader = learn(train, test, config, run=Run(args.out, resume=args.resume, extend=True, card={"title": "A reader", "Data": args.data.name}))

    for part in test:
        picture, caption = part[0]
        print(f'"{caption}" is read as "{reader(picture.permute(1, 2, 0).numpy())}"')
    print(f"the model is in {args.out / 'model'}: multimodal.Captioner.from_pretrained({str(args.out / 'model')!r})")


if __name__ == "__main__":
    main()
