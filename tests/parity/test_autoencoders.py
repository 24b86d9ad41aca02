"""VQModel and VQAutoencoder, AutoencoderTiny and TinyAutoencoder, on the same random weights; the quantized one learns."""
import re

import pytest
import torch

from gencore.check import CheckpointError, ConfigError, InputError
from gencore.checkpoint import save_folder
from imagegen.autoencoder import AutoencoderConfig
from imagegen.families.autoencoder_tiny import AUTOENCODER_TINY
from imagegen.families.vq_model import VQ_MODEL
from imagegen.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from imagegen.vq_autoencoder import VQAutoencoder, VQAutoencoderConfig, vq_loss


def quantized(channels=(8, 12), layers=1, width=None):
    from diffusers import VQModel
    torch.manual_seed(0)
    theirs = VQModel(down_block_types=("DownEncoderBlock2D",) * len(channels), up_block_types=("UpDecoderBlock2D",) * len(channels),
                     block_out_channels=channels, layers_per_block=layers, latent_channels=3, norm_num_groups=4, sample_size=16, num_vq_embeddings=20,
                     vq_embed_dim=width).eval()
    torch.nn.init.normal_(theirs.quantize.embedding.weight)
    cfg = VQ_MODEL.to_ours(dict(theirs.config))
    ours = VQAutoencoder(cfg).load_weights(VQ_MODEL.import_state(cfg, theirs.state_dict())).eval()
    return theirs, ours


@pytest.mark.parametrize("channels, layers, width", [((8,), 1, None), ((8, 12), 2, 5), ((4, 8, 16), 1, 2)])
@torch.no_grad()
def test_the_quantized_one_says_the_same_as_diffusers(channels, layers, width):
    theirs, ours = quantized(channels, layers, width)
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    h = theirs.encode(pictures).latents
    torch.testing.assert_close(ours.latents(pictures), h, rtol=1e-5, atol=1e-5)
    codes = theirs.quantize(h)[2][2].view(2, *h.shape[2:])
    assert torch.equal(ours.encode(pictures), codes) and len(codes.unique()) > 1
    torch.testing.assert_close(ours.decode(codes), theirs.decode(h).sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(pictures)[0], theirs.decode(h).sample, rtol=1e-4, atol=1e-5)


def tiny():
    from diffusers import AutoencoderTiny
    torch.manual_seed(0)
    theirs = AutoencoderTiny(encoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 2), decoder_block_out_channels=(12, 12),
                             num_decoder_blocks=(2, 1)).eval()
    cfg = AUTOENCODER_TINY.to_ours(dict(theirs.config))
    ours = TinyAutoencoder(cfg).eval()
    ours.load_state_dict(AUTOENCODER_TINY.import_state(cfg, theirs.state_dict()))
    return theirs, ours


@torch.no_grad()
def test_the_tiny_one_says_the_same_as_diffusers():
    theirs, ours = tiny()
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = theirs.encode(pictures).latents
    torch.testing.assert_close(ours.encode(pictures), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.decode(latents * 9), theirs.decode(latents * 9).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("made, family", [(quantized, VQ_MODEL), (tiny, AUTOENCODER_TINY)])
def test_weights_survive_the_way_there_and_back(made, family):
    theirs, ours = made()
    state = theirs.state_dict()
    back = family.export_state(ours.cfg, ours.weights() if family is VQ_MODEL else ours.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert family.to_ours(family.to_theirs(ours.cfg)) == ours.cfg
    again = type(theirs).from_config(family.to_theirs(ours.cfg))
    again.load_state_dict(back)


def test_the_quantized_one_learns_pictures_by_heart():
    torch.manual_seed(0)
    model = VQAutoencoder(VQAutoencoderConfig(AutoencoderConfig(channels=(8, 16), latent=4, groups=4, size=16), codes=64, width=4))
    pictures = torch.rand(4, 3, 1, 1) * 2 - torch.rand(4, 3, 16, 16).cumsum(-1) / 8
    optimizer, draws = torch.optim.AdamW(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        loss = vq_loss(model, pictures, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0] and len(model.encode(pictures).unique()) > 4


def test_wrong_sizes_and_calls_are_named():
    _, ours = quantized()
    with pytest.raises(InputError, match="codes should be 0..19, got 0..20"):
        ours.decode(torch.tensor([[[0, 20]]]))
    with pytest.raises(InputError, match="pictures: C should be 3, got 1"):
        ours.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ConfigError, match="norm_type"):
        VQ_MODEL.to_ours(VQ_MODEL.to_theirs(ours.cfg) | {"norm_type": "spatial"})
    with pytest.raises(ConfigError, match="one entry for each grid, got 4 and 2"):
        TinyAutoencoderConfig(encoder_blocks=(1, 2))
    with pytest.raises(ConfigError, match="act_fn"):
        AUTOENCODER_TINY.to_ours(AUTOENCODER_TINY.to_theirs(TinyAutoencoderConfig()) | {"act_fn": "silu"})


@torch.no_grad()
def test_old_names_of_attention_are_read(tmp_path):
    theirs, ours = quantized()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {re.sub(r"(attentions\.0\.)(to_q|to_k|to_v|to_out\.0)", lambda found: found[1] + old[found[2]], name): tensor
             for name, tensor in theirs.state_dict().items()}
    assert any("proj_attn" in name for name in state)
    save_folder(tmp_path / "old", {"config.json": VQ_MODEL.to_theirs(ours.cfg), "diffusion_pytorch_model.safetensors": state})
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(VQAutoencoder.from_pretrained(tmp_path / "old")(pictures)[0], ours(pictures)[0])


@torch.no_grad()
def test_folders_open_by_name_in_both(tmp_path):
    from diffusers import AutoencoderTiny, VQModel
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    theirs, ours = quantized()
    ours.save_pretrained(tmp_path / "vq")
    opened = VQAutoencoder.from_pretrained(tmp_path / "vq")
    assert torch.equal(opened.encode(pictures), ours.encode(pictures)) and not opened.training
    torch.testing.assert_close(VQModel.from_pretrained(tmp_path / "vq")(pictures).sample, opened(pictures)[0], rtol=1e-4, atol=1e-5)
    theirs, ours = tiny()
    ours.save_pretrained(tmp_path / "tiny", dtype=torch.bfloat16)
    opened, again = TinyAutoencoder.from_pretrained(tmp_path / "tiny"), AutoencoderTiny.from_pretrained(tmp_path / "tiny")
    torch.testing.assert_close(again.decode(opened.encode(pictures)).sample, opened.decode(opened.encode(pictures)), rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="holds a tiny autoencoder of pictures: open it with imagegen.TinyAutoencoder.from_pretrained"):
        VQAutoencoder.from_pretrained(tmp_path / "tiny")
    (tmp_path / "vq" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "vq" / "digests.json").unlink()
    with pytest.raises(CheckpointError, match="should hold one .safetensors file, or an index of them, found 0"):
        VQAutoencoder.from_pretrained(tmp_path / "vq")
