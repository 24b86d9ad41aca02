"""PixArtTransformer2DModel and DiT on the same random weights."""
import pytest
import torch

from gencore.check import CheckpointError, ConfigError
from gencore.transformer import Memory
from imagegen.dit import DiT, DiTConfig
from imagegen.families.pixart import PIXART


def opened(fields, seed=0):
    """(their model, ours with its weights)."""
    from diffusers import PixArtTransformer2DModel
    torch.manual_seed(seed)
    theirs = PixArtTransformer2DModel(use_additional_conditions=False, **fields).eval()
    for table in [theirs.scale_shift_table, *(block.scale_shift_table for block in theirs.transformer_blocks)]:
        torch.nn.init.normal_(table, std=0.5)
    cfg = PIXART.to_ours(dict(theirs.config))
    ours = DiT(cfg).eval()
    ours.load_state_dict(PIXART.import_state(cfg, theirs.state_dict()))
    return theirs, ours


FIELDS = {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 5, "out_channels": 5, "num_layers": 2, "sample_size": 8,
          "patch_size": 2, "cross_attention_dim": 24, "caption_channels": 12}


@pytest.mark.parametrize("change,size", [({}, (8, 8)), ({}, (8, 12)), ({"out_channels": 10}, (8, 8)), ({"interpolation_scale": 2}, (16, 16)),
                                         ({"patch_size": 4, "sample_size": 16}, (16, 8)), ({"norm_eps": 1e-2}, (8, 8))])
@torch.no_grad()
def test_pixart_says_the_same_as_diffusers(change, size):
    theirs, ours = opened(FIELDS | change)
    latents, t = torch.randn(2, 5, *size), torch.tensor([13.0, 800.0])
    states, keep = torch.randn(2, 7, 12), torch.arange(7)[None] < torch.tensor([[7], [3]])
    expected = theirs(latents, states, timestep=t, encoder_attention_mask=keep.float(),
                      added_cond_kwargs={"resolution": None, "aspect_ratio": None}).sample[:, :5]
    torch.testing.assert_close(ours(latents, t, Memory(states, keep)), expected, rtol=1e-5, atol=1e-5)


def test_pixart_weights_survive_the_way_there_and_back():
    theirs, ours = opened(FIELDS)
    state = theirs.state_dict()
    back = PIXART.export_state(ours.cfg, ours.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert PIXART.to_ours(PIXART.to_theirs(ours.cfg)) == ours.cfg


def test_pixart_with_other_parts_is_refused_by_name():
    config = PIXART.to_theirs(DiTConfig())
    assert PIXART.to_ours({key: value for key, value in config.items() if key != "out_channels"}).out_channels == 8         # diffusers' default
    with pytest.raises(ConfigError, match="norm_type"):
        PIXART.to_ours(config | {"norm_type": "ada_norm_zero"})
    with pytest.raises(ConfigError, match="use_additional_conditions"):
        PIXART.to_ours(config | {"use_additional_conditions": None, "sample_size": 128})
    _, ours = opened(FIELDS)
    state = PIXART.export_state(ours.cfg, ours.state_dict())
    state.pop("proj_out.bias")
    with pytest.raises(CheckpointError, match="proj_out.bias"):
        PIXART.import_state(ours.cfg, state)
