"""Teaches a painter to draw along lines: a small network beside it that sees the edges which a drawing should have (ControlNet).

    python examples/image/control.py                           scenes of coloured shapes, and the painter's own drawings moved about: on a CPU
    python examples/image/control.py --data FOLDER             yours: pictures and metadata.jsonl (file_name, text)
    python examples/image/control.py --base FOLDER control.copied=4 train.steps=2000        another painter; any field of Plan

Ctrl-C saves; the same command with --resume goes on. samples/ has pictures that were held out, their edges, and what is drawn along them.
Printed at the end: how far the edges of drawings agree with those asked for (F1 within a pixel), led and not led, on held-out pictures; the
autoencoder alone is the ceiling. To use it: ControlledTextToImage.from_pretrained("runs/control/model")("red apple", edges_of("teapot.png")).
Expect of the defaults: seven minutes on one CPU thread; scenes 0.22 not led, 0.99 led (autoencoder 1.00), drawings 0.42, 0.78 (0.93)."""
import argparse
import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gencore.check import DataError, command, whole
from gencore.config import override
from gencore.train import Run, TrainConfig
from imagegen import ControlledTextToImage, TextToImage
from imagegen.captioned import Captioned, captioned_folder
from imagegen.control import Control, ControlConfig, control_files, edge_agreement, edges, train_control
from imagegen.data import grid, square, to_pil, to_unit
from imagegen.emoji_names import COMMON
from imagegen.text_to_image import DrawSettings
from multimodal.scenes import caption, compose, paint, requests


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    control: ControlConfig = ControlConfig()
    scenes: int = 1500              # of coloured shapes
    moved: int = 6                  # times that each of the painter's own drawings is moved
    held_out: int = 48              # pictures for the figures, half scenes and half drawings; of yours a tenth, and no more than these
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=600, batch=16, lr=1e-3, warmup=50, decay=0.5, weight_decay=0.0, ema=0.995,
                                                                   precision="auto", eval_every=200, save_every=200))


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as train.steps=2000")
    parser.add_argument("--data", type=Path, help="imagefolder or parquet with text (default: scenes, and drawings of the painter)")
    parser.add_argument("--base", default="painter", help="the painter to lead: a shipped name or a folder (default: painter)")
    parser.add_argument("--out", type=Path, default=Path("runs/control"), help="run folder (default: runs/control)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    args = parser.parse_intermixed_args()
    train(override(Plan(), args.settings), TextToImage.from_pretrained(args.base), args)


def train(plan, base, args):
    """The branch; what was held out, before and after."""
    torch.manual_seed(plan.train.seed)
    whole("moved", plan.moved, 1), whole("held_out", plan.held_out, 2, None if args.data else 2 * min(plan.scenes, len(COMMON) // 2) - 2)
    controlled = ControlledTextToImage(base, Control.beside(plan.control, base.painter))
    data, captions, held = learnt_from(plan, args.data, controlled)
    lines, asked = edges(to_unit(data.pixels[held])), [captions[i] for i in held]

    def sample(model, folder, step):
        some = range(len(held))[::-(-len(held) // 16)]
        drawn = controlled.draw([asked[i] for i in some], lines[some], some, DrawSettings(steps=12))
        rows = torch.cat((to_unit(data.pixels[held])[some], 1 - 2 * lines[some].expand(-1, 3, -1, -1), drawn))
        to_pil(grid(rows, len(some))[None])[0].save(folder / f"{step:06d}.png")

    run = Run(args.out, args.resume, extend=True, card={"Data": str(args.data or "scenes (multimodal/scenes.py), and the painter's own drawings")},
              sample=sample, export=lambda model: control_files(model.control, base))
    train_control(controlled, data, plan.train, run=run)
    report(controlled, to_unit(data.pixels[held]), lines, asked, parts=("what was held out",) if args.data else ("scenes", "drawings"))
    print(f'done: ControlledTextToImage.from_pretrained("{args.out / "model"}")("{asked[0]}", lines)', file=sys.stderr)


@torch.inference_mode()
def report(controlled, pictures, lines, asked, *, parts):
    """Agreement of edges on the held-out pictures, of each of as many equal parts of them as there are names."""
    given, painter = to_pil(2 * lines.expand(-1, 3, -1, -1) - 1), controlled.painter
    drawn = {name: controlled(asked, given, weight=weight, seed=0, output_type="pt", progress=False) * 2 - 1
             for name, weight in (("not led", 0), ("led", 1))}
    drawn["autoencoder"] = painter.decode(painter.encode(pictures))
    for name, made in drawn.items():
        found = edge_agreement(edges(made), lines).tensor_split(len(parts))
        print(f"{name:<12} edges agree by " + ", ".join(f"{part.mean():.3f} on {what}" for what, part in zip(parts, found)))


def learnt_from(plan, folder, controlled):
    """-> (Captioned, captions, numbers of the pictures held out, which are never learnt from)."""
    if folder:
        data, captions = captioned_folder(folder, controlled.control.side)
        if len(captions) < 2:
            raise DataError(f"{folder} holds one picture: give at least two, so that one can be held out")
        held = np.random.default_rng(0).permutation(len(captions))[:max(1, min(plan.held_out, len(captions) // 10))].tolist()
        data.weights[held] = 0
        return data, captions, held
    rng, half, side = np.random.default_rng(0), plan.held_out // 2, controlled.control.side
    wanted = list(itertools.islice(requests(rng), plan.scenes))
    pictures, captions = [square(paint(compose(request, rng), side), side) for request in wanted], [caption(request, rng) for request in wanted]
    names = [f"{name}, noto style" for name in COMMON[::2]]
    for name, drawn in zip(names, controlled.painter(names, seed=0, steps=12)):
        pictures += [square(moved(drawn, rng), side) for _ in range(plan.moved)]
        captions += [name] * plan.moved
    weights = np.ones(len(captions))
    weights[:half] = weights[plan.scenes:plan.scenes + half * plan.moved] = 0            # no drawing of the first names is learnt from
    data = Captioned(torch.stack(pictures), lambda i, rng: captions[i], torch.zeros(len(captions)).long(), weights)
    return data, captions, [*range(half), *range(plan.scenes, len(captions), plan.moved)[:half]]


def moved(picture, rng):
    """A PIL picture on white -> smaller, elsewhere, perhaps mirrored."""
    side, share = picture.width, rng.uniform(0.5, 1)
    (x, y), turned = rng.uniform(0, side * (1 - share), 2) / share, rng.random() < 0.5
    across = (-1 / share, 0, side + x) if turned else (1 / share, 0, -x)
    return picture.transform(picture.size, Image.Transform.AFFINE, (*across, 0, 1 / share, -y), Image.Resampling.BICUBIC, fillcolor="white")


if __name__ == "__main__":
    main()
