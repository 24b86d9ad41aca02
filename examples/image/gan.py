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

import torch

from gencore import Run, TrainConfig
from gencore.check import command
from gencore.config import Few, Weight, check_fields, override
from imagegen.adversarial import relativistic_loss, train_gan
from imagegen.data import grid, to_pil
from imagegen.gan import GAN, Critic, GANConfig, Generator, generator_files
from imagegen.labelled import LabelledBatches, digit_pictures, labelled_pictures
from imagegen.walk import save_gif


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    gan: GANConfig = GANConfig()
    gamma: Weight = 1.0                                                # how much the critic's slope is held down; more for larger pictures
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1500, batch=32, lr=1e-3, warmup=50, decay=0.5, weight_decay=0.0, clip=None,
                                                                   ema=0.995, precision="auto", eval_every=250))
    shown: Few = 10                                                    # pictures of a class in the grids

    def __post_init__(self):
        check_fields(self)


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
    sizes = plan.gan.size, plan.gan.picture_channels
    data = labelled_pictures(args.data, *sizes, split=args.split, need=True) if args.data else digit_pictures(*sizes)
    names = data.names
    cfg = replace(plan.gan, labels=names)
    torch.manual_seed(plan.train.seed)
    generator, critic = Generator(cfg), Critic(cfg)
    print(f"{len(data):,} pictures in {len(names)} classes; generator {size(generator):,} parameters, critic {size(critic):,}")

    def sample(model, folder, step):
        gan = GAN(model.generator)
        drawn = gan([name for name in names for _ in range(plan.shown)], seed=0, output_type="pt") * 2 - 1
        to_pil(grid(drawn.expand(-1, 3, -1, -1), plan.shown)[None])[0].save(folder / f"{step:06d}.png")
        if step == plan.train.steps:
            save_gif(gan.walk(list(names), seed=0), args.out / "walk.gif")

    words = {"title": args.out.name, "Data": f"{len(data)} pictures of {args.data.name if args.data else 'scikit-learn digits'}"}
    run = Run(args.out, args.resume, extend=True, sample=sample, export=lambda model: generator_files(model.generator), card=words,
              plan={"gamma": plan.gamma})
    train_gan(generator, critic, LabelledBatches(data.pixels, data.labels, plan.train.batch, plan.train.seed), plan.train, run=run,
              loss=lambda model, batch, draws: relativistic_loss(model, batch, draws, gamma=plan.gamma))
    print(f'done: GAN.from_pretrained("{args.out}/model")("{names[0]}")')


def size(network):
    return sum(p.numel() for p in network.parameters())


if __name__ == "__main__":
    main()
