"""Whole pipelines of diffusers against Diffusion: the same picture from the same noise, for folders that were written here and there.

What random networks predict is v, or data that are clipped: noise without end would make a picture of rounding errors."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_diffusion import CLASSES, coder, tiny_dit, tiny_unet

from gencore.checkpoint import resolve
from imagegen import Diffusion, TextToImage
from imagegen.diffusion_files import diffusion_files
from imagegen.families.autoencoder_kl import AUTOENCODER_KL
from imagegen.families.dit import DIT
from imagegen.families.unet import UNET
from imagegen.schedule import Schedule, to_scheduler

SEED = 3
MODELS = {"DiT in latents": (tiny_dit, coder), "DiT in pixels": (tiny_dit, None), "U-Net in latents": (tiny_unet, coder),
          "U-Net in pixels": (tiny_unet, None)}
CASES = [
    ("DiT in latents", Schedule(clip=2.0), "DiTPipeline"), ("DiT in latents", Schedule(sampler="dpm_solver", predicts="v"), "DiTPipeline"),
    ("DiT in latents", Schedule("flow", "velocity", "dpm_solver", shift=3.0), "DiTPipeline"),
    ("DiT in pixels", Schedule(betas="squaredcos_cap_v2", predicts="v", clip=1.0), "DiTPipeline"),
    ("DiT in pixels", Schedule(predicts="data", spacing="trailing"), "DiTPipeline"),             # it has no generator for "ddpm" to draw from
    ("U-Net in pixels", Schedule(clip=1.0), "DDIMPipeline"), ("U-Net in pixels", Schedule(predicts="v", offset=1, to_data=False), "DDIMPipeline"),
    ("U-Net in pixels", Schedule(sampler="ddpm", clip=1.0), "DDPMPipeline"),
    ("U-Net in pixels", Schedule(sampler="ddpm", variance="large", predicts="v"), "DDPMPipeline"),
    ("U-Net in pixels", Schedule(sampler="dpm_solver", spacing="linspace", predicts="v"), "DDPMPipeline"),
    ("U-Net in pixels", Schedule("flow", "velocity", "euler", shift=2.0), "DDPMPipeline"),
    ("U-Net in pixels", Schedule("ve", "edm", "euler"), "LDMPipeline"),
    ("U-Net in latents", Schedule(betas="scaled_linear", low=0.0015, high=0.0195, clip=2.0), "LDMPipeline"),
]


def theirs_of(folder):
    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline, steps, guidance):
    """Two pictures (2,H,W,C) by their pipeline, each from a generator of its own."""
    own = {"class_labels": [1, 2], "guidance_scale": guidance} if type(pipeline).__name__ == "DiTPipeline" else {"batch_size": 2}
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    return torch.from_numpy(pipeline(**own, num_inference_steps=steps, generator=generators, output_type="np").images)


def ours_drawn(model, steps, guidance):
    transformer = model.denoiser.cfg.classes
    made = model([1, 2] if transformer else 2, steps=steps, guidance=guidance if transformer else 1.0, seed=SEED, output_type="np", progress=False)
    assert 0.05 < made.std() < 0.45                                           # a picture, and not all black and white
    return torch.from_numpy(made)


@pytest.mark.parametrize("kind, schedule, name", CASES, ids=[f"{kind}, {s.path} {s.sampler} {i}" for i, (kind, s, _) in enumerate(CASES)])
def test_what_is_saved_here_opens_there_and_draws_the_same(kind, schedule, name, tmp_path):
    make, coded = MODELS[kind]
    model = Diffusion(make(), coded() if coded else None, labels=CLASSES if make is tiny_dit else (), schedule=schedule)
    model.save_pretrained(tmp_path / "m")
    theirs = theirs_of(tmp_path / "m")
    assert type(theirs).__name__ == name
    ours = ours_drawn(model, 20, 2.0)
    torch.testing.assert_close(drawn(theirs, 20, 2.0), ours, rtol=0, atol=1e-4)
    opened = Diffusion.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(ours_drawn(opened, 20, 2.0), ours, rtol=0, atol=1e-5)
    assert opened.denoiser.cfg == model.denoiser.cfg and opened.labels == model.labels and (opened.autoencoder is None) == (coded is None)


ALONE = """
import sys, numpy, torch
sys.modules["torchaudio"] = None                    # one that is broken breaks diffusers as well, and no picture needs it
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
generators = [torch.Generator().manual_seed(int(sys.argv[2]) + i) for i in range(2)]
numpy.save(sys.argv[3], pipeline([1, 2], num_inference_steps=5, guidance_scale=2.0, generator=generators, output_type="np").images)
assert not {"gencore", "imagegen"} & set(sys.modules)
"""


@pytest.mark.slow
def test_a_process_that_never_imports_this_package_draws_the_same(tmp_path):
    model = Diffusion(tiny_dit(), labels=CLASSES, schedule=Schedule(predicts="v"))
    model.save_pretrained(tmp_path / "m")
    subprocess.run([sys.executable, "-c", ALONE, tmp_path / "m", str(SEED), tmp_path / "made.npy"], cwd=tmp_path, check=True, timeout=600)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "made.npy")), ours_drawn(model, 5, 2.0), rtol=0, atol=1e-4)


SHIPPED = """
import sys, numpy, torch
sys.modules["torchaudio"] = None                    # as above
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
numpy.save(sys.argv[2], pipeline("red apple, noto style", num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(3),
                                 height=64, width=64, use_resolution_binning=False, clean_caption=False, output_type="np").images)
assert not [name for name in sys.modules if name.partition(".")[0] in ("gencore", "imagegen")]
"""


def test_a_process_that_never_imports_this_package_draws_with_the_shipped_painter(tmp_path):
    subprocess.run([sys.executable, "-c", SHIPPED, resolve("painter", "imagegen"), tmp_path / "made.npy"], cwd=tmp_path, check=True, timeout=600)
    ours = TextToImage.from_pretrained("painter")("red apple, noto style", steps=2, guidance=3.0, seed=3, output_type="np", progress=False)
    np.testing.assert_allclose(np.load(tmp_path / "made.npy"), ours, rtol=0, atol=1e-3)


def test_every_part_of_a_folder_is_a_class_of_diffusers():
    """So that it opens where this package is not."""
    for make, autoencoder in ((tiny_dit, None), (tiny_dit, coder()), (tiny_unet, None)):
        index = diffusion_files(make(), autoencoder)["model_index.json"]
        parts = [value for value in index.values() if isinstance(value, list)]
        assert len(parts) >= 2 and all(library == "diffusers" for library, _ in parts)


def their_pipeline(kind, schedule):
    """A pipeline of diffusers with our tiny weights in its own classes, made by its own constructors."""
    import diffusers
    scheduler = to_scheduler(schedule)
    scheduler = getattr(diffusers, scheduler.pop("_class_name"))(**scheduler)
    if kind.startswith("DDPMPipeline"):
        unet = tiny_unet(original=kind.endswith("google/ddpm"))
        theirs = diffusers.UNet2DModel.from_config(UNET.to_theirs(unet.cfg))
        theirs.load_state_dict(UNET.export_state(unet.cfg, unet.state_dict()))
        return diffusers.DDPMPipeline(theirs.eval(), scheduler)
    transformer, vae = tiny_dit(classes=1000), coder()
    theirs = diffusers.DiTTransformer2DModel.from_config(DIT.to_theirs(transformer.cfg))
    theirs.load_state_dict(DIT.export_state(transformer.cfg, transformer.state_dict()))
    decoder = diffusers.AutoencoderKL.from_config(AUTOENCODER_KL.to_theirs(vae.cfg))
    decoder.load_state_dict(AUTOENCODER_KL.export_state(vae.cfg, vae.state_dict()))
    return diffusers.DiTPipeline(theirs.eval(), decoder.eval(), scheduler)            # in training it forgets labels


@pytest.mark.parametrize("kind, schedule", [
    ("DDPMPipeline", Schedule(sampler="ddpm", variance="large", clip=1.0, offset=1)),
    ("DDPMPipeline", Schedule(sampler="ddpm", variance="large", clip=1.0, spacing="trailing")),
    ("DDPMPipeline", Schedule(sampler="ddpm", clip=1.0)), ("DDPMPipeline of google/ddpm", Schedule(sampler="ddpm", variance="large", clip=1.0)),
    ("DiTPipeline", Schedule(predicts="v"))])
def test_what_diffusers_saves_opens_here_and_draws_the_same(kind, schedule, tmp_path):
    theirs = their_pipeline(kind, schedule)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / "m")
    torch.testing.assert_close(ours_drawn(Diffusion.from_pretrained(tmp_path / "m"), 12, 4.0), drawn(theirs, 12, 4.0), rtol=0, atol=1e-4)


def test_a_learned_variance_draws_as_in_ddpm_pipeline(tmp_path):
    model = Diffusion(tiny_unet(out_channels=6), schedule=Schedule(sampler="ddpm", clip=1.0))
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "scheduler" / "scheduler_config.json").read_text())["variance_type"] == "learned_range"
    ours = ours_drawn(model, 20, 1.0)
    torch.testing.assert_close(drawn(theirs_of(tmp_path / "m"), 20, 1.0), ours, rtol=0, atol=1e-4)
    small = Diffusion(model.denoiser, schedule=Schedule(sampler="ddpm", variance="small", clip=1.0))
    assert (ours_drawn(small, 20, 1.0) - ours).abs().max() > 1e-2             # what the network says of the variance counts


@torch.no_grad()
def test_the_transformers_learned_variance_is_used_by_ddpm_and_dropped_by_others():
    """DiTPipeline itself always drops it: the loop is diffusers' scheduler around our guided network."""
    from diffusers import DDPMScheduler
    model = Diffusion(tiny_dit(), labels=CLASSES, schedule=Schedule(clip=1.0))
    numbers, none = torch.tensor([1, 2]), torch.full((2,), len(CLASSES))
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(2)]
    x = torch.stack([torch.randn(3, 8, 8, generator=own) for own in generators])
    scheduler = DDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(12)
    for t in scheduler.timesteps:
        said, without = (model.denoiser(x, t.float().expand(2), own) for own in (numbers, none))
        noise = without[:, :3] + 2.0 * (said[:, :3] - without[:, :3])
        x = scheduler.step(torch.cat((noise, said[:, 3:]), 1), t, x, generator=generators).prev_sample
    made = model([1, 2], sampler="ddpm", steps=12, guidance=2.0, seed=SEED, output_type="pt", progress=False)
    torch.testing.assert_close(made, (x.clamp(-1, 1) + 1) / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, theirs", [
    ("ddpm", "DDPMScheduler"), ("ddim", "DDIMScheduler"), ("dpm_solver", "DPMSolverMultistepScheduler"), ("euler", "EulerDiscreteScheduler"),
    ("heun", "HeunDiscreteScheduler"), ("euler_ancestral", "EulerAncestralDiscreteScheduler")])
def test_each_sampler_draws_as_the_scheduler_of_its_name_given_instead(name, theirs):
    import diffusers
    model = Diffusion(tiny_unet(), schedule=Schedule(predicts="v"))
    ours, given = (model(2, sampler=sampler, steps=9, seed=SEED, output_type="pt", progress=False) for sampler in (name, getattr(diffusers, theirs)))
    torch.testing.assert_close(given, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule, name, theirs", [
    (Schedule("flow", "velocity", "euler", shift=3.0), "euler", "FlowMatchEulerDiscreteScheduler"),
    (Schedule("flow", "velocity", "dpm_solver", shift=3.0), "euler", "FlowMatchEulerDiscreteScheduler"),
    (Schedule("flow", "velocity", "euler", shift=3.0), "dpm_solver", "DPMSolverMultistepScheduler"),
    (Schedule("ve", "edm", "euler"), "euler", "EDMEulerScheduler")])
def test_samplers_of_the_other_paths_as_well(schedule, name, theirs):
    import diffusers
    model = Diffusion(tiny_unet(), schedule=schedule)
    ours, given = (model(2, sampler=sampler, steps=9, seed=SEED, output_type="pt", progress=False) for sampler in (name, getattr(diffusers, theirs)))
    torch.testing.assert_close(given, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["UniPCMultistepScheduler", "DEISMultistepScheduler", "PNDMScheduler"])
def test_schedulers_that_have_no_counterpart_here_draw_as_in_dit_pipeline(scheduler, tmp_path):
    import diffusers
    model = Diffusion(tiny_dit(), coder(), labels=CLASSES, schedule=Schedule(predicts="v"))
    model.save_pretrained(tmp_path / "m")
    theirs = theirs_of(tmp_path / "m")
    theirs.scheduler = getattr(diffusers, scheduler).from_config(theirs.scheduler.config)
    made = model([1, 2], sampler=theirs.scheduler, steps=10, guidance=2.0, seed=SEED, output_type="np", progress=False)
    torch.testing.assert_close(torch.from_numpy(made), drawn(theirs, 10, 2.0), rtol=0, atol=1e-4)
