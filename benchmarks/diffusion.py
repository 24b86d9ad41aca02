"""Diffusion against diffusers and denoising-diffusion-pytorch: drawing with the same weights, training, memory; quality at equal CPU time.

    python -m benchmarks.diffusion                                   drawing and training, float32 and bfloat16, a few minutes of one core
    python -m benchmarks.diffusion --compile                         our side compiled as well (minutes more, and a C++ compiler)
    python -m benchmarks.diffusion --quality --data FOLDER       (with mnist/) both trained for --seconds each, and judged

One thread unless told otherwise; sides take turns, medians of CPU seconds count, so that a busy machine disturbs both alike. Memory: the peak of
the resident set over what was there before (Linux); who comes second finds what the first has let go of, so this compares nobody.
denoising-diffusion-pytorch is left out where it is not installed: pip install --no-deps denoising-diffusion-pytorch ema-pytorch einops.
Writes benchmarks/results/diffusion.json."""
import argparse
import functools
import importlib.util
import json
import re
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import torch

from benchmarks.image_judges import DigitJudge, kept_judge
from gencore.check import DataError, command
from gencore.processor import multiplies_bfloat16
from gencore.recipe import versions
from gencore.train import Run, TrainConfig, fit
from imagegen import Diffusion
from imagegen.class_dit import ClassDiT, ClassDiTConfig
from imagegen.class_training import Lesson, denoising_loss
from imagegen.data import cached, digits, grid, to_pil, to_unit
from imagegen.families.unet import UNET
from imagegen.labelled import LabelledBatches
from imagegen.schedule import Schedule
from imagegen.unet import UNet, UNetConfig

RESULTS = Path(__file__).parent / "results" / "diffusion.json"
DRAWN = {"U-Net, the example's": UNetConfig(channels=1, out_channels=1, widths=(16, 48, 96), attention=(False, False, True), layers=1, groups=16),
         "U-Net, 64 to 128 channels": UNetConfig(widths=(64, 128, 128)),
         "DiT, the example's": ClassDiTConfig(channels=1, out_channels=1, patch=4, width=192, layers=6, heads=6),         # 64 tokens
         "DiT, 256 tokens": ClassDiTConfig(width=256, layers=6, heads=4)}
TRAINED = UNetConfig(channels=1, out_channels=1, widths=(32, 64, 128), attention=(False, False, True), layers=2)
BATCH, FIRST = 16, 2                                                               # of training; steps that warm up


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="our networks compiled too")
    parser.add_argument("--only", choices=("drawing", "training"), help="one of the two that need no data")
    parser.add_argument("--quality", action="store_true", help="train both for --seconds each and judge what they draw")
    parser.add_argument("--data", type=Path, help="folder with mnist/, for --quality")
    parser.add_argument("--seconds", type=float, default=600, help="of CPU time for each side's training (--quality)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--judges", type=Path, default=Path("runs/judges/diffusion"), help="where the trained judge and the pictures are kept")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quality and not args.data:
        raise DataError("--quality needs --data FOLDER with mnist/ (train.parquet and test.parquet: image, label)")
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    parts = {"quality": quality} if args.quality else {"drawing": drawing, "training": training}
    for part, measured in parts.items() if not args.only else [(args.only, parts[args.only])]:
        kept[part] = {"rows": measured(args), "threads": args.threads, "bf16": multiplies_bfloat16("cpu"), "versions": versions()}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


def in_turns(ways, rounds):
    """{name: a function that works} -> {name: (median CPU seconds, peak MB)}; the first round warms up."""
    seconds, peaks = {name: [] for name in ways}, {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            forget_peak()
            resident, begun = memory("VmRSS"), time.process_time()
            work()
            if turn:
                seconds[name].append(time.process_time() - begun)
                peaks[name].append(memory("VmHWM") - resident)
    return {name: (statistics.median(seconds[name]), max(peaks[name])) for name in ways}


def memory(field):
    """MB of this process by Linux's count; 0 elsewhere."""
    status = Path("/proc/self/status")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1000 if status.is_file() else 0


def forget_peak():
    """Linux counts the peak anew from here."""
    if Path("/proc/self/clear_refs").is_file():
        Path("/proc/self/clear_refs").write_text("5")


def table(title, found, base, items):
    """Prints and keeps (seconds, MB) of each side as rates and ratios; base: whose rate is 1."""
    rows = {}
    for name, (seconds, peak) in found.items():
        rows[name] = {"pictures_per_cpu_second": round(items / seconds, 3), "ratio": round(found[base][0] / seconds, 2), "peak_mb": round(peak)}
        print(f"{title:36} {name:28} {items / seconds:8.2f} pictures/CPU-s   {rows[name]['ratio']:.2f} x   peak {peak:6.0f} MB", flush=True)
    return rows


def dtypes():
    """(its name, a context in which products are made in it)."""
    yield "float32", torch.autocast("cpu", enabled=False)
    if multiplies_bfloat16("cpu"):
        yield "bfloat16", torch.autocast("cpu", torch.bfloat16)


# ---- drawing ----

def drawing(args, count=4, steps=4):
    """Our Diffusion and the pipeline of diffusers that opens its folder: the same weights and steps; transformers are guided (twice the rows)."""
    from diffusers import DiffusionPipeline
    rows = {}
    for kind, cfg in DRAWN.items():
        torch.manual_seed(0)
        classes = isinstance(cfg, ClassDiTConfig)
        network, guidance = (ClassDiT(cfg), 4.0) if classes else (UNet(cfg), 1.0)
        for parameter in network.parameters():                                     # a new transformer says nothing
            torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else None
        ours = Diffusion(network)
        with tempfile.TemporaryDirectory() as folder:
            ours.save_pretrained(Path(folder) / "model")
            theirs = DiffusionPipeline.from_pretrained(Path(folder) / "model")
        theirs.set_progress_bar_config(disable=True)
        asked = {"class_labels": list(range(count)), "guidance_scale": guidance} if classes else {"batch_size": count}
        own = list(range(count)) if classes else count
        ways = {"diffusers": lambda: theirs(num_inference_steps=steps, output_type="np", **asked),         # noqa: B023
                "commonthread": lambda: ours(own, steps=steps, guidance=guidance, seed=0, output_type="np", progress=False)}      # noqa: B023
        for dtype, context in dtypes():
            with context:
                more = {"commonthread, compiled": by_compiled(network, ways["commonthread"])} if args.compile else {}
                found = in_turns(ways | more, args.rounds)
            rows[f"{kind}, {dtype}"] = table(f"{kind}, {dtype}", found, "diffusers", count)
    return rows


def by_compiled(network, work):
    """The same work with the network compiled, which is as it was afterwards."""
    network.compile()
    fast, network._compiled_call_impl = network._compiled_call_impl, None

    def run():
        network._compiled_call_impl = fast
        work()
        network._compiled_call_impl = None

    return run


# ---- training ----

def training(args, steps=5):
    """Steps of 16 pictures by fit, by diffusers' training example and by denoising-diffusion-pytorch's loss in the loop of its Trainer."""
    pixels = torch.randint(0, 256, (64, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ways = {"diffusers": by_diffusers, "commonthread": by_fit} | ({"denoising-diffusion-pytorch": by_ddpm} if has_ddpm() else {})
    rows = {}
    for dtype, _ in dtypes():
        seconds, peaks = {name: [] for name in ways}, dict.fromkeys(ways, 0)
        for _ in range(args.rounds):
            for name, train in ways.items():
                forget_peak()
                resident = memory("VmRSS")
                moments = train(pixels, dtype, steps + FIRST)
                seconds[name] += [after - before for before, after in zip(moments, moments[1:])][FIRST - 1:]
                peaks[name] = max(peaks[name], memory("VmHWM") - resident)
        found = {name: (statistics.median(values), peaks[name]) for name, values in seconds.items()}
        rows[dtype] = table(f"training, {dtype}", found, "diffusers", BATCH)
    if has_ddpm():
        sizes = [sum(p.numel() for p in network.parameters()) for network in (UNet(TRAINED), ddpm_network())]
        print(f"parameters: {sizes[0]:,} (commonthread and diffusers), {sizes[1]:,} (denoising-diffusion-pytorch)")
    return rows


class Watched(LabelledBatches):
    """Batches that note the CPU time at which each is asked for."""

    def __init__(self, pixels):
        super().__init__(pixels, torch.zeros(len(pixels), dtype=torch.long), BATCH, 0)
        self.moments = []

    def batch(self, step, rank=0, world=1):
        self.moments.append(time.process_time())
        return super().batch(step, rank, world)


def by_fit(pixels, dtype, steps):
    """-> the CPU time at the beginning of each step."""
    torch.manual_seed(0)
    batches, schedule, lesson = Watched(pixels), Schedule(), Lesson("uniform")
    config = TrainConfig(steps=steps, batch=BATCH, lr=1e-4, warmup=1, ema=0.999, precision="bf16" if dtype == "bfloat16" else "float32", save_every=0)
    with tempfile.TemporaryDirectory() as folder:
        fit(UNet(TRAINED), lambda model, batch, draws: denoising_loss(model, batch, draws, schedule=schedule, lesson=lesson), batches, config,
            run=Run(Path(folder) / "run", progress=False))
    return batches.moments


def by_diffusers(pixels, dtype, steps):
    """The loop of examples/unconditional_image_generation (with --use_ema) -> as by_fit."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    torch.manual_seed(0)
    accelerator, batches = Accelerator(cpu=True), Watched(pixels)
    model = UNet2DModel.from_config(UNET.to_theirs(TRAINED)).train()
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    noises = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
    model, optimizer, rates = accelerator.prepare(model, optimizer, rates)
    for step in range(steps):
        clean = to_unit(batches.batch(step)["pixels"])
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (BATCH,))
        noisy = noises.add_noise(clean, noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            said = model(noisy, t).sample
        loss = torch.nn.functional.mse_loss(said.float(), noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        loss.item()                                                                # for its progress bar
    return batches.moments


def has_ddpm():
    return all(importlib.util.find_spec(name) for name in ("denoising_diffusion_pytorch", "ema_pytorch", "einops"))


@functools.cache
def ddpm_parts():
    """(Unet, GaussianDiffusion) of denoising-diffusion-pytorch; its module wants torchvision for a data set that is not used here."""
    stand_ins = {} if importlib.util.find_spec("torchvision") else {name: types.ModuleType(name) for name in (
        "torchvision", "torchvision.transforms", "torchvision.utils")}
    for name, module in stand_ins.items():
        sys.modules[name] = module
        setattr(stand_ins["torchvision"], name.rpartition(".")[2], module)
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet
    for name in stand_ins:                                                         # others ask whether it is there
        del sys.modules[name]
    return Unet, GaussianDiffusion


def ddpm_network():
    """Its defaults at the widths of TRAINED (linear attention on the fine grids): 2.6 M parameters where that has 3.9 M."""
    return ddpm_parts()[0](dim=32, dim_mults=(1, 2, 4), channels=1)


def by_ddpm(pixels, dtype, steps, *, until=None):
    """Loss, Adam, clipping and EMA as its Trainer has them -> as by_fit; until: CPU seconds, then -> its diffusion with averaged weights."""
    from ema_pytorch import EMA
    torch.manual_seed(0)
    diffusion, batches = ddpm_parts()[1](ddpm_network(), image_size=32, sampling_timesteps=50), Watched(pixels)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4 if until is None else 3e-4, betas=(0.9, 0.99))        # 1e-4 is for long runs
    ema = EMA(diffusion, beta=0.995, update_every=10)
    for step in range(steps):
        pictures = batches.batch(step)["pixels"].float() / 255
        if until is not None and time.process_time() - batches.moments[0] > until:
            return ema.ema_model.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = diffusion(pictures)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        loss.item()
    return batches.moments


# ---- quality at equal CPU time ----

def quality(args, count=1000):
    """MNIST at 32x32, both U-Nets for as many CPU seconds; Frechet distances in features of a digit judge trained here (no FID)."""
    from imagegen.evaluate import frechet_distance
    real = {split: cached(args.judges, f"mnist-32-{split}", functools.partial(digits, args.data / "mnist", split, size=32),
                          source=args.data / "mnist" / f"{split}.parquet")
            for split in ("train", "test")}
    judge = kept_judge(DigitJudge(), args.judges / "digit", lambda: doubled(real["train"]), steps=1600, augment=False)
    pixels, dtype = real["train"].pixels[:, :1], "bfloat16" if multiplies_bfloat16("cpu") else "float32"
    pace = [b - a for moments in [by_fit(pixels, dtype, 12)] for a, b in zip(moments, moments[1:])][FIRST:]
    ours = ours_for(pixels, dtype, max(50, round(args.seconds / statistics.mean(pace))))
    made = {"commonthread": ours(count, steps=25, seed=0, output_type="pt", progress=False) * 2 - 1}
    if has_ddpm():
        theirs = by_ddpm(pixels, dtype, 10 ** 9, until=args.seconds)
        with torch.inference_mode():
            made["denoising-diffusion-pytorch"] = torch.cat([theirs.sample(batch_size=100) for _ in range(count // 100)]) * 2 - 1
    made |= {f"real digits, {split}": to_unit(real[split].pixels[-count:, :1]) for split in ("train", "test")}
    others, rows = features(judge, to_unit(real["test"].pixels[:count, :1])), {}
    for name, pictures in made.items():
        to_pil(grid(pictures[:64].expand(-1, 3, -1, -1), 16)[None])[0].save(RESULTS.parent / f"diffusion-{name.split(',')[0].replace(' ', '-')}.png")
        rows[name] = round(frechet_distance(features(judge, pictures), others), 4)
        print(f"{name:36} distance to 1,000 real digits in the judge's features {rows[name]:.4f}", flush=True)
    return rows | {"seconds": args.seconds}


def doubled(pictures, count=20_000):
    """Pictures 32x32 -> (pixels (N,3,64,64), labels (N,)), as the judge wants them."""
    grey = torch.nn.functional.interpolate(pictures.pixels[:count, :1], scale_factor=2.0)
    return grey.expand(-1, 3, -1, -1), torch.tensor([row["label"] for row in pictures.rows[:count]])


def ours_for(pixels, dtype, steps):
    """-> Diffusion of MNIST without classes after so many steps of fit."""
    torch.manual_seed(0)
    schedule, lesson = Schedule("flow", "velocity", "dpm_solver"), Lesson()
    config = TrainConfig(steps=steps, batch=BATCH, lr=1e-3, warmup=50, decay=0.5, weight_decay=0.01, ema=0.995, save_every=0,
                         precision="bf16" if dtype == "bfloat16" else "float32")
    with tempfile.TemporaryDirectory() as folder:
        model = fit(UNet(TRAINED), lambda model, batch, draws: denoising_loss(model, batch, draws, schedule=schedule, lesson=lesson),
                    Watched(pixels), config, run=Run(Path(folder) / "run"))
    return Diffusion(model, schedule=schedule)


@torch.no_grad()
def features(judge, pictures):
    """pictures (N,1,32,32) in [-1,1] -> (N,64): the judge's last convolution, averaged over places."""
    ink = ((1 - pictures.clamp(-1, 1)) / 2)[:, :, 2:30, 2:30]                      # the 28x28 that it looks at
    return torch.cat([judge.layers[:-3](part).mean((2, 3)) for part in ink.split(500)])


if __name__ == "__main__":
    main()
