"""imagegen/class_training.py, labelled.py, examples/image/diffusion.py: losses of networks that know, classes hidden, folders read, both learn."""
import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from gencore import Run, TrainConfig, fit
from gencore.check import ConfigError, DataError
from gencore.diffusion import min_snr, target
from gencore.positions import grid_positions
from imagegen import Diffusion
from imagegen.autoencoder import Autoencoder, AutoencoderConfig
from imagegen.class_dit import ClassDiT, ClassDiTConfig
from imagegen.class_training import Lesson, check_lesson, denoising_loss, latents_of, variance_loss
from imagegen.diffusion import none_of
from imagegen.labelled import Labelled, LabelledBatches, digit_pictures, labelled_pictures
from imagegen.schedule import Schedule
from imagegen.tiny_autoencoder import passes_through
from imagegen.unet import UNet, UNetConfig
from tests.scripts import EXAMPLES, run

UNET = UNetConfig(channels=1, out_channels=1, size=8, widths=(8, 16), attention=(False, True), layers=1, groups=4, head_width=8, classes=3)
DIT = ClassDiTConfig(channels=1, out_channels=1, size=8, patch=2, width=32, layers=2, heads=2, classes=2)
SCHEDULES = [Schedule("vp", says) for says in ("noise", "data", "v")] + [
    Schedule("vp", "v", betas="squaredcos_cap_v2"), Schedule("flow", "velocity", "dpm_solver"), Schedule("flow", "data", "dpm_solver"),
    Schedule("ve", "edm", "euler")]
named = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: f"{schedule.path}-{schedule.predicts}-{schedule.betas}")


def batch(rows=6):
    draw = torch.Generator().manual_seed(1)
    return {"pixels": torch.randint(0, 256, (rows, 1, 8, 8), generator=draw, dtype=torch.uint8), "labels": torch.arange(rows) % 2}


class Knows(nn.Module):
    """A network that knows the pictures, and says from x and the time alone what it is asked for."""
    cfg = UNET

    def __init__(self, data, schedule):
        super().__init__()
        self.data, self.schedule, self.labels = data, schedule, None

    def forward(self, x, t, labels):
        self.labels = labels
        if self.schedule.path == "ve":                                       # x is scaled down; F of eq. 7 for the true data
            sigma, s = torch.exp(4 * t)[:, None, None, None], self.schedule.deviation
            total = (sigma ** 2 + s ** 2) ** 0.5
            return (self.data - s ** 2 / total * x) * total / (sigma * s)
        levels = t / 1000 if self.schedule.path == "flow" else self.schedule.table[t.long()]
        alpha, sigma = (scale[:, None, None, None] for scale in self.schedule.mixture.scales(levels))
        return target(self.schedule.predicts, self.data, (x - alpha * self.data) / sigma, self.schedule.mixture.scales(levels))


@named
def test_a_network_that_knows_the_data_has_no_loss(schedule):
    data = batch()["pixels"] / 127.5 - 1
    lesson = Lesson(mean=0.5)                                                 # away from no noise, where float32 can't part it from the data
    knows, zero = (denoising_loss(Knows(data * share, schedule), batch(), torch.Generator().manual_seed(0), schedule=schedule, lesson=lesson)
                   for share in (1.0, 0.5))
    assert float(knows[0]) < 1e-4 < 1e-2 < float(zero[0]) and knows[1] == 6


def test_levels_are_drawn_where_the_lesson_says():
    draw = torch.Generator().manual_seed(0)
    for schedule in SCHEDULES:
        middle = [Lesson(levels, mean=mean).drawn(schedule, 4000, draw)[1].median()
                  for levels, mean in (("normal", 0), ("normal", 1), ("uniform", 0))]
        assert middle[0] < middle[1]
        if schedule.path == "ve":
            assert float(middle[0]) == pytest.approx(-1.2 / 4, abs=0.03) and float(middle[2]) == pytest.approx(math.log(0.4) / 4, abs=0.1)
        else:
            assert float(middle[0]) == pytest.approx(500, abs=20) and float(middle[1]) == pytest.approx(731, abs=20)
            assert float(middle[2]) == pytest.approx(500, abs=30)


def test_min_snr_weighs_each_picture_by_its_level():
    schedule, draw = SCHEDULES[0], lambda: torch.Generator().manual_seed(3)
    model = Knows(torch.zeros(1), schedule)
    plain, weighed = (float(denoising_loss(model, {name: rows[:1] for name, rows in batch().items()}, draw(), schedule=schedule, lesson=lesson)[0])
                      for lesson in (Lesson(), Lesson(min_snr=5.0)))
    level, _ = Lesson().drawn(schedule, 1, draw())
    assert weighed / plain == pytest.approx(float(min_snr("noise", level)), rel=1e-4)


@pytest.mark.parametrize("share, none, seen", [(0.0, 2, {0, 1}), (1.0, 2, {2}), (1.0, None, {0, 1}), (0.5, 2, {0, 1, 2})])
def test_classes_are_hidden_as_often_as_said(share, none, seen):
    rows = batch(64)
    model = Knows(rows["pixels"] / 127.5 - 1, SCHEDULES[0])
    denoising_loss(model, rows, torch.Generator().manual_seed(0), schedule=SCHEDULES[0], lesson=Lesson(hidden=share), none=none)
    assert set(model.labels.tolist()) == seen


def test_the_variance_costs_what_the_gaussians_differ_by():
    schedule, steps = Schedule("vp", "noise", "ddpm", "learned"), torch.tensor([1, 40, 700, 999])
    share, error = torch.rand(4, 1, 2, 2), 0.1 * torch.randn(4, 1, 2, 2)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - betas, 0)
    wanted = []
    for i, step in enumerate(steps.tolist()):                                 # Ho et al. 2020, eq. 7; Nichol & Dhariwal 2021, eq. 15
        least = betas[step] * (1 - kept[step - 1]) / (1 - kept[step])
        variance = torch.exp(share[i] * betas[step].log() + (1 - share[i]) * least.log())
        moved = kept[step - 1].sqrt() * betas[step] / (1 - kept[step]) * error[i]
        apart = torch.distributions.kl_divergence(torch.distributions.Normal(0.0, least.sqrt()), torch.distributions.Normal(moved, variance.sqrt()))
        wanted.append(float(apart.mean()) / math.log(2))
    torch.testing.assert_close(variance_loss(share, error, steps, schedule), torch.tensor(wanted), rtol=2e-3, atol=1e-5)
    assert float(variance_loss(share, error, torch.zeros(4, dtype=torch.long), schedule).sum()) == 0


def test_a_variance_is_learnt_beside_the_noise():
    schedule = Schedule("vp", "noise", "ddpm", "learned")
    torch.manual_seed(0)
    model = UNet(replace(UNET, out_channels=2))
    denoising_loss(model, batch(), torch.Generator().manual_seed(0), schedule=schedule, lesson=Lesson(), none=2)[0].backward()
    assert model.conv_out.weight.grad[1].abs().sum() > 0
    with pytest.raises(ConfigError, match='on the path "vp" alone'):
        check_lesson(Lesson(), SCHEDULES[4], model.cfg)
    with pytest.raises(ConfigError, match="leave min_snr out"):
        check_lesson(Lesson(min_snr=5.0), SCHEDULES[-1], UNET)


def sides(rows=64):
    """Two classes of pictures, dark on the left and dark on the right."""
    pixels, labels = torch.full((rows, 1, 8, 8), 255, dtype=torch.uint8), torch.arange(rows) % 2
    pixels[labels == 0, :, :, :4], pixels[labels == 1, :, :, 4:] = 0, 0
    return Labelled(pixels, labels, ("left", "right"))


def learnt(model, data, schedule, steps, folder):
    lesson, none = Lesson(), none_of(model, data.names) if data.names else None
    config = TrainConfig(steps=steps, batch=16, lr=3e-3, warmup=5, decay=0.5, weight_decay=0.0, ema=0.95)
    return fit(model, lambda model, batch, draws: denoising_loss(model, batch, draws, schedule=schedule, lesson=lesson, none=none),
               LabelledBatches(data.pixels, data.labels, 16, 0), config, run=Run(folder, progress=False))


@pytest.mark.parametrize("network, schedule, least", [
    pytest.param(lambda: UNet(UNET), SCHEDULES[4], 0.3, id="unet-flow"), pytest.param(lambda: ClassDiT(DIT), SCHEDULES[2], 0.3, id="dit-v"),
    pytest.param(lambda: UNet(UNET), SCHEDULES[-1], 0.3, id="unet-edm", marks=pytest.mark.slow),
    pytest.param(lambda: UNet(UNET), SCHEDULES[0], 0.15, id="unet-noise", marks=pytest.mark.slow)])   # its noisiest level keeps some data
def test_it_learns_two_classes_by_name(network, schedule, least, tmp_path):
    torch.manual_seed(0)
    model = learnt(network(), sides(), schedule, 150, tmp_path / "run")
    drawn = Diffusion(model, labels=("left", "right"), schedule=schedule)(["left", "right"] * 3, steps=10, guidance=1.5, seed=0, output_type="pt",
                                                                         progress=False)
    left, right = drawn[..., :4].mean((1, 2, 3)), drawn[..., 4:].mean((1, 2, 3))
    assert (right - left)[::2].min() > least and (left - right)[1::2].min() > least


# ---- pictures in classes ----

def test_folders_by_class_metadata_and_plain_folders_are_read(tmp_path):
    for number, colour in enumerate(("red", "blue", "red")):
        for place in (tmp_path / "classes" / colour, tmp_path / "plain", tmp_path / "told"):
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 12), colour).save(place / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "label": label} for number, label in enumerate((10, 9, 10))]
    (tmp_path / "told" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    classes, plain, told = (labelled_pictures(tmp_path / name, 8, 3) for name in ("classes", "plain", "told"))
    assert classes.names == ("blue", "red") and classes.labels.tolist() == [0, 1, 1] and classes.pixels.shape == (3, 3, 8, 8)
    assert classes.pixels[0, :, 0, 0].tolist() == [0, 0, 255]
    assert plain.names == () and plain.labels.tolist() == [0, 0, 0] and labelled_pictures(tmp_path / "plain", 8, 1).pixels.shape == (3, 1, 8, 8)
    assert told.names == ("9", "10") and told.labels.tolist() == [1, 0, 1]                  # as numbers, not as words
    (tmp_path / "told" / "metadata.jsonl").write_text('{"file_name": "0.png", "label": 1}\n{"file_name": "1.png"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"1\.png has no label \(\d+ such in all\), others in"):
        labelled_pictures(tmp_path / "told", 8, 3)
    for lines, words in ((({"label": "a"}, {"label": ""}), r"1\.png has no label"), (({"label": 1.0}, {"label": float("nan")}), "1.png has no label"),
                         (({"label": [1]}, {"label": 1}), r"0\.png: its label should be"),
                         (({"label": 1}, {"label": "1"}), "a number in one place and the same as a word in another")):
        (tmp_path / "told" / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{n}.png"} | line) for n, line in enumerate(lines)))
        with pytest.raises(DataError, match=words):
            labelled_pictures(tmp_path / "told", 8, 3)
    Image.new("RGB", (20, 12), "red").save(tmp_path / "classes" / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png \(1 such in all\) lies beside the subfolders"):
        labelled_pictures(tmp_path / "classes", 8, 3)
    with pytest.raises(DataError, match="has no classes"):
        labelled_pictures(tmp_path / "plain", 8, 3, need=True)
    with pytest.raises(ConfigError, match="1 channel .* or 3"):
        labelled_pictures(tmp_path / "plain", 8, 2)


def test_digits_are_dark_on_white_and_part_without_overlap():
    digits = digit_pictures(16)
    assert digits.pixels.shape == (1797, 1, 16, 16) and digits.pixels[:, :, 0, 0].float().mean() > 250 and digits.names == tuple("0123456789")
    learn, held = digits.apart(0.1)
    assert len(held) == 180 and len(learn) + len(held) == 1797 and learn.plain().names == ()
    with pytest.raises(DataError, match="1 picture can't be parted"):
        Labelled(digits.pixels[:1], digits.labels[:1]).apart(0.1)


def test_latents_are_those_that_the_autoencoder_decodes_whichever_it_is():
    torch.manual_seed(0)
    digits = digit_pictures(8).pixels[:70]
    for autoencoder in (Autoencoder(AutoencoderConfig((4, 8), latent=2, groups=2, picture_channels=1, scaling=0.5)), passes_through(1)):
        latents = latents_of(autoencoder, digits)
        decoded = autoencoder.decode(latents / autoencoder.cfg.scaling)
        assert len(latents) == 70 and decoded.shape == digits.shape
    torch.testing.assert_close(decoded, digits / 127.5 - 1, atol=1e-3, rtol=0)                        # handed through


# ---- the example ----

TINY = ["size=8", "unet.widths=[8,16]", "unet.attention=[false,true]", "unet.groups=4", "unet.head_width=8", "dit.width=32", "dit.layers=1",
        "dit.heads=2", "dit.patch=2", "train.batch=4", "train.warmup=1", "train.eval_every=2", "train.threads=1", "shown=2", "steps=2"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for colour in ("red", "blue"):
        (folder / colour).mkdir()
        for number in range(4):
            Image.new("RGB", (20, 20), colour).save(folder / colour / f"{number}.png")
    return folder


def test_the_example_learns_from_folders_by_class_and_goes_on(colours, tmp_path):
    given = ["--data", colours, "--out", tmp_path / "run", *TINY, "channels=3"]
    run(EXAMPLES / "image" / "diffusion.py", *given, "train.steps=2")
    run(EXAMPLES / "image" / "diffusion.py", *given, "train.steps=4", "--resume")
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == {"000002.png", "000004.png"}
    model = Diffusion.from_pretrained(tmp_path / "run" / "model")
    assert model.labels == ("blue", "red") and model("red", steps=2, guidance=2.0, seed=0, progress=False)[0].size == (8, 8)


@pytest.mark.parametrize("settings, asked", [
    (["network=dit", "schedule.path=vp", "schedule.predicts=v", "schedule.sampler=ddim", "lesson.min_snr=5"], ["3"]),
    (["network=dit", "dit.patch=3", "size=9"], ["3"]),                                      # 3 is no part of the default size
    (["classes=false", "schedule.path=ve", "schedule.predicts=edm", "schedule.sampler=euler"], 1)])
def test_the_example_takes_other_networks_and_objectives(settings, asked, tmp_path):
    run(EXAMPLES / "image" / "diffusion.py", "--out", tmp_path / "run", *TINY, *settings, "train.steps=2")
    assert Diffusion.from_pretrained(tmp_path / "run" / "model")(asked, steps=2, seed=0, progress=False)[0].mode == "L"


# ---- rotary positions ----

ROTARY = replace(DIT, positions="rotary")


def test_a_rotary_transformer_learns_and_its_folder_draws_the_same(tmp_path):
    torch.manual_seed(0)
    model = Diffusion(learnt(ClassDiT(ROTARY), sides(), SCHEDULES[2], 120, tmp_path / "run"), labels=("left", "right"), schedule=SCHEDULES[2])
    drawn = model(["left", "right"], steps=10, seed=0, output_type="pt", progress=False)
    assert drawn[0, ..., :4].mean() < 0.35 < 0.65 < drawn[1, ..., :4].mean()
    model.save_pretrained(tmp_path / "model")
    again = Diffusion.from_pretrained(tmp_path / "model")
    assert again.denoiser.cfg == ROTARY
    torch.testing.assert_close(again(["left", "right"], steps=10, seed=0, output_type="pt", progress=False), drawn)
    wide = again(["left", "right"], steps=2, size=(8, 20), seed=0, output_type="pt", progress=False)
    assert wide.shape == (2, 1, 8, 20) and wide.isfinite().all()


@torch.no_grad()
def test_rotary_places_count_by_how_far_apart_they_are():
    torch.manual_seed(0)
    transformer = ClassDiT(ROTARY).transformer
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, cond = torch.randn(1, 12, 32), torch.randn(1, 32)
    places = grid_positions(3, 4)
    said = transformer(x, positions=places, cond=cond)
    torch.testing.assert_close(transformer(x, positions=places + torch.tensor([5, 9]), cond=cond), said, atol=1e-4, rtol=1e-4)
    assert (transformer(x, positions=places * torch.tensor([1, 2]), cond=cond) - said).abs().max() > 1e-2
    assert (transformer(x, positions=places.flip(1), cond=cond) - said).abs().max() > 1e-2                    # rows are not columns


def test_rotary_heads_and_diffusers_are_told_apart():
    from imagegen.families.dit import DIT as THEIRS
    with pytest.raises(ConfigError, match="a width that 4 divides, got 36 / 6"):
        replace(ROTARY, width=36, heads=6)
    with pytest.raises(ConfigError, match="no rotary positions"):
        THEIRS.to_theirs(ROTARY)
