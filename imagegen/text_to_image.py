"""TextToImage: prompts in, pictures out, each with the recipe that makes it again.

    painter = TextToImage.from_pretrained("painter")
    painter(["a handwritten seven", "slice of pizza, noto style"], seed=0)[0].save("seven.png")

Four parts: a tokenizer and the core's text encoder read the prompt, a transformer turns noise into latents, an autoencoder's decoder
paints them. The folder is diffusers' own: `DiffusionPipeline.from_pretrained(folder)` opens it as PixArtAlphaPipeline."""
import warnings
from dataclasses import dataclass, fields

import torch
from torch import nn

from gencore.check import CheckpointError, ConfigError, InputError, in_range, only_device, seeds_of
from gencore.checkpoint import naming, read_json, resolve, save_folder
from gencore.diffusion import FLOW, check_steps, data_from, flow_levels, noise_interval
from gencore.families import expect_fields
from gencore.kinds import expect_kind
from gencore.recipe import Recipe, lasting_name, made_with, register, survives
from gencore.samplers import dpm_solver
from gencore.text_encoder import TextEncoder, encode_prompts
from gencore.tokenizer import Tokenizer
from gencore.transformer import Memory
from imagegen.autoencoder_files import first_of, read_autoencoder
from imagegen.data import to_bytes
from imagegen.dit import DiT, PromptCache
from imagegen.families.pixart import PIXART
from imagegen.families.t5 import T5, encoder_only
from imagegen.parts import part_files, read_part
from imagegen.schedule import SOLVER, UNCLIPPED

TOGETHER = 16               # pictures drawn in one batch; more prompts are drawn batch after batch
FORMS = ("pil", "np", "pt")
PARTS = {"transformer": ("diffusers", "PixArtTransformer2DModel"), "text_encoder": ("transformers", "T5EncoderModel"),
         "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
         "scheduler": ("diffusers", "DPMSolverMultistepScheduler")}
SCHEDULER = {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000, "prediction_type": "flow_prediction",
             "use_flow_sigmas": True, "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint",
             "lower_order_final": True, "final_sigmas_type": "zero", "thresholding": False}


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn; what a recipe keeps beside prompt and seed."""
    steps: int = 20                     # calls of the transformer
    guidance: float = 3.0               # 1 = the prompt as it is; more leans away from the negative prompt, less (not in diffusers) towards it
    negative_prompt: str = ""
    guidance_interval: tuple[float, float] = (0.0, 1.0)         # noise levels that are guided: above the first, up to the second

    def __post_init__(self):
        for name, value in (("steps", check_steps(self.steps)), ("guidance", in_range("guidance", self.guidance, 0, 100)),
                            ("guidance_interval", noise_interval(self.guidance_interval))):
            object.__setattr__(self, name, value)                       # numbers as a recipe's JSON has them
        if not isinstance(self.negative_prompt, str):
            raise InputError(f"negative_prompt should be a string, got {type(self.negative_prompt).__name__}")


class Painter(nn.Module):
    """The three networks as one module: what is trained, saved and moved to a device together."""

    def __init__(self, transformer, text_encoder, autoencoder):
        super().__init__()
        self.transformer, self.text_encoder, self.autoencoder = transformer, text_encoder, autoencoder

    def read(self, ids, keep):
        """ids, keep (B,T) -> Memory that the transformer looks at."""
        return self.transformer.project(Memory(self.text_encoder(ids, keep), keep))

    def denoiser(self, words, null, *, levels, times, settings):
        """Memory of the prompts and of the negative prompt; levels and times of `flow_levels` -> denoise(x (B,C,h,w), level) -> data.

        Both prompts go through the transformer in one batch; noise levels and the prompts' keys are computed once."""
        told = dict(zip(levels.tolist(), zip(*self.transformer.level(times.to(words.states)))))
        (low, high), alone, together = settings.guidance_interval, (words, PromptCache()), (both(null, words), PromptCache())

        def denoise(x, now):
            one = settings.guidance == 1 or not low < float(now) <= high
            memory, cache = alone if one else together
            level = tuple(part.expand(len(memory.states), *part.shape) for part in told[float(now)])
            said = self.transformer.velocity(x if one else torch.cat((x, x)), level, memory, cache=cache)
            velocity = said if one else torch.lerp(*said.chunk(2), float(settings.guidance))
            return data_from("velocity", velocity, x, FLOW.scales(now))

        return denoise


class TextToImage:
    """Draws what prompts say."""

    def __init__(self, painter, tokenizer, *, shift=1.0, name="", digest=""):
        self.painter, self.tokenizer = painter.eval(), tokenizer
        self.shift = shift                                # of the noise levels: diffusers' flow_shift
        self.name, self.digest = name, digest             # for recipes

    @torch.inference_mode()
    def __call__(self, prompts, *, steps=20, guidance=3.0, negative_prompt="", guidance_interval=(0.0, 1.0), seed=None, output_type="pil",
                 progress=True):
        """A prompt or a list of them -> as many pictures: PIL images, or one array (B,H,W,3) in 0..1 ("np"), or tensor (B,3,H,W) in 0..1 ("pt").

        Picture i is drawn from the noise of seed + i, so a prompt gives the same picture alone and in a list (up to rounding). Pictures are square,
        of the painter's size, and drawn by DPM-Solver++ (2M); other samplers: Diffusion, or diffusers on the saved folder.
        A prompt of more tokens than the painter reads is cut there, and a warning names the first. guidance_interval: the noise levels, from 1 down
        to 0, that are guided; without guidance a step takes half as long (Kynkaanniemi et al. 2024: at the highest ones it costs variety).
        seed None: a new one; it is in the picture's .info["recipe"], which gencore.replay reads back from a saved PNG."""
        prompts = check_prompts(prompts)
        settings = DrawSettings(steps, guidance, negative_prompt, guidance_interval)
        seeds = seeds_of(seed, len(prompts))
        self.tell_cut([*prompts, negative_prompt])
        if output_type not in FORMS:
            raise InputError(f"output_type should be one of {', '.join(FORMS)}, got {output_type!r}")
        made, recipes, groups = [], [], groups_of(len(prompts))
        with progress_bar(len(groups) * settings.steps, progress) as bar:
            for group in groups:
                asked = [prompts[i] for i in group]
                made.append(self.draw(asked, [seeds[i] for i in group], settings, tick=bar.update))
                recipes += [self._recipe(asked, place, seeds[group[0]], settings) for place in range(len(group))]
        return finished(torch.cat(made), recipes, output_type)

    def draw(self, prompts, seeds, settings, *, tick=lambda: None):
        """Prompts and as many seeds -> pictures (B,3,H,W) in [-1,1]."""
        return self.decode(self.sample(self.noise(seeds), self.read(prompts), settings, tick=tick))

    def noise(self, seeds):
        """(B,C,h,w), row i of the generator of seeds[i]."""
        cfg, device = self.painter.transformer.cfg, next(self.painter.parameters()).device
        return torch.stack([torch.randn(cfg.channels, cfg.size, cfg.size, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(device)

    def sample(self, noise, words, settings, *, start=None, tick=lambda: None):
        """noise (B,C,h,w), words as `read` gives them -> latents. start: a Start, to begin from a picture instead of from noise alone."""
        null = Memory(*(part.expand(len(noise), *part.shape[1:]) for part in self.read([settings.negative_prompt])))
        levels, times = flow_levels(settings.steps, self.shift)
        denoise, x = self.painter.denoiser(words, null, levels=levels, times=times, settings=settings), noise
        levels = levels.to(noise)
        if start is not None:
            denoise, x, levels = start.prepared(denoise, noise, levels)
        for x in dpm_solver(denoise, x, levels):
            tick()
        return x

    def encode(self, pictures):
        """pictures (B,3,H,W) in [-1,1] -> latents (B,C,h,w), as `sample` gives them."""
        autoencoder = self.painter.autoencoder
        return first_of(autoencoder.encode(pictures)) * autoencoder.cfg.scaling

    def decode(self, latents):
        """latents (B,C,h,w) -> pictures (B,3,H,W) in [-1,1]."""
        autoencoder = self.painter.autoencoder
        return autoencoder.decode(latents / autoencoder.cfg.scaling).clamp(-1, 1)

    def read(self, prompts):
        """A list of prompts -> Memory that the transformer looks at; a prompt of more than `longest` tokens is cut there."""
        ids, keep, _ = encode_prompts(self.tokenizer, prompts, self.longest)
        device = next(self.painter.parameters()).device
        return self.painter.read(ids.to(device), keep.to(device))

    @property
    def longest(self):
        """How many tokens of a prompt are read."""
        return self.tokenizer.config.get("model_max_length", 120)

    def tell_cut(self, prompts):
        """Warns, once, when some of the prompts of a call are too long."""
        _, _, cut = encode_prompts(self.tokenizer, prompts, self.longest)
        if cut:
            first = prompts[cut[0]]
            warnings.warn(f'{len(cut)} prompt(s) have more than {self.longest} tokens and are cut there, the first: "{first:.60}"', stacklevel=4)

    def _recipe(self, prompts, place, seed, settings):
        """Recipe of one picture of a batch. It names the whole batch: sums are rounded differently in another one."""
        if not self.digest:
            return None
        inputs = {"prompt": prompts[place], "drawn_with": prompts, "place": place}
        return Recipe.made("image", self.name, self.digest, inputs=inputs, seed=seed, settings=vars(settings))

    def to(self, device):
        """Moves the networks, which compute in float32, and returns self; noise is still drawn on the CPU."""
        self.painter.to(only_device(device))
        return self

    def with_autoencoder(self, autoencoder):
        """Another for the same latents, such as a TinyAutoencoder -> a TextToImage that draws with it, without recipes until it is saved."""
        cfg, channels, shrink = getattr(autoencoder, "cfg", None), self.painter.transformer.cfg.channels, self.painter.autoencoder.cfg.shrink
        if getattr(cfg, "latent", channels) != channels:
            raise InputError(f"this painter draws latents of {channels} channels, the autoencoder takes {cfg.latent}")
        if not hasattr(cfg, "scaling") or getattr(cfg, "shift", 0) or cfg.shrink != shrink:
            raise InputError(f"expected an Autoencoder or a TinyAutoencoder that shrinks by {shrink} and has no shift, got "
                             f"{str(cfg or type(autoencoder).__name__):.120}")
        return TextToImage(Painter(self.painter.transformer, self.painter.text_encoder, autoencoder), self.tokenizer, shift=self.shift)

    @classmethod
    def from_pretrained(cls, name):
        """A shipped name, a folder or a Hub id in PixArt's layout -> TextToImage."""
        folder = resolve(name, "imagegen")
        expect_kind(folder, "imagegen.TextToImage")
        shift = read_shift(folder / "scheduler" / "scheduler_config.json")
        painter = Painter(read_part(folder / "transformer", PIXART, DiT), read_part(folder / "text_encoder", T5, TextEncoder, encoder_only),
                          read_autoencoder(folder / "vae"))
        tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        check_parts(folder, painter, tokenizer)
        return cls(painter, tokenizer, shift=shift, name=lasting_name(folder), digest=made_with(folder))

    def save_pretrained(self, folder, dtype=torch.float32):
        """Writes diffusers' folder, and makes it the one that recipes name; not where `dtype` rounded what draws here."""
        save_folder(folder, pipeline_files(self.painter, self.tokenizer, shift=self.shift, dtype=dtype))
        self.name, self.digest = lasting_name(folder), made_with(folder) if survives(self.painter, dtype) else ""


def groups_of(count):
    """The numbers of so many pictures, in lists of those that are drawn together."""
    return [list(range(i, min(i + TOGETHER, count))) for i in range(0, count, TOGETHER)]


def both(null, words):
    """Two Memories -> one of twice the batch, padded to one length."""
    length = max(null.states.shape[1], words.states.shape[1])
    pad = nn.functional.pad
    states = [pad(m.states, (0, 0, 0, length - m.states.shape[1])) for m in (null, words)]
    keep = [pad(m.keep, (0, length - m.keep.shape[1])) for m in (null, words)]
    return Memory(torch.cat(states), torch.cat(keep))


def check_prompts(prompts):
    """A string or a list of strings -> list, or InputError."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, (list, tuple)):
        raise InputError(f"prompts should be a string or a list of strings, got {type(prompts).__name__}")
    if not prompts:
        raise InputError("prompts is empty: give at least one string")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"prompts[{i}] should be a string, got {type(prompt).__name__}")
    return list(prompts)


def progress_bar(total, wanted):
    """A bar that shows itself after a second, or never."""
    from tqdm import tqdm
    return tqdm(total=total, desc="drawing", unit="step", delay=1, disable=not wanted, leave=False)


def finished(pictures, recipes, output_type):
    """pictures (B,C,H,W) in [-1,1], C 1 or 3 -> what the caller wants."""
    if output_type == "pt":
        return (pictures + 1) / 2
    if output_type == "np":
        return ((pictures + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()                  # (B, H, W, 3)
    return [drawing(picture.permute(1, 2, 0).cpu().numpy(), recipe) for picture, recipe in zip(to_bytes(pictures), recipes)]


def drawing(pixels, recipe):
    """(H,W,3) or (H,W,1) uint8 -> PIL image whose saved PNG carries the recipe; one too long (of large pictures) is left out, with a warning."""
    from PIL import Image, PngImagePlugin
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if recipe is None:
        return picture
    try:
        text = recipe.to_json()
    except InputError as error:
        warnings.warn(f"this picture carries no recipe: {error}", stacklevel=2)
        return picture
    picture.info["recipe"] = text
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("recipe", text)
    picture.encoderinfo = {"pnginfo": chunk}
    return picture


def picked(pictures, place):
    """The picture of a batch that a recipe is of."""
    if place not in range(len(pictures)):
        raise InputError(f"recipe: place should be below {len(pictures)}, got {place!r}")
    return pictures[place]


# ---- folders ----

def read_shift(path):
    """scheduler_config.json -> flow_shift, the one thing in which it may differ from SCHEDULER."""
    with naming(path):
        scheduler = read_json(path, lowest=True)                                         # diffusers writes lambda_min_clipped so
        absent = {"prediction_type": "epsilon", "use_flow_sigmas": False}                # is so for diffusers
        expect_fields(absent | scheduler, {key: (value,) for key, value in SCHEDULER.items()} | SOLVER | UNCLIPPED, "TextToImage's scheduler")
        shift = scheduler.get("flow_shift", 1.0)
        if isinstance(shift, bool) or not isinstance(shift, (int, float)) or not 0.01 <= shift <= 100:
            raise ConfigError(f"flow_shift should be between 0.01 and 100, got {shift!r}")
    return float(shift)


def check_parts(folder, painter, tokenizer):
    """CheckpointError unless each part takes what the one before it gives."""
    words, drawn, vae = painter.text_encoder.cfg, painter.transformer.cfg, painter.autoencoder.cfg
    if getattr(vae, "shift", 0):
        raise CheckpointError(f"{folder / 'vae' / 'config.json'}: shift_factor should be 0, PixArtAlphaPipeline knows no other, "
                              f"got {vae.shift}")
    for what, given, taken in (("ids of the tokenizer", len(tokenizer), min(len(tokenizer), words.vocab)),
                               ("width of the text encoder's states (d_model, caption_channels)", words.width, drawn.captions),
                               ("channels of the latents (in_channels, latent_channels)", drawn.channels, vae.latent)):
        if given != taken:
            raise CheckpointError(f"{folder}: its parts are not of one painter: {what}: {given} on one side, {taken} on the other")


def pipeline_files(painter, tokenizer, *, shift=1.0, dtype=torch.float32):
    """Files of a folder that diffusers and `from_pretrained` open, for `save_folder`.

    T5's config says float32 whatever is stored: transformers would go by the file, diffusers takes float32, and they must agree."""
    without_adapter(painter.transformer)
    layout = painter.autoencoder.layout()
    index = {"_class_name": "PixArtAlphaPipeline", "_diffusers_version": "0.42.1", **{name: list(kind) for name, kind in PARTS.items()}}
    files = {"model_index.json": index | {"vae": ["diffusers", layout.name]},
             "scheduler/scheduler_config.json": {**SCHEDULER, "flow_shift": shift}}
    parts = (("transformer", PIXART, painter.transformer, "diffusion_pytorch_model"), ("text_encoder", T5, painter.text_encoder, "model"),
             ("vae", layout, painter.autoencoder, "diffusion_pytorch_model"))
    for folder, family, module, weights in parts:
        written = part_files(family, module.cfg, module.state_dict(), dtype=dtype, weights=weights)
        files |= {f"{folder}/{name}": content for name, content in written.items()}
    return files | {f"tokenizer/{name}": content for name, content in tokenizer.files().items()}


def without_adapter(transformer):
    """InputError for a transformer that has a LoRA's matrices beside its own."""
    if any(".lora_" in name for name, _ in transformer.named_parameters()):
        raise InputError("this painter has an adapter in it: save the adapter by lora.save_pretrained, or take lora.merged(), a painter of its own")


def draw_settings(recipe):
    """Recipe -> its DrawSettings as arguments."""
    return {one.name: recipe.settings[one.name] for one in fields(DrawSettings)}


def remake(recipe):
    """Recipe -> PIL image: what `gencore.replay` calls."""
    painter = TextToImage.from_pretrained(recipe.model)
    inputs = recipe.inputs
    pictures = painter(inputs["drawn_with"], seed=recipe.seed, progress=False, **draw_settings(recipe))
    return picked(pictures, inputs["place"])


register("image", remake)
