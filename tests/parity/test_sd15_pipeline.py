"""StableDiffusionPipeline, tiny and random: the same latents and the same picture by our U-Net, schedule, sampler and autoencoder.

The prompt is read by the pipeline's own CLIP, which has no counterpart here; all that comes after is ours, opened from the folder that it saves."""
import json

import pytest
import torch

from gencore.check import ConfigError
from gencore.checkpoint import save_folder
from gencore.diffusion import VP, denoiser
from gencore.samplers import ddim, guided, last
from gencore.text_encoder import train_prompt_tokenizer
from gencore.transformer import Memory
from imagegen.autoencoder import Autoencoder
from imagegen.families.autoencoder_kl import AUTOENCODER_KL
from imagegen.families.unet import UNET_CONDITION
from imagegen.parts import read_part
from imagegen.schedule import to_schedule
from imagegen.unet import UNet

STEPS, SCALE, SIZE = 12, 3.0, (16, 24)
UNET = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 2, "norm_num_groups": 4, "attention_head_dim": 2,
        "cross_attention_dim": 16, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
VAE = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16, "scaling_factor": 0.18215,
       "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": True, "steps_offset": 1}     # 1.5's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a tiny pipeline saves, its sampler as in Stable Diffusion 1.5."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast
    place = tmp_path_factory.mktemp("sd15")
    save_folder(place / "words", dict(train_prompt_tokenizer(["a red circle"] * 4, 280, length=12).files()) | {"config.json": {}})
    torch.manual_seed(2)
    clip = CLIPTextConfig(vocab_size=280, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                          max_position_embeddings=12)
    made = StableDiffusionPipeline(
        AutoencoderKL(**VAE), CLIPTextModel(clip), PreTrainedTokenizerFast.from_pretrained(place / "words"), UNet2DConditionModel(**UNET),
        PNDMScheduler(**SCHEDULER), None, None, requires_safety_checker=False)
    made.save_pretrained(place / "tiny")
    return place / "tiny"


@pytest.fixture(scope="module")
def pipeline(folder):
    """It opened by diffusers, with DDIM."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    opened = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    opened.scheduler = DDIMScheduler.from_config(opened.scheduler.config, clip_sample=False)
    opened.set_progress_bar_config(disable=True)
    return opened


@pytest.fixture(scope="module")
def parts(folder):
    """(U-Net, autoencoder), opened here."""
    return read_part(folder / "unet", UNET_CONDITION, UNet), read_part(folder / "vae", AUTOENCODER_KL, Autoencoder)


def noise_of(seed):
    return torch.randn(1, 4, *(side // 2 for side in SIZE), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_one_call_of_the_network_says_the_same(pipeline, parts):
    states, _ = pipeline.encode_prompt("a red circle", "cpu", 1, False)
    for seed, t in ((0, 981.0), (1, 1.0)):
        said = parts[0](noise_of(seed), torch.tensor([t]), memory=Memory(states))
        torch.testing.assert_close(said, pipeline.unet(noise_of(seed), t, states).sample, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_same_latents_and_picture_by_our_parts(pipeline, parts, tmp_path):
    unet, vae = parts
    asked = {"negative_prompt": "blue", "num_inference_steps": STEPS, "guidance_scale": SCALE, "height": SIZE[0], "width": SIZE[1]}
    wanted, expected = (pipeline("a red circle", latents=noise_of(3), output_type=form, **asked).images for form in ("latent", "np"))

    pipeline.scheduler.save_pretrained(tmp_path)
    schedule = to_schedule(json.loads((tmp_path / "scheduler_config.json").read_text()))
    states, null_states = pipeline.encode_prompt("a red circle", "cpu", 1, True, negative_prompt="blue")
    levels, times = schedule.levels(STEPS)
    told = dict(zip(levels.tolist(), times))
    denoise = denoiser(lambda x, t, states: unet(x, t, memory=Memory(states)), "noise", VP, time=lambda level: told[float(level)])
    latents, unguided = (last(ddim(guided(denoise, states, null_states, scale), noise_of(3), levels)) for scale in (SCALE, 1))
    assert (latents - unguided).abs().max() > 0.01                                       # the prompts count
    torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-4)
    made = (vae.decode(latents / vae.cfg.scaling) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert 0.02 < made.std() < 0.4
    torch.testing.assert_close(made, torch.from_numpy(expected), rtol=0, atol=1e-4)


def test_its_own_scheduler_is_named_where_it_has_no_counterpart(folder):
    with pytest.raises(ConfigError, match="_class_name should be one of .*got 'PNDMScheduler'"):
        to_schedule(json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
