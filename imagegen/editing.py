"""Editor: a picture drawn anew from words, in part or as a whole, by a painter.

    editor = Editor.from_pretrained("painter")
    editor("face.png", "grinning face, openmoji style", strength=0.6, seed=0)          the whole picture, as far from it as strength says
    editor(picture, "red heart", mask=mask, seed=0)                                   only where the mask is white
    editor.outpaint(picture, "rocket, noto style", left=16, right=16, seed=0)         more of it beyond its border
    editor.variations(picture, "rocket, noto style", count=4, seed=0)                 others like it
    editor.between(["red apple", "lemon"], seeds=[0], frames=12)                      from picture to picture

Meng et al. 2022 (SDEdit): begin from the picture with some of its noise. A mask: at every step the data outside it is known."""
import base64
import io
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from gencore.check import InputError, in_range, seeds_of, whole
from gencore.diffusion import FLOW
from gencore.pictures import open_picture, prepare, white_marks
from gencore.recipe import Recipe, register
from gencore.samplers import keeping
from gencore.transformer import Memory
from imagegen.text_to_image import DrawSettings, TextToImage, check_prompts, draw_settings, finished, progress_bar
from imagegen.walk import along_sphere


@dataclass(frozen=True)
class Start:
    """Where drawing begins, and what it leaves alone."""
    known: torch.Tensor                         # (1,C,h,w) latents of the picture
    strength: float                             # share of the steps that are gone; 1 = from noise alone
    redrawn: torch.Tensor | None = None         # (1,1,h,w) bool, False = these latents stay

    def prepared(self, denoise, noise, levels):
        """-> the denoiser, x and levels of the sampling."""
        gone = len(levels) - 1 - left_of(len(levels) - 1, self.strength)
        x = noise if gone == 0 else FLOW.mix(self.known, noise, levels[gone])
        return denoise if self.redrawn is None else keeping(denoise, self.known, self.redrawn), x, levels[gone:]


def left_of(steps, strength):
    """How many of the steps are gone; below strength 1 not all of them: something of the picture is there."""
    return min(round(strength * steps), steps if strength == 1 else steps - 1)


@dataclass(frozen=True)
class Between:
    """Two prompts for one picture: at every step what the first says of it, and `share` of the way from there to what the second says."""
    share: float

    def prepared(self, denoise, noise, levels):
        """noise (2,C,h,w), the same twice -> as Start.prepared, for one picture."""
        return lambda x, now: torch.lerp(*denoise(x.expand_as(noise), now).chunk(2), self.share), noise[:1], levels


@dataclass(frozen=True)
class Edit:
    """One edit, checked."""
    before: torch.Tensor                        # (1,3,S,S) in [-1,1]
    redrawn: torch.Tensor | None                # (1,1,S,S) bool, None = all of it
    prompt: str
    strength: float
    seed: int
    settings: DrawSettings


class Editor:
    """Edits pictures by the words of a TextToImage."""

    def __init__(self, painter):
        self.painter = painter

    @classmethod
    def from_pretrained(cls, name):
        """What TextToImage.from_pretrained opens."""
        return cls(TextToImage.from_pretrained(name))

    @torch.inference_mode()
    def __call__(self, picture, prompt, *, strength=None, mask=None, steps=20, guidance=3.0, negative_prompt="", guidance_interval=(0.0, 1.0),
                 seed=None, progress=True):
        """A picture (path, PIL picture, uint8 array (H,W,3) or tensor (3,H,W) in [-1,1]) and a prompt -> a PIL picture of the painter's size.

        strength: 0 to 1, how much of it may change (default 0.6; 1 with a mask; 0: what the autoencoder gives back). It is the share of the steps
        that are gone, so few steps know few strengths. mask: a picture, bool array or tensor in 0..1 of the same size, white (True, 1) is drawn
        anew; outside it every pixel stays as it was."""
        edit = self._asked(picture, prompt, DrawSettings(steps, guidance, negative_prompt, guidance_interval), strength=strength, mask=mask,
                           seed=seeds_of(seed, 1)[0])
        self.painter.tell_cut([prompt, negative_prompt])
        return self._made(edit, progress)

    @torch.inference_mode()
    def outpaint(self, picture, prompt, *, left=0, top=0, right=0, bottom=0, steps=20, guidance=3.0, negative_prompt="",
                 guidance_interval=(0.0, 1.0), seed=None, progress=True):
        """A picture and what it shows -> a PIL picture of the painter's size that goes on beyond its border, by so many of its pixels at each side.

        The longer side is brought to the painter's size, as everywhere: what was there becomes smaller when that side grows. A margin below 0 is cut
        off: left=16, right=-16 moves a picture and keeps its scale. What is drawn is what the prompt means in the whole new frame: a painter of
        single things in the middle completes one that was cut off, and does not know what lies around a whole one."""
        opened = open_picture(picture)
        canvas, mask = widened(opened, left=left, top=top, right=right, bottom=bottom)
        edit = self._asked(canvas, prompt, DrawSettings(steps, guidance, negative_prompt, guidance_interval), strength=1.0, mask=mask,
                           seed=seeds_of(seed, 1)[0])
        self.painter.tell_cut([prompt, negative_prompt])
        return self._made(edit, progress)

    @torch.inference_mode()
    def variations(self, picture, prompt, *, count=4, strength=0.6, steps=20, guidance=3.0, negative_prompt="",
                   guidance_interval=(0.0, 1.0), seed=None, progress=True):
        """A picture and what it shows -> `count` PIL pictures like it, as far from it as strength says; number i is what seed + i draws."""
        seeds = seeds_of(seed, whole("count", count, 1, 1000))
        edit = self._asked(picture, prompt, DrawSettings(steps, guidance, negative_prompt, guidance_interval), strength=strength, seed=seeds[0])
        self.painter.tell_cut([prompt, negative_prompt])
        return [self._made(replace(edit, seed=one), progress) for one in seeds]

    def to(self, device):
        """Moves the painter, and returns self."""
        self.painter.to(device)
        return self

    @property
    def side(self):
        """Of the pictures."""
        return self.painter.painter.transformer.cfg.size * self.painter.painter.autoencoder.cfg.shrink

    def _asked(self, picture, prompt, settings, *, strength, mask=None, seed):
        """What an edit was asked for by -> an Edit, or what is wrong with it."""
        check_prompts([prompt])
        strength = (0.6 if mask is None else 1.0) if strength is None else strength
        strength = in_range("strength", strength, 0, 1)
        if 0 < strength < 1 and settings.steps == 1:
            raise InputError("strength below 1 takes 2 steps or more: with 1 the picture would be drawn from noise alone")
        if strength and not left_of(settings.steps, strength):
            raise InputError(f"strength {strength:g} of {settings.steps} steps rounds to none: give {math.ceil(0.51 / strength)} steps or more")
        opened, size = open_picture(picture), self.side
        before = prepare(opened, size)[None]                                       # (1, 3, S, S)
        redrawn = None if mask is None else prepare(kept(mask, opened.size), size)[None, :1] < 0        # (1, 1, S, S)
        if redrawn is not None and not redrawn.any():
            raise InputError(f"nothing of the mask's white is left at {size} x {size} pixels, the painter's size: make it wider")
        return Edit(before, redrawn, prompt, strength, seed, settings)

    def _made(self, edit, progress):
        """Edit -> PIL picture with its recipe."""
        with progress_bar(left_of(edit.settings.steps, edit.strength), progress) as bar:
            drawn = self._drawn(edit, bar.update)
        return finished(drawn, [self._recipe(edit)], "pil")[0]

    def _drawn(self, edit, tick):
        vae = self.painter.painter.autoencoder
        device = next(vae.parameters()).device
        known = self.painter.encode(edit.before.to(device))
        coarse = None if edit.redrawn is None else F.max_pool2d(edit.redrawn.to(device).float(), vae.cfg.shrink) > 0
        start = Start(known, edit.strength, coarse)
        latents = self.painter.sample(self.painter.noise([edit.seed]), self.painter.read([edit.prompt]), edit.settings, start=start, tick=tick)
        after = self.painter.decode(latents).cpu()
        return after if edit.redrawn is None else torch.where(edit.redrawn, after, edit.before)

    @torch.inference_mode()
    def between(self, prompts, *, seeds=(0,), frames=8, steps=20, guidance=3.0, negative_prompt="", guidance_interval=(0.0, 1.0), progress=True):
        """Prompts, or one, and seeds, or one -> PIL pictures from the first to the last, `frames` for each part and the last one.

        What is one stays: two prompts and one seed change what is drawn, one prompt and two seeds how. Between two prompts every step goes some of
        the way from what the first says to what the second says (Liu et al. 2022, twice the work); noises go along arcs."""
        prompts, settings = check_prompts(prompts), DrawSettings(steps, guidance, negative_prompt, guidance_interval)
        if not isinstance(seeds, (list, tuple)) or not seeds:
            raise InputError(f"seeds should be a list of whole numbers, got {seeds!r:.80}")
        keys = max(len(prompts), len(seeds))
        if keys < 2 or any(len(given) not in (1, keys) for given in (prompts, seeds)):
            raise InputError("prompts and seeds should be as many, or one of them one and the other two or more, "
                             f"got {len(prompts)} and {len(seeds)}")
        whole("frames", frames, 1, 1000)
        self.painter.tell_cut([*prompts, negative_prompt])
        words = self.painter.read([prompts[0]] * keys if len(prompts) == 1 else prompts)
        noise = self.painter.noise([seeds_of(seed, 1)[0] for seed in (list(seeds) * keys)[:keys]])
        made, places = [], [i + n / frames for i in range(keys - 1) for n in range(frames)] + [keys - 1]
        with progress_bar(len(places) * settings.steps, progress) as bar:
            for place in places:
                i, share = min(int(place), keys - 2), place - min(int(place), keys - 2)
                x = along_sphere(noise[i].flatten(), noise[i + 1].flatten(), share).view_as(noise[:1])
                mixed = len(prompts) > 1 and 0 < share < 1
                own, start = (slice(i, i + 2), Between(share)) if mixed else (slice(i + int(share), i + int(share) + 1), None)
                memory = Memory(words.states[own], words.keep[own])
                latents = self.painter.sample(x.expand(len(memory.states), -1, -1, -1), memory, settings, start=start, tick=bar.update)
                made.append(self.painter.decode(latents))
        return finished(torch.cat(made), [None] * len(made), "pil")

    def _recipe(self, edit):
        if not self.painter.digest:
            return None
        mask = None if edit.redrawn is None else to_base64(edit.redrawn.float().expand(-1, 3, -1, -1) * 2 - 1)
        return Recipe.made("edit", self.painter.name, self.painter.digest, seed=edit.seed,
                           settings={"strength": edit.strength, **vars(edit.settings)},
                           inputs={"prompt": edit.prompt, "picture": to_base64(edit.before), "mask": mask})


def kept(mask, size):
    """A mask as people have it, of that size (width, height) -> PIL picture, white where the picture stays (as what is around it does)."""
    grey = white_marks(mask)
    if grey.size != size:
        raise InputError(f"the mask has {grey.width} x {grey.height} pixels, the picture {size[0]} x {size[1]}: make them agree")
    stays = grey.point(lambda value: 0 if value > 127 else 255)
    if stays.getextrema()[0] == 255:
        raise InputError("the mask is black everywhere: white is what is drawn anew")
    return stays


def widened(picture, *, left, top, right, bottom):
    """PIL picture -> (a larger one whose margins repeat its border, mask (H,W) bool, True there); a margin below 0 is cut off."""
    from PIL import Image
    margins = [(top, bottom), (left, right)]
    for names, size, given in zip((("top", "bottom"), ("left", "right")), picture.size[::-1], margins):
        for name, margin in zip(names, given):
            whole(name, margin, 1 - size, 4 * size)
        if sum(given) <= -size:
            raise InputError(f"{names[0]} and {names[1]} cut off all {size} pixels, got {given[0]} and {given[1]}")
    if max(left, top, right, bottom) <= 0:
        raise InputError("outpaint needs a margin above 0, such as left=16: nothing else is drawn")
    cut = tuple(slice(max(0, -first), size - max(0, -last)) for size, (first, last) in zip(picture.size[::-1], margins))
    added = [tuple(max(0, margin) for margin in given) for given in margins]
    pixels = np.asarray(picture.convert("RGBA"))[cut]
    return Image.fromarray(np.pad(pixels, [*added, (0, 0)], mode="edge")), np.pad(np.zeros(pixels.shape[:2], bool), added, constant_values=True)


def to_base64(pictures):
    """(1,3,S,S) in [-1,1] -> PNG in base64."""
    file = io.BytesIO()
    finished(pictures, [None], "pil")[0].save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def remake(recipe):
    """Recipe -> PIL picture: what `gencore.replay` calls."""
    inputs = recipe.inputs
    picture, mask = (from_base64(name, inputs[name]) for name in ("picture", "mask"))
    return Editor.from_pretrained(recipe.model)(picture, inputs["prompt"], mask=mask, seed=recipe.seed, progress=False,
                                                         strength=recipe.settings["strength"], **draw_settings(recipe))


def from_base64(name, text):
    try:
        return None if text is None else base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise InputError(f"recipe: inputs.{name} should be a PNG in base64, got {text!r:.40}") from None


register("edit", remake)
