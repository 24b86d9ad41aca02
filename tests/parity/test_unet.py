"""UNet2DModel, UNet2DConditionModel and UNet on the same random weights."""
import re

import pytest
import torch

from gencore.check import CheckpointError, ConfigError, InputError
from gencore.transformer import Memory
from imagegen.families.unet import UNET, UNET_CONDITION
from imagegen.unet import UNet, UNetConfig

PLAIN = {"sample_size": 16, "in_channels": 2, "out_channels": 3, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
         "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
PROMPTED = PLAIN | {"attention_head_dim": 2, "cross_attention_dim": 12, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}


FIRST = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "attention_head_dim": None, "norm_eps": 1e-6}   # google/ddpm-cifar10-32


def opened(name, fields, seed=0):
    """(their model, ours with its weights, the family)."""
    import diffusers
    torch.manual_seed(seed)
    theirs = getattr(diffusers, name)(**fields).eval()
    family = {"UNet2DModel": UNET, "UNet2DConditionModel": UNET_CONDITION}[name]
    cfg = family.to_ours(dict(theirs.config))
    ours = UNet(cfg).eval()
    ours.load_state_dict(family.import_state(cfg, theirs.state_dict()))
    return theirs, ours, family


@pytest.mark.parametrize("change, size", [
    ({}, (16, 16)), ({}, (8, 12)), ({"layers_per_block": 2}, (16, 16)), ({"add_attention": False}, (16, 16)), ({"num_class_embeds": 5}, (16, 16)),
    (FIRST, (16, 16)), (FIRST, (10, 12)),
    ({"block_out_channels": (8, 8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
      "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")}, (16, 16))])
@torch.no_grad()
def test_the_plain_one_says_the_same_as_diffusers(change, size):
    theirs, ours, _ = opened("UNet2DModel", PLAIN | change)
    x, t = torch.randn(2, 2, *size), torch.tensor([7, 900])
    labels = torch.tensor([0, 4]) if "num_class_embeds" in change else None
    torch.testing.assert_close(ours(x, t.float(), labels), theirs(x, t, class_labels=labels).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"use_linear_projection": True}, {"layers_per_block": 2}, {"attention_head_dim": (2, 4)}, {
    "block_out_channels": (8, 8, 16, 16), "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}])
@torch.no_grad()
def test_the_one_that_reads_prompts_says_the_same_as_diffusers(change):
    theirs, ours, _ = opened("UNet2DConditionModel", PROMPTED | change)
    x, t, states = torch.randn(2, 2, 16, 16), torch.tensor([7, 900]), torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x, t.float(), memory=Memory(states)), theirs(x, t, states).sample, rtol=1e-5, atol=1e-5)


def test_the_attention_of_old_files_opens():
    _, ours, family = opened("UNet2DModel", PLAIN | FIRST)
    old, spelt = {}, {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, tensor in family.export_state(ours.cfg, ours.state_dict()).items():
        for new, word in spelt.items():
            name = re.sub(rf"(attentions\.\d)\.{new}\.", rf"\1.{word}.", name)
        old[name] = tensor
    again = family.import_state(ours.cfg, old)
    assert any("proj_attn" in name for name in old) and all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("name, fields", [("UNet2DModel", PLAIN), ("UNet2DModel", PLAIN | FIRST), ("UNet2DConditionModel", PROMPTED),
                                          ("UNet2DConditionModel", PROMPTED | {"attention_head_dim": [1, 2]})])
def test_weights_survive_the_way_there_and_back(name, fields):
    import diffusers
    theirs, ours, family = opened(name, fields)
    state, back = theirs.state_dict(), family.export_state(ours.cfg, ours.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    assert family.to_ours(family.to_theirs(ours.cfg)) == ours.cfg
    again = getattr(diffusers, name).from_config(family.to_theirs(ours.cfg))
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == {key: tensor.shape for key, tensor in state.items()}


@pytest.mark.parametrize("fields, parameters", [
    ({"cross_attention_dim": 768, "attention_head_dim": 8}, 859_520_964),
    ({"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}, 865_910_724)])
def test_stable_diffusions_configuration_fits_its_shapes(fields, parameters):
    """The U-Nets of Stable Diffusion 1.5 and 2, on the meta device."""
    from diffusers import UNet2DConditionModel
    with torch.device("meta"):
        theirs = UNet2DConditionModel(sample_size=64, **fields)
        ours = UNet(UNET_CONDITION.to_ours(dict(theirs.config)))
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (theirs, ours)]
    UNET_CONDITION.check_shapes(ours.cfg, *shapes)
    assert sum(p.numel() for p in ours.parameters()) == parameters


@pytest.mark.parametrize("family, fields, change, words", [
    (UNET, PLAIN, {"up_block_types": ("UpBlock2D", "AttnUpBlock2D")}, "up_block_types should be down_block_types backwards"),
    (UNET, PLAIN, {"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "down_block_types should name DownBlock2D or AttnDownBlock2D"),
    (UNET, PLAIN, {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift should be 'default'"),
    (UNET, PLAIN, {"flip_sin_to_cos": False}, "freq_shift should be 1"), (UNET, PLAIN, {"downsample_padding": 0}, "downsample_padding should be 1"),
    (UNET, PLAIN, {"attention_head_dim": 5}, "16 channels can't be shared|heads"), (UNET, PLAIN, {"norm_num_groups": 3}, "groups should divide"),
    *((UNET_CONDITION, PROMPTED, {"attention_head_dim": heads}, "attention_head_dim should be a number of heads, or numbers")
      for heads in ([2, 2], [2], [2, 4, 8], [0, 4], [3, 6], ["a", 2], [])),
    (UNET_CONDITION, PROMPTED, {"only_cross_attention": True}, "only_cross_attention should be False"),
])
def test_other_parts_are_refused_by_name(family, fields, change, words):
    with pytest.raises(ConfigError, match=words):
        UNet(family.to_ours(fields | change))


def test_missing_tensors_and_wrong_calls_are_named():
    _, ours, family = opened("UNet2DConditionModel", PROMPTED)
    state = family.export_state(ours.cfg, ours.state_dict())
    state.pop("conv_norm_out.bias")
    with pytest.raises(CheckpointError, match="conv_norm_out.bias"):
        family.import_state(ours.cfg, state)
    with pytest.raises(InputError, match="has context: memory should be given"):
        ours(torch.randn(1, 2, 16, 16), torch.ones(1))
    with pytest.raises(InputError, match="has no classes: labels should not be given"):
        ours(torch.randn(1, 2, 16, 16), torch.ones(1), torch.tensor([0]), Memory(torch.randn(1, 5, 12)))
    with pytest.raises(ConfigError, match="one entry for each of 3 widths"):
        UNetConfig(attention=(True,))
