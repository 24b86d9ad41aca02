"""How an autoencoder of pictures, KL or vector-quantized, is finished: by what a network sees in its pictures, and by a critic that begins late.

Errors of pixels leave what is fine blurred, for the mean of all that it could be costs least. So what comes back is compared in the features of a
classifier (Johnson et al. 2016; Zhang et al. 2018), and judged against the original by a critic (Esser et al. 2021, VQGAN). The classifier is
trained here on the same pictures, by their classes, or by telling two views of one picture from those of others (Chen et al. 2020) where there are
none: no LPIPS. The critic plays the relativistic game of imagegen/adversarial.py, with zero-centred penalties in place of VQGAN's adaptive weight."""
import torch
import torch.nn.functional as F
from torch import nn

from gencore.check import dims
from gencore.train import fit
from imagegen.adversarial import relativistic
from imagegen.alignment import SIDE, PictureTower
from imagegen.autoencoder import Autoencoder, picture_loss
from imagegen.autoencoder import rebuilt as rebuilt_by_kl
from imagegen.autoencoder_files import first_of
from imagegen.data import to_unit
from imagegen.labelled import LabelledBatches
from imagegen.vq_autoencoder import rebuilt as rebuilt_by_codes

# ---- what a network sees ----

def seen(tower, pictures):
    """PictureTower, pictures (B,C,H,W), C 1 or 3 -> its features on three grids, each (B,W,h,w), of unit length at every place."""
    h, features = pictures.expand(-1, 3, -1, -1), []
    for layer in tower.layers:
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            features.append(F.normalize(h, dim=1))
    return features


def distance_seen(tower, made, pictures):
    """Both (B,C,H,W) -> (B,): squared distance of features, mean over places, sum over grids (Zhang et al. 2018, without its weights)."""
    return sum((a - b).square().sum(1).mean((1, 2)) for a, b in zip(seen(tower, made), seen(tower, pictures)))


class Pupil(nn.Module):
    """A picture tower, and what it learns by: a line to the classes, or none."""

    def __init__(self, classes):
        super().__init__()
        self.tower = PictureTower()
        self.classes = nn.Linear(self.tower.out.out_features, classes) if classes else None

    def forward(self, pictures):
        return self.tower(F.interpolate(pictures.expand(-1, 3, -1, -1), size=(SIDE, SIDE), mode="bilinear", antialias=True))


def pupil_loss(model, batch, generator):
    """Classes told, or the two views of a picture found among all, at a temperature of 0.1 -> (sum, pictures)."""
    pictures, labels = to_unit(batch["pixels"]), batch["labels"]
    first = model(view(pictures, generator))
    if model.classes is not None:
        return F.cross_entropy(model.classes(first * 10), labels, reduction="sum"), len(labels)
    scores, own = 10 * first @ model(view(pictures, generator)).T, torch.arange(len(labels), device=first.device)         # (B, B)
    return (F.cross_entropy(scores, own, reduction="sum") + F.cross_entropy(scores.T, own, reduction="sum")) / 2, len(labels)


def view(pictures, generator):
    """Pictures moved, resized and lightened a little: what the tower is to see past."""
    B = len(pictures)
    size, x, y, light = (low + (high - low) * torch.rand(B, generator=generator) for low, high in ((0.7, 1.1), *[(-0.2, 0.2)] * 3))
    matrix = torch.zeros(B, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2] = size, size, x, y
    places = F.affine_grid(matrix, pictures.shape, align_corners=False).to(pictures)
    return F.grid_sample(pictures, places, padding_mode="border", align_corners=False) + light.to(pictures)[:, None, None, None]


def train_tower(data, config, *, run):
    """Labelled -> the trained PictureTower, frozen."""
    batches = LabelledBatches(data.pixels, data.labels, config.batch, config.seed)
    return fit(Pupil(len(data.names)), pupil_loss, batches, config, run=run).tower.eval().requires_grad_(False)


# ---- the critic, and the finish ----

class PatchCritic(nn.Module):
    """pictures (B,C,H,W) -> scores (B,1,H/8,W/8): how real each part looks (Isola et al. 2017), without norms, which the penalties replace."""

    def __init__(self, channels, width=32):
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(nn.Conv2d(inside, outside, 4, 2, 1) for inside, outside in zip(sizes, sizes[1:]))
        self.score = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, pictures):
        dims("pictures", pictures, "B C H W", C=self.layers[0].in_channels)
        for layer in self.layers:
            pictures = F.leaky_relu(layer(pictures), 0.2)
        return self.score(pictures)


class Finish(nn.Module):
    """Autoencoder and critic as one model for `fit`."""

    def __init__(self, autoencoder, critic):
        super().__init__()
        self.autoencoder, self.critic = autoencoder, critic


def finish_loss(model, batch, generator, *, tower, weights, gamma=1.0):
    """batch: pixels (B,C,H,W) -> (sum over pictures, pictures); weights: (of what the tower sees, of the critic), 0 leaves one out.

    The tower is taken to where the pictures are: `fit` moves the model alone."""
    pictures = to_unit(batch["pixels"])
    made, extra = rebuilt(model.autoencoder, pictures, generator)
    losses = (picture_loss(made, pictures) + extra) * len(pictures)
    if weights[0]:
        losses = losses + weights[0] * distance_seen(tower.to(pictures.device), made, pictures).sum()
    if weights[1]:
        critics, makers = relativistic(model.critic, pictures, made, gamma=gamma)
        losses = losses + (critics + weights[1] * makers).sum()
    return losses, len(pictures)


def rebuilt(autoencoder, pictures, generator):
    """-> (pictures that come back, what else the autoencoder is held by), of either kind."""
    return (rebuilt_by_kl if isinstance(autoencoder, Autoencoder) else rebuilt_by_codes)(autoencoder, pictures, generator)


@torch.no_grad()
def psnr(autoencoder, pixels):
    """pixels (N,C,H,W) uint8 -> decibels of what comes back (peak 2), the mean over pictures."""
    errors = []
    for part in pixels.split(64):
        made = autoencoder.decode(first_of(autoencoder.encode(to_unit(part)))).clamp(-1, 1)
        errors.append((made - to_unit(part)).square().mean((1, 2, 3)))
    return float((10 * torch.log10(4 / torch.cat(errors).clamp(min=1e-10))).mean())
