"""Train a GAN on your own pictures in classes, from nothing, on a CPU.

    python examples/image/gan.py                                        scikit-learn's 1,797 digits at 32x32: minutes on one core
    python examples/image/gan.py --data FOLDER                          one subfolder of pictures for each class, or parquet with image and label
    python examples/image/gan.py --resume                               goes on after Ctrl-C, or for longer with another train.steps
    python examples/image/gan.py gan.picture_channels=3 gan.size=64 gan.widths=[128,128,96,64,32]        any field of Plan below

samples/ has a row of pictures for each class at every evaluation, walk.gif leads from class to class at the end. The loss says little: it is the
state of a game. It begins at 1.39 (both sides guess) and stays about there as long as neither wins.
What was trained: GAN.from_pretrained("runs/gan/model")("3")."""
import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from gencore import Run, TrainConfig
from gencore.check import DataError, command
from gencore.config import override
from gencore.data import image_folder
from imagegen.adversarial import LabelledBatches, relativistic_loss, train_gan
from imagegen.data import grid, square, to_pil
from imagegen.gan import GAN, Critic, GANConfig, Generator, generator_files
from imagegen.walk import save_gif


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    gan: GANConfig = GANConfig()
    gamma: float = 1.0                                                 # how much the critic's slope is held down; more for larger pictures
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1500, batch=32, lr=1e-3, warmup=50, decay=0.5, weight_decay=0.0, clip=None,
                                                                   ema=0.995, precision="auto", eval_every=250))
    shown: int = 10                                                    # pictures of a class in the grids


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as train.steps=20000")
    parser.add_argument("--data", type=Path, help="folders of pictures by class, or parquet with image and label (default: scikit-learn's digits)")
    parser.add_argument("--split", default=None, help="of the data, where it has several")
    parser.add_argument("--out", type=Path, default=Path("runs/gan"), help="run folder (default: runs/gan)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    args = parser.parse_intermixed_args()
    plan = override(Plan(), args.settings)
    pixels, labels, names = pictures_of(args, plan.gan) if args.data else sklearn_digits(plan.gan)
    cfg = replace(plan.gan, labels=names)
    torch.manual_seed(plan.train.seed)
    generator, critic = Generator(cfg), Critic(cfg)
    print(f"{len(pixels):,} pictures in {len(names)} classes; generator {size(generator):,} parameters, critic {size(critic):,}")

    def sample(model, folder, step):
        gan = GAN(model.generator)
        drawn = gan([name for name in names for _ in range(plan.shown)], seed=0, output_type="pt") * 2 - 1
        to_pil(grid(drawn.expand(-1, 3, -1, -1), plan.shown)[None])[0].save(folder / f"{step:06d}.png")
        if step == plan.train.steps:
            save_gif(gan.walk(list(names), seed=0), args.out / "walk.gif")

    words = {"title": args.out.name, "Data": f"{len(pixels)} pictures of {args.data.name if args.data else 'scikit-learn digits'}"}
    run = Run(args.out, args.resume, extend=True, sample=sample, export=lambda model: generator_files(model.generator), card=words)
    train_gan(generator, critic, LabelledBatches(pixels, labels, plan.train.batch, plan.train.seed), plan.train, run=run,
              loss=lambda model, batch, draws: relativistic_loss(model, batch, draws, gamma=plan.gamma))
    print(f'done: GAN.from_pretrained("{args.out}/model")("{names[0]}")')


def size(network):
    return sum(p.numel() for p in network.parameters())


def pictures_of(args, cfg):
    """-> (pixels (N,C,S,S) uint8, labels (N,), names of the classes)."""
    rows = image_folder(args.data, args.split, text=None)
    if "label" not in rows.columns:
        raise DataError(f"{args.data} has no classes: put the pictures of each class into a subfolder, or give parquet with a column label")
    if (unsaid := [name for name, label in zip(rows.names, rows.column("label")) if label is None]):
        raise DataError(f"{unsaid[0]} has no label ({len(unsaid)} such in all): give it one, or take it out of the data")
    if len(rows) < 2:
        raise DataError(f"{args.data} holds one picture: give at least two, since of one nothing but a copy is learnt")
    found = [str(label) for label in rows.column("label")]
    names = tuple(sorted(set(found)))
    pixels = torch.stack([in_colours(square(row["image"], cfg.size), cfg) for row in rows])
    return pixels, torch.tensor([names.index(label) for label in found]), names


def in_colours(pixels, cfg):
    """(...,3,S,S) uint8 -> as many channels as the GAN draws."""
    return pixels.float().mean(-3, keepdim=True).round().to(torch.uint8) if cfg.picture_channels == 1 else pixels


def sklearn_digits(cfg):
    """scikit-learn's digits (8x8), enlarged, dark on white."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    ink = torch.from_numpy(digits.images).float()[:, None] / 16                             # (N, 1, 8, 8)
    large = torch.nn.functional.interpolate(ink, size=(cfg.size, cfg.size), mode="bicubic").clamp(0, 1)
    pixels = ((1 - large) * 255).round().to(torch.uint8).expand(-1, cfg.picture_channels, -1, -1)
    return pixels, torch.from_numpy(np.asarray(digits.target)).long(), tuple(str(i) for i in range(10))


if __name__ == "__main__":
    main()
