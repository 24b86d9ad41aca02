"""DiTTransformer2DModel and ClassDiT on the same random weights, and guided steps of DDIM through both from the same noise."""
import pytest
import torch

from gencore.check import CheckpointError, ConfigError
from gencore.diffusion import VP, denoiser, linear_betas, vp_levels
from gencore.samplers import ddim, last
from imagegen.class_dit import ClassDiT, ClassDiTConfig
from imagegen.families.dit import DIT

FIELDS = {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 5, "out_channels": 5, "num_layers": 2, "sample_size": 8,
          "patch_size": 2, "num_embeds_ada_norm": 10}


def opened(fields, seed=0):
    """(their model with equal copies of its embedders, ours with its weights)."""
    from diffusers import DiTTransformer2DModel
    torch.manual_seed(seed)
    theirs = DiTTransformer2DModel(**fields).eval()
    for block in theirs.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    cfg = DIT.to_ours(dict(theirs.config))
    ours = ClassDiT(cfg).eval()
    ours.load_state_dict(DIT.import_state(cfg, theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("change", [{}, {"out_channels": 10}, {"patch_size": 4, "sample_size": 16}, {"norm_eps": 1e-3}])
@torch.no_grad()
def test_dit_says_the_same_as_diffusers(change):
    theirs, ours = opened(FIELDS | change)
    side = ours.cfg.size
    latents, t, labels = torch.randn(3, 5, side, side), torch.tensor([13, 800, 0]), torch.tensor([2, 9, 10])        # 10: the null label
    expected = theirs(latents, timestep=t, class_labels=labels).sample
    torch.testing.assert_close(ours(latents, t.float(), labels), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_hidden_labels_and_guidance():
    _, ours = opened(FIELDS)
    latents, t, labels = torch.randn(2, 5, 8, 8), torch.tensor([5.0, 90.0]), torch.tensor([1, 2])
    null = ours(latents, t, torch.tensor([10, 10]))
    torch.testing.assert_close(ours(latents, t, labels, torch.tensor([True, False])), torch.cat((null[:1], ours(latents, t, labels)[1:])))
    torch.testing.assert_close(ours.guided(latents, t, labels, 3.0), null + 3 * (ours(latents, t, labels) - null), rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.guided(latents, t, labels, 1), ours(latents, t, labels))


def test_dit_weights_survive_the_way_there_and_back():
    theirs, ours = opened(FIELDS)
    state = theirs.state_dict()
    back = DIT.export_state(ours.cfg, ours.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert DIT.to_ours(DIT.to_theirs(ours.cfg)) == ours.cfg


def test_dit_with_other_parts_is_refused_by_name():
    with pytest.raises(ConfigError, match="norm_type"):
        DIT.to_ours(DIT.to_theirs(ClassDiTConfig()) | {"norm_type": "ada_norm_single"})
    with pytest.raises(ConfigError, match="multiple of patch 2, got 7"):
        ClassDiT(ClassDiTConfig(size=7, width=24, layers=1, heads=3, classes=4))
    _, ours = opened(FIELDS)
    state = DIT.export_state(ours.cfg, ours.state_dict())
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    with pytest.raises(CheckpointError, match=f'"{name}" should equal .* and differs'):
        DIT.import_state(ours.cfg, state | {name: state[name] + 1})


def test_a_new_network_says_nothing_and_its_blocks_are_skips():
    ours = ClassDiT(ClassDiTConfig(size=8, width=24, layers=2, heads=3, classes=4))
    x = torch.randn(2, 16, 24)
    assert not ours(torch.randn(2, 4, 8, 8), torch.ones(2), torch.tensor([0, 3])).any()
    torch.testing.assert_close(ours.transformer(x, cond=torch.randn(2, 24)), torch.nn.functional.layer_norm(x, (24,), eps=1e-6))


@torch.no_grad()
def test_guided_steps_through_the_exported_transformer_draw_the_same():
    """As DiTPipeline does them, whose own null label is 1000 whatever the transformer says."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel
    _, ours = opened(FIELDS)
    theirs = DiTTransformer2DModel.from_config(DIT.to_theirs(ours.cfg))
    theirs.load_state_dict(DIT.export_state(ours.cfg, ours.state_dict()))
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(5)
    noise, labels = torch.randn(2, 5, 8, 8), torch.tensor([3, 7])
    x, both = noise, torch.cat((labels, torch.tensor([10, 10])))
    for t in scheduler.timesteps:
        said, null = theirs.eval()(torch.cat((x, x)), timestep=t.expand(4), class_labels=both).sample.chunk(2)
        x = scheduler.step(null + 4 * (said - null), t, x).prev_sample
    levels = torch.cat((vp_levels(linear_betas())[scheduler.timesteps], torch.zeros(1)))
    known = dict(zip(levels.tolist(), scheduler.timesteps))
    denoise = denoiser(lambda x, t: ours.guided(x, t, labels, 4.0), "noise", VP, time=lambda level: known[float(level)])
    torch.testing.assert_close(last(ddim(denoise, noise, levels)), x, rtol=1e-3, atol=1e-3)
