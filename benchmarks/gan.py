"""Figures of GANs: the digits that digits-gan draws, and how many of a thousand kinds of stacked digits a recipe reaches, now and in 2015.

    python -m benchmarks.gan --data FOLDER                                (a folder with mnist/: train.parquet and test.parquet) the digits
    python -m benchmarks.gan --data FOLDER --painter painter              the same table for digits drawn from words
    python -m benchmarks.gan --data FOLDER --train modern --seed 0        one training on stacked digits, 25 minutes of one core; --resume goes on
    python -m benchmarks.gan --data FOLDER --train baseline --seed 0      the same with DCGAN
    python -m benchmarks.gan --data FOLDER --judge                        the trainings in --runs that have ended: kinds reached, and a sheet of each

Distances are in features of a digit judge that is trained here on real digits (kept in --judges): they are no FID, which is one in Inception's.
The table of the digits takes ten minutes of one core, the painter's drawings half an hour more, an hour with --guidance (in 10
steps; guidance draws the likeliest alone, and without it some are another digit than was asked for; guidance at the lower noise levels alone, by
--interval 0 0.7, keeps more of the variety; those that are read as asked are drawn as a user draws them). Writes benchmarks/results/gan.json."""
import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.image_judges import BareDigitJudge, features_of, kept_judge, train_judge, verdicts
from gencore import Run, TrainConfig
from gencore.check import DataError, InputError, command, whole
from gencore.checkpoint import load_tensors
from gencore.data import image_folder
from gencore.optim import make_optimizer
from gencore.processor import multiplies_bfloat16
from gencore.recipe import versions
from gencore.run_folder import checkpoints, load_state
from gencore.train import fit
from imagegen import TextToImage
from imagegen.adversarial import Game, StackedBatches, first_loss, relativistic_loss, without_momentum
from imagegen.data import DIGITS, Pictures, cached, grid, square, to_bytes, to_pil, to_unit
from imagegen.dcgan import DCCritic, DCGenerator
from imagegen.evaluate import classification_accuracy, copies, frechet_distance, kernel_distance, modes, precision_and_recall
from imagegen.gan import GAN, Critic, GANConfig, Generator

RESULTS = Path(__file__).parent / "results" / "gan.json"


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist/")
    parser.add_argument("--gan", default="digits-gan", help="shipped name or folder of the one that draws digits")
    parser.add_argument("--painter", help="shipped name or folder of a painter whose digits take the GAN's place")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the painter's 10,000 digits (default 1: none)")
    parser.add_argument("--interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="noise levels that are guided (all)")
    parser.add_argument("--count", type=int, default=10_000, help="pictures in each set that is compared (10,000: figures to be told)")
    parser.add_argument("--train", choices=list(WAYS), help="train one on stacked digits")
    parser.add_argument("--judge", action="store_true", help="judge those that were trained on stacked digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the training (default: 6,500 of the modern one, 8,000 of DCGAN: about equal time)")
    parser.add_argument("--resume", action="store_true", help="go on with a training, or for longer with another --steps")
    parser.add_argument("--runs", type=Path, default=Path("runs/stacked"), help="where the trainings are")
    parser.add_argument("--judges", type=Path, default=Path("runs/judges/image"), help="where the trained judge and the pictures are kept")
    args = parser.parse_args()
    if args.train:
        train_stacked(args)
    else:
        part, table = ("stacked", stacked_table(args)) if args.judge else ("painter" if args.painter else "digits", digits_table(args))
        tell(table)
        how = {"versions": versions(), "seed": args.seed} | ({} if args.judge else {"of": Path(args.painter or args.gan).name, "count": args.count})
        how |= {"guidance": args.guidance, "guidance interval": list(args.interval)} if args.painter else {}
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        RESULTS.write_text(json.dumps(kept | {part: table | how}, indent=2) + "\n")


def tell(table):
    """{row: {figure: value}} -> lines on the screen, a figure each."""
    for figure in next(iter(table.values())):
        print(f"{figure:58}" + "".join(f"{row:>16} {figures[figure]:<9.4g}" for row, figures in table.items()))


# ---- what both parts look at ----

def real_digits(args, split):
    """-> (pixels (N,1,32,32) uint8, labels (N,)) of MNIST, white on black."""
    def read():
        rows = image_folder(args.data / "mnist", split, text=None)
        return Pictures(torch.stack([square(row["image"], 32)[:1] for row in rows]), [{"label": label} for label in rows.column("label")])

    kept = cached(args.judges, f"mnist-32-{split}", read, source=args.data / "mnist" / f"{split}.parquet")
    return kept.pixels, torch.tensor([row["label"] for row in kept.rows])


def digit_judge(args, train):
    """The judge that reads and whose features are compared, trained on all real training digits."""
    return kept_judge(BareDigitJudge(), args.judges / "digit-32", lambda: train, steps=1600, augment=False)


# ---- digits of a class ----

def digits_table(args):
    """{"drawn": figures, "real": the same ones of as many real training pictures}: against real test pictures, real ones are what can be reached.

    Both rows have the same labels, those of the training pictures. Of real ones, copies are counted against the rest of the training pictures: what a
    generator would show that draws from the same writers (those of the test pictures are others) and copies nobody."""
    whole("--count", args.count, 1000, 10_000)
    train, test = (real_digits(args, split) for split in ("train", "test"))
    judge = digit_judge(args, train)
    drawn = partial(draw, GAN.from_pretrained(args.gan)) if not args.painter else \
        partial(paint, TextToImage.from_pretrained(args.painter), guidance=args.guidance, interval=args.interval)
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(args.seed))
    chosen, rest = order[:args.count], order[args.count:]
    real, labels = train[0][chosen], train[1][chosen]
    asked = torch.arange(10).repeat(100)
    compared = {"drawn": (drawn(labels, args.seed), train[0]), "real": (real, train[0][rest])}
    shown = drawn(asked, args.seed + 1, guidance=3.0, steps=20, interval=(0.0, 1.0)) if args.painter else drawn(asked, args.seed + 1)
    read = {"drawn": (shown, asked), "real": test}
    return {row: {"read as asked (1,000 drawn; all real test pictures)": accuracy(partial(verdicts, judge), *read[row]),
                  **figures_of(judge, (pixels, labels), test, others)} for row, (pixels, others) in compared.items()}


def draw(gan, digits, seed):
    """digits (N,) -> pixels (N,1,32,32) uint8."""
    cfg, names = gan.cfg, [str(digit) for digit in range(10)]
    if (cfg.size, cfg.picture_channels) != (32, 1) or set(cfg.labels) != set(names):
        raise InputError(f"--gan should draw the classes 0 to 9 in grey at 32x32, got size {cfg.size}, {cfg.picture_channels} channels, "
                         f"classes {', '.join(cfg.labels) or 'none'}")
    numbers = torch.tensor([cfg.labels.index(name) for name in names])[digits]
    with torch.inference_mode():
        return to_bytes(gan.draw(torch.randn(len(digits), cfg.latent, generator=torch.Generator().manual_seed(seed)), numbers))


def paint(painter, digits, seed, *, guidance, interval=(0.0, 1.0), steps=10):
    """digits (N,) -> pixels (N,1,32,32) uint8: what a painter draws in black with a margin of a sixteenth, as MNIST has it.

    In bfloat16 where the processor multiplies it faster: a grey moves by 0.001 at the mean."""
    words = [f"a handwritten {DIGITS[digit]}" for digit in digits.tolist()]
    settings = {"guidance": guidance, "guidance_interval": interval, "steps": steps}
    with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16("cpu")):
        parts = [painter(words[i:i + 256], seed=seed + i, output_type="pt", progress=False, **settings) for i in range(0, len(words), 256)]
    ink = 1 - torch.cat([part.float().mean(1, keepdim=True) for part in parts])[..., 4:60, 4:60]                 # (N, 1, 56, 56)
    return (255 * F.interpolate(ink, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)).round().to(torch.uint8)


def figures_of(judge, shown, test, train):
    """shown, test: (pixels, labels); train: pixels that `shown` might be copies of -> the figures of `shown`."""
    def learn(pixels, labels):
        return partial(verdicts, train_judge(BareDigitJudge(), pixels, labels, steps=1600, augment=False))

    held_out = test[0][torch.randperm(len(test[0]), generator=torch.Generator().manual_seed(0))[:len(shown[0])]]
    features, flat = ([form(to_unit(pixels)) for pixels in (shown[0], held_out, train)] for form in (partial(features_of, judge), flattened))
    kernel, deviation = kernel_distance(*features[:2])
    near, of_features, of_pixels = precision_and_recall(*features[:2]), copies(*features), copies(*flat)
    return {"classification accuracy score": classification_accuracy(learn, shown, (to_unit(test[0]), test[1])),
            "Frechet distance, judge's features": frechet_distance(*features[:2]),
            "kernel distance, judge's features, times 1000": 1000 * kernel, "  its deviation over subsets, times 1000": 1000 * deviation,
            "precision, judge's features, k = 3": near.precision, "recall, judge's features, k = 3": near.recall,
            "nearer to training than held-out ones, judge's features": of_features.nearer,
            "  nearer than all but 1 % of them": of_features.close,
            "nearer to training than held-out ones, pixels": of_pixels.nearer, "  nearer than all but 1 % of them, pixels": of_pixels.close}


def flattened(pictures):
    return pictures.flatten(1)


def accuracy(reads, pixels, labels):
    return float((reads(to_unit(pixels)) == labels).double().mean())


# ---- stacked digits: three grey ones are the colours of one picture (Metz et al. 2017) ----

@dataclass(frozen=True)
class Way:
    """How one side of the comparison is trained; DCGAN with the rate, betas and batch of its paper."""
    config: GANConfig
    networks: tuple[type, type]
    loss: Callable
    optimizer: Callable
    training: TrainConfig

    def game(self):
        return Game(*(network(self.config) for network in self.networks))


WAYS = {
    "modern": Way(GANConfig(picture_channels=3, widths=(64, 64, 32, 16)), (Generator, Critic), relativistic_loss, without_momentum,
                  TrainConfig(steps=6500, batch=32, lr=1e-3, muon_lr=6e-3, warmup=50, decay=0.7, weight_decay=0.1, clip=None, ema=0.995,
                              precision="auto")),
    "baseline": Way(GANConfig(picture_channels=3, latent=100), (DCGenerator, DCCritic), first_loss, partial(make_optimizer, betas=(0.5, 0.999)),
                    TrainConfig(steps=8000, batch=64, lr=2e-4, warmup=0, decay=0.0, weight_decay=0.0, clip=None, precision="auto")),
}


def train_stacked(args):
    """One training into --runs/<way>-<seed>; its samples are sheets of 64."""
    way, (pixels, _) = WAYS[args.train], real_digits(args, "train")

    def sample(model, folder, step):
        to_pil(grid(made(model.generator, 64), 16)[None])[0].save(folder / f"{step:06d}.png")

    def export(model):
        return {"model.safetensors": model.generator.state_dict()}

    torch.manual_seed(args.seed)
    run = Run(args.runs / f"{args.train}-{args.seed}", args.resume, extend=True, sample=sample, export=export)
    config = replace(way.training, steps=args.steps or way.training.steps, seed=args.seed, eval_every=200, save_every=200)
    batches = StackedBatches(pixels, torch.zeros(len(pixels)), config.batch, args.seed)
    fit(way.game().to(memory_format=torch.channels_last), way.loss, batches, config, run=run, optimizer=way.optimizer)


@torch.no_grad()
def made(generator, count, seed=0):
    """-> `count` pictures (N,C,S,S) in [-1,1] of a generator without classes."""
    latents = torch.randn(count, generator.cfg.latent, generator=torch.Generator().manual_seed(seed))
    return torch.cat([generator(part).clamp(-1, 1) for part in latents.split(256)])


def stacked_table(args, count=25_600):
    """{"modern-0": figures, ..., "real": those of real test digits stacked in the same way}, and a sheet with the first 32 of every way."""
    judge, (pixels, labels) = digit_judge(args, real_digits(args, "train")), real_digits(args, "test")
    table, sheets = {}, {}
    for name, way in WAYS.items():
        for folder in sorted(args.runs.glob(f"{name}-*/model")):
            generator = way.game().generator.eval()
            generator.load_state_dict(load_tensors(folder / "model.safetensors"))
            pictures, state = made(generator, count), load_state(checkpoints(Run(folder.parent))[-1][1])
            sheets.setdefault(name, pictures[:32])
            table[folder.parent.name] = {**kinds_reached(judge, pictures), "steps": state["step"], "CPU seconds": state["cpu_seconds"]}
    if not table:
        raise DataError(f"{args.runs} has no training that has ended: begin one with --train modern --seed 0")
    to_pil(grid(torch.cat(list(sheets.values())), 16)[None])[0].save(RESULTS.with_name("stacked.png"))
    real = StackedBatches(pixels, labels, count, args.seed).batch(0)["pixels"]
    return table | {"real": {**kinds_reached(judge, to_unit(real)), "steps": 0, "CPU seconds": 0}}


@torch.no_grad()
def kinds_reached(judge, pictures):
    """pictures (N,3,32,32) in [-1,1] -> how many of the thousand kinds the judge finds in them, and how surely it reads a colour."""
    chances = torch.cat([judge(part).softmax(1) for part in pictures.flatten(0, 1)[:, None].split(600)])           # (3N, 10)
    sure, digits = chances.max(1)
    found = modes((digits.view(-1, 3) * torch.tensor([100, 10, 1])).sum(1), 1000)
    return {"kinds reached, of 1000": found.reached, "KL to all alike, nats": found.divergence,
            "colours that the judge reads with p > 0.8": float((sure > 0.8).double().mean())}


if __name__ == "__main__":
    main()
