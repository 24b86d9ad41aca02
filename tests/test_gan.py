"""imagegen/gan.py, adversarial.py, dcgan.py: what is drawn and kept, both sides' gradients against two optimizers' view, slopes, wrong input."""
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageOps

import gencore
from gencore import Run, TrainConfig
from gencore.check import CheckpointError, ConfigError, InputError
from imagegen.adversarial import Game, StackedBatches, drawn, first_loss, relativistic_loss, train_gan, without_momentum
from imagegen.data import DIGITS
from imagegen.dcgan import DCCritic, DCGenerator
from imagegen.gan import GAN, Critic, GANConfig, Generator
from imagegen.labelled import LabelledBatches
from imagegen.walk import along_sphere, save_gif
from tests.scripts import EXAMPLES, run

GOLDEN_THREE = [[0.004, 0.151, 0.211, 0.004], [0.004, 0.172, 0.676, 0.075], [0.025, 0.664, 0.511, 0.007], [0.005, 0.2, 0.034, 0.001]]
GOLDEN_SEVEN = [[0.002, 0.001, 0.008, 0.002], [0.006, 0.369, 0.38, 0.002], [0.002, 0.04, 0.292, 0.0], [0.001, 0.177, 0.094, 0.003]]

CFG = GANConfig(size=8, widths=(8, 8), latent=6, attention=4, heads=2, labels=("left", "right"))


@pytest.fixture
def game():
    torch.manual_seed(0)
    model = Game(Generator(CFG), Critic(CFG))
    for p in model.parameters():                                     # no block is the identity any more
        torch.nn.init.normal_(p, std=0.2)
    return model


def batch(rows=4):
    draw = torch.Generator().manual_seed(1)
    return {"pixels": torch.randint(0, 256, (rows, 1, 8, 8), generator=draw, dtype=torch.uint8), "labels": torch.arange(rows) % 2}


@pytest.mark.parametrize("muon_lr", [None, 1e-2])
def test_yesterdays_direction_moves_nothing(game, muon_lr):
    optimizer = without_momentum(game, TrainConfig(lr=1e-2, muon_lr=muon_lr, weight_decay=0.0))
    before = [p.detach().clone() for p in game.parameters()]
    for gradient in (1.0, 0.0):
        for p in game.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step()
        moved = [not torch.equal(p, old) for p, old in zip(game.parameters(), before)]
        assert all(moved) if gradient else not any(moved)
        before = [p.detach().clone() for p in game.parameters()]


def test_one_backward_gives_each_side_the_gradient_of_its_own_loss(game):
    made_of = drawn(game.generator, batch()["labels"], torch.Generator().manual_seed(2))
    relativistic_loss(game, batch(), torch.Generator().manual_seed(2), gamma=3.0)[0].backward()
    together = {name: p.grad.clone() for name, p in game.named_parameters()}
    game.zero_grad()
    real, labels, made = batch()["pixels"].float() / 127.5 - 1, batch()["labels"], game.generator(*made_of)
    softplus = torch.nn.functional.softplus
    softplus(game.critic(real, labels).detach() - game.critic(made, labels)).sum().backward()
    for name, p in game.generator.named_parameters():
        torch.testing.assert_close(together[f"generator.{name}"], p.grad, atol=1e-5, rtol=1e-4)
    game.zero_grad()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss, scores = 0.0, []
        for pictures in (real, made.detach()):
            pictures = pictures.clone().requires_grad_()
            scores.append(game.critic(pictures, labels))
            slope, = torch.autograd.grad(scores[-1].sum(), pictures, create_graph=True)
            loss = loss + 1.5 * slope.square().sum()
        (loss + softplus(scores[1] - scores[0]).sum()).backward()
    for name, p in game.critic.named_parameters():
        torch.testing.assert_close(together[f"critic.{name}"], p.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_penalty_is_the_squared_slope_at_real_and_made(game, gamma):
    """A critic that is a line: its slope is its weight everywhere."""
    weight = torch.nn.Parameter(torch.randn(64))

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, pictures, labels=None):
            return pictures.flatten(1) @ self.weight

    line = Game(game.generator, Line())
    values = [float(relativistic_loss(line, batch(), torch.Generator().manual_seed(2), gamma=g)[0].detach()) for g in (0.0, gamma)]
    wanted = 4 * gamma * float(weight.detach().square().sum())       # half of two slopes, four pairs
    assert values[1] - values[0] == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_new_network_begins_as_skips_alone():
    generator, critic = Generator(CFG), Critic(CFG)
    assert all(torch.equal(block(h), h) for stage in generator.blocks for block in stage for h in [torch.randn(1, 8, 4, 4)])
    assert generator(torch.randn(3, 6), generator.classes(torch.tensor([0, 1, 0]))).shape == (3, 1, 8, 8)
    assert critic(torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 0])).shape == (3,)


def test_every_place_is_seen_through_attention(game):
    stage = game.critic.blocks[-1]                                   # on the 4x4 grid
    h = torch.randn(1, 8, 4, 4, requires_grad=True)
    stage(h)[0, :, 0, 0].sum().backward()
    assert h.grad[0, :, 3, 3].abs().sum() > 0                        # further than two convolutions reach


def test_it_learns_and_goes_on_from_a_checkpoint(tmp_path):
    """Two classes, dark on one side: after 150 steps the made pictures are so."""
    pixels = torch.full((64, 1, 8, 8), 255, dtype=torch.uint8)
    labels = torch.arange(64) % 2
    pixels[labels == 0, :, :, :4], pixels[labels == 1, :, :, 4:] = 0, 0
    torch.manual_seed(0)
    config = TrainConfig(steps=150, batch=16, lr=3e-3, warmup=5, decay=0.3, weight_decay=0.0, clip=None, ema=0.9)
    generator = train_gan(Generator(CFG), Critic(CFG), LabelledBatches(pixels, labels, 16, 0), config, run=Run(tmp_path / "run", progress=False))
    pictures = GAN(generator)(["left", "right"] * 4, seed=0, output_type="np")[..., 0]
    assert (pictures[::2, :, :4].mean() < 0.3) and (pictures[::2, :, 4:].mean() > 0.7)
    assert (pictures[1::2, :, :4].mean() > 0.7) and (pictures[1::2, :, 4:].mean() < 0.3)


def test_the_first_game_runs_with_its_networks():
    cfg = GANConfig(size=32, picture_channels=3, latent=8)
    torch.manual_seed(0)
    model = Game(DCGenerator(cfg, width=8), DCCritic(cfg, width=8))
    batches = StackedBatches(torch.randint(0, 256, (20, 1, 32, 32), dtype=torch.uint8), torch.zeros(20), 4, 0)
    loss, pairs = first_loss(model, batches.batch(0), torch.Generator().manual_seed(0))
    loss.backward()
    assert pairs == 4 and all(p.grad is not None for p in model.parameters()) and loss.item() / 4 == pytest.approx(3 * 0.693, abs=0.6)


def test_stacked_batches_draw_a_channel_each_from_the_step_alone():
    pixels = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 1, 2, 2)
    batches = StackedBatches(pixels, torch.zeros(50), 64, 3)
    drawn_twice = [batches.batch(7)["pixels"] for _ in range(2)]
    assert torch.equal(*drawn_twice) and drawn_twice[0].shape == (64, 3, 2, 2)
    assert (drawn_twice[0][:, 0] != drawn_twice[0][:, 1]).any() and not torch.equal(drawn_twice[0], batches.batch(8)["pixels"])


# ---- what users call ----

def test_a_folder_draws_the_same_again_alone_and_in_a_list(game, tmp_path):
    GAN(game.generator).save_pretrained(tmp_path / "tiny")
    gan = GAN.from_pretrained(tmp_path / "tiny")
    pictures = gan(["left", "right", "left"], seed=5)
    assert [picture.mode for picture in pictures] == ["L"] * 3 and pictures[0].size == (8, 8)
    assert gan("right", seed=6)[0].tobytes() == pictures[1].tobytes() != gan("left", seed=6)[0].tobytes()
    pictures[1].save(tmp_path / "a.png")
    again = gencore.replay(tmp_path / "a.png")
    assert again.tobytes() == pictures[1].tobytes()
    assert gan("left", seed=1, output_type="np").shape == (1, 8, 8, 1) and gan("left", seed=1, output_type="pt").shape == (1, 1, 8, 8)


def test_a_dtype_by_name_and_labels_of_another_number(game, tmp_path):
    gan = GAN(game.generator)
    gan.save_pretrained(tmp_path / "half", dtype="bfloat16")
    assert GAN.from_pretrained(tmp_path / "half").generator.start.weight.equal(game.generator.start.weight.bfloat16().float())
    with pytest.raises(InputError, match="dtype should be a floating one"):
        gan.save_pretrained(tmp_path / "none", dtype=torch.int8)
    assert not (tmp_path / "none").exists()
    latents = torch.randn(3, game.generator.cfg.latent)
    for labels, words in ((torch.zeros(2).long(), "labels: B should be 3"), (torch.full((3,), 9), "labels should be between 0 and 1")):
        with pytest.raises(InputError, match=words):
            gan.draw(latents, labels)


def test_what_was_just_saved_has_recipes_unless_it_was_rounded(game, tmp_path):
    gan = GAN(game.generator)
    assert "recipe" not in gan("left", seed=0)[0].info
    gan.save_pretrained(tmp_path / "m")
    gan("left", seed=0)[0].save(tmp_path / "a.png")
    assert gencore.replay(tmp_path / "a.png").tobytes() == gan.to("cpu")("left", seed=0)[0].tobytes()
    gan.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert "recipe" not in gan("left", seed=0)[0].info


def test_latents_alone_are_drawn_where_there_are_no_classes(game):
    gan, latents = GAN(Generator(replace(CFG, labels=()))), torch.randn(3, CFG.latent)
    with torch.no_grad():
        torch.testing.assert_close(gan.draw(latents), gan.generator(latents).clamp(-1, 1))
    with pytest.raises(InputError, match="labels should be numbers of 2 classes, one for each picture, got None"):
        GAN(game.generator).draw(latents)


def test_without_classes_a_number_of_pictures_is_asked_for():
    torch.manual_seed(0)
    gan = GAN(Generator(replace(CFG, labels=(), picture_channels=3)))
    assert [picture.mode for picture in gan(3, seed=0)] == ["RGB"] * 3 and len(gan(seed=0)) == 1
    with pytest.raises(InputError, match="how many pictures.*got 'left'"):
        gan("left")


def test_a_walk_starts_at_its_pictures_and_is_one_file(game, tmp_path):
    gan = GAN(game.generator)
    frames = gan.walk(["left", "right"], seed=4, frames=5)
    drawn_alone = gan(["left", "right"], seed=4)
    assert len(frames) == 10 and [frames[i].tobytes() for i in (0, 5)] == [picture.tobytes() for picture in drawn_alone]
    save_gif(frames, tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as file:
        assert file.n_frames == 10 and file.info["loop"] == 0


def test_the_arc_keeps_the_length_and_has_both_ends():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(along_sphere(a, b, 0.5), torch.tensor([2.0, 2.0]) / 2 ** 0.5)
    assert torch.equal(along_sphere(a, a, 0.3), a) and torch.allclose(along_sphere(a, b, 1.0), b, atol=1e-6)


@pytest.mark.parametrize("call, words", [
    (lambda gan: gan("centre"), "label should be one of left, right, got 'centre'"), (lambda gan: gan("rigt"), "right"),
    (lambda gan: gan([]), "labels is empty"), (lambda gan: gan(), "got None"), (lambda gan: gan(1), "got 1"),
    (lambda gan: gan("left", output_type="jpg"), "output_type should be one of pil, np, pt"),
    (lambda gan: gan("left", seed="x"), "seed"),
    (lambda gan: gan.walk(["left"], frames=0), "frames should be a whole number between 1 and 1000"),
    (lambda gan: save_gif([], "a.gif"), "no pictures"),
    (lambda gan: save_gif(gan("left"), "no/such/folder/a.gif"), "there is no folder no/such/folder"),
    (lambda gan: gan.generator(torch.zeros(2, 5), torch.zeros(2, 6)), "latents: Z should be 6, got 5"),
])
def test_wrong_calls_are_named(game, call, words):
    with pytest.raises(InputError, match=words):
        call(GAN(game.generator))


@pytest.mark.parametrize("fields, words", [
    ({"size": 12}, "4 doubled once for each width"), ({"attention": 16}, r"one of the grids \(4, 8\)"), ({"labels": ("a", "a")}, "differ"),
    ({"widths": ()}, "widths"), ({"latent": 0}, "latent"),
])
def test_wrong_sizes_are_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        replace(CFG, **fields)


def test_the_example_learns_from_folders_by_class_and_goes_on(tmp_path, capsys):
    for colour in ("red", "blue"):
        (tmp_path / "data" / colour).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (20, 20), colour).save(tmp_path / "data" / colour / f"{number}.png")
    given = ["--data", tmp_path / "data", "--out", tmp_path / "run", "gan.size=8", "gan.widths=[8,8]", "gan.attention=4", "gan.picture_channels=3",
             "train.batch=4", "train.warmup=1", "train.eval_every=2", "train.threads=1", "shown=2"]
    run(EXAMPLES / "image" / "gan.py", *given, "train.steps=2")
    run(EXAMPLES / "image" / "gan.py", *given, "train.steps=4", "--resume")
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == {"000002.png", "000004.png"}
    assert (tmp_path / "run" / "walk.gif").is_file() and GAN.from_pretrained(tmp_path / "run" / "model")("red", seed=0)[0].size == (8, 8)
    for wrong, words in ((["--data", tmp_path / "data" / "red"], "has no classes: put the pictures of each class into a subfolder"),
                         (["shown=0"], "shown should be between 1 and 256, got 0"), (["gamma=-1"], "gamma should be between 0 and")):
        with pytest.raises(SystemExit):
            run(EXAMPLES / "image" / "gan.py", *wrong, "--out", tmp_path / "other")
        assert words in capsys.readouterr().err


def test_another_kind_of_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="imagegen.TextToImage"):
        GAN.from_pretrained("painter")


# ---- the shipped GAN: a figure and an output that change when its weights, or anything under them, change ----

def test_the_shipped_gan_draws_as_it_did():
    drawn = GAN.from_pretrained("digits-gan")(["3", "7"], seed=0, output_type="pt")
    coarse = torch.nn.functional.avg_pool2d(drawn, 8)[:, 0]                                           # (2, 4, 4)
    torch.testing.assert_close(coarse, torch.tensor([GOLDEN_THREE, GOLDEN_SEVEN]), atol=0.01, rtol=0)


def test_the_shipped_gans_digits_are_read_as_asked():
    from multimodal import Captioner
    asked = [str(i % 10) for i in range(40)]
    drawn = GAN.from_pretrained("digits-gan")(asked, seed=0)
    said = Captioner.from_pretrained("reader")([as_written(picture) for picture in drawn], progress=False)
    assert sum(words == f"a handwritten {DIGITS[int(label)]}" for words, label in zip(said, asked)) >= 36, said


def as_written(picture):
    """White on black at 32 x 32 -> dark on white with a margin, as the reader knows digits."""
    sheet = Image.new("RGB", (64, 64), "white")
    sheet.paste(ImageOps.invert(picture).resize((56, 56), Image.Resampling.BICUBIC).convert("RGB"), (4, 4))
    return sheet
