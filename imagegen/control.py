"""ControlledTextToImage: pictures drawn from words along the lines of a control picture.

    controlled = ControlledTextToImage.from_pretrained("my-control")
    lines = edges_of("teapot.png")                                       # white on black, as ControlNet wants them; or drawn by hand
    controlled("red apple, noto style", lines, seed=0)[0].save("apple.png")

ControlNet (Zhang et al. 2023) in the form of PixArt-delta (Chen et al. 2024): beside the first blocks of a painter's transformer, which stays as it
is, run copies of them that see the lines as well; what each copy says is added behind its block through a linear layer that starts at zero,
so that before training the pictures are the painter's own, to the bit. The folder holds the branch, and the painter inside it."""
import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gencore.check import CheckpointError, ConfigError, InputError, dims, in_range, seeds_of, whole
from gencore.checkpoint import load_tensors, naming, read_json, resolve, save_folder
from gencore.config import Few, Size, check_fields, from_dict, to_dict
from gencore.kinds import expect_kind
from gencore.pictures import open_picture, prepare, white_marks
from gencore.recipe import Recipe, lasting_name, made_with, register
from gencore.train import fit
from gencore.transformer import Block, Inputs
from imagegen.data import to_unit
from imagegen.editing import from_base64, to_base64
from imagegen.text_to_image import (
    FORMS,
    DrawSettings,
    Painter,
    TextToImage,
    check_prompts,
    draw_settings,
    finished,
    groups_of,
    picked,
    pipeline_files,
    progress_bar,
    without_adapter,
)
from imagegen.training import drawing_losses, latent_batches


@dataclass(frozen=True)
class ControlConfig:
    """Sizes of the branch; the rest is the painter's."""
    copied: Few = 3                 # of the painter's blocks, the first
    stem: Size = 16                 # channels of the first convolution on the lines

    def __post_init__(self):
        check_fields(self)


class Control(nn.Module):
    """The branch: lines (B,1,S,S) in 0..1 -> what is added behind the first blocks of a painter's transformer."""

    def __init__(self, cfg, transformer, shrink):
        """transformer: the painter's DiTConfig. shrink: pixels to a latent, along a side."""
        super().__init__()
        if cfg.copied > transformer.layers:
            raise ConfigError(f"copied should be at most the painter's {transformer.layers} blocks, got {cfg.copied}")
        self.cfg, self.side = cfg, transformer.size * shrink
        self.stem = stem(cfg.stem, transformer.width, shrink * transformer.patch)
        self.copies = nn.ModuleList(Block(transformer.transformer) for _ in range(cfg.copied))
        self.leave = nn.ModuleList(nn.Linear(transformer.width, transformer.width) for _ in range(cfg.copied))
        for linear in self.leave:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @classmethod
    def beside(cls, cfg, painter):
        """A new branch for a Painter: its first blocks, copied; one with an adapter in it has to be merged first."""
        without_adapter(painter.transformer)
        control = cls(cfg, painter.transformer.cfg, painter.autoencoder.cfg.shrink)
        control.copies = copy.deepcopy(painter.transformer.transformer.blocks[:cfg.copied]).requires_grad_(True)
        return control

    def look(self, lines):
        """lines (B,1,S,S) -> tokens (B,P,D); once a drawing."""
        dims("lines", lines, "B 1 S S", S=self.side)
        return self.stem(lines * 2 - 1).flatten(2).transpose(1, 2)


def stem(channels, width, pixels):
    """(B,1,S,S) -> (B,D,S/pixels,S/pixels): halved as often as that goes, a convolution each."""
    layers, inside, step = [nn.Conv2d(1, channels, 3, padding=1), nn.SiLU()], channels, pixels
    while step % 2 == 0 and step > 2:
        layers += [nn.Conv2d(inside, 2 * inside, 3, stride=2, padding=1), nn.SiLU()]
        inside, step = 2 * inside, step // 2
    return nn.Sequential(*layers, nn.Conv2d(inside, width, step, stride=step))


class Led(nn.Module):
    """A painter's DiT led by lines: it stands in its place for one drawing, or one batch of a training."""

    def __init__(self, dit, control, lines, weight=1.0):
        super().__init__()
        self.dit, self.control, self.cfg, self.weight = dit, control, dit.cfg, weight
        self.level, self.project = dit.level, dit.project
        self.tokens = control.look(lines)                                              # (B, P, D)

    def forward(self, latents, t, prompt):
        return self.velocity(latents, self.level(t), self.project(prompt))

    def velocity(self, latents, level, memory, *, cache=None):
        """As DiT.velocity; latents may hold the batch twice, as guidance does."""
        x = self.dit.enter(latents)                                                    # (B, P, D)
        inputs = Inputs(memory=memory.states, memory_seen=memory.seen, cond=level[1])
        led, copies = x + self.tokens.repeat(len(x) // len(self.tokens), 1, 1), len(self.control.copies)
        own = lambda name: None if cache is None else cache.layers[name]
        for i, block in enumerate(self.dit.transformer.blocks):
            x = block(x, inputs, own(i))
            if i < copies:
                led = self.control.copies[i](led, inputs, own(("copy", i)))
                x = x + self.weight * self.control.leave[i](led)
        return self.dit.leave(self.dit.transformer.norm(x), latents.shape, level)


class ControlledTextToImage:
    """Draws what prompts say along lines."""

    def __init__(self, painter, control, *, name="", digest=""):
        self.painter, self.control = painter, control.eval()
        self.name, self.digest = name, digest             # for recipes

    @torch.inference_mode()
    def __call__(self, prompts, lines, *, weight=1.0, steps=20, guidance=3.0, negative_prompt="", guidance_interval=(0.0, 1.0), seed=None,
                 output_type="pil", progress=True):
        """A prompt or a list of them, and a control picture (path, PIL picture, array; white lines on black) or one for each -> as TextToImage.

        weight: how much the lines count; 0 = not at all. A picture of another size is brought to the painter's, on black."""
        prompts, settings = check_prompts(prompts), DrawSettings(steps, guidance, negative_prompt, guidance_interval)
        weight = in_range("weight", weight, 0, 2)
        seeds = seeds_of(seed, len(prompts))
        self.painter.tell_cut([*prompts, negative_prompt])
        if output_type not in FORMS:
            raise InputError(f"output_type should be one of {', '.join(FORMS)}, got {output_type!r}")
        lines = self._lines(lines, len(prompts))                                       # (B, 1, S, S)
        made, recipes, groups = [], [], groups_of(len(prompts))
        with progress_bar(len(groups) * steps, progress) as bar:
            for group in groups:
                asked, own = [prompts[i] for i in group], lines[group]
                made.append(self.draw(asked, own, [seeds[i] for i in group], settings, weight=weight, tick=bar.update))
                recipes += self._recipes(asked, own, seeds[group[0]], {"weight": weight, **vars(settings)})
        return finished(torch.cat(made), recipes, output_type)

    def draw(self, prompts, lines, seeds, settings, *, weight=1.0, tick=lambda: None):
        """Prompts, lines (B,1,S,S) in 0..1 and as many seeds -> pictures (B,3,S,S) in [-1,1]."""
        parts = self.painter.painter
        lines = lines.to(next(parts.parameters()))
        led = Painter(Led(parts.transformer, self.control, lines, weight), parts.text_encoder, parts.autoencoder)
        return TextToImage(led, self.painter.tokenizer, shift=self.painter.shift).draw(prompts, seeds, settings, tick=tick)

    def _lines(self, given, count):
        """A control picture, or a list of `count` -> (count,1,S,S) in 0..1."""
        given = given if isinstance(given, (list, tuple)) else [given] * count
        if len(given) != count:
            raise InputError(f"give one control picture, or one for each of the {count} prompts, got {len(given)}")
        return torch.stack([white_lines(picture, self.control.side) for picture in given])

    def _recipes(self, prompts, lines, seed, settings):
        """Recipes of the pictures of a batch, which each name the whole of it; equal lines are written once."""
        if not self.digest:
            return [None] * len(prompts)
        drawn = [to_base64(part.expand(3, -1, -1)[None] * 2 - 1) for part in lines]
        drawn = drawn[:1] if len(set(drawn)) == 1 else drawn
        return [Recipe.made("control", self.name, self.digest, seed=seed, settings=settings,
                            inputs={"prompt": prompt, "drawn_with": prompts, "lines": drawn, "place": place}) for place, prompt in enumerate(prompts)]

    def to(self, device):
        """Moves the networks, which compute in float32, and returns self; noise is still drawn on the CPU."""
        self.painter.to(device)
        self.control.to(device)
        return self

    # ---- folders ----

    @classmethod
    def from_pretrained(cls, name):
        """A shipped name or a folder -> ControlledTextToImage."""
        folder = resolve(name, "imagegen")
        expect_kind(folder, "imagegen.ControlledTextToImage")
        if not (folder / "painter").is_dir():
            raise CheckpointError(f"{folder} has no painter/, the painter that its branch leads: save or download it again")
        painter = TextToImage.from_pretrained(folder / "painter")
        with naming(folder / "config.json"):
            cfg = from_dict(ControlConfig, read_json(folder / "config.json"))
            with torch.device("meta"):
                control = Control(cfg, painter.painter.transformer.cfg, painter.painter.autoencoder.cfg.shrink)
        state = load_tensors(folder / "model.safetensors", expect={key: tuple(t.shape) for key, t in control.state_dict().items()})
        control.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
        return cls(painter, control.requires_grad_(False), name=lasting_name(folder), digest=made_with(folder))

    def save_pretrained(self, folder):
        """Writes the branch, the painter inside, in float32, and makes it the folder that recipes name."""
        save_folder(folder, control_files(self.control, self.painter))
        self.name, self.digest = lasting_name(folder), made_with(folder)


def control_files(control, painter):
    """Files of a folder that holds branch and TextToImage, for `save_folder` and fit's export."""
    inner = pipeline_files(painter.painter, painter.tokenizer, shift=painter.shift)
    return {"config.json": to_dict(control.cfg), "model.safetensors": dict(control.state_dict()),
            **{f"painter/{name}": content for name, content in inner.items()}}


# ---- lines ----

def white_lines(picture, side):
    """A control picture as people have it -> (1,side,side) in 0..1; what lies around it is black, as where there are no lines."""
    from PIL import ImageOps
    marks = white_marks(picture)
    return (1 - prepare(ImageOps.invert(marks).convert("RGB"), side)[:1]) / 2


def edges_of(picture, side=None):
    """A picture as people have it -> its edges as a PIL picture, white on black. side: its longer one is brought to that first, black around it."""
    from PIL import Image
    opened = open_picture(picture)
    square = max(opened.size) if side is None else whole("side", side, 1, 4096)
    w, h = (max(1, round(size * square / max(opened.size))) for size in opened.size)
    left, top = (square - w) // 2, (square - h) // 2                                            # where `prepare` puts it
    found = edges(prepare(opened, square)[None, :, top:top + h, left:left + w])[0, 0]           # the border of the picture is no edge in it
    if side is not None:
        found = F.pad(found, (left, square - w - left, top, square - h - top))
    return Image.fromarray((found * 255).byte().numpy())


def edges(pictures, least=0.12):
    """pictures (B,3,H,W) in [-1,1] -> edges (B,1,H,W), 0 or 1: the slope by Sobel's operator where it is the steepest along itself.

    least: slopes below this share of a step from black to white are none. The first steps of Canny 1986."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=pictures.device) / 8
    B, C, H, W = pictures.shape
    around = F.pad(pictures.float(), (1, 1, 1, 1), mode="replicate").reshape(B * C, 1, H + 2, W + 2)
    slopes = F.conv2d(around, torch.stack((kernel, kernel.T))[:, None]).view(B, C, 2, H, W)              # to the right, down
    steepest = slopes.square().sum(2).argmax(1)[:, None, None].expand(B, 1, 2, H, W)                     # the colour that changes most
    right, down = slopes.gather(1, steepest)[:, 0].unbind(1)                                             # (B, H, W)
    size = (right.square() + down.square()).sqrt()
    wide = F.pad(size, (1, 1, 1, 1))
    beside = lambda y, x: wide[:, 1 + y:1 + y + H, 1 + x:1 + x + W]
    turn = ((torch.atan2(down, right) / (torch.pi / 4)).round().long() % 4)                              # across, \, along, /
    ahead = torch.stack([beside(y, x) for y, x in ((0, 1), (1, 1), (1, 0), (1, -1))]).gather(0, turn[None])[0]
    behind = torch.stack([beside(-y, -x) for y, x in ((0, 1), (1, 1), (1, 0), (1, -1))]).gather(0, turn[None])[0]
    return ((size > least) & (size >= ahead) & (size > behind))[:, None].float()


def edge_agreement(drawn, wanted, reach=1):
    """Edges (B,1,H,W) of drawings and of what they should follow -> (B,): the F1 of those that lie within `reach` pixels of each other."""
    near = lambda lines: F.max_pool2d(lines, 2 * reach + 1, stride=1, padding=reach)
    share = lambda lines, others: (lines * near(others)).flatten(1).sum(1) / lines.flatten(1).sum(1).clamp(min=1)
    precision, recall = share(drawn, wanted), share(wanted, drawn)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


# ---- training ----

class Controlled(nn.Module):
    """What is trained: a branch beside a painter that stays as it is."""

    def __init__(self, painter, control):
        super().__init__()
        self.painter, self.control = painter.requires_grad_(False), control


def train_control(controlled, data, config, *, run):
    """ControlledTextToImage + Captioned -> the same, its branch trained by flow matching along the edges of the pictures."""
    def loss(model, batch, generator):
        led = Led(model.painter.transformer, model.control, batch["lines"])
        losses = drawing_losses(model.painter, batch, generator, transformer=led)
        return losses.sum(), len(losses)

    painter = controlled.painter
    lines = lambda rows, captions: {"lines": edges(to_unit(data.pixels[rows]))}
    batches = latent_batches(painter.painter, painter.tokenizer, data, config, beside=lines)
    fit(Controlled(painter.painter, controlled.control), loss, batches, config, run=run)
    return controlled


def remake(recipe):
    """Recipe -> PIL image: what `gencore.replay` calls."""
    inputs = recipe.inputs
    lines = [from_base64("lines", text) for text in inputs["lines"]]
    pictures = ControlledTextToImage.from_pretrained(recipe.model)(
        inputs["drawn_with"], lines[0] if len(lines) == 1 else lines, seed=recipe.seed, weight=recipe.settings["weight"],
        progress=False, **draw_settings(recipe))
    return picked(pictures, inputs["place"])


register("control", remake)
