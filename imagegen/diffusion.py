"""Diffusion: pictures of a class, or of none, drawn step by step from noise, in pixels or in the latents of an autoencoder.

    model = Diffusion.from_pretrained("runs/diffusion/model")
    model(["3", "7"], steps=20, guidance=2.0, seed=0)[0].save("three.png")
    model(["3"], sampler="ddpm", steps=250), model(["3"], sampler=HeunDiscreteScheduler)           # ours, or any scheduler of diffusers

A denoiser (ClassDiT or UNet), an autoencoder or none, and a schedule. The folder is diffusers' own: `DiffusionPipeline.from_pretrained(folder)`
opens it as DiTPipeline, DDPMPipeline, DDIMPipeline or LDMPipeline, and draws the same from the same noise. Files: imagegen/diffusion_files.py."""
from dataclasses import dataclass
from numbers import Integral

import torch

from gencore.check import ConfigError, InputError, in_range, nearest, only_device, seeds_of, whole
from gencore.checkpoint import save_folder
from gencore.diffusion import VE, VP, data_from, noise_interval
from gencore.recipe import Recipe, lasting_name, made_with, register, survives
from gencore.samplers import ddim, ddpm, dpm_solver, euler, euler_ancestral, heun
from imagegen.class_dit import ClassDiT
from imagegen.schedule import Schedule
from imagegen.scheduler import Scheduler, scheduler_of
from imagegen.text_to_image import FORMS, TOGETHER, finished, picked, progress_bar


@dataclass(frozen=True)
class Plan:
    """How pictures are drawn, checked."""
    steps: int
    guidance: float                             # 1 = the class as it is; more leans away from none
    interval: tuple[float, float]               # of the steps in training, as shares, that are guided: above the first, up to the second
    sampler: str | Scheduler
    shape: tuple[int, int, int]                 # (C,h,w) of what the denoiser sees

    def scale(self, t, count):
        """The guidance at step t of `count` in training, which are numbered from 0 (no noise)."""
        low, high = self.interval
        return float(self.guidance) if (low, high) == (0, 1) or low < min(1.0, (float(t) + 1) / count) <= high else 1.0


class Diffusion:
    """Draws pictures of named classes, or of none."""

    def __init__(self, denoiser, autoencoder=None, *, labels=(), schedule=None, name="", digest=""):
        """denoiser: ClassDiT or UNet, of pixels where there is no autoencoder; labels: names of its first classes.

        A U-Net that is to be guided has one class more than labels, the last, which stands for none of them."""
        self.denoiser, self.autoencoder = denoiser.eval(), autoencoder if autoencoder is None else autoencoder.eval()
        self.labels, self.schedule = tuple(labels), schedule or Schedule()
        self.name, self.digest = name, digest             # for recipes
        check_fit(denoiser, autoencoder, self.labels, self.schedule)

    @torch.inference_mode()
    def __call__(self, labels=None, *, steps=50, guidance=1.0, guidance_interval=(0.0, 1.0), sampler=None, size=None, seed=None, output_type="pil",
                 progress=True):
        """A label (name or number) or a list of them, or a number of pictures where there are no classes -> as many pictures: PIL images, or one
        array (B,H,W,C) in 0..1 ("np"), or tensor (B,C,H,W) in 0..1 ("pt").

        guidance_interval: of the steps in training, from 1 (noise) down to 0, those that are guided.
        sampler: one of schedule.SAMPLERS, or a scheduler of diffusers, or its class. size: side, or (height, width). Picture i is drawn from the
        noise of seed + i, alone and in a list (up to rounding). seed None: a new one; it is in the picture's .info["recipe"]."""
        unambiguous(labels, self.labels)
        numbers = class_numbers(labels, self.labels, self.denoiser.cfg.classes)
        plan = self._plan(steps, (guidance, guidance_interval), sampler, size)
        seeds = seeds_of(seed, len(numbers))
        if output_type not in FORMS:
            raise InputError(f"output_type should be one of {', '.join(FORMS)}, got {output_type!r}")
        settings = {"steps": plan.steps, "guidance": plan.guidance, "guidance_interval": plan.interval,
                    "size": [side * self.shrink for side in plan.shape[1:]],
                    "sampler": plan.sampler.config if isinstance(plan.sampler, Scheduler) else plan.sampler}
        made, recipes = [], []
        with progress_bar(-(-len(numbers) // TOGETHER) * plan.steps, progress) as bar:
            for i in range(0, len(numbers), TOGETHER):
                asked, own = numbers[i:i + TOGETHER], seeds[i:i + TOGETHER]
                made.append(self._drawn(torch.tensor(asked), own, plan, bar.update))
                recipes += [self._recipe(asked, place, own[0], settings) for place in range(len(asked))]
        return finished(torch.cat(made), recipes, output_type)

    def draw(self, numbers, seeds, *, steps=50, guidance=1.0, sampler=None, size=None):
        """numbers (B,) of classes and as many seeds -> pictures (B,C,H,W) in [-1,1], all in one batch."""
        return self._drawn(numbers, seeds, self._plan(steps, (guidance, (0.0, 1.0)), sampler, size), lambda: None)

    def _drawn(self, numbers, seeds, plan, tick):
        device = next(self.denoiser.parameters()).device
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(plan.shape, generator=own) for own in generators]).to(device)
        x = noise                                                          # where the only step goes nowhere
        for x in self.way(noise, numbers.to(device), generators, plan):
            tick()
        return self.decode(x)

    def way(self, noise, numbers, generators, plan):
        """noise (B,C,h,w), numbers (B,) of classes, B generators of fresh noise -> yields the way to the latents or pixels, step by step."""
        says = Said(self.denoiser, numbers, none_of(self.denoiser, self.labels), lambda t: plan.scale(t, self.schedule.count))
        if isinstance(plan.sampler, Scheduler):
            return plan.sampler.way(says, noise, plan.steps, generators)
        levels, times = self.schedule.levels(plan.steps, plan.sampler)
        denoise = denoiser_of(self.schedule, says, dict(zip(levels.tolist(), times.tolist())), ancestral=plan.sampler == "ddpm")
        return walk(plan.sampler, denoise, noise, levels.to(noise), generators=generators, schedule=self.schedule)

    def decode(self, x):
        """What the denoiser draws -> pictures (B,C,H,W) in [-1,1]."""
        if self.autoencoder is not None:
            x = self.autoencoder.decode(x / self.autoencoder.cfg.scaling)
        return x.clamp(-1, 1)

    def to(self, device):
        """Moves the networks, which compute in float32, and returns self; noise is still drawn on the CPU."""
        device = only_device(device)
        for network in filter(None, (self.denoiser, self.autoencoder)):
            network.to(device)
        return self

    @property
    def shrink(self):
        """Side of the pictures / side of what the denoiser sees."""
        return 1 if self.autoencoder is None else self.autoencoder.cfg.shrink

    def _plan(self, steps, guiding, sampler, size):
        """What was asked for, checked; guiding: guidance and its interval."""
        guidance, interval = in_range("guidance", guiding[0], 0, 100), noise_interval(guiding[1])
        if interval != (0, 1) and self.schedule.path == "ve":
            raise InputError(f'guidance_interval should be (0, 1) on the path "ve", which has no steps in training, got {interval!r}')
        if guidance != 1 and none_of(self.denoiser, self.labels) is None:
            raise InputError("guidance should be 1: this model has no class that stands for none to lean away from")
        if not isinstance(sampler, str) and sampler is not None:
            sampler = scheduler_of(sampler, self.schedule, learned=self.denoiser.cfg.out_channels > self.denoiser.cfg.channels)
        else:
            sampler = sampler or self.schedule.sampler
            self.schedule.check_sampler(sampler)
        steps = whole("steps", steps, 1)
        self.schedule.levels(steps, sampler if isinstance(sampler, str) else None)                         # steps at the door
        return Plan(steps, guidance, interval, sampler, self._shape(size))

    def _shape(self, size):
        """Side or (height, width) of the pictures -> (C,h,w) of what the denoiser sees."""
        cfg = self.denoiser.cfg
        if size is None:
            return cfg.channels, cfg.size, cfg.size
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        if len(sides) != 2:
            raise InputError(f"size should be a side, or (height, width), got {size!r:.80}")
        step = self.shrink * getattr(cfg, "patch", 1)
        sides = tuple(whole("size", side, step, 4096) for side in sides)
        if wrong := [side for side in sides if side % step]:
            raise InputError(f"size should be a multiple of {step}, got {wrong[0]}")
        return cfg.channels, sides[0] // self.shrink, sides[1] // self.shrink

    def _recipe(self, numbers, place, seed, settings):
        """Recipe of one picture of a batch. It names the whole batch: sums are rounded differently in another one."""
        if not self.digest:
            return None
        inputs = {"classes": numbers if self.denoiser.cfg.classes else len(numbers), "place": place}
        return Recipe.made("diffusion", self.name, self.digest, inputs=inputs, seed=seed, settings=settings)

    @classmethod
    def from_pretrained(cls, name):
        """A folder or a Hub id in the layout of DiTPipeline, DDPMPipeline, DDIMPipeline or LDMPipeline -> Diffusion, in float32."""
        from imagegen.diffusion_files import opened
        return cls(**opened(name))

    def save_pretrained(self, folder, *, dtype=torch.float32):
        """Writes diffusers' folder, and makes it the one that recipes name; not where `dtype` rounded what draws here."""
        from imagegen.diffusion_files import diffusion_files
        save_folder(folder, diffusion_files(self.denoiser, self.autoencoder, labels=self.labels, schedule=self.schedule, dtype=dtype))
        exact = survives(self.denoiser, dtype) and (self.autoencoder is None or survives(self.autoencoder, dtype))
        self.name, self.digest = lasting_name(folder), made_with(folder) if exact else ""


class Said:
    """The network with its classes and its guidance: (x (B,C,h,w), t) -> (what it predicts (B,C,h,w), what it says of the variance or None)."""

    def __init__(self, denoiser, numbers, none, scale):
        """scale(t) -> the guidance there."""
        self.denoiser, self.numbers, self.none, self.scale = denoiser, numbers, none, scale
        self.classes = bool(denoiser.cfg.classes)

    def __call__(self, x, t):
        guidance = self.scale(t)
        if guidance == 1:
            said = self._network(x, t, self.numbers)
        else:
            said, without = self._network(torch.cat((x, x)), t, torch.cat((self.numbers, torch.full_like(self.numbers, self.none)))).chunk(2)
        C = x.shape[1]
        predicted, variance = said[:, :C], said[:, C:] if said.shape[1] == 2 * C else None
        return predicted if guidance == 1 else torch.lerp(without[:, :C], predicted, guidance), variance

    def _network(self, x, t, numbers):
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        return self.denoiser(x, t, numbers) if self.classes else self.denoiser(x, t)


def denoiser_of(schedule, says, told, *, ancestral):
    """told {level: t} -> denoise(x, level) -> data, or (data, share) where an ancestral chain is to use another variance than the posterior's."""
    def denoise(x, level):
        if schedule.path == "ve":                                          # EDM's preconditioning (Karras et al. 2022, eq. 7)
            s = schedule.deviation
            total = (level ** 2 + s ** 2) ** 0.5
            return s ** 2 / total ** 2 * x + level * s / total * says(x / total, told[float(level)])[0]
        predicted, variance = says(x, told[float(level)])
        data = data_from(schedule.predicts, predicted, x, schedule.mixture.scales(level))
        if not ancestral or schedule.variance == "small" or (schedule.variance is None and variance is None) or told[float(level)] == 0:
            return data                                                    # from the least noisy step of training diffusers adds none
        return data, 1.0 if schedule.variance == "large" else (variance + 1) / 2

    return denoise


def walk(sampler, denoise, noise, levels, *, generators, schedule):
    """The way of a sampler by name. Euler and its kin go the "ve" path: there "vp" is the same pictures, not scaled down."""
    path = schedule.mixture
    if sampler == "ddpm":
        return ddpm(denoise, noise, levels, generators, path=path, clip=schedule.clip)
    if path is VE:
        noise = noise * levels[0]
    if sampler == "ddim":
        return ddim(denoise, noise, levels, path, clip=schedule.clip)
    if sampler == "dpm_solver":
        return dpm_solver(denoise, noise, levels, path)
    if path is VP:
        noise, within = noise / VP.scales(levels[0])[0], denoise
        denoise = lambda x, level: within(x * VP.scales(level)[0], level)
    return euler_ancestral(denoise, noise, levels, generators) if sampler == "euler_ancestral" else \
        {"euler": euler, "heun": heun}[sampler](denoise, noise, levels)


def none_of(denoiser, labels):
    """The class that stands for none of them, or None."""
    if isinstance(denoiser, ClassDiT):
        return denoiser.cfg.classes
    return len(labels) if labels and denoiser.cfg.classes == len(labels) + 1 else None


def unambiguous(labels, names):
    """InputError for a number that is the name of another class: in a folder of classes "1" to "3", 1 might be either."""
    for label in labels if isinstance(labels, (list, tuple)) else [labels]:
        if isinstance(label, Integral) and str(label) in names and names.index(str(label)) != label:
            raise InputError(f'label {label} is a name here, of class {names.index(str(label))}: give names, such as "{label}"')


def class_numbers(labels, names, classes):
    """What was asked for -> the number of each picture's class, 0 where there are none."""
    if not classes:
        return [0] * whole("labels (without classes: how many pictures)", 1 if labels is None else labels, 1, 10_000)
    given = labels if isinstance(labels, (list, tuple)) else [labels]
    if not given:
        raise InputError("labels is empty: give at least one")
    known = {word.strip(): number for number, name in enumerate(names) for word in name.split(",")}
    known |= {name: number for number, name in enumerate(names)}                           # a whole name before another's part
    numbers = []
    for label in given:
        number = known.get(label) if isinstance(label, str) else label
        if isinstance(number, bool) or not isinstance(number, Integral) or not 0 <= number < (len(names) or classes):
            listed = f"one of {', '.join(names):.200}, or " if names else ""
            raise InputError(f"label should be {listed}a number below {len(names) or classes}, got {label!r:.80}"
                             f"{nearest(label, known) if isinstance(label, str) else ''}")
        numbers.append(int(number))
    return numbers


def check_fit(denoiser, autoencoder, labels, schedule):
    """ConfigError unless the parts are of one model."""
    cfg = denoiser.cfg
    if getattr(cfg, "context", None):
        raise ConfigError("the denoiser reads prompts: Diffusion draws classes alone")
    if autoencoder is not None and autoencoder.cfg.latent != cfg.channels:
        raise ConfigError(f"the autoencoder has {autoencoder.cfg.latent} latent channels, the denoiser takes {cfg.channels}")
    if getattr(getattr(autoencoder, "cfg", None), "shift", 0.0):
        raise ConfigError("the autoencoder has a shift_factor, of which diffusers' pipelines of classes know nothing")
    if cfg.out_channels not in (cfg.channels, 2 * cfg.channels):
        raise ConfigError(f"the denoiser should say {cfg.channels} channels, or twice as many with a variance, got {cfg.out_channels}")
    if schedule.variance == "learned" and cfg.out_channels == cfg.channels:
        raise ConfigError('the schedule says variance "learned", and the denoiser says none: out_channels should be twice channels')
    if len(labels) > (cfg.classes or 0):
        raise ConfigError(f"labels should be at most as many as the denoiser's {cfg.classes or 0} classes, got {len(labels)}")


def remake(recipe):
    """Recipe -> PIL image: what `gencore.replay` calls."""
    settings = {name: recipe.settings[name] for name in ("steps", "guidance", "guidance_interval", "sampler", "size")}
    model, classes = Diffusion.from_pretrained(recipe.model), recipe.inputs["classes"]
    if isinstance(classes, list) and model.labels:                                          # a number may be another's name
        once = {number for number, name in enumerate(model.labels) if model.labels.count(name) == 1}
        classes = [model.labels[number] if isinstance(number, int) and number in once else number for number in classes]
    pictures = model(classes, seed=recipe.seed, progress=False, **settings)
    return picked(pictures, recipe.inputs["place"])


register("diffusion", remake)
