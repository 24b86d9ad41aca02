"""Reads a scene back: which objects are in a picture, each with colour, shape, size and centre. It has learnt from drawn scenes alone.

A small network says for each of 16 x 16 cells whether a centre lies in it, and what of; the peaks are the objects."""
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.image_judges import blurred, kept, taught
from imagegen.data import to_unit
from multimodal.scenes import COLOURS, SHAPES, SIZES, Thing, compose, paint, requests

CELLS = 16
KINDS = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES)}


class SceneJudge(nn.Module):
    """pictures (B,3,64,64) in [-1,1] -> logits (B,1+8+6+2+2,16,16): a centre?, colour, shape, size, and where in the cell (0..1)."""

    def __init__(self, width=32):
        super().__init__()

        def layer(inside, outside, stride=1, dilation=1):
            return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, dilation, dilation), nn.BatchNorm2d(outside), nn.ReLU())

        self.layers = nn.Sequential(layer(3, 16), layer(16, width, 2), layer(width, width), layer(width, 2 * width, 2), layer(2 * width, 2 * width),
                                    layer(2 * width, 2 * width, dilation=2), layer(2 * width, 2 * width),
                                    nn.Conv2d(2 * width, 3 + sum(map(len, KINDS.values())), 1))

    def forward(self, pictures):
        return self.layers(pictures)


def targets(scenes):
    """Lists of Things -> (centre (B,16,16), kinds (B,3,16,16) long, within (B,2,16,16))."""
    centre, kinds, within = torch.zeros(len(scenes), CELLS, CELLS), torch.zeros(len(scenes), 3, CELLS, CELLS, dtype=torch.long), \
        torch.zeros(len(scenes), 2, CELLS, CELLS)
    for i, things in enumerate(scenes):
        for thing in things:
            x, y = int(thing.x * CELLS), int(thing.y * CELLS)
            centre[i, y, x] = 1
            kinds[i, :, y, x] = torch.tensor([names.index(getattr(thing, kind)) for kind, names in KINDS.items()])
            within[i, :, y, x] = torch.tensor([thing.x * CELLS - x, thing.y * CELLS - y])
    return centre, kinds, within


def loss_of(logits, centre, kinds, within):
    """Cross-entropy for every cell's centre, and for what is there where one is."""
    there, *parts, place = logits.split((1, *map(len, KINDS.values()), 2), 1)
    at = centre.bool()
    loss = 20 * F.binary_cross_entropy_with_logits(there[:, 0], centre)
    for i, part in enumerate(parts):
        loss = loss + F.cross_entropy(part.movedim(1, -1)[at], kinds[:, i][at])
    return loss + (place.movedim(1, -1)[at].sigmoid() - within.movedim(1, -1)[at]).abs().mean()


def scene_judge(folder):
    """The judge as the folder has it; else trained, and kept there."""
    return kept(SceneJudge(), folder, train)


def train(judge, *, steps=2000, batch=32, count=8000, seed=0):
    """The judge on `count` drawn scenes, held-out pairs among them, some blurred, tinted and noisy as a drawing may be."""
    pixels, scenes = drawn(count, seed=10_000 + seed, held_out=None)
    wanted = targets(scenes)

    def loss(generator):
        rows = torch.randint(count, (batch,), generator=generator)
        return loss_of(judge(blurred(to_unit(pixels[rows]), generator)), *(part[rows] for part in wanted))

    return taught(judge, loss, steps=steps, lr=3e-3, seed=seed)


def drawn(count, *, seed, held_out):
    """-> (pixels (N,3,64,64) uint8, their scenes as tuples of Things); held_out None: both kinds in turn."""
    rng = np.random.default_rng(seed)
    both = requests(rng), requests(rng, held_out=True)
    sources = itertools.cycle(both if held_out is None else both[held_out:held_out + 1])
    scenes = [compose(next(source), rng) for source in itertools.islice(sources, count)]
    pixels = np.stack([np.asarray(paint(things)) for things in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), scenes


@torch.no_grad()
def seen(judge, pictures, threshold=0.12):
    """pictures (B,3,64,64) in [-1,1] -> for each the Things that the judge sees, the surest first.

    A centre where four cells meet is a quarter in each: half of that is enough, and the best within two cells counts."""
    found = []
    for logits in torch.cat([judge(part) for part in pictures.split(200)]):
        there, *parts, place = logits.split((1, *map(len, KINDS.values()), 2))
        there = there.sigmoid()                                                                  # (1, 16, 16)
        peaks = (there[0] > threshold) & (there == F.max_pool2d(there[None], 5, 1, 2)[0])[0]
        things = []
        for y, x in peaks.nonzero().tolist():
            kinds = {kind: names[int(part[:, y, x].argmax())] for (kind, names), part in zip(KINDS.items(), parts)}
            dx, dy = place[:, y, x].sigmoid().tolist()
            things.append((float(there[0, y, x]), Thing(**kinds, x=(x + dx) / CELLS, y=(y + dy) / CELLS, radius=SIZES[kinds["size"]][0])))
        found.append([thing for _, thing in sorted(things, key=lambda pair: -pair[0])])
    return found
