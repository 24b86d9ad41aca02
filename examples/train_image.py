"""Train a painter on your own pictures with captions, from nothing, on a CPU.

    python examples/train_image.py                                      scikit-learn's 1,797 digits at 32x32: minutes on one core
    python examples/train_image.py --data FOLDER                        pictures and metadata.jsonl: file_name, text
    python examples/train_image.py --resume                             goes on after Ctrl-C, or for longer with another painting.steps
    python examples/train_image.py size=64 painting.steps=20000         any field of Plan below

Three trainings one after another, each with its folder (loss.png, model/) under --out:
  autoencoder   pictures <-> latents. On the digits the loss falls from 3 to about 0.4; samples/ has pictures above what it makes of them.
  prompts       the prompt encoder against the pictures, contrastively. The loss falls from 4 to about 2.5 (many digits are the same).
  painter       flow matching. The loss falls from 2.3 to about 0.8; samples/ has a grid of the same prompts at each evaluation.
What was trained: TextToImage.from_pretrained("runs/image/painter/model")("a handwritten seven"), or diffusers' DiffusionPipeline."""
import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from gencore import Run, TrainConfig
from gencore.check import ConfigError, command
from gencore.config import override
from gencore.text_encoder import TextEncoder, TextEncoderConfig, train_prompt_tokenizer
from imagegen.alignment import SIDE, Alignment, PictureTower
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.captioned import Captioned, captioned_folder
from imagegen.data import digit_caption, grid, to_pil, to_unit
from imagegen.dit import DiT, DiTConfig
from imagegen.labelled import digit_pictures
from imagegen.text_to_image import DrawSettings, Painter, TextToImage, pipeline_files
from imagegen.training import train_autoencoder, train_prompts, train_transformer


@dataclass(frozen=True)
class Plan:
    """Everything that a run can be told by key=value."""
    size: int = 32                                                     # side of the pictures, a multiple of 32
    channels: tuple[int, ...] = (16, 32, 64)                           # of the autoencoder; latents have size / 4
    latent: int = 8                                                    # C of the latents
    transformer: DiTConfig = field(default_factory=lambda: DiTConfig(width=192, layers=4, captions=96))
    words: TextEncoderConfig = field(default_factory=lambda: TextEncoderConfig(width=96, layers=2, head_width=24, mlp=256))
    autoencoding: TrainConfig = TrainConfig(steps=500, batch=16, lr=2e-3, warmup=20, decay=0.5, weight_decay=0.0, ema=0.99, eval_every=250)
    prompts: TrainConfig = TrainConfig(steps=150, batch=64, lr=1e-3, warmup=20, decay=0.5, weight_decay=0.05, ema=0.99)
    painting: TrainConfig = TrainConfig(steps=1500, batch=32, lr=1e-3, warmup=50, weight_decay=0.02, ema=0.995, eval_every=250)
    shown: int = 16                                                    # prompts in the grids

    def __post_init__(self):
        step = math.lcm(SIDE, AutoencoderConfig(self.channels, latent=self.latent).shrink * self.transformer.patch)
        if self.prompts.accumulate > 1:
            raise ConfigError(f"prompts.accumulate should be 1, got {self.prompts.accumulate}: captions are told from the others of their batch")
        if self.shown < 1:
            raise ConfigError(f"shown should be at least 1, got {self.shown}")
        if self.size < step or self.size % step:
            raise ConfigError(f"size should be a multiple of {step} (of the picture tower's {SIDE} and of a patch of latents), got {self.size}")


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="fields of Plan, such as painting.steps=20000")
    parser.add_argument("--data", type=Path, help="imagefolder or parquet with text (default: scikit-learn's digits)")
    parser.add_argument("--out", type=Path, default=Path("runs/image"), help="run folder (default: runs/image)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    args = parser.parse_intermixed_args()
    plan = override(Plan(), args.settings)
    data, captions = captioned_folder(args.data, plan.size, least=2) if args.data else sklearn_digits(plan.size)
    train(plan, data, captions, args)


def train(plan, data, captions, args):
    """The three parts, one after another."""
    def run(part, **hooks):
        words = {"title": f"Painter: {part}", "Data": f"{len(data.pixels)} pictures of {args.data.name if args.data else 'scikit-learn digits'}"}
        return Run(args.out / part, args.resume, card=words, **hooks)

    def rebuilt(model, folder, step):
        some = to_unit(data.pixels[::-(-len(data.pixels) // 8)])
        to_pil(grid(torch.cat((some, model.decode(model.encode(some)[0]))), len(some))[None])[0].save(folder / f"{step:06d}.png")

    torch.manual_seed(0)
    tokenizer = train_prompt_tokenizer(captions, min(3000, 300 + len({w for c in captions for w in c.split()})), length=48)
    cfg = AutoencoderConfig(plan.channels, latent=plan.latent, size=plan.size)
    autoencoder = train_autoencoder(Autoencoder(cfg), data, plan.autoencoding, run=run("autoencoder", sample=rebuilt))
    torch.manual_seed(1)                                               # anew for each part: one that was stopped between two ends alike
    encoder = TextEncoder(override(plan.words, [f"vocab={len(tokenizer)}"]))
    alignment = train_prompts(Alignment(encoder, PictureTower()), tokenizer, data, plan.prompts, run=run("prompts"))
    sizes = [f"channels={plan.latent}", f"out_channels={plan.latent}", f"size={plan.size // cfg.shrink}", f"captions={plan.words.width}"]
    torch.manual_seed(2)
    painter = Painter(DiT(override(plan.transformer, sizes)), alignment.encoder, autoencoder)
    shown = [captions[i] for i in np.linspace(0, len(captions) - 1, plan.shown).astype(int)]

    def sample(model, folder, step):
        pictures = TextToImage(model.painter, tokenizer).draw(shown, range(plan.shown), DrawSettings(steps=12))
        to_pil(grid(pictures, 8)[None])[0].save(folder / f"{step:06d}.png")
        (folder / "prompts.txt").write_text("\n".join(shown) + "\n", encoding="utf-8")

    hooks = {"extend": True, "sample": sample, "export": lambda model: pipeline_files(model.painter, tokenizer)}
    train_transformer(painter, alignment.tower, tokenizer, data, config=plan.painting, run=run("painter", **hooks))


def sklearn_digits(size):
    """scikit-learn's digits -> (Captioned, captions): each may be said in several ways."""
    digits = digit_pictures(size, 3)
    rng, labels = np.random.default_rng(0), digits.labels.tolist()
    captions = [digit_caption(label, rng) for label in labels]
    data = Captioned(digits.pixels, lambda i, rng: digit_caption(labels[i], rng), digits.labels, np.ones(len(labels)))
    return data, captions


if __name__ == "__main__":
    main()
