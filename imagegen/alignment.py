"""Teaching the prompt encoder what words look like before anything is drawn: captions against pictures, as CLIP (Radford et al. 2021).

Minutes on one core, and "seven" differs from "three", "red" from "green": a denoiser that learns both at once is held up by its prompt for
hours. The picture tower stays behind as the teacher of a middle layer of the denoiser (Yu et al. 2025, REPA)."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from gencore.check import dims

SIDE = 32       # of the pictures as the tower sees them: larger ones are pooled, so their side is a multiple of it


class PictureTower(nn.Module):
    """pictures (B,3,H,H), H a multiple of SIDE -> places (B,W,4,4), and a unit vector (B,E)."""

    def __init__(self, width=128, out=128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),                  # (B, 32, 16, 16)
            nn.Conv2d(32, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),                 # (B, 64, 8, 8)
            nn.Conv2d(64, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU())           # (B, W, 4, 4)
        self.out = nn.Linear(width * 16, out)

    def places(self, pictures):
        """pictures -> (B,W,4,4)."""
        dims("pictures", pictures, "B 3 H W", H=pictures.shape[-1], W=max(SIDE, pictures.shape[-1] // SIDE * SIDE))
        return self.layers(F.avg_pool2d(pictures, pictures.shape[-1] // SIDE))

    def forward(self, pictures):
        return F.normalize(self.out(self.places(pictures).flatten(1)), dim=-1)


class Alignment(nn.Module):
    """A prompt encoder and a picture tower that meet in one space."""

    def __init__(self, encoder, tower, out=128):
        super().__init__()
        self.encoder, self.tower = encoder, tower
        self.project = nn.Linear(encoder.cfg.width, out, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.0)))

    def words(self, ids, keep):
        """ids, keep (B,T) -> unit vectors (B,E): the mean over the words, so that every word's state carries its share."""
        states = self.encoder(ids, keep)                                                # (B, T, D)
        share = keep[..., None] / keep.sum(1)[:, None, None]
        return F.normalize(self.project((states * share).sum(1)), dim=-1)


def alignment_loss(model, batch):
    """batch: ids, keep (B,T), pictures (B,3,H,W), same (B,B) bool: pairs that are one thing -> scalar.

    Cross-entropy both ways; the target is shared by all that are the same, since ten digits fill a batch many times over."""
    scores = model.log_scale.exp().clamp(max=100) * model.words(batch["ids"], batch["keep"]) @ model.tower(batch["pictures"]).T
    wanted = batch["same"].float()                                                      # (B, B)
    by_word, by_picture = wanted / wanted.sum(1, keepdim=True), wanted / wanted.sum(0, keepdim=True)
    return -0.5 * ((by_word * scores.log_softmax(1)).sum(1).mean() + (by_picture * scores.log_softmax(0)).sum(0).mean())
