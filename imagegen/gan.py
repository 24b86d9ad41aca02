"""GAN: pictures of a class from one forward pass, by a generator that learnt against a critic.

    gan = GAN.from_pretrained("digits-gan")
    gan(["3", "7"], seed=0)[0].save("three.png")
    save_gif(gan.walk(["3", "7", "1"], seed=0), "walk.gif")        # imagegen/walk.py

Residual networks without normalisation (Huang et al. 2024, "The GAN is dead; long live the GAN!"), with one layer of the core's attention on a
coarse grid (Zhang et al. 2019). How they are trained, and the network of 2015 to compare with: imagegen/adversarial.py, imagegen/dcgan.py."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gencore.attention import Attention, AttentionConfig
from gencore.check import ConfigError, InputError, dims, floating, nearest, only_device, seeds_of, whole
from gencore.checkpoint import load_tensors, naming, read_json, resolve, save_folder
from gencore.config import Few, Size, check_fields, from_dict, to_dict
from gencore.embeddings import rows_of
from gencore.kinds import expect_kind
from gencore.recipe import Recipe, lasting_name, made_with, register, survives
from imagegen.text_to_image import FORMS, finished, picked
from imagegen.walk import along_sphere

SLOPE = 0.2                          # of the leaky ReLUs
TOGETHER = 64                        # pictures drawn in one batch


@dataclass(frozen=True)
class GANConfig:
    """Sizes of generator and critic."""
    size: Size = 32                                   # side of the pictures: 4 doubled as often as there are further widths
    picture_channels: Few = 1                         # 1 grey, 3 colours
    widths: tuple[Size, ...] = (96, 96, 64, 32)       # channels at 4x4, 8x8, ... up to the picture
    blocks: Few = 1                                   # residual blocks on each grid
    latent: Size = 64                                 # numbers that a picture is made of
    attention: int = 8                                # side of the grid whose places look at each other; 0 = none
    heads: Few = 4
    labels: tuple[str, ...] = ()                      # names of the classes; none = pictures of no class

    def __post_init__(self):
        check_fields(self)
        if not self.widths or self.size != 4 * 2 ** (len(self.widths) - 1):
            raise ConfigError(f"GAN size {self.size} should be 4 doubled once for each width after the first, got {len(self.widths)} widths")
        if self.attention and self.attention not in self.sides:
            raise ConfigError(f"GAN attention should be one of the grids {self.sides}, or 0, got {self.attention}")
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError("GAN labels should differ from each other")

    @property
    def sides(self):
        """Sides of the grids, from coarse to fine."""
        return tuple(4 * 2 ** i for i in range(len(self.widths)))


class ConvBlock(nn.Module):
    """h (B,C,H,W) -> the same: two convolutions beside a skip; it begins as identity."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.kaiming_normal_(self.first.weight, SLOPE)
        for start in (self.first.bias, self.second.weight, self.second.bias):
            nn.init.zeros_(start)

    def forward(self, h):
        return h + self.second(F.leaky_relu(self.first(F.leaky_relu(h, SLOPE)), SLOPE))


class GridAttention(nn.Module):
    """h (B,C,H,W) -> the same: every place looks at every other; it begins as identity."""

    def __init__(self, channels, heads):
        super().__init__()
        self.attention = Attention(channels, AttentionConfig(heads=heads))
        nn.init.zeros_(self.attention.out.weight)

    def forward(self, h):
        places = h.flatten(2).transpose(1, 2)                                      # (B, HW, C)
        return h + self.attention(places).transpose(1, 2).reshape(h.shape)         # (B, C, H, W)


def stage(channels, side, cfg):
    """The layers on one grid."""
    layers = [ConvBlock(channels) for _ in range(cfg.blocks)]
    if side == cfg.attention:
        layers.append(GridAttention(channels, cfg.heads))
    return nn.Sequential(*layers)


def change(inside, outside):
    """1x1 convolution to another number of channels."""
    return nn.Conv2d(inside, outside, 1, bias=False) if inside != outside else nn.Identity()


class Generator(nn.Module):
    """latents (B,Z), classes (B,E) as `classes` gives them, None without -> pictures (B,C,H,W), about [-1,1]."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, W = cfg, cfg.widths
        self.table = nn.Embedding(len(cfg.labels), cfg.latent) if cfg.labels else None
        self.start = nn.Linear(cfg.latent * (2 if cfg.labels else 1), W[0] * 16)
        self.changes = nn.ModuleList(change(inside, outside) for inside, outside in zip(W, W[1:]))
        self.blocks = nn.ModuleList(stage(width, side, cfg) for width, side in zip(W, cfg.sides))
        self.out = nn.Conv2d(W[-1], cfg.picture_channels, 3, padding=1)

    def classes(self, labels):
        """labels (B,) long -> their vectors (B,Z); points between two of them are classes as well."""
        return None if self.table is None else rows_of(self.table, labels, "labels")

    def forward(self, latents, classes=None):
        B, _ = dims("latents", latents, "B Z", Z=self.cfg.latent)
        if self.table is not None:
            dims("classes", classes, "B Z", B=B, Z=self.cfg.latent)
            latents = torch.cat((latents, classes), 1)
        h = self.start(latents).view(B, -1, 4, 4)                                  # (B, W0, 4, 4)
        for i, block in enumerate(self.blocks):
            if i:
                h = F.interpolate(self.changes[i - 1](h), scale_factor=2.0, mode="bilinear")
            h = block(h)                                                           # (B, Wi, 4 * 2^i, 4 * 2^i)
        return self.out(F.leaky_relu(h, SLOPE))


class Critic(nn.Module):
    """pictures (B,C,H,W), labels (B,) or None -> scores (B,): how real they look as pictures of that class (Miyato & Koyama 2018)."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, W = cfg, cfg.widths[::-1]
        self.enter = nn.Conv2d(cfg.picture_channels, W[0], 3, padding=1)
        self.blocks = nn.ModuleList(stage(width, side, cfg) for width, side in zip(W, cfg.sides[::-1]))
        self.changes = nn.ModuleList(change(inside, outside) for inside, outside in zip(W, W[1:]))
        self.look = nn.Linear(W[-1] * 16, cfg.latent)
        self.score = nn.Linear(cfg.latent, 1)
        self.table = nn.Embedding(len(cfg.labels), cfg.latent) if cfg.labels else None

    def forward(self, pictures, labels=None):
        dims("pictures", pictures, "B C H W", C=self.cfg.picture_channels, H=self.cfg.size, W=self.cfg.size)
        h = self.enter(pictures)
        for i, block in enumerate(self.blocks):
            if i:
                h = self.changes[i - 1](F.avg_pool2d(h, 2))
            h = block(h)
        seen = self.look(F.leaky_relu(h, SLOPE).flatten(1))                        # (B, Z)
        scores = self.score(seen)[:, 0]                                            # (B,)
        if self.table is None:
            return scores
        return scores + (seen * self.table(labels)).sum(1) / self.cfg.latent ** 0.5


class GAN:
    """Draws pictures of named classes."""

    def __init__(self, generator, *, name="", digest=""):
        self.generator, self.cfg = generator.eval(), generator.cfg
        self.name, self.digest = name, digest             # for recipes

    @torch.inference_mode()
    def __call__(self, labels=None, *, seed=None, output_type="pil"):
        """A label or a list of them (a number of pictures, where there are no classes) -> as many pictures: PIL images, or one array (B,H,W,C) in
        0..1 ("np"), or tensor (B,C,H,W) in 0..1 ("pt").

        Picture i is made of the numbers that seed + i draws. seed None: a new one; it is in the picture's .info["recipe"]."""
        numbers = self._numbers(labels)
        seeds = seeds_of(seed, len(numbers))
        if output_type not in FORMS:
            raise InputError(f"output_type should be one of {', '.join(FORMS)}, got {output_type!r}")
        made, recipes = [], []
        for i in range(0, len(numbers), TOGETHER):
            asked, own = numbers[i:i + TOGETHER], seeds[i:i + TOGETHER]
            made.append(self.draw(torch.stack([self._latent(s) for s in own]), torch.tensor(asked)))
            recipes += [self._recipe(asked, place, own[0]) for place in range(len(asked))]
        return finished(torch.cat(made), recipes, output_type)

    @torch.inference_mode()
    def walk(self, labels=None, *, seed=None, frames=16):
        """Labels (or a number of pictures) -> PIL images that lead from one to the next and back to the first, `frames` for each part.

        Latents go along the sphere that they lie near, classes along the line between their vectors."""
        numbers = self._numbers(labels)
        whole("frames", frames, 1, 1000)
        seeds = seeds_of(seed, len(numbers))
        latents = torch.stack([self._latent(s) for s in [*seeds, seeds[0]]]).to(self.device)                   # (n + 1, Z)
        classes = self.generator.classes(torch.tensor([*numbers, numbers[0]], device=self.device))             # (n + 1, Z)
        shares = torch.arange(frames) / frames
        way, between = [], []
        for i in range(len(numbers)):
            way += [along_sphere(latents[i], latents[i + 1], float(share)) for share in shares]
            between += [] if classes is None else [torch.lerp(classes[i], classes[i + 1], float(share)) for share in shares]
        pictures = [self.generator(latent[None], None if classes is None else between[i][None]) for i, latent in enumerate(way)]
        return finished(torch.cat(pictures).clamp(-1, 1), [None] * len(way), "pil")

    def draw(self, latents, labels=None):
        """latents (B,Z), labels (B,) long, or None where there are no classes -> pictures (B,C,H,W) in [-1,1]."""
        if labels is None and self.cfg.labels:
            raise InputError(f"labels should be numbers of {len(self.cfg.labels)} classes, one for each picture, got None")
        labels = torch.zeros(len(latents), dtype=torch.long) if labels is None else labels
        dims("labels", labels, "B", B=len(latents))
        parts = zip(latents.to(self.device).split(TOGETHER), labels.to(self.device).split(TOGETHER))
        return torch.cat([self.generator(part, self.generator.classes(own)).clamp(-1, 1) for part, own in parts])

    def to(self, device):
        """Moves the generator, and returns self; latents are still drawn on the CPU."""
        self.generator.to(only_device(device))
        return self

    @property
    def device(self):
        """Where the generator is."""
        return self.generator.start.weight.device

    def _latent(self, seed):
        return torch.randn(self.cfg.latent, generator=torch.Generator().manual_seed(seed))

    def _numbers(self, labels):
        """What was asked for -> the number of each picture's class."""
        names = self.cfg.labels
        if not names:
            return [0] * whole("labels (without classes: how many pictures)", 1 if labels is None else labels, 1, 10_000)
        given = labels if isinstance(labels, (list, tuple)) else [labels]
        if not given:
            raise InputError("labels is empty: give at least one")
        for label in given:
            if not isinstance(label, str) or label not in names:
                raise InputError(f"label should be one of {', '.join(names)}, got {label!r}{nearest(label, names) if isinstance(label, str) else ''}")
        return [names.index(label) for label in given]

    def _recipe(self, numbers, place, seed):
        """Recipe of one picture of a batch. It names the whole batch: sums are rounded differently in another one."""
        if not self.digest:
            return None
        inputs = {"labels": [self.cfg.labels[number] for number in numbers] if self.cfg.labels else len(numbers), "place": place}
        return Recipe.made("gan", self.name, self.digest, inputs=inputs, seed=seed, settings={})

    # ---- folders ----

    @classmethod
    def from_pretrained(cls, name):
        """A shipped name, a folder or a Hub id -> GAN, in float32."""
        folder = resolve(name, "imagegen")
        expect_kind(folder, "imagegen.GAN")
        with naming(folder / "config.json"):
            cfg = from_dict(GANConfig, read_json(folder / "config.json"))
            with torch.device("meta"):
                generator = Generator(cfg)
        state = load_tensors(folder / "model.safetensors", expect={key: tuple(t.shape) for key, t in generator.state_dict().items()})
        generator.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
        return cls(generator.requires_grad_(False), name=lasting_name(folder), digest=made_with(folder))

    def save_pretrained(self, folder, *, dtype=torch.float32):
        """Writes config.json and model.safetensors: the generator, without the critic. Makes the folder the one that recipes name; not where
        `dtype` rounded what draws here."""
        save_folder(folder, generator_files(self.generator, dtype))
        self.name, self.digest = lasting_name(folder), made_with(folder) if survives(self.generator, dtype) else ""


def generator_files(generator, dtype=torch.float32):
    """Files of a folder that GAN.from_pretrained opens, for `save_folder` and fit's export."""
    return {"config.json": to_dict(generator.cfg), "model.safetensors": {key: t.to(floating(dtype)) for key, t in generator.state_dict().items()}}


def remake(recipe):
    """Recipe -> PIL image: what `gencore.replay` calls."""
    pictures = GAN.from_pretrained(recipe.model)(recipe.inputs["labels"], seed=recipe.seed)
    return picked(pictures, recipe.inputs["place"])


register("gan", remake)
