"""Train a fast decoder for the latents of an autoencoder (diffusers' AutoencoderTiny, as TAESD is for Stable Diffusion), on a CPU.

    python examples/image/fast_decoder.py                               the shipped autoencoder, on scikit-learn's 1,797 digits: minutes on one core
    python examples/image/fast_decoder.py --data FOLDER                 any folder of pictures, in classes or not, or parquet with an image column
    python examples/image/fast_decoder.py --autoencoder runs/autoencoder/model channels=1 size=32 width=8       your own from autoencoder.py
    python examples/image/fast_decoder.py --resume                      goes on after Ctrl-C, or for longer with another train.steps

samples/ has pictures that the autoencoder makes of its latents above what the fast one makes of them; how alike they are on held-out pictures, and
how many times as fast it is, is printed at the end (of the defaults expect 34 dB and 3.4 times). A painter draws with it, here and in diffusers
(AutoencoderTiny.from_pretrained), when it was taught what the painter draws:

    fast = painter.with_autoencoder(TinyAutoencoder.from_pretrained("runs/fast-decoder/model"))"""
import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gencore import Run, TrainConfig, fit
from gencore.check import ConfigError, command
from gencore.config import override
from imagegen.adversarial import without_momentum
from imagegen.autoencoder import Autoencoder
from imagegen.data import grid, to_pil, to_unit
from imagegen.families.autoencoder_tiny import AUTOENCODER_TINY
from imagegen.labelled import LabelledBatches, digit_pictures, labelled_pictures
from imagegen.parts import part_files
from imagegen.tiny_training import agreement, faster, lesson, pupil_loss, pupil_of


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    size: int = 64                                                     # side of the pictures
    channels: int = 3                                                  # as the autoencoder has them
    width: int = 16                                                    # channels of the fast one's layers
    blocks: int = 3                                                    # residual blocks on each of its grids but the finest, which has one
    held_out: float = 0.05                                             # share of the pictures that is not learnt from
    train: TrainConfig = TrainConfig(steps=1200, batch=16, lr=2e-3, warmup=20, decay=0.5, weight_decay=0.0, ema=0.99, precision="auto",
                                     eval_every=300)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as train.steps=20000")
    parser.add_argument("--autoencoder", default="autoencoder", help="name or folder of the one to be followed (default: autoencoder)")
    parser.add_argument("--data", type=Path, help="imagefolder or parquet with image (default: scikit-learn's digits)")
    parser.add_argument("--split", default=None, help="of the data, where it has several")
    parser.add_argument("--out", type=Path, default=Path("runs/fast-decoder"), help="run folder (default: runs/fast-decoder)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    args = parser.parse_intermixed_args()
    plan, teacher = override(Plan(), args.settings), Autoencoder.from_pretrained(args.autoencoder)
    if plan.channels != teacher.cfg.picture_channels or plan.size % teacher.cfg.shrink:
        raise ConfigError(f"this autoencoder takes {teacher.cfg.picture_channels} channels and a multiple of {teacher.cfg.shrink} as size, "
                          f"got channels={plan.channels} size={plan.size}")
    sizes = plan.size, plan.channels
    data, held_out = (labelled_pictures(args.data, *sizes, split=args.split) if args.data else digit_pictures(*sizes)).apart(plan.held_out)
    print(f"{len(data):,} pictures to learn from, {len(held_out):,} held out")
    model = train(plan, teacher, (data, held_out), args)
    alike, times = agreement(model, teacher, held_out.pixels), faster(model, teacher, held_out.pixels[:16])
    print(f"{alike:.2f} dB to the autoencoder's own pictures, decodes {times:.1f} times as fast")
    print(f"done: {args.out}/model")


def train(plan, teacher, pictures, args):
    """-> the fast one, that follows the teacher; pictures: (to learn from, held out)."""
    data, held_out = pictures

    def sample(model, folder, step):
        some = to_unit(held_out.pixels[:10])
        latents, wanted = lesson(teacher, some)
        sheet = torch.cat((wanted, model.decode(latents)))
        to_pil(grid(sheet.expand(-1, 3, -1, -1), len(some))[None])[0].save(folder / f"{step:06d}.png")

    torch.manual_seed(plan.train.seed)
    run = Run(args.out, args.resume, extend=True, sample=sample, evaluate=lambda model: {"agreement": agreement(model, teacher, held_out.pixels)},
              plan={"autoencoder": str(args.autoencoder), "width": plan.width, "blocks": plan.blocks},
              card={"title": args.out.name, "Follows": str(args.autoencoder),
                    "Data": f"{len(data)} pictures of {args.data.name if args.data else 'scikit-learn digits'}"},
              export=lambda model: part_files(AUTOENCODER_TINY, model.cfg, model.state_dict()))
    batches = LabelledBatches(data.pixels, data.labels, plan.train.batch, plan.train.seed)
    model, loss = pupil_of(teacher, plan.width, plan.blocks), partial(pupil_loss, teacher=teacher)
    return fit(model, loss, batches, plan.train, run=run, optimizer=without_momentum)


if __name__ == "__main__":
    main()
