"""Noise paths, targets and losses."""
import numpy as np
import pytest
import torch

from gencore.check import ConfigError, InputError
from gencore.diffusion import (
    FLOW,
    VE,
    VP,
    cosine_betas,
    data_from,
    denoiser,
    edm_denoiser,
    edm_loss,
    flow_levels,
    flow_loss,
    karras_levels,
    linear_betas,
    log_normal,
    logit_normal,
    min_snr,
    path_loss,
    target,
    vp_levels,
)


@pytest.mark.parametrize("path", [FLOW, VE, VP], ids=["flow", "ve", "vp"])
@pytest.mark.parametrize("predicts", ["data", "noise", "velocity", "v"])
def test_whatever_a_network_predicts_gives_the_data_back(path, predicts):
    if predicts == "velocity" and path is not FLOW:
        pytest.skip("velocity is of the flow path")
    data, noise, level = torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64), torch.rand(4).double() * 0.8 + 0.1
    scales = path.scales(level)
    x = path.mix(data, noise, level)
    torch.testing.assert_close(data_from(predicts, target(predicts, data, noise, scales), x, scales), data)


def test_vp_path_keeps_the_variance_and_flow_runs_from_data_to_noise():
    level = torch.linspace(0.01, 50, 20)
    alpha, sigma = VP.scales(level)
    torch.testing.assert_close(alpha ** 2 + sigma ** 2, torch.ones(20))
    torch.testing.assert_close(sigma / alpha, level)
    data, noise = torch.randn(1, 5), torch.randn(1, 5)
    assert torch.equal(FLOW.mix(data, noise, torch.zeros(1)), data) and torch.equal(FLOW.mix(data, noise, torch.ones(1)), noise)


def test_velocity_is_the_derivative_of_the_flow_path():
    data, noise, step = torch.randn(2, 3).double(), torch.randn(2, 3).double(), 1e-4
    level = torch.tensor([0.3, 0.7]).double()
    slope = (FLOW.mix(data, noise, level + step) - FLOW.mix(data, noise, level - step)) / (2 * step)
    torch.testing.assert_close(slope, target("velocity", data, noise, FLOW.scales(level)))


@pytest.mark.parametrize("steps", [1, 2, 7, 9, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_and_times_are_those_of_diffusers_to_the_bit(steps, shift):
    from diffusers import DPMSolverMultistepScheduler
    theirs = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    theirs.set_timesteps(steps)
    levels, times = flow_levels(steps, shift)
    assert torch.equal(levels, theirs.sigmas) and torch.equal(times, theirs.timesteps)


def test_karras_levels_are_those_of_diffusers():
    from diffusers import EDMEulerScheduler
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(18)
    torch.testing.assert_close(karras_levels(18), theirs.sigmas)


def test_betas_are_those_of_diffusers():
    from diffusers import DDPMScheduler
    for name, ours in (("linear", linear_betas()), ("squaredcos_cap_v2", cosine_betas())):
        theirs = DDPMScheduler(beta_schedule=name).alphas_cumprod
        torch.testing.assert_close(vp_levels(ours), ((1 - theirs) / theirs).sqrt(), rtol=2e-3, atol=1e-5)     # theirs are summed in float32


def test_levels_for_training_follow_their_distributions():
    generator = torch.Generator().manual_seed(0)
    normal = torch.logit(logit_normal(20000, generator, mean=0.5, std=2.0).double())
    assert abs(normal.mean() - 0.5) < 0.05 and abs(normal.std() - 2) < 0.05
    assert abs(log_normal(20000, generator).log().mean() + 1.2) < 0.05


def test_flow_loss_is_zero_for_the_true_velocity_and_grows_with_the_error():
    data, noise, levels = torch.randn(6, 4), torch.randn(6, 4), torch.rand(6)
    torch.testing.assert_close(flow_loss(lambda x, t: noise - data, data, noise, levels), torch.zeros(6))
    torch.testing.assert_close(flow_loss(lambda x, t: noise - data + 2, data, noise, levels), torch.full((6,), 4.0))
    weights = torch.tensor([1.0, 0, 0, 5])
    torch.testing.assert_close(flow_loss(lambda x, t: noise - data + 2, data, noise, levels, weights=weights), torch.full((6,), 6.0))
    seen = []
    flow_loss(lambda x, t: seen.append(t) or x, data, noise, levels)
    torch.testing.assert_close(seen[0], levels * 1000)


def test_edm_denoiser_has_unit_inputs_and_a_weighted_loss_of_one_for_a_silent_network():
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(4000, 8, generator=generator) for _ in range(2))
    levels = log_normal(4000, generator)
    inputs = []
    edm_loss(lambda x, t: inputs.append(x) or torch.zeros_like(x), data * 0.5, noise, levels)
    assert abs(inputs[0].std() - 1) < 0.02
    assert abs(edm_loss(lambda x, t: torch.zeros_like(x), data * 0.5, noise, levels).mean() - 1) < 0.05       # Karras et al., appendix B.6
    x = torch.randn(3, 8)
    torch.testing.assert_close(edm_denoiser(lambda x, t: x)(x, 1e-5), x, atol=1e-4, rtol=1e-4)                # no noise: nothing to do


def test_denoiser_tells_the_network_its_time():
    seen = []
    denoise = denoiser(lambda x, t, word: seen.append((t, word)) or torch.zeros_like(x))
    x = torch.randn(2, 3)
    assert torch.equal(denoise(x, torch.tensor(0.25), "prompt"), x)
    assert seen[0][0].tolist() == [250.0, 250.0] and seen[0][1] == "prompt"


def test_wrong_steps_and_predictions_are_refused():
    for steps in (0, 1001, 2.5, True, "20"):
        with pytest.raises(InputError, match="steps should be"):
            flow_levels(steps)
    with pytest.raises(ConfigError, match="velocity"):
        target("speed", torch.zeros(1), torch.zeros(1), (1.0, 0.0))
    assert np.isfinite(flow_levels(1000)[0]).all()


@pytest.mark.parametrize("path", [FLOW, VP])
@pytest.mark.parametrize("predicts", ["data", "noise", "velocity", "v"])
def test_min_snr_weighs_every_prediction_as_errors_of_the_data(path, predicts):
    """The same error of the data, said in four ways, costs the same."""
    torch.manual_seed(0)
    levels = torch.tensor([0.05, 0.3, 0.7, 0.9]) if path is FLOW else torch.tensor([0.05, 0.5, 2.0, 9.0])
    data, noise, wrong = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3) * 0.1
    alpha, sigma = (s[:, None] for s in path.scales(levels))
    x = path.mix(data, noise, levels)
    said = target(predicts, data + wrong, (x - alpha * (data + wrong)) / sigma, path.scales(levels))
    loss = min_snr(predicts, levels, path=path) * path_loss(lambda x, t: said, data, noise, levels, predicts=predicts, path=path)
    wanted = (alpha / sigma)[:, 0].square().clamp(max=5.0) * wrong.square().mean(1)
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-5)


def test_min_snr_of_noise_is_diffusers_recipe():
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr
    scheduler, times = DDPMScheduler(), torch.tensor([5, 100, 500, 900])
    snr = compute_snr(scheduler, times)
    torch.testing.assert_close(min_snr("noise", vp_levels(linear_betas())[times]), snr.clamp(max=5) / snr, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="predicts"):
        min_snr("noize", torch.ones(1))
