"""The autoencoder of pictures."""
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gencore.check import ConfigError, InputError
from gencore.optim import make_optimizer
from gencore.train import Run, TrainConfig
from imagegen.autoencoder import Autoencoder, AutoencoderConfig, autoencoder_loss, draw_latents, picture_loss
from imagegen.autoencoder_training import psnr
from imagegen.captioned import Captioned
from imagegen.data import square, to_bytes, to_unit
from imagegen.training import train_decoder
from multimodal.scenes import compose, paint, requests

TINY = AutoencoderConfig(channels=(8, 16), latent=4, groups=2, size=16)


def blobs(count, size=16):
    """Coloured discs on white, (count,3,size,size)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(size).float()
    pictures = torch.ones(count, 3, size, size)
    for picture in pictures:
        y, x, r = torch.rand(3, generator=generator) * torch.tensor([8.0, 8, 3]) + torch.tensor([4.0, 4, 2])
        inside = (rows[:, None] - y) ** 2 + (rows[None] - x) ** 2 < r ** 2
        picture[:, inside] = (torch.rand(3, 1, generator=generator) * 2 - 1)
    return pictures


def test_latents_are_smaller_by_the_levels():
    model = Autoencoder(AutoencoderConfig(channels=(4, 4, 8), latent=5, groups=2))
    mean, logvar = model.encode(torch.zeros(2, 3, 32, 16))
    assert mean.shape == logvar.shape == (2, 5, 8, 4) and model.cfg.shrink == 4
    assert model.decode(mean).shape == (2, 3, 32, 16)


def test_small_pictures_have_fewer_scales_and_what_is_too_small_is_said():
    for size in (2, 4, 6):
        loss = picture_loss(torch.rand(2, 3, size, size, requires_grad=True), torch.rand(2, 3, size, size))
        loss.backward()
        assert loss.isfinite() and loss > 0
    with pytest.raises(InputError, match="pictures should have sides of 2 pixels or more, got 1 x 9"):
        Autoencoder(TINY).encode(torch.zeros(1, 3, 1, 9))
    with pytest.raises(ConfigError, match="without quant_convs has nothing"):
        Autoencoder(replace(TINY, quant_convs=False)).standardise(torch.zeros(4), torch.ones(4))


def test_it_learns_eight_pictures():
    torch.manual_seed(0)
    model, pictures, generator = Autoencoder(TINY), blobs(8), torch.Generator().manual_seed(0)
    optimizer = make_optimizer(model, TrainConfig(lr=4e-3, muon_lr=4e-3, weight_decay=0.0))
    optimizer.set_share(1.0)
    for _ in range(200):
        loss = autoencoder_loss(model, pictures, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        error = (model.decode(model.encode(pictures)[0]) - pictures).abs().mean()
    assert error < 0.06, error                                       # an all-white answer has 0.2


def test_a_decoder_goes_on_alone_and_the_latents_stay(tmp_path):
    torch.manual_seed(0)
    model, pixels = Autoencoder(TINY).requires_grad_(False).eval(), to_bytes(blobs(16))
    data = Captioned(pixels, lambda i, rng: "", torch.arange(16), np.ones(16))
    before = model.encode(to_unit(pixels))[0]
    config = TrainConfig(steps=40, batch=8, lr=4e-3, warmup=2, weight_decay=0.0)
    train_decoder(model, data, config, run=Run(tmp_path / "run", progress=False))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    torch.testing.assert_close(model.encode(to_unit(pixels))[0], before, atol=1e-5, rtol=1e-5)       # another memory layout rounds differently
    assert losses[-1] < 0.7 * losses[0]


@torch.no_grad()
def test_standardised_latents_have_unit_spread_and_paint_the_same():
    model, pictures = Autoencoder(TINY).eval(), blobs(32)
    mean, logvar = model.encode(pictures)
    before = model.decode(mean)
    model.standardise(mean.mean((0, 2, 3)), mean.std((0, 2, 3)))
    now, spread = model.encode(pictures)
    torch.testing.assert_close(now.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(now.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decode(now), before, atol=1e-4, rtol=1e-4)
    ratio = now.var((0, 2, 3)) / mean.var((0, 2, 3))                 # the noise moves along
    torch.testing.assert_close(spread - logvar, ratio.log()[None, :, None, None].expand_as(logvar))


def test_drawn_latents_have_the_posteriors_mean_and_spread():
    generator = torch.Generator().manual_seed(0)
    drawn = draw_latents(torch.full((20000,), 3.0), torch.full((20000,), 0.5).log() * 2, generator)
    assert abs(drawn.mean() - 3) < 0.02 and abs(drawn.std() - 0.5) < 0.02


def test_wrong_pictures_and_groups_are_refused():
    with pytest.raises(InputError, match="C should be 3"):
        Autoencoder(TINY).encode(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ConfigError, match="groups"):
        AutoencoderConfig(channels=(8, 15), groups=2)


@torch.no_grad()
def test_the_shipped_autoencoder_brings_scenes_back_and_its_latents_are_standard():
    rng = np.random.default_rng(5)
    pixels = torch.stack([square(paint(compose(request, rng)), 64) for request in itertools.islice(requests(rng), 40)])
    model = Autoencoder.from_pretrained("autoencoder")
    assert psnr(model, pixels) > 30                                    # all white has 15
    mean, logvar = model.encode(to_unit(pixels))
    assert mean.shape == (40, 16, 8, 8) and 0.2 < mean.std() < 2 and logvar.exp().mean() < 0.1
