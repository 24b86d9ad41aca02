"""Long contexts: time and memory of attention over 1k to 32k tokens by pattern, and of decoding 100k tokens through a rolling cache.

    python -m benchmarks.long_context                                four patterns by tiles against full attention, one thread
    python -m benchmarks.long_context --lengths 1024 4096 --backward gradients as well
    python -m benchmarks.long_context --skip decode

Time is CPU time of one call of `attend` (no projections), the median of rounds in which the contenders take turns, one round beyond 8k; memory is
the peak of what torch's allocator gave out beside the inputs.
Exponents are slopes of log time and log memory over log length. Writes benchmarks/results/long_context.json."""
import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path

import torch

from gencore.attention import CAUSAL, AttentionConfig, attend
from gencore.cache import RollingCache
from gencore.check import command
from gencore.decode import Stepper
from gencore.layers import MLPConfig
from gencore.masks import block_sparse, causal, sparse, window
from gencore.positions import RotaryConfig
from gencore.recipe import versions
from gencore.tiles import tiles_of
from gencore.transformer import TransformerConfig
from textgen import CausalLM
from textgen.model import CausalLMConfig

RESULTS = Path(__file__).parent / "results" / "long_context.json"
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
PATTERNS = {                                                  # length -> a Mask whose visible keys a query stay the same, or grow as said
    "window 256": lambda T: window(256),
    "window 256, 4 global": lambda T: sparse(width=256, first=4),
    "random blocks": lambda T: block_sparse(random_blocks(T // 128), 128),
    "strided, sqrt(T)": lambda T: sparse(width=int(T ** 0.5), stride=int(T ** 0.5)),
}


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=5, help="of each contender up to 8k; longer ones once")
    parser.add_argument("--heads", type=int, default=2, help="of 64 channels")
    parser.add_argument("--backward", action="store_true", help="gradients of queries, keys and values as well")
    parser.add_argument("--decode", type=int, default=100_000, help="tokens that are decoded through the rolling cache")
    parser.add_argument("--skip", nargs="*", default=[], choices=["attention", "decode"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {"versions": versions()}
    if "attention" not in args.skip:
        results["attention, forward and backward" if args.backward else "attention"] = attention(args)
    if "decode" not in args.skip:
        results["decode"] = decoding(args)
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps({**kept, **results}, indent=2) + "\n")


def random_blocks(count, *, near=2, some=2):
    """BigBird's blocks, causal: (count, count) bool, the `near` newest and `some` random older ones for each row."""
    generator = torch.Generator().manual_seed(0)
    row, column = torch.arange(count)[:, None], torch.arange(count)[None]
    chosen = torch.rand(count, count, generator=generator).masked_fill(column > row, 0).argsort(1, descending=True)[:, :some]
    return (row - column < near) & (column <= row) | torch.zeros(count, count, dtype=torch.bool).scatter(1, chosen, True)


def attention(args):
    """{contender: {length: (milliseconds, MB)}} with exponents, and how many times faster than full attention each is."""
    table = {name: {} for name in ("full", "window 256, dense mask", *PATTERNS)}
    for T in args.lengths:
        q, k, v = (torch.randn(1, args.heads, T, 64, requires_grad=args.backward) for _ in range(3))
        runs, seconds = contenders(T, q, k, v), {}
        for number in range((args.rounds if T <= 8192 else 1) + (T == args.lengths[0])):
            for name, run in runs.items():
                seconds.setdefault(name, []).append(cpu_seconds(run))
        for name, run in runs.items():
            table[name][T] = (1000 * statistics.median(seconds[name][T == args.lengths[0]:]), peak_bytes(run) / 2 ** 20)
    print(f"{'milliseconds (MB)':24} " + "".join(f"{T:>17,}" for T in args.lengths) + "   time ~ T^   memory ~ T^   faster than full")
    rows = {}
    for name, cells in table.items():
        faster = {T: table["full"][T][0] / ms for T, (ms, _) in cells.items()}
        times, sizes = ({T: round(cell[i], 2) for T, cell in cells.items()} for i in (0, 1))
        rows[name] = {"milliseconds": times, "megabytes": sizes, "time_exponent": exponent(times), "memory_exponent": exponent(sizes),
                      "times_faster_than_full": {T: round(ratio, 2) for T, ratio in faster.items()}}
        print(f"{name:24} " + "".join(f"{f'{cells[T][0]:,.1f} ({cells[T][1]:,.1f})' if T in cells else '-':>17}" for T in args.lengths)
              + f"   {rows[name]['time_exponent']:9.2f}   {rows[name]['memory_exponent']:11.2f}   "
              + ", ".join(f"{ratio:.1f} at {T // 1024}k" for T, ratio in faster.items() if T in (8192, max(cells))))
    return {"rows": rows, "heads": args.heads, "head_width": 64, "threads": args.threads, "clock": "CPU time"}


def contenders(T, q, k, v):
    """{name: function}; the mask is made anew each time, as a forward of a model does once for all its layers."""
    slots = torch.arange(T)
    masks = {"full": lambda: CAUSAL}
    if T <= 8192:                                             # gigabytes beyond
        masks["window 256, dense mask"] = lambda: (causal() & window(256)).dense(slots, slots)
    for name, pattern in PATTERNS.items():
        mask = causal() & pattern(T)
        masks[name] = lambda mask=mask: tiles_of(mask, slots, slots) or mask.dense(slots, slots)
    if not q.requires_grad:
        return {name: lambda make=make: attend(q, k, v, make()) for name, make in masks.items()}
    return {name: lambda make=make: torch.autograd.grad(attend(q, k, v, make()).sum(), (q, k, v)) for name, make in masks.items()}


def cpu_seconds(function):
    begun = time.process_time()
    function()
    return time.process_time() - begun


def peak_bytes(function):
    """The most that torch's CPU allocator had given out at once while the function ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def exponent(values):
    """{length: value} -> slope of log value over log length, by least squares."""
    points = [(math.log(T), math.log(value)) for T, value in values.items()]
    x, y = (statistics.mean(axis) for axis in zip(*points))
    return round(sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points), 3)


@torch.inference_mode()
def decoding(args):
    """Milliseconds a token and resident memory at every tenth of the way, greedy, a tiny model with random weights."""
    torch.manual_seed(0)
    stack = TransformerConfig(width=64, layers=1, attention=AttentionConfig(heads=2), mlp=MLPConfig(128, gated=True), rotary=RotaryConfig())
    lm = CausalLM(CausalLMConfig(vocab=256, context=args.decode, transformer=stack)).eval()
    cache = RollingCache(stack, 1, 256)
    stepper, rows = Stepper(lm.last_logits, cache, within=256), []
    logits, begun = stepper.prefill(torch.tensor([[1]])), time.process_time()
    for number in range(1, args.decode + 1):
        logits = stepper.step(logits.argmax(-1))
        if number % (args.decode // 10) == 0:
            now = time.process_time()
            rows.append({"tokens": number, "ms_per_token": round(1000 * (now - begun) / (args.decode // 10), 4), "resident_MB": resident()})
            begun = now
            print(f"{number:8,} tokens   {rows[-1]['ms_per_token']:.3f} ms a token   {rows[-1]['resident_MB']:.1f} MB resident", flush=True)
    return {"rows": rows, "window": 256, "cache_bytes": sum(t.nbytes for layer in cache.layers for t in (layer.k, layer.v)),
            "threads": args.threads}


def resident():
    """Resident memory of this process in MB: Linux; None elsewhere."""
    statm = Path("/proc/self/statm")
    return round(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20, 1) if statm.is_file() else None


if __name__ == "__main__":
    main()
