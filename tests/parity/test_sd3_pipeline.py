"""StableDiffusion3Pipeline with three tiny random text encoders: the same picture by our transformer, levels, sampler and autoencoder.

The prompt is read by the pipeline's own encoders, which have no counterpart here; all that comes after is ours."""
import pytest
import torch

from gencore.checkpoint import save_folder
from gencore.diffusion import FLOW, denoiser, flow_euler_levels
from gencore.samplers import euler, guided, last
from gencore.text_encoder import train_prompt_tokenizer
from gencore.transformer import Memory
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.families.autoencoder_kl import AUTOENCODER_KL
from imagegen.families.sd3 import SD3
from imagegen.joint_dit import JointDiT, JointDiTConfig
from imagegen.parts import read_part

STEPS, SCALE, SHIFT, SIZE = 12, 3.0, 3.0, (16, 24)
PARTS = {"transformer": (SD3, JointDiT, JointDiTConfig(channels=4, out_channels=4, size=8, places=12, width=24, layers=2, heads=2, context=32,
                                                       pooled=32)),
         "vae": (AUTOENCODER_KL, Autoencoder, AutoencoderConfig(channels=(4, 8), latent=4, groups=2, size=16, scaling=1.5, shift=0.06,
                                                                quant_convs=False))}


def exported(place, name):
    """Writes one part of ours as diffusers has it."""
    family, Part, cfg = PARTS[name]
    torch.manual_seed(1)
    part = Part(cfg)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    save_folder(place / name, {"config.json": family.to_theirs(cfg),
                               "diffusion_pytorch_model.safetensors": family.export_state(cfg, part.state_dict())})
    return place / name


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast, T5Config, T5EncoderModel
    place = tmp_path_factory.mktemp("sd3")
    save_folder(place / "words", dict(train_prompt_tokenizer(["a red circle"] * 4, 280, length=12).files()) | {"config.json": {}})
    words = PreTrainedTokenizerFast.from_pretrained(place / "words")
    torch.manual_seed(2)
    clip = CLIPTextConfig(vocab_size=280, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
                          max_position_embeddings=12)
    t5 = T5Config(vocab_size=280, d_model=32, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    made = StableDiffusion3Pipeline(
        SD3Transformer2DModel.from_pretrained(exported(place, "transformer")), FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        AutoencoderKL.from_pretrained(exported(place, "vae")), CLIPTextModelWithProjection(clip).eval(), words,
        CLIPTextModelWithProjection(clip).eval(), words, T5EncoderModel(t5).eval(), words)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def test_the_same_picture_by_our_parts(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    transformer, vae = (read_part(tmp_path / name, *PARTS[name][:2]) for name in PARTS)
    assert (transformer.cfg, vae.cfg) == (PARTS["transformer"][2], PARTS["vae"][2])
    noise = torch.randn(1, 4, *(side // 2 for side in SIZE), generator=torch.Generator().manual_seed(3))
    asked = {"max_sequence_length": 12, "negative_prompt": "blue"}
    expected = pipeline("a red circle", num_inference_steps=STEPS, guidance_scale=SCALE, height=SIZE[0], width=SIZE[1], latents=noise,
                        output_type="np", **asked).images

    states, null_states, pooled, null_pooled = pipeline.encode_prompt("a red circle", None, None, **asked)
    levels, times = flow_euler_levels(STEPS, SHIFT)
    told = dict(zip(levels.tolist(), times))
    network = lambda x, t, said: transformer(x, t, Memory(said[0]), said[1])
    denoise = guided(denoiser(network, "velocity", FLOW, time=lambda level: told[float(level)]), (states, pooled), (null_states, null_pooled), SCALE)
    picture = vae.decode(last(euler(denoise, noise, levels)) / vae.cfg.scaling + vae.cfg.shift)
    made = (picture / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert 0.02 < made.std() < 0.4
    torch.testing.assert_close(made, torch.from_numpy(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 7, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_levels_are_those_of_the_scheduler_to_the_bit(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    levels, times = flow_euler_levels(steps, shift)
    assert torch.equal(levels, theirs.sigmas) and torch.equal(times, theirs.timesteps)
