"""Train a diffusion model on your own pictures, of classes or of none, in pixels or in latents, from nothing, on a CPU.

    python examples/image/diffusion.py                                  scikit-learn's 1,797 digits at 32x32: minutes on one core
    python examples/image/diffusion.py --data FOLDER channels=3         a subfolder for each class, metadata or parquet with a label, or just pictures
    python examples/image/diffusion.py --resume                         goes on after Ctrl-C, or for longer with another train.steps

Any field of Plan below is key=value:
    network=dit                                                         the diffusion transformer in place of the U-Net; dit.positions=rotary
    --data FOLDER channels=3 autoencoder=autoencoder size=64            in the latents of the autoencoder that ships
    autoencoder=runs/autoencoder/model size=64                          in the latents that examples/image/autoencoder.py has learnt
    schedule.path=vp schedule.predicts=noise schedule.sampler=ddim      what the network says: noise, data or v (vp), velocity or data (flow),
    schedule.path=ve schedule.predicts=edm schedule.sampler=euler       EDM; lesson.levels, .mean, .std: which noise is shown; lesson.min_snr=5
    classes=false                                                       pictures of no class, whatever the folder says

samples/ has a row of pictures for each class (of many, for ten) at every evaluation, by the averaged weights (the average forgets its start by
itself: no early blur). On the digits the loss falls from 1.5 to about 0.1.
What was trained: Diffusion.from_pretrained("runs/diffusion/model")("3"), and in diffusers as imagegen/diffusion_files.py says."""
import argparse
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from gencore import Run, TrainConfig, fit
from gencore.check import ConfigError, command, in_range, whole
from gencore.checkpoint import resolve
from gencore.config import override
from gencore.recipe import made_with
from imagegen.class_dit import ClassDiT, ClassDiTConfig
from imagegen.class_training import Lesson, check_lesson, denoising_loss, latents_of
from imagegen.data import grid, to_pil
from imagegen.diffusion import Diffusion, none_of
from imagegen.diffusion_files import check_saved, diffusion_files, read_any
from imagegen.labelled import LabelledBatches, digit_pictures, labelled_pictures
from imagegen.schedule import Schedule
from imagegen.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value. Channels, sizes and classes of the networks come from the data."""
    size: int = 32                                                     # side of the pictures
    channels: int = 1                                                  # 1 grey, 3 colours
    classes: bool = True                                               # learn them, where the data has them
    network: Literal["unet", "dit"] = "unet"
    unet: UNetConfig = UNetConfig(widths=(16, 48, 96), attention=(False, False, True), layers=1, groups=16)
    dit: ClassDiTConfig = ClassDiTConfig(patch=4, width=192, layers=6, heads=6)
    autoencoder: str | None = None                                     # a shipped name or a folder; None: in pixels
    schedule: Schedule = Schedule("flow", "velocity", "dpm_solver")
    lesson: Lesson = Lesson()
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000, batch=16, lr=2e-3, warmup=50, decay=0.5, weight_decay=0.01,
                                                                   ema=0.995, precision="auto", eval_every=250))
    shown: int = 8                                                     # pictures of a class in the grids
    steps: int = 16                                                    # calls of the network for each
    guidance: float = 1.5                                              # of the grids, where there are classes


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as train.steps=20000")
    parser.add_argument("--data", type=Path, help="imagefolder or parquet with image and label (default: scikit-learn's digits)")
    parser.add_argument("--split", default=None, help="of the data, where it has several")
    parser.add_argument("--out", type=Path, default=Path("runs/diffusion"), help="run folder (default: runs/diffusion)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    args = parser.parse_intermixed_args()
    plan = override(Plan(), args.settings)
    sizes = plan.size, plan.channels
    data = labelled_pictures(args.data, *sizes, split=args.split) if args.data else digit_pictures(*sizes)
    data = data if plan.classes else data.plain()
    folder = resolve(plan.autoencoder, "imagegen") if plan.autoencoder else None
    autoencoder, weights = (read_any(folder), made_with(folder)) if folder else (None, None)
    torch.manual_seed(plan.train.seed)
    model = network_of(plan, len(data.names), autoencoder)
    print(f"{len(data):,} pictures in {len(data.names) or 'no'} classes; {sum(p.numel() for p in model.parameters()):,} parameters")
    none = none_of(model, data.names) if data.names and plan.lesson.hidden else None       # never shown without its class: no guidance
    seen = {"values": data.pixels, "name": "pixels"} if autoencoder is None else {"values": latents_of(autoencoder, data.pixels), "name": "latents"}
    batches = LabelledBatches(seen["values"], data.labels, plan.train.batch, plan.train.seed, name=seen["name"])

    def sample(model, folder, step):
        some = range(0, len(data.names) or 1, -(-len(data.names) // 10) or 1)               # ten classes of many
        asked = [data.names[i] if data.names else i for i in some for _ in range(plan.shown)] if model.cfg.classes else plan.shown
        drawn = Diffusion(model, autoencoder, labels=data.names, schedule=plan.schedule)(
            asked, steps=plan.steps, guidance=1.0 if none is None else plan.guidance, seed=0, output_type="pt", progress=False) * 2 - 1
        to_pil(grid(drawn.expand(-1, 3, -1, -1), plan.shown)[None])[0].save(folder / f"{step:06d}.png")

    words = {"title": args.out.name, "Data": f"{len(data)} pictures of {args.data.name if args.data else 'scikit-learn digits'}"}
    under = {"schedule": asdict(plan.schedule), "lesson": asdict(plan.lesson), "autoencoder": weights}
    run = Run(args.out, args.resume, extend=True, sample=sample, card=words, plan=under,
              export=lambda model: diffusion_files(model, autoencoder, labels=data.names, schedule=plan.schedule))
    fit(model, lambda model, batch, draws: denoising_loss(model, batch, draws, schedule=plan.schedule, lesson=plan.lesson, none=none), batches,
        plan.train, run=run)
    print(f'done: Diffusion.from_pretrained("{args.out}/model")({repr(data.names[0]) if data.names else 0 if model.cfg.classes else 4})')


def network_of(plan, names, autoencoder):
    """The network that fits the data, checked against schedule and lesson."""
    whole("size", plan.size, 1)
    whole("shown", plan.shown, 1)
    channels, shrink = (plan.channels, 1) if autoencoder is None else (autoencoder.cfg.latent, autoencoder.cfg.shrink)
    if autoencoder is not None and autoencoder.cfg.picture_channels != plan.channels:
        raise ConfigError(f"{plan.autoencoder} is for pictures with {autoencoder.cfg.picture_channels} channels: give channels as many")
    if plan.size % shrink:
        raise ConfigError(f"size should be a multiple of {shrink}, got {plan.size}")
    said = channels * (2 if plan.schedule.variance == "learned" else 1)
    sizes = {"channels": channels, "out_channels": said, "size": plan.size // shrink}
    if plan.network == "dit":
        model = ClassDiT(replace(plan.dit, classes=names or 1, **sizes))
    else:                                                              # the U-Net's last class stands for none of them
        model = UNet(replace(plan.unet, classes=names + (plan.lesson.hidden > 0) if names else None, **sizes))
    check_lesson(plan.lesson, plan.schedule, model.cfg)
    check_saved(model, plan.schedule)
    plan.schedule.levels(plan.steps)                                   # what the grids need, before the training and not after a while
    in_range("guidance", plan.guidance, 0, 100)
    return model


if __name__ == "__main__":
    main()
