"""Prompts to pictures: the pipeline, its folder, its recipes."""
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import imagegen
from gencore.check import CheckpointError, ConfigError, InputError, UnknownNameError
from gencore.recipe import replay
from imagegen.data import DIGITS
from imagegen.text_to_image import TextToImage
from tests.tiny_folders import saved_painter

PROMPTS = ["a handwritten seven", "slice of pizza, noto style", ""]
GOLDEN_SEVEN = [[1.0, 1.0, 1.0, 1.0], [0.944, 0.606, 0.507, 1.0], [1.0, 0.994, 0.619, 1.0], [1.0, 0.952, 0.782, 1.0]]
GOLDEN_APPLE = [[0.992, 0.789, 0.522, 0.891], [0.831, 0.563, 0.458, 0.633], [0.694, 0.48, 0.468, 0.603], [0.882, 0.501, 0.513, 0.881]]
SHIPPED = Path(imagegen.__file__).parent / "pretrained" / "painter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny painter with random weights, saved."""
    return saved_painter(tmp_path_factory.mktemp("painters"), PROMPTS)


@pytest.fixture(scope="module")
def painter(folder):
    return TextToImage.from_pretrained(folder)


def draw(painter, prompts, seed=3, steps=4, output_type="pt"):
    return painter(prompts, seed=seed, steps=steps, output_type=output_type, progress=False)


def test_the_forms_of_output_agree(painter):
    pictures = draw(painter, PROMPTS, output_type="pil")
    array, tensor = draw(painter, PROMPTS, output_type="np"), draw(painter, PROMPTS)
    assert [p.size for p in pictures] == [(16, 16)] * 3 and array.shape == (3, 16, 16, 3) and tensor.shape == (3, 3, 16, 16)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.stack([np.asarray(p) for p in pictures]), np.round(array * 255).astype(np.uint8))
    assert 0 <= array.min() and array.max() <= 1 and array.std() > 0.01


def test_shards_and_variants_beside_the_weights_open(painter, folder, tmp_path):
    import diffusers
    pipe = diffusers.PixArtAlphaPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    pipe.save_pretrained(tmp_path / "both")
    pipe.save_pretrained(tmp_path / "both", variant="fp16")
    assert len(list((tmp_path / "shards" / "transformer").glob("*.safetensors"))) > 2
    assert len(list((tmp_path / "both" / "transformer").glob("*.safetensors"))) == 2
    for name in ("shards", "both"):
        assert torch.equal(draw(TextToImage.from_pretrained(tmp_path / name), PROMPTS), draw(painter, PROMPTS))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(painter):
    first, again, other = (draw(painter, PROMPTS, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.01)


def test_a_prompt_in_a_list_is_drawn_as_alone_with_its_own_seed(painter):
    together = draw(painter, PROMPTS, seed=10)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(draw(painter, prompt, seed=10 + i)[0], together[i], rtol=1e-4, atol=1e-4)


def test_long_lists_are_drawn_in_batches(painter, monkeypatch):
    monkeypatch.setattr("imagegen.text_to_image.TOGETHER", 2)
    torch.testing.assert_close(draw(painter, PROMPTS), torch.cat([draw(painter, PROMPTS[:2]), draw(painter, PROMPTS[2:], seed=5)]))


def test_prompt_and_guidance_change_the_picture(painter):
    plain = painter("a handwritten seven", seed=0, steps=4, guidance=1, output_type="pt")
    assert not torch.allclose(plain, painter("pizza", seed=0, steps=4, guidance=1, output_type="pt"), atol=1e-3)
    assert not torch.allclose(plain, painter("a handwritten seven", seed=0, steps=4, guidance=5, output_type="pt"), atol=1e-3)
    negative = painter("a handwritten seven", seed=0, steps=4, negative_prompt="a handwritten seven", output_type="pt")
    torch.testing.assert_close(negative, plain, rtol=1e-4, atol=1e-4)                # leaning from itself to itself


def test_diffusers_opens_the_folder_and_draws_the_same_from_the_same_noise(painter, folder):
    from diffusers import DiffusionPipeline
    theirs = DiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(3 + i)) for i in range(3)])
    expected = theirs(PROMPTS, negative_prompt="pizza", latents=noise, num_inference_steps=6, guidance_scale=2.5, height=16, width=16,
                      use_resolution_binning=False, clean_caption=False, output_type="pt").images
    ours = painter(PROMPTS, negative_prompt="pizza", seed=3, steps=6, guidance=2.5, output_type="pt", progress=False)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_parts_that_diffusers_saved_open_here(painter, folder, tmp_path):
    from diffusers import DiffusionPipeline
    DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    assert "-Infinity" in (tmp_path / "theirs" / "scheduler" / "scheduler_config.json").read_text()        # which is no JSON
    torch.testing.assert_close(draw(TextToImage.from_pretrained(tmp_path / "theirs"), PROMPTS), draw(painter, PROMPTS))


def test_a_saved_picture_is_made_again_to_the_byte(painter, tmp_path):
    pictures = painter(PROMPTS, seed=3, steps=4, guidance_interval=(0.2, 0.8), progress=False)
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
        again = replay(tmp_path / f"{i}.png")
        assert again.tobytes() == picture.tobytes()
    recipe = json.loads(pictures[1].info["recipe"])
    assert recipe["inputs"]["prompt"] == PROMPTS[1] and recipe["settings"]["steps"] == 4


def test_a_painter_from_a_relative_folder_replays_from_elsewhere(painter, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    opened = TextToImage.from_pretrained("tiny")
    assert opened.to("cpu") is opened
    [picture] = opened.to(torch.device("cpu"))("pizza", seed=3, steps=2, progress=False)
    picture.save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert replay("a.png").tobytes() == picture.tobytes()
    with pytest.raises(InputError, match='expected a device such as "cpu".*got torch.bfloat16'):
        opened.to(torch.bfloat16)
    assert TextToImage.from_pretrained("painter").name == "painter"                     # what ships keeps its short name


def test_a_painter_saved_in_bfloat16_makes_no_recipe_of_weights_it_has_not(painter, tmp_path):
    mine = TextToImage(painter.painter, painter.tokenizer)
    mine.save_pretrained(tmp_path / "half", dtype="bfloat16")
    assert "recipe" not in draw(mine, "pizza", output_type="pil")[0].info
    mine.save_pretrained(tmp_path / "whole")
    assert "recipe" in draw(mine, "pizza", output_type="pil")[0].info


def test_long_prompts_are_cut_with_one_warning(painter, monkeypatch):
    monkeypatch.setattr("imagegen.text_to_image.TOGETHER", 2)
    with pytest.warns(UserWarning, match='4 prompt.s. have more than 12 tokens and are cut there, the first: "seven') as caught:
        cut = painter(["seven " * 40, "pizza " * 40, "pizza " * 39], negative_prompt="a " * 40, seed=3, steps=1, output_type="pt", progress=False)
    assert len([w for w in caught if "tokens" in str(w.message)]) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="tokens"):
        longer = painter(["seven " * 41], negative_prompt="a " * 40, seed=3, steps=1, output_type="pt", progress=False)
    torch.testing.assert_close(longer[0], cut[0], rtol=1e-4, atol=1e-4)                  # what lies behind the cut is not read


def test_an_interval_guides_the_noise_levels_in_it_alone(painter, monkeypatch):
    rows, draw = [], partial(painter, PROMPTS, seed=3, steps=4, output_type="pt", progress=False)
    velocity = painter.painter.transformer.velocity
    monkeypatch.setattr(painter.painter.transformer, "velocity", lambda x, *args, **more: rows.append(len(x)) or velocity(x, *args, **more))
    whole, plain = draw(guidance=3.0), draw(guidance=1.0)
    assert torch.equal(draw(guidance_interval=(0.0, 1.0)), whole)
    assert torch.equal(draw(guidance_interval=(0.0, 0.0)), plain) and torch.equal(draw(guidance_interval=(1.0, 1.0)), plain)
    rows.clear()
    between, n = draw(guidance_interval=(0.25, 0.75)), len(PROMPTS)          # levels 0.999, 0.749, 0.5, 0.2498
    assert rows == [n, 2 * n, 2 * n, n]
    assert min(float((between - other).abs().max()) for other in (whole, plain)) > 1e-3


@pytest.mark.parametrize("prompts,settings,message", [
    ([], {}, "prompts is empty"), (7, {}, "string or a list"), (["a", None], {}, r"prompts\[1\] should be a string"),
    ("a\ud800", {}, "half a character"), ("a", {"negative_prompt": "\ud800"}, "half a character"),
    ("a", {"steps": 0}, "steps should be"), ("a", {"guidance": -1}, "guidance should be between"), ("a", {"guidance": "3"}, "guidance"),
    ("a", {"seed": 0.5}, "seed should be a whole number"), ("a", {"seed": -1}, "seed should be"), ("a", {"seed": 2 ** 70}, "seed should be"),
    ("a", {"output_type": "jpg"}, "output_type should be one of"),
    ("a", {"negative_prompt": None}, "negative_prompt should be a string"),
    ("a", {"guidance_interval": 0.5}, "two noise levels"), ("a", {"guidance_interval": (0.8, 0.2)}, "high should be between 0.8 and 1"),
    ("a", {"guidance_interval": (-1, 1)}, "low should be between"), ("a", {"guidance_interval": ("a", 1)}, "low should be")])
def test_bad_arguments_are_refused_in_one_sentence(painter, prompts, settings, message):
    with pytest.raises(InputError, match=message):
        painter(prompts, **settings)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UnknownNameError, match="paintr"):
        TextToImage.from_pretrained("paintr")


def test_broken_folders_are_refused_by_name(folder, tmp_path):
    def broken(name, change):
        place = tmp_path / name
        shutil.copytree(folder, place)
        (place / "digests.json").unlink()
        change(place)
        return place

    def edit(file, **fields):
        def change(place):
            values = json.loads((place / file).read_text())
            (place / file).write_text(json.dumps(values | fields))
        return change

    cases = [("gone", lambda p: (p / "vae" / "diffusion_pytorch_model.safetensors").unlink(), CheckpointError, "vae"),
             ("wide", edit("transformer/config.json", num_layers=3), CheckpointError, "blocks.2"),
             ("foreign", edit("model_index.json", _class_name="FluxPipeline"), CheckpointError, "FluxPipeline"),
             ("noise", edit("scheduler/scheduler_config.json", prediction_type="epsilon"), ConfigError, "prediction_type")]
    for name, change, kind, message in cases:
        with pytest.raises(kind, match=message):
            TextToImage.from_pretrained(broken(name, change))


# ---- the shipped painter: a figure and an output that change when its weights, or anything under them, change ----

@pytest.fixture(scope="module")
def shipped():
    return TextToImage.from_pretrained("painter")


def test_the_shipped_painter_draws_as_it_did(shipped):
    coarse = {"a handwritten seven": GOLDEN_SEVEN, "red apple, noto style": GOLDEN_APPLE}
    drawn = shipped(list(coarse), seed=0, output_type="pt", progress=False)
    for picture, golden in zip(drawn, coarse.values()):
        means = torch.nn.functional.avg_pool2d(picture, 16).mean(0)                                 # (4, 4) greys
        torch.testing.assert_close(means, torch.tensor(golden), atol=0.01, rtol=0)


def test_the_shipped_painter_knows_its_digits_and_common_things(shipped):
    from multimodal import Captioner
    things = ["red apple", "pizza", "rocket", "soccer ball", "umbrella", "cherries"]
    prompts = [f"a handwritten {word}" for word in DIGITS] + [f"{thing}, noto style" for thing in things]
    read = Captioner.from_pretrained("reader")(shipped(prompts, seed=1, progress=False), progress=False)
    assert sum(said == prompt for said, prompt in zip(read[:10], prompts)) >= 9
    assert sum(said == thing for said, thing in zip(read[10:], things)) >= 4, read[10:]


@pytest.mark.slow
def test_diffusers_draws_with_the_shipped_painter_as_we_do():
    from diffusers import DiffusionPipeline
    theirs = DiffusionPipeline.from_pretrained(SHIPPED)
    noise = torch.stack([torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    expected = theirs(PROMPTS[:2], latents=noise, num_inference_steps=20, guidance_scale=3.0, height=64, width=64,
                      use_resolution_binning=False, clean_caption=False, output_type="pt").images
    ours = TextToImage.from_pretrained("painter")(PROMPTS[:2], seed=0, output_type="pt")
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
