"""Train an autoencoder on your own pictures, from nothing, on a CPU: KL (Stable Diffusion's AutoencoderKL) or vector-quantized (VQModel).

    python examples/image/autoencoder.py                                scikit-learn's 1,797 digits at 32x32: minutes on one core
    python examples/image/autoencoder.py --data FOLDER channels=3       any folder of pictures, in classes or not, or parquet with an image column
    python examples/image/autoencoder.py kind=vq                        codes of a codebook in place of latents
    python examples/image/autoencoder.py --resume                       goes on after Ctrl-C, or for longer with another finish.steps

Three trainings one after another:
  first/    pictures <-> latents, by errors of pixels at three scales
  tower/    a small network that tells the pictures' classes apart, or, where there are none, two views of one picture from others
  .         goes on with what the tower sees, and with a critic (seen=0.3 critic=0.05: their weights, 0 leaves one out): sharper, at some cost of PSNR
samples/ has held-out pictures above what comes back. The PSNR on held-out pictures is printed before and after the finish; for the same steps without
the extra terms give seen=0 critic=0. model/ opens in diffusers; examples/image/diffusion.py takes kind=kl as autoencoder=runs/autoencoder/model."""
import argparse
import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from gencore import Run, TrainConfig, fit
from gencore.check import ConfigError, command
from gencore.config import Share, Weight, check_fields, override
from gencore.run_folder import open_run
from imagegen.adversarial import without_momentum
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.autoencoder_files import first_of
from imagegen.autoencoder_training import Finish, PatchCritic, finish_loss, psnr, train_tower
from imagegen.data import grid, to_pil, to_unit
from imagegen.families.autoencoder_kl import AUTOENCODER_KL
from imagegen.families.vq_model import VQ_MODEL
from imagegen.labelled import LabelledBatches, digit_pictures, labelled_pictures
from imagegen.parts import part_files
from imagegen.training import standardised
from imagegen.vq_autoencoder import VQAutoencoder, VQAutoencoderConfig


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    size: int = 32                                                     # side of the pictures
    channels: int = 1                                                  # 1 grey, 3 colours
    kind: Literal["kl", "vq"] = "kl"
    parts: AutoencoderConfig = AutoencoderConfig((16, 32, 64), latent=4)       # latents have size / 4
    codes: int = 256                                                   # vectors of the codebook ("vq"), of `latent` numbers each
    seen: Weight = 0.3                                                 # weight of the distance in what the tower sees
    critic: Weight = 0.05                                              # weight of the critic's judgement
    gamma: Weight = 1.0                                                # how much the critic's slope is held down; more for larger pictures
    held_out: Share = 0.05                                             # share of the pictures that is not learnt from
    first: TrainConfig = TrainConfig(steps=500, batch=16, lr=2e-3, warmup=20, decay=0.3, weight_decay=0, ema=0.99, precision="auto", eval_every=250)
    tower: TrainConfig = TrainConfig(steps=200, batch=64, lr=2e-3, warmup=20, decay=0.5, weight_decay=0.05, precision="auto")
    finish: TrainConfig = TrainConfig(steps=300, batch=16, lr=5e-4, warmup=20, decay=0.5, weight_decay=0, ema=0.99, precision="auto", eval_every=100)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as first.steps=20000")
    parser.add_argument("--data", type=Path, help="imagefolder or parquet with image (default: scikit-learn's digits)")
    parser.add_argument("--split", default=None, help="of the data, where it has several")
    parser.add_argument("--out", type=Path, default=Path("runs/autoencoder"), help="run folder (default: runs/autoencoder)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    args = parser.parse_intermixed_args()
    check_fields(plan := override(Plan(), args.settings))
    sizes = plan.size, plan.channels
    data, held_out = (labelled_pictures(args.data, *sizes, split=args.split) if args.data else digit_pictures(*sizes)).apart(plan.held_out)
    print(f"{len(data):,} pictures to learn from, {len(held_out):,} held out")
    train(plan, data, held_out, args)


def train(plan, data, held_out, args):
    """The three parts, one after another."""
    words = {"title": args.out.name, "Data": f"{len(data)} pictures of {args.data.name if args.data else 'scikit-learn digits'}",
             "Features": "those of a network trained here on the same pictures: no LPIPS"}

    def sample(model, folder, step):
        some = to_unit(held_out.pixels[:10])
        sheet = torch.cat((some, model.autoencoder.decode(first_of(model.autoencoder.encode(some)))))
        to_pil(grid(sheet.expand(-1, 3, -1, -1), len(some))[None])[0].save(folder / f"{step:06d}.png")

    hooks = {"sample": sample, "evaluate": lambda model: {"psnr": psnr(model.autoencoder, held_out.pixels)}, "card": words,
             "plan": {name: getattr(plan, name) for name in ("kind", "codes", "seen", "critic", "gamma", "held_out")},
             "export": lambda model: files(plan, model.autoencoder, data)}
    cfg = replace(plan.parts, size=plan.size, picture_channels=plan.channels)
    if plan.size < 2 * cfg.shrink or plan.size % cfg.shrink:
        raise ConfigError(f"size should be a multiple of {cfg.shrink}, and two or more of them, got {plan.size}")
    if plan.kind == "kl" and not cfg.quant_convs:
        raise ConfigError("parts.quant_convs should be true: the latents are brought to spread 1 in these convolutions")
    open_run(Run(args.out, args.resume))                               # not to be refused after two trainings of three
    torch.manual_seed(plan.first.seed)
    autoencoder = Autoencoder(cfg) if plan.kind == "kl" else VQAutoencoder(VQAutoencoderConfig(cfg, plan.codes, cfg.latent))
    model = learnt(Finish(autoencoder, PatchCritic(plan.channels)), plan, data, "first", Run(args.out / "first", args.resume, **hooks))
    before = psnr(model.autoencoder, held_out.pixels)
    torch.manual_seed(plan.tower.seed)                                 # anew for each part: a run that was stopped between two ends alike
    tower = train_tower(data, plan.tower, run=Run(args.out / "tower", args.resume, card=words))
    model = learnt(model, plan, data, "finish", Run(args.out, args.resume, extend=True, **hooks), tower)
    print(f"PSNR on held-out pictures: {before:.2f} dB by errors of pixels alone, {psnr(model.autoencoder, held_out.pixels):.2f} dB after the finish")
    print(f"done: {args.out}/model")


def learnt(model, plan, data, part, run, tower=None):
    """One part's training, without the extra terms where there is no tower -> the model."""
    weights, config = (plan.seen, plan.critic) if tower is not None else (0.0, 0.0), getattr(plan, part)
    model.critic.requires_grad_(weights[1] > 0)
    batches = LabelledBatches(data.pixels, data.labels, config.batch, config.seed)
    return fit(model, lambda model, batch, draws: finish_loss(model, batch, draws, tower=tower, weights=weights, gamma=plan.gamma), batches, config,
               run=run, optimizer=without_momentum)


def files(plan, autoencoder, data):
    """Files that diffusers opens; the latents of a KL autoencoder standardised, as a denoiser wants them."""
    if plan.kind == "kl":
        autoencoder = standardised(copy.deepcopy(autoencoder), data.pixels[:1024])
    family, weights = (AUTOENCODER_KL, autoencoder.state_dict()) if plan.kind == "kl" else (VQ_MODEL, autoencoder.weights())
    return part_files(family, autoencoder.cfg, weights)


if __name__ == "__main__":
    main()
