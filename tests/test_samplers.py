"""Samplers against closed forms and against diffusers' schedulers."""
import math

import pytest
import torch

from gencore.check import InputError
from gencore.diffusion import FLOW, VE, VP, flow_levels, karras_levels, linear_betas, vp_levels
from gencore.samplers import ddim, ddpm, dpm_solver, euler, euler_ancestral, guided, heun, last

SPREAD = 0.7                # of Gaussian data: its best denoiser is known


def gaussian(path):
    """Denoiser of data with mean 0 and spread SPREAD: E[data | x] = alpha s^2 x / (alpha^2 s^2 + sigma^2)."""
    def denoise(x, level):
        alpha, sigma = path.scales(level)
        return alpha * SPREAD ** 2 / (alpha ** 2 * SPREAD ** 2 + sigma ** 2) * x
    return denoise


def exact(path, x, first, final):
    """The probability flow of Gaussian data scales x by the ratio of the standard deviations."""
    deviations = [math.sqrt((a * SPREAD) ** 2 + s ** 2) for a, s in (path.scales(float(first)), path.scales(float(final)))]
    return x * deviations[1] / deviations[0]


def row(path, steps, low=0.05, high=0.95):
    return torch.linspace(high, low, steps + 1, dtype=torch.float64) if path is FLOW else \
        torch.linspace(math.log(5), math.log(low), steps + 1, dtype=torch.float64).exp()


CASES = [(euler, FLOW, 1), (euler, VE, 1), (heun, FLOW, 2), (heun, VE, 2), (ddim, VP, 1), (ddim, FLOW, 1), (dpm_solver, FLOW, 2), (dpm_solver, VP, 2)]


@pytest.mark.parametrize("sampler,path,order", CASES)
def test_halving_the_step_cuts_the_error_by_the_samplers_order(sampler, path, order):
    x = torch.randn(2, 3, dtype=torch.float64)
    extra = () if sampler in (euler, heun) else (path,)
    errors = []
    for steps in (40, 80):
        levels = row(path, steps)
        made = last(sampler(gaussian(path), x, levels, *extra))
        errors.append((made - exact(path, x, levels[0], levels[-1])).abs().max().item())
    assert 0.75 * 2 ** order < errors[0] / errors[1] < 1.4 * 2 ** order


def test_into_zero_the_sample_is_finite_and_close():
    x = torch.randn(1000, dtype=torch.float64)
    for sampler in (euler, heun, dpm_solver):
        levels = flow_levels(100)[0].double()
        made = last(sampler(gaussian(FLOW), x, levels))
        torch.testing.assert_close(made, exact(FLOW, x, levels[0], 0.0), rtol=0.03, atol=0.01)


def test_ancestral_sampling_gives_the_spread_of_the_data():
    generator = torch.Generator().manual_seed(0)
    levels = torch.cat((vp_levels(linear_betas(1000)).flip(0), torch.zeros(1)))
    x = torch.randn(20000, generator=generator)
    made = last(ddpm(gaussian(VP), x, levels, generator))
    assert abs(made.std() - SPREAD) < 0.02 and abs(made.mean()) < 0.02


def walk(scheduler, denoise_from, x, steps):
    """diffusers' scheduler, step by step, on what the network would say."""
    scheduler.set_timesteps(steps)
    way = []
    for t in scheduler.timesteps:
        x = scheduler.step(denoise_from(x, t), t, x).prev_sample
        way.append(x)
    return way


@pytest.mark.parametrize("steps", [2, 5, 14, 20])
def test_dpm_solver_is_diffusers_flow_scheduler_step_by_step(steps):
    from diffusers import DPMSolverMultistepScheduler
    torch.manual_seed(1)
    weight = torch.randn(6, 6) / 3
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    x = torch.randn(2, 6)
    levels, times = flow_levels(steps)
    theirs = walk(scheduler, lambda x, t: torch.tanh(x @ weight + t / 1000), x, steps)
    known = dict(zip(levels.tolist(), times))

    def denoise(x, level):
        return x - level * torch.tanh(x @ weight + known[float(level)] / 1000)

    for ours, expected in zip(dpm_solver(denoise, x, levels), theirs):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "dpm"])
def test_noise_predictors_walk_as_in_diffusers(name):
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
    torch.manual_seed(2)
    weight, x = torch.randn(6, 6) / 3, torch.randn(2, 6)
    betas, N = linear_betas(), 10

    def says(x, t):
        return torch.tanh(x @ weight + t / 1000)

    if name == "ddim":
        scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=False)
    else:
        scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", final_sigmas_type="zero")
    theirs = walk(scheduler, says, x, N)
    table = vp_levels(betas)
    end = table[:1] if name == "ddim" else torch.zeros(1)
    levels = torch.cat((table[scheduler.timesteps], end))
    known = dict(zip(levels.tolist(), scheduler.timesteps))

    def denoise(x, level):
        alpha, sigma = VP.scales(level)
        return (x - sigma * says(x, known[float(level)])) / alpha

    walked = list(ddim(denoise, x, levels[:-1], VP)) if name == "ddim" else list(dpm_solver(denoise, x, levels, VP))
    for ours, expected in zip(walked, theirs):
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)           # their table is summed in float32


def test_edm_euler_walks_as_in_diffusers():
    from diffusers import EDMEulerScheduler
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(8)
    x = torch.randn(2, 3) * 80
    levels, expected, way = karras_levels(8), x, []
    for t, level in zip(scheduler.timesteps, levels):
        expected = scheduler.step(torch.zeros_like(x), t, expected).prev_sample
        way.append((expected, level))
    skip = 0.5 ** 2                                                                 # a silent network under EDM's preconditioning
    for ours, (theirs, _) in zip(euler(lambda x, s: x * skip / (s ** 2 + skip), x, levels), way):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [4, 25])
def test_ancestral_chains_walk_as_in_diffusers_with_the_same_noise(steps):
    from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler
    torch.manual_seed(3)
    weight, x = torch.randn(6, 6) / 3, torch.randn(2, 6)

    def says(x, t):
        return torch.tanh(x @ weight + t / 1000)

    scheduler = DDPMScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(steps)
    levels = torch.cat((vp_levels(linear_betas())[scheduler.timesteps], torch.zeros(1)))
    known = dict(zip(levels.tolist(), scheduler.timesteps))
    mine, theirs, expected = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0), x
    for ours, t in zip(ddpm(lambda x, s: (x - VP.scales(s)[1] * says(x, known[float(s)])) / VP.scales(s)[0], x, levels, mine), scheduler.timesteps):
        expected = scheduler.step(says(expected, t), t, expected, generator=theirs).prev_sample
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)           # their table is summed in float32

    scheduler = EulerAncestralDiscreteScheduler(beta_schedule="linear")
    scheduler.set_timesteps(steps)
    levels, x = scheduler.sigmas, x * scheduler.init_noise_sigma
    known = dict(zip(levels.tolist(), scheduler.timesteps))
    mine, theirs, expected = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0), x
    way = euler_ancestral(lambda x, s: x - s * says(x / (s ** 2 + 1) ** 0.5, known[float(s)]), x, levels, mine)
    for ours, t in zip(way, scheduler.timesteps):
        expected = scheduler.step(says(scheduler.scale_model_input(expected, t), t), t, expected, generator=theirs).prev_sample
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


NAMESAKES = {               # scheduler of diffusers: (our sampler, the path that its samples go)
    "DDPMScheduler": (ddpm, VP), "DDIMScheduler": (ddim, VP), "DPMSolverMultistepScheduler": (dpm_solver, VP), "EulerDiscreteScheduler": (euler, VE),
    "HeunDiscreteScheduler": (heun, VE), "EulerAncestralDiscreteScheduler": (euler_ancestral, VE), "FlowMatchEulerDiscreteScheduler": (euler, FLOW)}


def table_of(scheduler):
    """The levels of a scheduler that has its steps, in float64, so that samplers are compared and not tables."""
    if hasattr(scheduler, "sigmas"):
        levels = scheduler.sigmas.double()
        return torch.cat((levels[:1], levels[1::2])) if "Heun" in type(scheduler).__name__ else levels       # Heun's has those between twice
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    return torch.cat((((1 - kept) / kept).sqrt(), kept.new_zeros(1)))


@pytest.mark.parametrize("steps", [1, 4, 25])
@pytest.mark.parametrize("name", NAMESAKES)
def test_after_every_step_x_is_that_of_the_scheduler_of_its_name(name, steps):
    import diffusers
    (sampler, path), heuns = NAMESAKES[name], name == "HeunDiscreteScheduler"
    scheduler = getattr(diffusers, name)(**{} if path is FLOW else {"clip_sample": False} if sampler in (ddpm, ddim) else {"beta_schedule": "linear"})
    scheduler.set_timesteps(steps)
    torch.manual_seed(6)
    weight, noise = torch.randn(6, 6) / 3, torch.randn(2, 6)
    says = lambda x, t: x * t / 1000 + torch.tanh(x @ weight + t / 1000) / 4             # noise, or the velocity
    levels, times = table_of(scheduler), torch.cat((scheduler.timesteps[:1], scheduler.timesteps[1::2])) if heuns else scheduler.timesteps
    known = dict(zip(levels.tolist(), times))

    def denoise(x, level):
        alpha, sigma = path.scales(level)
        within = x / (level ** 2 + 1) ** 0.5 if path is VE else x                        # what diffusers' scale_model_input makes of it
        return (x - sigma * says(within, known[float(level)])) / (alpha if path is VP else 1)

    mine, theirs = ({"generator": torch.Generator().manual_seed(7)} if sampler in (ddpm, euler_ancestral) else {} for _ in range(2))
    x, way = noise * (1 if path is FLOW else scheduler.init_noise_sigma), []
    ours = list(sampler(denoise, x, levels, **mine, **{"path": VP} if sampler is dpm_solver else {}))
    for t in scheduler.timesteps:
        said = says(x if path is FLOW else scheduler.scale_model_input(x, t), t)
        x = scheduler.step(said, t, x, **theirs).prev_sample
        way.append(x)
    for step, expected in zip(ours, way[1::2] + way[-1:] if heuns else way, strict=True):         # its guesses between are no steps
        torch.testing.assert_close(step, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variance, share", [("fixed_small", 0.0), ("fixed_large", 1.0), ("learned_range", None)])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_the_variances_of_the_ancestral_chain_are_those_of_diffusers(variance, share, clip):
    from diffusers import DDPMScheduler
    torch.manual_seed(4)
    weight, x, steps = torch.randn(6, 12) / 3, torch.randn(2, 6), 10
    scheduler = DDPMScheduler(variance_type=variance, clip_sample=clip is not None, clip_sample_range=clip or 1.0)
    scheduler.set_timesteps(steps)
    levels = torch.cat((vp_levels(linear_betas())[scheduler.timesteps], torch.zeros(1)))
    known = dict(zip(levels.tolist(), scheduler.timesteps))
    says = lambda x, t: torch.tanh(x @ weight + t / 1000)                      # noise, and how much of the variance: (B, 12)

    def denoise(x, level):
        noise, wide = says(x, known[float(level)]).chunk(2, 1)
        alpha, sigma = VP.scales(level)
        data = (x - sigma * noise) / alpha
        return data if known[float(level)] == 0 else (data, (wide + 1) / 2 if share is None else share)         # there diffusers adds none

    mine, theirs = ([torch.Generator().manual_seed(i) for i in range(2)] for _ in range(2))
    expected = x
    for ours, t in zip(ddpm(denoise, x, levels, mine, clip=clip), scheduler.timesteps):
        said = says(expected, t)
        expected = scheduler.step(said if share is None else said[:, :6], t, expected, generator=theirs).prev_sample
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)           # their table is summed in float32


def test_clipped_data_leave_the_noise_of_ddim_as_it_was_said():
    from diffusers import DDIMScheduler
    torch.manual_seed(5)
    weight, x = torch.randn(6, 6) / 3, torch.randn(2, 6)
    scheduler = DDIMScheduler(clip_sample=True, clip_sample_range=0.8)
    theirs = walk(scheduler, lambda x, t: torch.tanh(x @ weight + t / 1000), x, 10)
    levels = torch.cat((vp_levels(linear_betas())[scheduler.timesteps], torch.zeros(1)))
    known = dict(zip(levels.tolist(), scheduler.timesteps))
    denoise = lambda x, s: (x - VP.scales(s)[1] * torch.tanh(x @ weight + known[float(s)] / 1000)) / VP.scales(s)[0]
    for ours, expected in zip(ddim(denoise, x, levels, clip=0.8), theirs):
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("sampler", [ddpm, euler_ancestral])
def test_a_row_with_a_generator_of_its_own_is_the_same_alone(sampler):
    levels, x = karras_levels(6, high=5.0), torch.randn(3, 4)
    path = {"path": VE} if sampler is ddpm else {}
    draws = lambda rows: [torch.Generator().manual_seed(row) for row in rows]
    together = last(sampler(gaussian(VE), x, levels, draws(range(3)), **path))
    torch.testing.assert_close(last(sampler(gaussian(VE), x[1:2], levels, draws([1]), **path))[0], together[1])


def test_euler_ancestral_gives_the_spread_of_the_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, generator=generator, dtype=torch.float64) * 80
    made = last(euler_ancestral(gaussian(VE), x, karras_levels(400).double(), generator))
    assert abs(made.std() - SPREAD) < 0.02 and abs(made.mean()) < 0.02


def test_guidance_holds_within_its_levels_alone():
    lean = guided(lambda x, level, word: x * word, 3.0, 1.0, 4.0, within=(0.2, 0.8))
    assert [lean(torch.ones(1), torch.tensor(level)).item() for level in (0.1, 0.2, 0.5, 0.8, 0.9)] == pytest.approx([3, 3, 9, 9, 3])


def test_guidance_leans_from_null_to_condition():
    denoise = lambda x, level, word: x * word
    x = torch.ones(2)
    assert guided(denoise, 3.0, 1.0, 1)(x, 0.5).tolist() == [3, 3]
    assert guided(denoise, 3.0, 1.0, 0)(x, 0.5).tolist() == [1, 1]
    assert guided(denoise, 3.0, 1.0, 4.0)(x, 0.5).tolist() == [9, 9]


def test_levels_must_fall_and_be_several():
    with pytest.raises(InputError, match="falling"):
        last(euler(gaussian(FLOW), torch.ones(1), [0.1, 0.5]))
    with pytest.raises(InputError, match="at least two"):
        last(euler(gaussian(FLOW), torch.ones(1), [0.1]))


def test_levels_that_are_no_numbers_are_refused():
    for levels in ([1.0, float("nan"), 0.0], [float("nan"), 0.5], [1.0, 1.0], [0.5, -0.1]):
        with pytest.raises(InputError, match="levels should be one falling row"):
            last(euler(lambda x, level: x, torch.ones(1), torch.tensor(levels)))
