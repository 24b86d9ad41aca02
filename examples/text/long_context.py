"""Long contexts: what each pattern of attention lets a word see, drawn, and the time it takes from 512 to 8192 tokens, plotted.

    python examples/text/long_context.py                             a minute or two on a CPU
    python examples/text/long_context.py --lengths 1024 4096 16384   other lengths; --width 256 --layers 6: a larger model

A mask is a value, `causal() & window(256)` or `causal() & sparse(width=256, first=4)`; given to a model it changes nothing else. Where it hides
most pairs, only tiles in which something is visible are computed (gencore/tiles.py), so the time grows with the length and not with its square.
A model whose layers have windows (`TransformerConfig.windows`; Mistral, Gemma) does this by itself. Draws patterns.png (visible pairs black, the
tiles that are computed for them grey) and time.png; the table says how many times faster than full attention each pattern is."""
import argparse
import time
from pathlib import Path

import torch

from gencore.attention import AttentionConfig
from gencore.check import command, whole
from gencore.folder import folder_for
from gencore.layers import MLPConfig
from gencore.masks import Mask, block_sparse, causal, sparse, window
from gencore.positions import RotaryConfig
from gencore.transformer import Transformer, TransformerConfig


def patterns(unit, length):
    """{name: Mask} whose sizes are multiples of `unit` slots, for that many slots."""
    generator = torch.Generator().manual_seed(0)
    count = -(-length // unit)
    layout = (torch.rand(count, count, generator=generator) < 2 / count) | torch.eye(count, dtype=torch.bool)
    return {"full": Mask(), "window": window(2 * unit), "window, global": sparse(width=2 * unit, first=unit // 8),
            "strided": sparse(width=unit, stride=8 * unit), "random blocks": block_sparse(layout, unit)}


def draw_patterns(path, slots=512, unit=32, tile=16):
    """What slot sees what, under causal attention: a picture for each pattern."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(14, 3.4), layout="constrained")
    place = torch.arange(slots)
    edges = torch.stack((place[::tile], place[tile - 1::tile]))                                # (2, tiles)
    for axes, (name, pattern) in zip(figure.subplots(1, 5), patterns(unit, slots).items()):
        mask = causal() & pattern
        seen = mask.dense(place, place).float()                                                # (slots, slots)
        tiles = mask.touches(edges[:, :, None], edges[:, None]).float()
        spread = tiles.repeat_interleave(tile, 0).repeat_interleave(tile, 1)
        axes.imshow(0.25 * spread + 0.75 * seen, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set(title=f"{name}: {seen.mean():.1%} visible", xlabel="looked at", ylabel="looks", xticks=[], yticks=[])
    figure.savefig(path, dpi=120)


@torch.inference_mode()
def measure(args):
    """-> {name: {length: milliseconds of a forward}}; the patterns take turns, medians count."""
    for name, values in (("rounds", [args.rounds]), ("lengths", args.lengths), ("layers", [args.layers]), ("width", [args.width])):
        for value in values:
            whole(name, value, 1)
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(args.width, args.layers, AttentionConfig(heads=max(1, args.width // 64)), MLPConfig(2 * args.width),
                                          rotary=RotaryConfig())).eval()
    times = {}
    for length in args.lengths:
        x, rounds = torch.randn(1, length, args.width), []
        for _ in range(args.rounds):
            rounds.append({})
            for name, pattern in patterns(128, length).items():
                begun = time.process_time()
                model(x, causal() & pattern)
                rounds[-1][name] = 1000 * (time.process_time() - begun)
        for name in rounds[0]:
            times.setdefault(name, {})[length] = sorted(row[name] for row in rounds)[args.rounds // 2]
        print(f"{length:6} tokens: " + ", ".join(f"{name} {row[length]:,.0f} ms ({times['full'][length] / row[length]:.1f} x)"
                                                 for name, row in times.items()), flush=True)
    return times


def draw_times(times, path):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, row in times.items():
        axes.plot(row.keys(), row.values(), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds of CPU time", title="one forward of the whole model")
    axes.legend()
    figure.savefig(path, dpi=120)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the two pictures (default: here)")
    args = parser.parse_args()
    folder_for(args.out)
    draw_patterns(args.out / "patterns.png")
    draw_times(measure(args), args.out / "time.png")
    print(f"drawn: {args.out / 'patterns.png'}, {args.out / 'time.png'}")


if __name__ == "__main__":
    main()
