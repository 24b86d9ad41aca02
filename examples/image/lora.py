"""Teaches a painter a new thing or look from a handful of pictures, by LoRA.

    python examples/image/lora.py                              five pictures of a sign that the script makes up: minutes on a CPU
    python examples/image/lora.py --data FOLDER                yours: pictures and metadata.jsonl (file_name, text)
    python examples/image/lora.py --base FOLDER rank=32 train.steps=600        another painter; any field of Tuning or TrainConfig

Half of each batch is what the painter itself draws for other prompts, so that those stay. Ctrl-C saves; the same command with --resume goes on.
The run folder holds model/ (the adapter: peft opens it), painter/ (adapter and painter as one: TextToImage.from_pretrained), samples/ (a row of the
new thing above one of other prompts, as it learns) and sheet.png: the pictures, then the same prompts and seeds before and after. Two figures are
printed: how far drawings of the new thing are from its nearest picture, and how far other prompts have moved, both as a root mean square of pixels
(0 to 1), beside what they are to be compared with.
Expect of the defaults: four minutes on one CPU thread; from its nearest picture 0.39 before, 0.08 after (the autoencoder alone 0.05); other
prompts 0.10 apart, two seeds of one painter 0.11."""
import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from gencore.check import command
from gencore.config import override
from gencore.train import Run, TrainConfig
from imagegen import PainterLoRA, TextToImage
from imagegen.captioned import Captioned, captioned_folder
from imagegen.data import grid, square, to_pil, to_unit
from imagegen.emoji_names import COMMON
from imagegen.lora import train_lora, with_own_drawings

OTHERS = [f"{name}, noto style" for name in COMMON[:192:3]] + [f"a handwritten {word}" for word in ("two", "five", "seven", "eight")]
UNSEEN = [f"{name}, noto style" for name in COMMON[1:192:16]] + ["a handwritten three", "a handwritten four"]        # what forgetting is judged on


@dataclass(frozen=True)
class Tuning:
    """The adapter, and how it is trained."""
    rank: int = 16                  # of the adapter
    alpha: float = 16.0             # it counts alpha / rank times
    share: float = 0.5              # of a batch: the painter's own drawings of other prompts
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, batch=16, lr=2e-3, warmup=20, decay=0.5, weight_decay=0.0, ema=0.99,
                                                                   precision="auto", eval_every=100, save_every=200))


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Tuning, such as train.steps=800")
    parser.add_argument("--data", type=Path, help="imagefolder or parquet with text (default: a made-up sign)")
    parser.add_argument("--base", default="painter", help="the painter to teach: a shipped name or a folder (default: painter)")
    parser.add_argument("--out", type=Path, default=Path("runs/painter-lora"), help="run folder (default: runs/painter-lora)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    args = parser.parse_intermixed_args()
    cfg, base = override(Tuning(), args.settings), TextToImage.from_pretrained(args.base)
    size = base.painter.transformer.cfg.size * base.painter.autoencoder.cfg.shrink
    data, captions = captioned_folder(args.data, size) if args.data else signs(size)
    torch.manual_seed(cfg.train.seed)
    lora = PainterLoRA(base, rank=cfg.rank, alpha=cfg.alpha)
    trained = sum(p.numel() for pair in lora.adapter.matrices().values() for p in pair)
    print(f"{len(data.pixels)} pictures; {trained:,} weights are trained beside {sum(p.numel() for p in base.painter.parameters()):,}",
          file=sys.stderr)

    def sample(model, folder, step):
        asked = [captions[i % len(captions)] for i in range(8)] + UNSEEN[:8]                    # what is learnt, and what should stay
        drawn = lora.painter(asked, steps=12, seed=0, output_type="pt", progress=False) * 2 - 1
        to_pil(grid(drawn, 8)[None])[0].save(folder / f"{step:06d}.png")

    run = Run(args.out, args.resume, extend=True, sample=sample, export=lora.export, plan={"rank": cfg.rank, "alpha": cfg.alpha, "share": cfg.share},
              card={"title": args.out.name, "Data": str(args.data or "five pictures of a made-up sign, drawn by the script")})
    train_lora(lora, with_own_drawings(base, data, OTHERS, share=cfg.share, seed=1000) if cfg.share else data, cfg.train, run=run)
    lora.merged().save_pretrained(args.out / "painter")
    report(base, lora.painter, data, captions, args.out)
    print(f'done: TextToImage.from_pretrained("{args.out / "painter"}")("{captions[0]}")', file=sys.stderr)


def report(before, after, data, captions, out):
    """Figures, and the sheet."""
    asked = [captions[i % len(captions)] for i in range(8)]
    own, known = to_unit(data.pixels), lambda painter, prompts: painter(prompts, seed=0, output_type="pt", progress=False) * 2 - 1
    new, old = [known(painter, asked) for painter in (before, after)], [known(painter, UNSEEN) for painter in (before, after)]
    with torch.no_grad():
        rebuilt = before.decode(before.encode(own))
    print(f"the new thing, from its nearest picture: {nearest(new[0], own):.3f} before, {nearest(new[1], own):.3f} after; "
          f"the pictures through the autoencoder {nearest(rebuilt, own):.3f}")
    other = before(UNSEEN, seed=100, output_type="pt", progress=False) * 2 - 1
    print(f"{len(UNSEEN)} other prompts, before and after: {apart(*old).mean():.3f} apart; "
          f"two seeds of the same painter {apart(old[0], other).mean():.3f}")
    blank = torch.ones(8, *own.shape[1:])
    rows = [torch.cat((own[:8], blank))[:8], *new, *(pictures[:8] for pictures in old)]
    to_pil(grid(torch.cat(rows), 8)[None])[0].save(out / "sheet.png")


def apart(one, other):
    """Pictures (B,3,S,S) in [-1,1] -> root mean square of their differences in 0..1, (B,)."""
    return (one - other).square().flatten(1).mean(1).sqrt() / 2


def nearest(drawn, own):
    """Mean over pictures of the distance to the nearest of `own`."""
    return float(torch.stack([apart(picture[None], own).min() for picture in drawn]).mean())


def signs(size):
    """Five pictures of a zibble: a purple ring, an orange triangle in it, two green bars under it; each a little elsewhere."""
    rng, pictures = np.random.default_rng(0), []
    for _ in range(5):
        sheet = Image.new("RGB", (256, 256), "white")
        draw, (x, y), r = ImageDraw.Draw(sheet), rng.integers(-10, 11, 2) + (128, 104), int(rng.integers(66, 80))
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(120, 40, 170), width=20)
        draw.polygon([(x, y - r // 2), (x - r // 2, y + r // 3), (x + r // 2, y + r // 3)], fill=(250, 140, 20))
        for row in (r + 18, r + 44):
            draw.rectangle((x - r, y + row, x + r, y + row + 14), fill=(30, 150, 70))
        pictures.append(square(sheet, size))
    return Captioned(torch.stack(pictures), lambda i, rng: "a zibble", torch.zeros(5).long(), np.ones(5)), ["a zibble"]


if __name__ == "__main__":
    main()
