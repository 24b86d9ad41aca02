"""Figures of the painter's scenes, each aspect read by a judge that was trained on drawn scenes (benchmarks/scene_judge.py).

    python -m benchmarks.scenes [--painter FOLDER]

500 requests of seen pairs of colour and shape and 500 of held-out ones, drawn once each; the same for guidance 1 to 4 with 200 each. Ceilings: real
scenes, and those after the autoencoder. Floor: each picture judged by the next one's request. Trains the judge first (kept in --judges).
Writes benchmarks/results/scenes.json and a grid beside it."""
import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.scene_judge import scene_judge, seen
from gencore.check import command
from gencore.recipe import versions
from imagegen import TextToImage
from imagegen.data import grid, to_pil, to_unit
from imagegen.training import encode_all
from multimodal.scenes import answered, caption, compose, paint, requests

RESULTS = Path(__file__).parent / "results"


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--painter", default="painter")
    parser.add_argument("--judges", type=Path, default=Path("runs/judges/scenes"), help="where the trained judge is kept")
    parser.add_argument("--count", type=int, default=500)
    args = parser.parse_args()
    painter, judge = TextToImage.from_pretrained(args.painter), scene_judge(args.judges)
    figures = {}
    for held in (False, True):
        figures |= figures_of(painter, judge, "held-out" if held else "seen", held, args.count)
    for guidance in (1.0, 2.0, 3.0, 4.0):
        asked, wordings = drawn_requests(args.count * 2 // 5, False)
        pictures = painter(wordings, guidance=guidance, seed=0, output_type="pt", progress=False) * 2 - 1
        figures[f"guidance {guidance:g}: joint, seen"] = shares(asked, seen(judge, pictures))["joint"]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scenes.json").write_text(json.dumps({**figures, "of": args.painter, "count": args.count, "versions": versions()}, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:54} {value:.3f}")


def drawn_requests(count, held):
    """-> (requests, a caption for each)."""
    rng = np.random.default_rng(77)
    asked = list(itertools.islice(requests(rng, held_out=held), count))
    return asked, [caption(request, rng) for request in asked]


def figures_of(painter, judge, name, held, count):
    """Shares that are as asked: drawn by the painter, real, through its autoencoder, and judged by another's request."""
    asked, wordings = drawn_requests(count, held)
    rng = np.random.default_rng(78)
    real = torch.from_numpy(np.stack([np.asarray(paint(compose(request, rng))) for request in asked])).permute(0, 3, 1, 2)
    pictures = painter(wordings, seed=0, output_type="pt", progress=False) * 2 - 1
    to_pil(grid(pictures[:48], 12)[None])[0].save(RESULTS / f"scenes-{name}.png")
    autoencoder = painter.painter.autoencoder
    found, rebuilt = seen(judge, pictures), seen(judge, autoencoder.decode(encode_all(autoencoder, real)))
    return {**{f"{name}: {aspect}": value for aspect, value in shares(asked, found).items()},
            f"{name}: joint, real (ceiling)": shares(asked, seen(judge, to_unit(real)))["joint"],
            f"{name}: joint, through the autoencoder (ceiling)": shares(asked, rebuilt)["joint"],
            f"{name}: joint, of another request (floor)": shares(asked[1:] + asked[:1], found)["joint"]}


def shares(asked, found):
    """Requests, what was seen for each -> {aspect: share right}."""
    verdicts = [answered(request, things) for request, things in zip(asked, found)]
    return {aspect: sum(verdict[aspect] for verdict in verdicts) / len(verdicts) for aspect in verdicts[0]}


if __name__ == "__main__":
    main()
