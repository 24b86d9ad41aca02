"""imagegen/control.py: nothing changes before training, lines lead after it; edges of drawn shapes, folders, recipes, wrong input, the example."""
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import gencore
from gencore.check import CheckpointError, ConfigError, DataError, InputError
from gencore.train import Run, TrainConfig
from gencore.transformer import Memory
from imagegen import ControlledTextToImage, PainterLoRA, TextToImage
from imagegen.captioned import Captioned
from imagegen.control import Control, ControlConfig, Led, control_files, edge_agreement, edges, edges_of, train_control, white_lines
from imagegen.dit import DiTConfig
from tests.scripts import EXAMPLES, run
from tests.tiny_folders import lively_painter

PROMPTS = ["a handwritten seven", "slice of pizza, noto style"]


def fresh(seed=0):
    """A tiny painter with random weights, and an untrained branch."""
    painter = lively_painter(PROMPTS)
    torch.manual_seed(seed)
    return ControlledTextToImage(painter, Control.beside(ControlConfig(copied=1, stem=4), painter.painter))


def lively(seed=0):
    """The same, as if the branch had learnt something."""
    controlled = fresh(seed)
    with torch.no_grad():
        for linear in controlled.control.leave:
            linear.weight.normal_(std=0.3)
    return controlled


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlled") / "tiny"
    lively().save_pretrained(folder)
    return ControlledTextToImage.from_pretrained(folder)


def square_lines(side=16, place=4):
    """White lines around a square."""
    sheet = Image.new("L", (side, side))
    ImageDraw.Draw(sheet).rectangle((place, place, place + 7, place + 7), outline=255)
    return sheet


def draw(model, *lines, seed=3, **settings):
    return model(PROMPTS, *lines, seed=seed, steps=3, output_type="pt", progress=False, **settings)


# ---- the branch ----

def test_before_training_the_pictures_are_the_painters_own_to_the_bit():
    controlled = fresh()
    assert torch.equal(draw(controlled, square_lines()), draw(controlled.painter))
    assert torch.equal(draw(controlled, square_lines(), guidance=1), draw(controlled.painter, guidance=1))


def test_lines_lead_as_much_as_their_weight_says(opened):
    own, none, half, whole = draw(opened.painter), *(draw(opened, square_lines(), weight=weight) for weight in (0, 0.5, 1))
    assert torch.equal(none, own)
    assert 0 < (half - own).abs().mean() < (whole - own).abs().mean()
    assert not torch.allclose(draw(opened, square_lines(place=8)), whole, atol=1e-3)


def test_a_prompt_with_its_lines_is_drawn_as_alone(opened):
    lines = [square_lines(place=2), square_lines(place=7)]
    together = draw(opened, lines, seed=10)
    for i, prompt in enumerate(PROMPTS):
        alone = opened(prompt, lines[i], seed=10 + i, steps=3, output_type="pt", progress=False)[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-4, atol=1e-4)


def test_the_copies_are_the_first_blocks_and_only_the_branch_is_trained(tmp_path):
    controlled = fresh()
    blocks, copies = controlled.painter.painter.transformer.transformer.blocks, controlled.control.copies
    assert all(torch.equal(a, b) for a, b in zip(copies[0].state_dict().values(), blocks[0].state_dict().values(), strict=True))
    before = {name: tensor.clone() for name, tensor in controlled.painter.painter.state_dict().items()}
    leave = controlled.control.leave[0].weight.clone()
    pixels = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    for i, picture in enumerate(pixels):
        picture[:, 2 * i:2 * i + 6, 3:10] = 255
    data = Captioned(pixels, lambda i, rng: PROMPTS[0], torch.zeros(4).long(), np.ones(4))
    run_folder = Run(tmp_path / "run", progress=False, export=lambda model: control_files(model.control, controlled.painter))
    train_control(controlled, data, TrainConfig(steps=40, batch=8, lr=1e-2, warmup=1, save_every=0), run=run_folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in controlled.painter.painter.state_dict().items())
    assert not torch.equal(controlled.control.leave[0].weight, leave)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    again = ControlledTextToImage.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(draw(again, square_lines()), draw(controlled, square_lines()))


def test_lines_are_looked_at_once_and_guidance_sees_the_batch_twice():
    controlled = lively()
    controlled.control.requires_grad_(False)
    transformer, lines = controlled.painter.painter.transformer, torch.rand(2, 1, 16, 16)
    led, latents, t = Led(transformer, controlled.control, lines), torch.randn(2, 3, 4, 4), torch.tensor([10.0, 900.0])
    words = controlled.painter.read(PROMPTS)
    twice = Memory(*(torch.cat((part, part)) for part in words))
    with torch.no_grad():
        once = led.velocity(latents, led.level(t), words)
        both = led.velocity(torch.cat((latents, latents)), led.level(torch.cat((t, t))), twice)
    torch.testing.assert_close(both, torch.cat((once, once)))


def test_long_prompts_are_cut_with_one_warning_at_the_callers_line(opened):
    with pytest.warns(UserWarning, match='2 prompt.s. have more than 12 tokens and are cut there, the first: "seven') as caught:
        opened(["seven " * 40] * 2, square_lines(), steps=2, seed=0, progress=False)
    assert [warning.filename for warning in caught] == [__file__]


# ---- lines ----

def test_edges_of_a_rectangle_are_its_outline_one_pixel_wide():
    sheet = torch.ones(1, 3, 20, 20)
    sheet[..., 5:13, 4:15] = -1.0
    found = edges(sheet)[0, 0]
    outline = torch.zeros(20, 20)
    outline[5:13, 4:15], outline[6:12, 5:14] = 1, 0
    assert edge_agreement(found[None, None], outline[None, None]) == 1
    assert found[7:11].sum(1).eq(2).all() and found[:, 7:12].sum(0).eq(2).all()          # one pixel at each side
    assert edges(torch.zeros(1, 3, 8, 8)).sum() == 0
    flat = sheet * 0.1                                                                   # a tenth of the contrast
    assert edges(flat).sum() == 0 and edges(flat, least=0.05).sum() > 0


def test_edges_between_colours_of_one_brightness_are_seen():
    sheet = torch.zeros(1, 3, 8, 8)
    sheet[:, 0, :, :4], sheet[:, 1, :, 4:] = 1.0, 1.0
    assert edges(sheet)[0, 0].sum(1).eq(1).all()


def test_edges_agree_within_a_pixel_and_not_further():
    lines = [torch.zeros(1, 1, 16, 16) for _ in range(3)]
    for shift, sheet in enumerate(lines):
        sheet[..., 4 + shift] = 1
    assert [float(edge_agreement(lines[0], other)) for other in lines] == [1, 1, 0]
    both = lines[0] + lines[2]
    assert float(edge_agreement(both, lines[0])) == pytest.approx(2 / 3)                 # precision a half, recall one
    assert float(edge_agreement(torch.zeros(1, 1, 16, 16), lines[0])) == 0


def test_lines_are_white_on_black_whatever_the_form():
    sheet = square_lines()
    wanted = torch.from_numpy(np.asarray(sheet)).float()[None] / 255
    clear = Image.merge("RGBA", [Image.new("L", (16, 16), 255)] * 3 + [sheet])            # white lines on nothing
    for form in (sheet, sheet.convert("RGB"), np.asarray(sheet), sheet.convert("1"), clear):
        torch.testing.assert_close(white_lines(form, 16), wanted)
    wide = white_lines(Image.new("L", (16, 8)), 16)
    assert wide.shape == (1, 16, 16) and wide.sum() == 0                                 # around it there are no lines
    red = Image.new("RGB", (30, 20), "red")
    assert edges_of(red, 16).size == (16, 16) and edges_of(red).size == (30, 20)
    assert edges_of(red, 16).getextrema() == edges_of(red).getextrema() == (0, 0)            # where a picture ends there is no line
    for side in (0, 2.5, "a", 10 ** 6):
        with pytest.raises(InputError, match="side should be a whole number between 1 and 4096"):
            edges_of(red, side)


# ---- folders and recipes ----

def test_a_picture_is_made_again_from_its_file(opened, tmp_path):
    lines = [square_lines(place=2), square_lines(place=7)]
    for name, given in (("one", lines[0]), ("two", lines)):
        for i, picture in enumerate(opened(PROMPTS, given, weight=0.5, seed=4, steps=2, guidance_interval=(0.0, 0.6), progress=False)):
            picture.save(tmp_path / f"{name}{i}.png")
            assert gencore.replay(tmp_path / f"{name}{i}.png").tobytes() == picture.tobytes()


def test_a_folder_is_a_branch_with_its_painter_and_opens_as_it_was(opened, tmp_path):
    ControlledTextToImage(opened.painter, opened.control).save_pretrained(tmp_path / "again")
    torch.testing.assert_close(draw(ControlledTextToImage.from_pretrained(tmp_path / "again"), square_lines()), draw(opened, square_lines()))
    torch.testing.assert_close(draw(TextToImage.from_pretrained(tmp_path / "again" / "painter")), draw(opened.painter))
    assert opened.to("cpu") is opened


def test_a_branch_of_another_painter_is_refused(opened, tmp_path):
    from safetensors.torch import load_file, save_file

    from gencore.checkpoint import seal
    ControlledTextToImage(opened.painter, opened.control).save_pretrained(tmp_path / "wide")
    weights = tmp_path / "wide" / "model.safetensors"
    state = load_file(weights)
    state["leave.0.weight"] = torch.zeros(30, 30)
    save_file(state, weights)
    seal(tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r'leave.0.weight" should have shape \(24, 24\), got \(30, 30\)'):
        ControlledTextToImage.from_pretrained(tmp_path / "wide")


@pytest.mark.parametrize("call, error, words", [
    (lambda c: c("a", 7), InputError, "expected a picture .* got int"),
    (lambda c: c(["a", "b"], [square_lines()]), InputError, "one control picture, or one for each of the 2 prompts, got 1"),
    (lambda c: c("a", "nowhere.png"), DataError, "nowhere.png does not exist"), (lambda c: c([], square_lines()), InputError, "prompts is empty"),
    (lambda c: c("a", square_lines(), weight=3), InputError, "weight should be between 0 and 2, got 3"),
    (lambda c: c("a", square_lines(), steps=0), InputError, "steps"), (lambda c: c("a", square_lines(), output_type="x"), InputError, "output_type"),
    (lambda c: Control(ControlConfig(copied=9), DiTConfig(layers=2), 8), ConfigError, "copied should be at most the painter's 2 blocks, got 9"),
    (lambda c: c.control.look(torch.zeros(1, 1, 8, 8)), InputError, "lines: S should be 16, got 8")])
def test_wrong_calls_are_named(opened, call, error, words):
    with pytest.raises(error, match=words):
        call(opened)


def test_the_example_teaches_and_reports(opened, tmp_path):
    given = [EXAMPLES / "image" / "control.py", "--base", opened.painter.name, "control.copied=1", "control.stem=4", "train.steps=2",
             "train.batch=4", "train.warmup=1", "train.save_every=0", "--out"]
    said = run(*given, tmp_path / "run", "scenes=6", "moved=1", "held_out=4")
    assert all(f"{name} edges agree by" in said for name in ("not led     ", "led         ", "autoencoder "))
    run(*given, tmp_path / "run", "scenes=6", "moved=1", "held_out=4", "train.steps=3", "--resume")
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert Image.open(tmp_path / "run" / "samples" / "000002.png").height == 3 * 18 - 2
    assert ControlledTextToImage.from_pretrained(tmp_path / "run" / "model")("a", square_lines(), steps=1, progress=False)[0].size == (16, 16)
    (tmp_path / "cats" / "cat").mkdir(parents=True)
    square_lines().save(tmp_path / "cats" / "cat" / "1.png")
    with pytest.raises(SystemExit):
        run(*given, tmp_path / "other", "--data", tmp_path / "cats")
    square_lines(place=3).save(tmp_path / "cats" / "cat" / "2.png")
    assert "led" in run(*given, tmp_path / "other", "--data", tmp_path / "cats")


def test_lines_are_white_in_any_form_and_numbers_of_numpy_are_numbers(opened):
    lines = (np.asarray(square_lines()) > 0)
    wanted = white_lines(square_lines(), 16)
    for form in (lines, torch.from_numpy(lines), torch.from_numpy(lines).float()[None], torch.from_numpy(lines).float()[None, None]):
        assert torch.equal(white_lines(form, 16), wanted)
    assert white_lines(edges(torch.ones(1, 3, 16, 16))[0], 16).max() == 0
    with pytest.raises(InputError, match=r"of uint8 should be 0 and 255, got 0 and 1: give them as bool, got torch.uint8 \(16, 16\)"):
        white_lines(torch.from_numpy(lines).byte(), 16)
    made = opened(PROMPTS[0], lines, weight=np.float32(0.5), steps=2, seed=0)[0]
    assert json.loads(made.info["recipe"])["settings"]["weight"] == 0.5


def test_a_painter_with_an_adapter_in_it_is_no_base_for_a_branch():
    lora = PainterLoRA(lively_painter(PROMPTS), rank=2)
    with pytest.raises(InputError, match="has an adapter in it: save the adapter by lora.save_pretrained, or take lora.merged"):
        Control.beside(ControlConfig(copied=1, stem=4), lora.painter.painter)
    Control.beside(ControlConfig(copied=1, stem=4), lora.merged().painter)
