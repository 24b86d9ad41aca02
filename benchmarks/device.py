"""Pictures per second on a device, drawn and trained on, and which share of the device's matrix rate that is.

    python -m benchmarks.device                      on the CPU, one thread
    python -m benchmarks.device --device cuda        on a GPU

The shipped painter draws (20 steps, guidance 3, in float32), and its transformer is trained, forward and backward, in float32, and under
autocast where products in bfloat16 are faster. Multiplications and additions are counted by torch's FlopCounterMode; the matrix rate is the best of
some square products, measured here in the same dtype. Writes benchmarks/results/device.json, a part for each kind of device."""
import argparse
import functools
import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from gencore.check import InputError, command, only_device
from gencore.processor import multiplies_bfloat16
from gencore.recipe import versions
from gencore.text_encoder import encode_prompts
from imagegen import TextToImage
from imagegen.emoji_names import COMMON
from imagegen.training import drawing_losses

RESULTS = Path(__file__).parent / "results" / "device.json"
SIDES = {"cpu": (1024,), "cuda": (2048, 4096, 8192)}                  # of the square products whose best rate counts


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--painter", default="painter", help="shipped name or folder")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64], help="pictures at once (default: 1 16 64; a painter draws 16 at once)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, rows = only_device(args.device), {}
    if device.type not in SIDES or device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device should be cpu, or cuda where torch finds one, got {args.device}")
    painter, rates = TextToImage.from_pretrained(args.painter).to(device), {}
    works = {"drawing, float32": (torch.float32, drawing), "training, float32": (torch.float32, training)}
    works |= {"training, bfloat16": (torch.bfloat16, training)} if device.type == "cuda" or multiplies_bfloat16("cpu") else {}
    for name, (dtype, work) in works.items():
        rates[dtype] = rates.get(dtype) or matrix_rate(device, dtype)
        for count in args.batches:
            seconds, flops = measured(functools.partial(work, painter, count, dtype), device, args.rounds)
            title, share = f"{name}, {count} at once", flops / seconds / rates[dtype]
            rows[title] = {"pictures_per_second": round(count / seconds, 3), "gflop_per_picture": round(flops / count / 1e9, 3),
                           "share_of_matrix_rate": round(share, 3)}
            print(f"{title:34} {count / seconds:10.2f} pictures/s   {flops / count / 1e9:8.2f} GFLOP each   {share:.1%} of "
                  f"{rates[dtype] / 1e9:,.0f} GFLOP/s", flush=True)
    said = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept[device.type] = {"rows": rows, "device": said, "of": Path(args.painter).name, "threads": args.threads, "versions": versions()}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


def drawing(painter, count, dtype):
    """So many pictures of common emoji, one after another in the painter's batches."""
    painter([f"{COMMON[i % len(COMMON)]}, noto style" for i in range(count)], seed=0, output_type="pt", progress=False)


def training(painter, count, dtype):
    """One step's forward and backward of the painter's transformer on so many latents."""
    parts = painter.painter
    device, cfg = next(parts.parameters()).device, parts.transformer.cfg
    parts.transformer.requires_grad_(True)
    ids, keep, _ = encode_prompts(painter.tokenizer, [f"{COMMON[i % len(COMMON)]}, noto style" for i in range(count)], painter.longest)
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(count, cfg.channels, cfg.size, cfg.size, generator=draws)
    batch = {name: tensor.to(device) for name, tensor in (("latents", latents), ("ids", ids), ("keep", keep))}
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = drawing_losses(parts, batch, draws).sum()
    loss.backward()
    parts.transformer.zero_grad(set_to_none=True)
    parts.transformer.requires_grad_(False)


def measured(work, device, rounds):
    """-> (median seconds, floating point operations) of a piece of work, after a round that warms up and one that is counted."""
    linear = lambda x, weight, *others, **more: 2 * math.prod(x) * weight[0]                # gencore.fused's products, by shapes
    attention = lambda query, key, value, *others, **more: 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: linear, on_cpu: attention})
    work()
    with counter:
        work()
    seconds = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), counter.get_total_flops()


def matrix_rate(device, dtype, repeats=10):
    """Floating point operations a second of the best square product."""
    rates = []
    for side in SIDES[device.type]:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds, flops = measured(lambda: [a @ b for _ in range(repeats)], device, 3)                       # noqa: B023
        rates.append(flops / seconds)
    return max(rates)


def wait(device):
    """A GPU works on behind Python's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
