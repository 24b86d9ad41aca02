"""SD3Transformer2DModel and JointDiT on the same random weights."""
import pytest
import torch

from gencore.check import ConfigError, InputError
from gencore.transformer import Memory
from imagegen.families.sd3 import SD3
from imagegen.joint_dit import JointDiT, JointDiTConfig

FIELDS = {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 5, "out_channels": 5, "num_layers": 3, "sample_size": 8, "patch_size": 2,
          "joint_attention_dim": 12, "caption_projection_dim": 24, "pooled_projection_dim": 10, "pos_embed_max_size": 6}


def opened(fields, seed=0):
    """(their model, ours with its weights)."""
    from diffusers import SD3Transformer2DModel
    torch.manual_seed(seed)
    theirs = SD3Transformer2DModel(**fields).eval()
    cfg = SD3.to_ours(dict(theirs.config))
    ours = JointDiT(cfg).eval()
    ours.load_state_dict(SD3.import_state(cfg, theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("change, size", [({}, (8, 8)), ({}, (6, 12)), ({"qk_norm": "rms_norm"}, (8, 8)), ({"out_channels": 10}, (8, 8)),
                                          ({"num_layers": 1}, (4, 4))])
@torch.no_grad()
def test_sd3_says_the_same_as_diffusers(change, size):
    theirs, ours = opened(FIELDS | change)
    latents, t = torch.randn(2, 5, *size), torch.tensor([13.0, 800.0])
    states, pooled = torch.randn(2, 7, 12), torch.randn(2, 10)
    expected = theirs(latents, encoder_hidden_states=states, pooled_projections=pooled, timestep=t).sample
    torch.testing.assert_close(ours(latents, t, Memory(states), pooled), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_words_that_are_no_words_change_nothing():
    _, ours = opened(FIELDS)
    latents, t, pooled, states = torch.randn(2, 5, 8, 8), torch.tensor([13.0, 800.0]), torch.randn(2, 10), torch.randn(2, 7, 12)
    keep = torch.arange(7)[None].expand(2, 7) < 4
    short = ours(latents, t, Memory(states[:, :4]), pooled)
    torch.testing.assert_close(ours(latents, t, Memory(states, keep), pooled), short, rtol=1e-5, atol=1e-5)


def test_sd3_weights_survive_the_way_there_and_back():
    theirs, ours = opened(FIELDS | {"qk_norm": "rms_norm"})
    state, back = theirs.state_dict(), SD3.export_state(ours.cfg, ours.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert SD3.to_ours(SD3.to_theirs(ours.cfg)) == ours.cfg
    again = type(theirs).from_config(SD3.to_theirs(ours.cfg))
    again.load_state_dict(back)


def test_wrong_sizes_and_other_parts_are_named():
    _, ours = opened(FIELDS)
    with pytest.raises(InputError, match="latents of 7 x 7 patches are more than the 6 x 6 places"):
        ours(torch.randn(1, 5, 14, 14), torch.ones(1), Memory(torch.randn(1, 3, 12)), torch.randn(1, 10))
    with pytest.raises(InputError, match="pooled: D should be 10, got 9"):
        ours(torch.randn(1, 5, 8, 8), torch.ones(1), Memory(torch.randn(1, 3, 12)), torch.randn(1, 9))
    with pytest.raises(ConfigError, match="dual_attention_layers"):
        SD3.to_ours(SD3.to_theirs(ours.cfg) | {"dual_attention_layers": [0]})
    with pytest.raises(ConfigError, match="heads should divide width"):
        JointDiTConfig(width=100)
    new = JointDiT(ours.cfg)
    assert not new(torch.randn(1, 5, 8, 8), torch.ones(1), Memory(torch.randn(1, 3, 12)), torch.randn(1, 10)).any()
