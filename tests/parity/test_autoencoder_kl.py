"""AutoencoderKL and Autoencoder on the same random weights."""
import pytest
import torch

from gencore.check import ConfigError
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.families.autoencoder_kl import AUTOENCODER_KL


def opened(channels, layers, attention, convs=True):
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    theirs = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * len(channels), up_block_types=("UpDecoderBlock2D",) * len(channels),
                           block_out_channels=channels, layers_per_block=layers, latent_channels=3, norm_num_groups=4, sample_size=16,
                           mid_block_add_attention=attention, use_quant_conv=convs, use_post_quant_conv=convs,
                           shift_factor=None if convs else 0.1).eval()
    cfg = AUTOENCODER_KL.to_ours(dict(theirs.config))
    ours = Autoencoder(cfg).eval()
    ours.load_state_dict(AUTOENCODER_KL.import_state(cfg, theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("channels,layers,attention,convs", [((8,), 1, True, True), ((8, 12), 2, True, True), ((4, 8, 16), 1, False, True),
                                                             ((8, 12), 1, True, False)])
@torch.no_grad()
def test_autoencoder_says_the_same_as_diffusers(channels, layers, attention, convs):
    theirs, ours = opened(channels, layers, attention, convs)
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    posterior = theirs.encode(pictures).latent_dist
    mean, logvar = ours.encode(pictures)
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logvar, posterior.logvar, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.decode(mean), theirs.decode(mean).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("convs", [True, False])
def test_autoencoder_weights_survive_the_way_there_and_back(convs):
    theirs, ours = opened((8, 12), 1, True, convs)
    state, back = theirs.state_dict(), AUTOENCODER_KL.export_state(ours.cfg, ours.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert AUTOENCODER_KL.to_ours(AUTOENCODER_KL.to_theirs(ours.cfg)) == ours.cfg


@torch.no_grad()
def test_a_folder_of_an_autoencoder_opens_on_both_sides(tmp_path):
    from diffusers import AutoencoderKL
    _, ours = opened((8, 12), 1, True)
    ours.save_pretrained(tmp_path / "mine")
    latents = torch.randn(1, 3, 8, 8)
    theirs, again = (cls.from_pretrained(tmp_path / "mine") for cls in (AutoencoderKL, Autoencoder))
    assert torch.equal(again.decode(latents), ours.decode(latents)) and not any(p.requires_grad for p in again.parameters())
    torch.testing.assert_close(theirs.decode(latents).sample, ours.decode(latents), rtol=1e-5, atol=1e-5)
    ours.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert torch.equal(Autoencoder.from_pretrained(tmp_path / "half").decode(latents), ours.bfloat16().float().decode(latents))


def test_old_spelling_of_the_attention_opens():
    _, ours = opened((8, 12), 1, True)
    spelt = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in ours.state_dict().items():
        for new, word in spelt.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{word}.")
        old[name] = tensor
    assert AUTOENCODER_KL.import_state(ours.cfg, old).keys() == ours.state_dict().keys()


def test_autoencoder_of_other_blocks_is_refused():
    config = AUTOENCODER_KL.to_theirs(AutoencoderConfig())
    with pytest.raises(ConfigError, match="down_block_types"):
        AUTOENCODER_KL.to_ours(config | {"down_block_types": ["AttnDownEncoderBlock2D"] * 4})
    with pytest.raises(ConfigError, match="use_post_quant_conv"):
        AUTOENCODER_KL.to_ours(config | {"use_post_quant_conv": False})
