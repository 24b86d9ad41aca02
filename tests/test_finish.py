"""imagegen/autoencoder_training.py, doubling.py, examples/image/autoencoder.py: what a tower sees, the critic's sides, decibels, whole runs."""
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from gencore import Run, TrainConfig
from gencore.checkpoint import load_tensors
from imagegen import Diffusion, VQAutoencoder
from imagegen.adversarial import relativistic
from imagegen.alignment import PictureTower
from imagegen.autoencoder import Autoencoder, AutoencoderConfig, picture_loss
from imagegen.autoencoder_training import Finish, PatchCritic, distance_seen, finish_loss, psnr, seen, train_tower
from imagegen.data import to_unit
from imagegen.diffusion_files import read_any
from imagegen.doubling import doubled_conv
from imagegen.labelled import Labelled
from tests.scripts import EXAMPLES, run

PARTS = AutoencoderConfig(channels=(4, 8), latent=2, groups=2, size=16, picture_channels=1)


@pytest.fixture
def colours():
    """Pictures of two classes, 32x32: each of one colour, warm or cold, on which noise lies."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    base = torch.where(labels[:, None, None, None] == 0, torch.tensor([220.0, 90, 40])[:, None, None], torch.tensor([40.0, 90, 220])[:, None, None])
    pixels = (base + 60 * torch.rand(64, 3, 1, 1, generator=draw) - 30 + 20 * torch.rand(64, 3, 32, 32, generator=draw)).clamp(0, 255).to(torch.uint8)
    return Labelled(pixels, labels, ("warm", "cold"))


def test_doubling_and_convolving_at_once_is_the_same_with_its_gradients():
    h, conv = torch.randn(2, 3, 5, 4, requires_grad=True), nn.Conv2d(3, 6, 3, padding=1)
    wanted, found = conv(F.interpolate(h, scale_factor=2.0, mode="nearest")), doubled_conv(h, conv.weight, conv.bias)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    towards = torch.randn_like(wanted)
    for a, b in zip(*(torch.autograd.grad((out * towards).sum(), (h, conv.weight, conv.bias), retain_graph=True) for out in (wanted, found))):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


def test_grey_pictures_have_a_loss_without_colours():
    made, pictures = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    assert float(picture_loss(made, pictures)) == pytest.approx(1 + 0.5 + 0.5)                          # L1 at three scales, no edges


def test_what_a_tower_sees_is_nearer_where_less_is_changed():
    torch.manual_seed(0)
    tower = PictureTower().eval()
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    features = seen(tower, pictures)
    assert [tuple(f.shape) for f in features] == [(4, 32, 16, 16), (4, 64, 8, 8), (4, 128, 4, 4)]
    assert all(torch.allclose(f.norm(dim=1), torch.ones(()), atol=1e-4) for f in features)
    blurred = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2.0)
    far, near, none = (distance_seen(tower, torch.lerp(pictures, blurred, share), pictures) for share in (1.0, 0.3, 0.0))
    assert (far > near).all() and (near > none).all() and none.abs().max() < 1e-6
    grey = torch.rand(2, 1, 48, 40)
    assert torch.allclose(distance_seen(tower, grey, grey.flip(3)), distance_seen(tower, *(g.expand(-1, 3, -1, -1) for g in (grey, grey.flip(3)))))


def test_a_tower_learns_classes_and_without_them_views(colours, tmp_path):
    config = TrainConfig(steps=25, batch=16, lr=3e-3, warmup=2, decay=0.3, weight_decay=0.0)
    for name, data, chance in (("classes", colours, 0.69), ("views", colours.plain(), 2.77)):
        torch.manual_seed(0)
        tower = train_tower(data, config, run=Run(tmp_path / name, progress=False))
        losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert losses[-1] < 0.6 * chance and not any(p.requires_grad for p in tower.parameters())


def test_neither_side_of_the_critics_game_moves_the_other():
    torch.manual_seed(0)
    critic, real, made = PatchCritic(1, width=4), torch.randn(3, 1, 16, 16), torch.randn(3, 1, 16, 16, requires_grad=True)
    critics, makers = relativistic(critic, real, made, gamma=2.0)
    weights = list(critic.parameters())
    assert torch.autograd.grad(critics.sum(), made, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(makers.sum(), weights, retain_graph=True, allow_unused=True) == (None,) * len(weights)
    assert torch.autograd.grad(makers.sum(), made)[0].abs().sum() > 0 and critics.shape == makers.shape == (3,)
    scores = critic(real).flatten(1) - critic(made).flatten(1)
    torch.testing.assert_close(makers, F.softplus(scores).mean(1))
    plain, _ = relativistic(critic, real, made, gamma=0.0)
    slopes = [torch.autograd.grad(critic(x).mean((1, 2, 3)).sum(), x)[0].square().sum((1, 2, 3)) for x in (real.requires_grad_(), made)]
    torch.testing.assert_close(critics, plain + slopes[0] + slopes[1])                                   # half of gamma, both penalties


def test_terms_of_the_finish_add_up_and_may_be_left_out():
    torch.manual_seed(0)
    model, tower = Finish(Autoencoder(PARTS), PatchCritic(1, width=4)), PictureTower().eval().requires_grad_(False)
    batch = {"pixels": torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)}
    plain, with_seen, whole = (float(finish_loss(model, batch, torch.Generator().manual_seed(0), tower=tower, weights=weights)[0].detach())
                               for weights in ((0.0, 0.0), (2.0, 0.0), (2.0, 0.5)))
    mean, logvar = model.autoencoder.encode(to_unit(batch["pixels"]))
    made = model.autoencoder.decode(mean + torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)) * (logvar / 2).exp())
    critics, makers = relativistic(model.critic, to_unit(batch["pixels"]), made)
    assert with_seen - plain == pytest.approx(2 * float(distance_seen(tower, made, to_unit(batch["pixels"])).sum().detach()), rel=1e-3)
    assert whole - with_seen == pytest.approx(float((critics + 0.5 * makers).sum().detach()), rel=1e-3)


def test_decibels_are_those_of_the_error():
    class Shifts(nn.Module):
        def encode(self, pictures):
            return pictures, None

        def decode(self, latents):
            return latents + 0.2

    assert psnr(Shifts(), torch.full((3, 1, 4, 4), 100, dtype=torch.uint8)) == pytest.approx(20, abs=1e-3)


def test_a_folder_that_is_of_no_run_is_refused_before_the_first_training(tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(SystemExit):
        run(EXAMPLES / "image" / "autoencoder.py", "--out", tmp_path, "size=16", "parts.channels=[4,8]")
    assert "holds a README.md that is of no run" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_example_learns_goes_on_and_leaves_what_opens(kind, tmp_path):
    out = tmp_path / "run"
    given = ["--out", out, f"kind={kind}", "size=16", "parts.channels=[4,8]", "parts.latent=2", "parts.groups=2", "codes=8", "tower.steps=2",
             "tower.batch=4", "first.steps=3",
             *(f"{part}.{setting}" for part in ("first", "finish") for setting in ("batch=4", "warmup=1", "threads=1", "precision=bf16"))]
    said = run(EXAMPLES / "image" / "autoencoder.py", *given, "finish.steps=2")
    assert "dB by errors of pixels alone" in said and {path.name for path in (out / "first" / "samples").iterdir()} == {"000003.png"}
    run(EXAMPLES / "image" / "autoencoder.py", *given, "finish.steps=4", "--resume")
    assert {path.name for path in (out / "samples").iterdir()} == {"000002.png", "000004.png"}
    if kind == "vq":
        model = VQAutoencoder.from_pretrained(out / "model")
        assert model.encode(torch.zeros(1, 1, 16, 16)).shape == (1, 8, 8)
        return
    autoencoder = read_any(Path(out / "model"))
    digits = torch.rand(64, 1, 16, 16) * 2 - 1
    assert autoencoder.encode(digits)[0].shape == (64, 2, 8, 8)
    run(EXAMPLES / "image" / "diffusion.py", "--out", tmp_path / "drawn", f"autoencoder={out / 'model'}", "size=16", "network=dit", "dit.patch=2",
        "dit.width=32", "dit.layers=1", "dit.heads=2", "train.steps=2", "train.batch=4", "train.warmup=1", "train.threads=1", "shown=1", "steps=2")
    assert Diffusion.from_pretrained(tmp_path / "drawn" / "model")("3", steps=2, seed=0, progress=False)[0].size == (16, 16)


def test_pictures_without_classes_are_enough(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(6):
        Image.new("RGB", (20, 20), (40 * number, 90, 120)).save(tmp_path / "data" / f"{number}.png")
    run(EXAMPLES / "image" / "autoencoder.py", "--data", tmp_path / "data", "--out", tmp_path / "run", "channels=3", "size=16",
        "parts.channels=[4,8]",
        "parts.latent=2", "parts.groups=2", "tower.steps=1", "tower.batch=4", "first.steps=1", "first.batch=4", "finish.steps=1", "finish.batch=4",
        "held_out=0.2")
    assert read_any(tmp_path / "run" / "model").cfg.picture_channels == 3


def test_a_run_stopped_between_two_parts_ends_like_one_that_was_not(tmp_path, capsys):
    given = ["size=16", "parts.channels=[4,8]", "parts.latent=2", "parts.groups=2", "tower.steps=2", "tower.batch=4", "first.steps=2",
             "first.batch=4", "finish.steps=2", "finish.batch=4", "first.threads=1", "tower.threads=1", "finish.threads=1"]
    run(EXAMPLES / "image" / "autoencoder.py", "--out", tmp_path / "whole", *given)
    (tmp_path / "parted").mkdir()
    shutil.copytree(tmp_path / "whole" / "first", tmp_path / "parted" / "first")              # as after a kill before the tower's first checkpoint
    run(EXAMPLES / "image" / "autoencoder.py", "--out", tmp_path / "parted", *given, "--resume")
    one, other = (load_tensors(tmp_path / name / "model" / "diffusion_pytorch_model.safetensors") for name in ("whole", "parted"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(SystemExit):
        run(EXAMPLES / "image" / "autoencoder.py", "--out", tmp_path / "parted", *given, "--resume", "critic=0.2", "finish.steps=3")
    assert "was begun with other settings (critic was 0.05, is 0.2)" in capsys.readouterr().err
