"""benchmarks/gan.py: what is asked for is what is drawn, which kinds are found, a training of either recipe that goes on and is judged."""
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import gan as benchmark
from benchmarks.image_judges import BareDigitJudge, features_of
from gencore.check import DataError, InputError
from imagegen.data import to_unit
from imagegen.gan import GAN, GANConfig, Generator


def shades(digits):
    """digits (...) -> pictures (...,32,32) in [-1,1] of one grey each, ten greys in all."""
    return (torch.as_tensor(digits).float() / 4.5 - 1)[..., None, None].expand(*torch.as_tensor(digits).shape, 32, 32)


class ReadsShades(nn.Module):
    def forward(self, pictures):
        return -20 * (pictures.mean((1, 2, 3))[:, None] - (torch.arange(10) / 4.5 - 1)).square()


def test_a_kind_is_its_three_digits_in_order():
    pictures = shades([[1, 2, 3], [3, 2, 1], [0, 0, 7], [1, 2, 3]])                          # (4, 3, 32, 32)
    found = benchmark.kinds_reached(ReadsShades(), pictures)
    assert found["kinds reached, of 1000"] == 3
    assert found["KL to all alike, nats"] == pytest.approx(float(torch.tensor(1000).log()) - 1.5 * float(torch.tensor(2).log()), abs=1e-5)


def test_a_digit_is_asked_for_by_its_name_whatever_the_order_of_the_classes():
    """A generator that draws one grey a class, its classes in another order than the digits'."""
    names = tuple("3719052846")
    generator = Generator(GANConfig(widths=(4, 4, 4, 4), latent=2, attention=0, labels=names))
    generator.forward = lambda latents, classes: classes[:, 0, None, None, None].expand(-1, 1, 32, 32)
    generator.table = nn.Embedding.from_pretrained(torch.tensor([[int(name) / 4.5 - 1, 0.0] for name in names]))
    pixels = benchmark.draw(GAN(generator), torch.tensor([3, 0, 9]), seed=0)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 1, 32, 32))
    assert ReadsShades()(to_unit(pixels)).argmax(1).tolist() == [3, 0, 9]
    with pytest.raises(InputError, match="classes a, b"):
        benchmark.draw(GAN(Generator(GANConfig(widths=(4, 4, 4, 4), latent=2, attention=0, labels=("a", "b")))), torch.tensor([3]), seed=0)


def test_a_painters_digits_are_brought_to_the_form_of_the_real_ones():
    """A painter that draws real digits as it has seen them gives them back."""
    ink = torch.zeros(2, 1, 28, 28)
    ink[0, 0, 4:24, 12:16], ink[1, 0, 10:14, 5:22] = 1, 1
    large = torch.nn.functional.interpolate(ink, (56, 56), mode="bicubic").clamp(0, 1)
    sheets = 1 - torch.nn.functional.pad(large, (4, 4, 4, 4)).expand(-1, 3, -1, -1)
    painter = lambda words, **settings: torch.stack([sheets[0] if word.endswith("one") else sheets[1] for word in words])
    pixels = benchmark.paint(painter, torch.tensor([1, 7, 1]), seed=0, guidance=1.0)
    real = torch.nn.functional.interpolate(ink, (32, 32), mode="bicubic").clamp(0, 1)[[0, 1, 0]]
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 1, 32, 32))
    assert (pixels / 255 - real).abs().mean() < 0.02


def test_features_are_what_the_last_layer_of_the_judge_sees():
    """Averaged over 3x3 places each: maps that are equal everywhere give the same logits through the summed weights of the last layer."""
    torch.manual_seed(0)
    judge = BareDigitJudge().eval()
    pictures = torch.rand(3, 1, 32, 32) * 2 - 1
    seen = {}
    judge.layers[-1].register_forward_hook(lambda layer, inputs, _: seen.update(maps=inputs[0].view(-1, 64, 7, 7)))
    with torch.no_grad():
        judge(pictures)
    features = features_of(judge, pictures).view(3, 64, 3, 3)
    torch.testing.assert_close(features[:, :, 1, 2], seen["maps"][:, :, 2:5, 4:7].mean((2, 3)))
    margin = pictures.clone()
    margin[:, :, :2], margin[:, :, :, 30:] = 1, 1
    assert torch.equal(features_of(judge, margin), features_of(judge, pictures))              # the margin is not looked at


def test_both_recipes_train_go_on_and_are_judged(tmp_path, monkeypatch):
    pixels = torch.randint(0, 256, (30, 1, 32, 32), dtype=torch.uint8)
    for name, way in benchmark.WAYS.items():
        small = replace(way.config, widths=(8, 8, 8, 8), heads=2, latent=4)
        monkeypatch.setitem(benchmark.WAYS, name, replace(way, config=small, training=replace(way.training, batch=4)))
    monkeypatch.setattr(benchmark, "real_digits", lambda args, split: (pixels, torch.arange(30) % 10))
    monkeypatch.setattr(benchmark, "digit_judge", lambda args, train: BareDigitJudge().eval())
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "gan.json")
    args = Namespace(runs=tmp_path / "runs", seed=0, resume=False, steps=1)
    with pytest.raises(DataError, match="no training that has ended"):
        benchmark.stacked_table(args)
    for name in benchmark.WAYS:
        args.train = name
        benchmark.train_stacked(args)
    args.resume, args.steps = True, 2
    benchmark.train_stacked(args)                                                            # the baseline, one step more
    table = benchmark.stacked_table(args, count=20)
    assert {row: figures["steps"] for row, figures in table.items()} == {"modern-0": 1, "baseline-0": 2, "real": 0}
    assert all(1 <= figures["kinds reached, of 1000"] <= 20 for figures in table.values()) and (tmp_path / "stacked.png").is_file()
