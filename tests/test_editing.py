"""imagegen/editing.py: what stays stays to the byte, strength from nothing to everything, ways between pictures, recipes, wrong input."""
import numpy as np
import pytest
import torch
from PIL import Image

import gencore
from gencore.check import DataError, InputError
from gencore.diffusion import FLOW, flow_levels
from gencore.pictures import prepare
from gencore.samplers import dpm_solver, euler, keeping, last
from imagegen.editing import Between, Editor
from imagegen.text_to_image import DrawSettings, finished
from tests.scripts import EXAMPLES, run
from tests.tiny_folders import saved_painter

PROMPTS = ["a handwritten seven", "slice of pizza, noto style"]


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    """A tiny painter with random weights, saved and opened."""
    return Editor.from_pretrained(saved_painter(tmp_path_factory.mktemp("painters"), PROMPTS))


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))


def test_a_picture_whose_recipe_is_too_long_is_drawn_without_it(editor, picture, monkeypatch):
    monkeypatch.setattr("gencore.recipe.LIMIT", 200)
    with pytest.warns(UserWarning, match="this picture carries no recipe: recipe: .* bytes of JSON, expected at most 200"):
        assert "recipe" not in editor(picture, PROMPTS[0], strength=1.0, steps=1, seed=0).info


@pytest.mark.parametrize("sampler", [euler, dpm_solver])
def test_what_is_known_comes_out_as_it_was_and_the_rest_is_drawn(sampler):
    """Gaussian data of mean 2: a denoiser in closed form; half of the components are known to be -5."""
    torch.manual_seed(0)
    mean, spread = 2.0, 0.5

    def denoise(x, level):
        alpha, sigma = FLOW.scales(level)
        return mean + alpha * spread ** 2 / (alpha ** 2 * spread ** 2 + sigma ** 2) * (x - alpha * mean)

    known, redrawn = torch.full((4000, 2), -5.0), torch.tensor([True, False])
    x = last(sampler(keeping(denoise, known, redrawn), torch.randn(4000, 2), flow_levels(50)[0]))
    torch.testing.assert_close(x[:, 1], known[:, 1], atol=1e-4, rtol=0)
    assert x[:, 0].mean() == pytest.approx(mean, abs=0.05) and x[:, 0].std() == pytest.approx(spread, abs=0.05)


def test_outside_the_mask_every_pixel_stays(editor, picture):
    mask = np.zeros((16, 16), bool)
    mask[4:9, 2:7] = True
    after = np.asarray(editor(picture, PROMPTS[0], mask=mask, steps=3, seed=1))
    same = (after == np.asarray(picture)).all(-1)
    assert same[~mask].all() and not same[mask].all()
    as_picture = Image.fromarray(mask.astype(np.uint8) * 255)
    on_nothing = Image.merge("RGBA", [Image.new("L", (16, 16), 255)] * 3 + [as_picture])
    for form in (as_picture, as_picture.convert("1"), on_nothing):
        np.testing.assert_array_equal(after, np.asarray(editor(picture, PROMPTS[0], mask=form, steps=3, seed=1)))


def test_below_full_strength_something_of_the_picture_is_there_in_few_steps_too(editor):
    dark, light = (Image.new("RGB", (16, 16), colour) for colour in ("black", "white"))
    drawn = [np.asarray(editor(form, PROMPTS[0], strength=0.9, steps=2, seed=0)) for form in (dark, light)]
    assert (drawn[0] != drawn[1]).any()
    with pytest.raises(InputError, match="strength below 1 takes 2 steps or more"):
        editor(dark, PROMPTS[0], strength=0.9, steps=1, seed=0)
    assert editor(dark, PROMPTS[0], strength=np.float32(1), steps=np.int64(1), seed=0).info["recipe"]


def test_a_mask_that_is_too_thin_to_be_seen_is_refused(editor):
    mask = np.zeros((512, 512), bool)
    mask[0, :40] = True
    with pytest.raises(InputError, match="nothing of the mask's white is left at 16 x 16 pixels"):
        editor(Image.new("RGB", (512, 512), "red"), PROMPTS[0], mask=mask, steps=2, seed=0)


def test_what_lies_around_a_picture_that_is_not_square_stays_white(editor):
    wide = Image.new("RGB", (16, 8), "red")
    after = np.asarray(editor(wide, PROMPTS[0], mask=np.ones((8, 16), bool), steps=2, seed=1))
    assert (after[:3] == 255).all() and (after[-3:] == 255).all() and after.shape == (16, 16, 3)


def test_strength_goes_from_the_picture_to_noise_alone(editor, picture):
    drawn = {strength: np.asarray(editor(picture, PROMPTS[0], strength=strength, steps=10, seed=2)).astype(float) for strength in (0.0, 0.5, 1.0)}
    alone = np.asarray(editor.painter(PROMPTS[0], steps=10, seed=2, progress=False)[0]).astype(float)
    np.testing.assert_allclose(drawn[1.0], alone, atol=1)
    far = [np.abs(values - alone).mean() for values in drawn.values()]
    assert far[0] > 0 and far[2] <= 1 and len({values.tobytes() for values in drawn.values()}) == 3


def test_an_edit_is_made_again_from_its_file(editor, picture, tmp_path):
    for name, mask in (("whole", None), ("part", np.eye(16, dtype=bool))):
        made = editor(picture, PROMPTS[1], mask=mask, steps=2, guidance_interval=(0.0, 0.6), seed=7)
        made.save(tmp_path / f"{name}.png")
        assert gencore.replay(tmp_path / f"{name}.png").tobytes() == made.tobytes()


def test_beyond_the_border_is_drawn_and_what_moved_stays_to_the_byte(editor, picture):
    before = np.asarray(picture)
    moved = np.asarray(editor.outpaint(picture, PROMPTS[0], left=5, right=-5, top=-3, bottom=3, steps=2, seed=1))
    assert (moved[:13, 5:] == before[3:, :11]).all() and not (moved[:, :5] == moved[:, 5:6]).all()
    smaller = np.asarray(editor.outpaint(picture, PROMPTS[0], left=8, right=8, top=16, steps=2, seed=1)).astype(float)
    wanted = np.asarray(picture.resize((8, 8), Image.Resampling.BOX)).astype(float)
    assert smaller.shape == (16, 16, 3) and np.corrcoef(smaller[8:, 4:12].ravel(), wanted.ravel())[0, 1] > 0.9
    wide = np.asarray(editor.outpaint(picture, PROMPTS[0], left=8, right=8, steps=2, seed=1))
    assert (wide[:3] == 255).all() and (wide[-3:] == 255).all()                          # 32 x 16 on the painter's square


def test_variations_are_as_many_edits_that_replay(editor, picture, tmp_path):
    made = editor.variations(picture, PROMPTS[0], count=3, strength=0.7, steps=2, seed=5)
    assert len({variation.tobytes() for variation in made}) == 3
    assert made[1].tobytes() == editor(picture, PROMPTS[0], strength=0.7, steps=2, seed=6).tobytes()
    made[2].save(tmp_path / "a.png")
    editor.outpaint(picture, PROMPTS[0], bottom=6, steps=2, seed=1).save(tmp_path / "b.png")
    assert gencore.replay(tmp_path / "a.png").tobytes() == made[2].tobytes() and gencore.replay(tmp_path / "b.png").size == (16, 16)


@pytest.mark.parametrize("drawn", [
    lambda e, p, **how: [e(p, PROMPTS[0], seed=1, **how)], lambda e, p, **how: [e.outpaint(p, PROMPTS[0], left=4, seed=1, **how)],
    lambda e, p, **how: e.variations(p, PROMPTS[0], count=1, seed=1, **how), lambda e, p, **how: e.between(PROMPTS, frames=1, **how)[:1]])
def test_every_way_of_editing_takes_an_interval(editor, picture, drawn):
    guided, plain, none = (drawn(editor, picture, steps=2, **how)[0].tobytes()
                           for how in ({"guidance": 9.0}, {"guidance": 1.0}, {"guidance": 9.0, "guidance_interval": (0.0, 0.0)}))
    assert none == plain != guided


@pytest.mark.parametrize("call", [
    lambda e, p, words: e(p, words, steps=2, seed=0), lambda e, p, words: e.outpaint(p, words, left=4, steps=2, seed=0),
    lambda e, p, words: e.variations(p, words, count=3, steps=2, seed=0), lambda e, p, words: e.between([words, "a"], frames=1, steps=1)],
    ids=["call", "outpaint", "variations", "between"])
def test_long_prompts_are_cut_with_one_warning_at_the_callers_line(editor, picture, call):
    with pytest.warns(UserWarning, match='1 prompt.s. have more than 12 tokens and are cut there, the first: "seven') as caught:
        call(editor, picture, "seven " * 40)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_way_begins_and_ends_at_its_pictures(editor):
    ends = editor.painter(PROMPTS, steps=2, seed=0, progress=False)[0], editor.painter(PROMPTS[1], steps=2, seed=0, progress=False)[0]
    frames = editor.between(PROMPTS, seeds=[0], frames=3, steps=2)
    assert len(frames) == 4 and len({frame.tobytes() for frame in frames}) == 4
    for frame, end in zip((frames[0], frames[-1]), ends):
        np.testing.assert_allclose(np.asarray(frame).astype(float), np.asarray(end).astype(float), atol=1)
    assert len(editor.between(PROMPTS[:1], seeds=[0, 1, 2], frames=2, steps=1)) == 5


@pytest.mark.parametrize("call, words", [
    (lambda e, p: e(p, ["a"]), "prompts.0. should be a string"), (lambda e, p: e(p, "a", strength=1.5), "strength should be .* 0 .* 1.*1.5"),
    (lambda e, p: e(p, "a", mask=np.ones((3, 4), bool)), "the mask has 4 x 3 pixels, the picture 16 x 16: make them agree"),
    (lambda e, p: e(p, "a", mask=np.zeros((16, 16), bool)), "black everywhere"), (lambda e, p: e(7, "a"), "expected a picture .* got int"),
    (lambda e, p: e(p, "a", steps=0), "steps should be"), (lambda e, p: e(p, "a", steps=1001), "steps should be .* 1000, got 1001"),
    (lambda e, p: e(p, "a", steps=2.5), "steps should be a whole number .*got 2.5"),
    (lambda e, p: e(p, "a", guidance=101), "guidance should be .* 101"),
    (lambda e, p: e(p, "a", guidance=float("nan")), "guidance should be between 0 and 100, got nan"),
    (lambda e, p: e(p, "a", strength=float("nan")), "strength should be between 0 and 1, got nan"),
    (lambda e, p: e(p, "a", negative_prompt=None), "negative_prompt should be a string"), (lambda e, p: e(p, "a", seed=-1), "seed should be"),
    (lambda e, p: e(p, "a", mask="nowhere.png"), "nowhere.png does not exist"), (lambda e, p: e.between(["a"], seeds=[0]), "got 1 and 1"),
    (lambda e, p: e.between(["a", "b", "c"], seeds=[0, 1]), "got 3 and 2"), (lambda e, p: e.between(["a", "b"], seeds=3), "a list of whole.*got 3"),
    (lambda e, p: e.between(["a", "b"], frames=0), "frames"), (lambda e, p: e.outpaint(p, "a"), "outpaint needs a margin above 0"),
    (lambda e, p: e.outpaint(p, "a", left=2.5), "left should be a whole number between -15 and 64, got 2.5"),
    (lambda e, p: e.outpaint(p, "a", left=-9, right=-9, top=1), "left and right cut off all 16 pixels, got -9 and -9"),
    (lambda e, p: e.variations(p, "a", count=0), "count should be"), (lambda e, p: e.variations(p, "a", strength=-1), "strength should be"),
])
def test_wrong_calls_are_named(editor, picture, call, words):
    with pytest.raises((InputError, DataError), match=words):
        call(editor, picture)


def test_files_that_are_no_pictures_are_named(editor, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="is not a picture that can be read"):
        editor(tmp_path / "a.png", "a")
    with pytest.raises(DataError, match="does not exist"):
        editor(tmp_path / "b.png", "a")


def test_the_example_edits_a_file_a_sheet_and_a_way(editor, picture, tmp_path, capsys):
    picture.save(tmp_path / "a.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    given = [EXAMPLES / "image" / "edit.py", "--painter", editor.painter.name, "--out"]
    for name, options, words in (("edit", [], "end in .png, .jpg or .webp, got edit"),
                                 ("way.png", ["--between", "a", "b"], "end in .gif, got way.png")):
        with pytest.raises(SystemExit):
            run(*given, tmp_path / name, *options)
        assert words in capsys.readouterr().err
    run(*given, tmp_path / "b.png", tmp_path / "a.png", PROMPTS[0], "--mask", tmp_path / "mask.png")
    run(*given, tmp_path / "sheet.png")
    run(*given, tmp_path / "more.png", tmp_path / "a.png", PROMPTS[0], "--beyond", "4", "0", "-4", "0")
    run(*given, tmp_path / "row.png", tmp_path / "a.png", PROMPTS[0], "--variations", "3")
    run(*given, tmp_path / "way.gif", "--between", *PROMPTS, "--frames", "2")
    sizes = {"b.png": (16, 16), "sheet.png": (6 * 20, 16), "way.gif": (16, 16), "more.png": (16, 16), "row.png": (3 * 20, 16)}
    assert {name: Image.open(tmp_path / name).size for name in sizes} == sizes
    with pytest.raises(SystemExit):
        run(*given, tmp_path / "c.png", tmp_path / "a.png")
    assert "Give a prompt behind it" in capsys.readouterr().err
    way, beyond = ["--between", *PROMPTS], ["--beyond", "4", "0", "0", "0"]
    for given_too, words in (([tmp_path / "a.png", PROMPTS[0], *beyond, "--strength", "0.5"], "--beyond and --strength don't go together"),
                             ([tmp_path / "a.png", PROMPTS[0], "--variations", "2", "--mask", "m.png"], "--variations and --mask don't go"),
                             ([tmp_path / "a.png", PROMPTS[0], *beyond, "--variations", "2"], "--beyond and --variations don't go"),
                             ([*way, "--mask", "m.png"], "--between and --mask don't go"), (["--strength", "0.5"], "--strength is for a picture"),
                             ([tmp_path / "a.png", PROMPTS[0], *way], "--between draws its own pictures")):
        with pytest.raises(SystemExit):
            run(*given, tmp_path / ("c.gif" if "--between" in given_too else "c.png"), *given_too)
        assert words in capsys.readouterr().err


def test_strength_nought_gives_back_what_the_autoencoder_does_and_too_little_is_refused(editor, picture):
    vae = editor.painter.painter.autoencoder
    given = prepare(picture, 16)[None]
    with torch.inference_mode():
        wanted = editor.painter.decode(vae.encode(given)[0] * vae.cfg.scaling)
    for steps in (1, 2, 20):
        drawn = torch.from_numpy(np.asarray(editor(picture, PROMPTS[0], strength=0, steps=steps, seed=0)).copy()).permute(2, 0, 1)[None]
        torch.testing.assert_close(drawn.float() / 127.5 - 1, wanted, rtol=0, atol=0.005)
    with pytest.raises(InputError, match="strength 0.1 of 3 steps rounds to none: give 6 steps or more"):
        editor(picture, PROMPTS[0], strength=0.1, steps=3, seed=0)
    editor(picture, PROMPTS[0], strength=0.1, steps=6, seed=0)


def test_a_mask_is_a_picture_an_array_or_a_tensor_as_diffusers_has_it(editor, picture):
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:12] = True
    forms = [mask, torch.from_numpy(mask), torch.from_numpy(mask).float(), torch.from_numpy(mask).float()[None],
             torch.from_numpy(mask).float()[None] * 2 - 1, Image.fromarray(mask)]
    drawn = {editor(picture, PROMPTS[0], mask=form, steps=2, seed=3).tobytes() for form in forms}
    assert len(drawn) == 1
    after = np.asarray(editor(picture, PROMPTS[0], mask=forms[2], steps=2, seed=3))
    assert (after[~mask] == np.asarray(picture)[~mask]).all()


def test_a_way_between_prompts_of_other_lengths_does_not_jump(editor):
    prompts = ["seven", "red apple, noto style of many words"]
    first, last = editor.between(prompts, seeds=[0], frames=1, steps=2)
    with torch.inference_mode():
        twice, words = editor.painter.noise([0]).expand(2, -1, -1, -1), editor.painter.read(prompts)
        drawn = editor.painter.decode(editor.painter.sample(twice, words, DrawSettings(steps=2), start=Between(1e-3)))
    near = finished(drawn, [None], "pil")[0]
    far = np.abs(np.asarray(first).astype(float) - np.asarray(last)).mean()
    assert np.abs(np.asarray(first).astype(float) - np.asarray(near)).max() <= 3 and far > 3
    assert editor.between(prompts, frames=1, steps=2, guidance=9.0, negative_prompt="red")[0].tobytes() != \
        editor.between(prompts, frames=1, steps=2, guidance=9.0)[0].tobytes()
