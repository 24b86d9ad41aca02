"""The diffusion transformer."""
import pytest
import torch
import torch.nn.functional as F

from gencore.check import ConfigError, InputError
from gencore.diffusion import denoiser, flow_levels, flow_loss, logit_normal
from gencore.samplers import dpm_solver, guided, last
from gencore.transformer import Memory
from imagegen.dit import DiT, DiTConfig, PromptCache, deeper, finer

TINY = DiTConfig(channels=3, size=4, width=32, layers=2, heads=2, captions=8, out_channels=3)


def shaken(cfg=TINY):
    """A transformer whose every weight says something."""
    torch.manual_seed(0)
    model = DiT(cfg).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def prompts(*lengths):
    keep = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return Memory(torch.randn(len(lengths), max(lengths), 8), keep)


def test_a_fresh_transformer_says_nothing():
    assert DiT(TINY)(torch.randn(2, 3, 4, 4), torch.tensor([1.0, 900.0]), prompts(3, 2)).abs().max() == 0


@torch.no_grad()
def test_prompt_cache_changes_nothing():
    model, words = shaken(), prompts(5, 2)
    memory, cache = model.project(words), PromptCache()
    for t in (900.0, 400.0, 10.0):
        latents, level = torch.randn(2, 3, 4, 4), torch.full((2,), t)
        kept = model.velocity(latents, model.level(level), memory, cache=cache)
        torch.testing.assert_close(kept, model(latents, level, words), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_prompts_of_a_batch_do_not_disturb_each_other():
    model, words = shaken(), prompts(5, 2)
    latents, t = torch.randn(2, 3, 4, 4), torch.tensor([700.0, 30.0])
    together = model(latents, t, words)
    for row, length in enumerate((5, 2)):
        alone = model(latents[row:row + 1], t[row:row + 1], Memory(words.states[row:row + 1, :length]))
        torch.testing.assert_close(together[row:row + 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_prompt_level_and_place_all_matter():
    model, words = shaken(), prompts(4)
    latents, t = torch.randn(1, 3, 4, 4), torch.tensor([500.0])
    said = model(latents, t, words)
    assert (said - model(latents, t, prompts(4))).abs().max() > 1e-3
    assert (said - model(latents, t + 300, words)).abs().max() > 1e-3
    turned = model(latents.flip(-1), t, words).flip(-1)
    assert (said - turned).abs().max() > 1e-3


def test_it_learns_eight_things_by_name():
    torch.manual_seed(0)
    things, words = torch.randn(8, 3, 4, 4), Memory(torch.eye(8)[:, None])
    model, generator = DiT(TINY), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(250):
        noise, levels = torch.randn(32, 3, 4, 4, generator=generator), logit_normal(32, generator)
        rows = torch.arange(32) % 8
        loss = flow_loss(lambda x, t: model(x, t, Memory(words.states[rows])), things[rows], noise, levels).mean()        # noqa: B023
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        denoise = guided(denoiser(model), words, words, 1)
        made = last(dpm_solver(denoise, torch.randn(8, 3, 4, 4, generator=generator), flow_levels(20)[0]))
    nearest = torch.cdist(made.flatten(1), things.flatten(1)).argmin(1)
    assert nearest.tolist() == list(range(8)) and (made - things).abs().mean() < 0.35


def test_finer_tokens_start_as_those_of_an_even_patch():
    coarse = shaken()
    fine, even = finer(coarse), torch.randn(2, 3, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    places, patches = coarse.enter(torch.zeros_like(even)), coarse.enter(even)
    tokens = (fine.enter(even) - fine.enter(torch.zeros_like(even))).unflatten(1, (4, 4))
    assert fine.cfg.patch == 1 and fine.enter(even).shape == (2, 16, 32)
    assert torch.allclose(tokens[:, ::2, ::2].flatten(1, 2), patches - places, atol=1e-5)                  # a latent enters as its patch did
    where = fine.enter(torch.zeros_like(even)).unflatten(1, (4, 4))[:, ::2, ::2].flatten(1, 2)
    assert torch.allclose(where, places, atol=1e-5)                                                         # and lies where that lay
    level, states = coarse.level(torch.tensor([3.0, 700.0])), torch.randn(2, 4, 32)
    mean = F.avg_pool2d(coarse.leave(states, even.shape, level), 2)
    leaving = fine.leave(states.unflatten(1, (2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2), even.shape, level)
    assert torch.allclose(F.avg_pool2d(leaving, 2), mean, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(coarse.transformer.parameters(), fine.transformer.parameters()))


@torch.no_grad()
def test_a_deeper_transformer_gives_the_same_velocities_at_first():
    model, inputs = shaken(), (torch.randn(2, 3, 4, 4), torch.tensor([3.0, 700.0]), prompts(3, 2))
    more = deeper(model, 5)
    assert more.cfg.layers == len(more.transformer.blocks) == 5 and torch.equal(more(*inputs), model(*inputs))
    more.transformer.blocks[-1].mlp.down.weight.normal_()
    assert model.cfg == TINY and not torch.equal(more(*inputs), model(*inputs))          # nothing is shared


def test_wrong_latents_and_sizes_are_refused():
    with pytest.raises(InputError, match="latents: C should be 3"):
        DiT(TINY)(torch.randn(1, 4, 4, 4), torch.ones(1), prompts(2))
    with pytest.raises(InputError, match="multiples of 2"):
        DiT(TINY)(torch.randn(1, 3, 5, 4), torch.ones(1), prompts(2))
    with pytest.raises(ConfigError, match="patch"):
        DiTConfig(size=9)
