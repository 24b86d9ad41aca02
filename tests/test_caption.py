"""Captioner: pictures of every kind at the door, batch = single, the rows it is trained on, the figures, and the shipped reader."""
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import multimodal
from gencore.check import CheckpointError, ConfigError, DataError, InputError, UnknownNameError
from gencore.checkpoint import seal
from gencore.data_folder import Rows
from gencore.pictures import open_picture, prepare
from gencore.tokenizer import train_bpe
from multimodal.caption import Captioner, greedy
from multimodal.data import VARIATION_DRAWS, CaptionBatchRows, CaptionRows, collate, emoji_rows, folder_rows, mnist_rows, vary
from multimodal.evaluate import concept_of, name_figures, tone_of
from multimodal.learn import words_of
from multimodal.splice import SpliceConfig, Spliced
from multimodal.vision import VisionConfig

SHIPPED = Path(multimodal.__file__).parent / "pretrained" / "reader"
shipped = pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="the reader's weights are not in this checkout")


def tiny():
    tokenizer = train_bpe(["a red circle", "a blue square"], 270, specials=("</s>", "<pad>", "<image>"))
    cfg = SpliceConfig(VisionConfig(image=16, patch=8, width=32, layers=2, heads=4, mlp=48), vocab=len(tokenizer), width=32, heads=4,
                       mlp=48, context=40, image_token=2)
    model = Spliced(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return Captioner(model, tokenizer)


def picture(seed=0, size=(16, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


# ---- at the door ----

def test_a_list_is_read_as_its_pictures_alone_in_any_batch():
    reader = tiny()
    pictures = [picture(seed) for seed in range(5)]
    alone = [reader(p, max_new_tokens=8) for p in pictures]
    assert len(set(alone)) > 1
    assert reader(pictures, max_new_tokens=8) == reader(pictures, max_new_tokens=8, batch=2) == alone


def test_greedy_words_equal_those_of_whole_forwards():
    reader = tiny()
    pixels = torch.stack([prepare(picture(seed), 16) for seed in range(3)])
    read = greedy(reader.model, pixels, 0, longest=6)
    for row, pixel in zip(read, pixels):
        ids = [2] * 4
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(reader.model(torch.tensor([ids]), pixel[None])[0, -1].argmax()))
        words = ids[4:]
        assert row == (words[:words.index(0)] if 0 in words else words)


def test_path_bytes_picture_array_and_tensor_are_the_same_picture(tmp_path):
    original = picture()
    original.save(tmp_path / "a.png")
    pixels = prepare(original, 16)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), np.asarray(original), pixels):
        torch.testing.assert_close(prepare(open_picture(source), 16), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "RGBX", "RGBa", "La", "PA"])
def test_every_mode_of_pil_is_read(mode):
    grey = Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1)))
    if mode == "I;16":
        odd = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode in ("RGBa", "La"):
        odd = grey.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    elif mode == "LAB":
        from PIL import ImageCms
        change = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        odd = ImageCms.applyTransform(grey.convert("RGB"), change)
    else:
        odd = grey.convert("P").convert(mode) if mode == "PA" else grey.convert(mode)
    assert odd.mode == mode
    pixels = prepare(open_picture(odd), 16)
    assert pixels.shape == (3, 16, 16) and pixels.abs().max() <= 1
    if mode not in ("1", "P", "PA", "LAB"):
        torch.testing.assert_close(pixels, prepare(grey.convert("RGB"), 16), rtol=0, atol=0.03)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert (prepare(open_picture(clear), 16) == 1).all()
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0] * 256)
    palette.info["transparency"] = 0
    assert (prepare(open_picture(palette), 16) == 1).all()


def test_other_sizes_are_brought_to_the_square_with_white_beside():
    pixels = prepare(Image.new("RGB", (100, 50)), 16)
    assert (pixels[:, :4] == 1).all() and (pixels[:, -4:] == 1).all() and (pixels[:, 5:11] == -1).all()
    assert prepare(Image.new("RGB", (1000, 1)), 16).shape == (3, 16, 16)


def test_of_an_animation_the_first_frame_is_read_and_that_is_said():
    file = io.BytesIO()
    others = [Image.new("RGB", (16, 16), colour) for colour in ("blue", "green")]
    Image.new("RGB", (16, 16), "red").save(file, "GIF", save_all=True, append_images=others)
    with pytest.warns(UserWarning, match="more than one frame: the first is read"):
        pixels = prepare(open_picture(file.getvalue()), 16)
    assert pixels[0].mean() > 0.9 > -0.9 > pixels[2].mean()


def test_a_picture_turned_by_its_exif_is_turned_back():
    exif = Image.Exif()
    exif[0x0112] = 6                                                                 # to be turned by 90 degrees
    file = io.BytesIO()
    Image.new("RGB", (30, 10)).save(file, "JPEG", exif=exif)
    assert open_picture(file.getvalue()).size == (10, 30)


@pytest.mark.parametrize("source, message", [
    (3.5, "expected a picture .*got float"),
    (np.zeros((4, 4), np.float32), "uint8.*float32"),
    (np.zeros((0, 4, 3), np.uint8), "empty"),
    (np.zeros((4, 4, 5), np.uint8), r"\(4, 4, 5\)"),
    (torch.zeros(3, 4), r"\(3, height, width\)"),
    (torch.full((3, 4, 4), 200.0), r"values in \[-1, 1\]"),
    (torch.full((3, 4, 4), float("nan")), r"values in \[-1, 1\]"),
])
def test_what_is_no_picture_is_said_in_one_sentence(source, message):
    with pytest.raises(InputError, match=message):
        open_picture(source)


def test_broken_files_are_named(tmp_path):
    good = io.BytesIO()
    picture(size=(64, 64)).save(good, "PNG")
    for name, content in {"cut.png": good.getvalue()[:-3000], "text.png": b"no picture", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not a picture that can be read") as error:
            open_picture(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(DataError, match="no/such.png does not exist"):
        open_picture("no/such.png")
    with pytest.raises(DataError, match="is a folder: give the path of a picture"):
        open_picture(tmp_path)
    with pytest.raises(DataError, match="^'' does not exist"):
        open_picture("")
    with Image.open(tmp_path / "cut.png") as opened, pytest.raises(DataError, match="the picture is not a picture that can be read"):
        open_picture(opened)                                                         # PIL reads the pixels when they are asked for


def test_a_reader_moves_to_a_device_and_stays_in_float32():
    reader = tiny()
    assert reader.to("cpu") is reader
    with pytest.raises(InputError, match='expected a device such as "cpu".*got torch.bfloat16'):
        reader.to(torch.bfloat16)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    with warnings.catch_warnings(), pytest.raises(InputError, match="9000 x 9000 pixels, at most 64,000,000"):
        warnings.simplefilter("error")
        open_picture(tmp_path / "large.png")
    header = bytearray((tmp_path / "large.png").read_bytes())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(header)
    with pytest.raises(InputError, match="pixels"):
        open_picture(tmp_path / "bomb.png")


def test_arguments_out_of_range_are_refused():
    reader = tiny()
    for wrong in (99, 2.5, True, 0):
        with pytest.raises(InputError, match=f"max_new_tokens should be a whole number between 1 and 36, got {wrong}"):
            reader(picture(), max_new_tokens=wrong)
    with pytest.raises(InputError, match="no pictures"):
        reader([])
    with pytest.raises(UnknownNameError, match="readr"):
        Captioner.from_pretrained("readr")


def test_a_tokenizer_of_another_model_is_refused():
    reader = tiny()
    with pytest.raises(CheckpointError, match="not of one model"):
        Captioner(reader.model, train_bpe(["a b c d"] * 9 + ["red circles and blue squares all around"] * 9, 300))


def test_a_saved_caption_is_read_again_from_its_recipe(tmp_path, monkeypatch):
    import gencore
    tiny().save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    reader = Captioner.from_pretrained("mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")                                        # its recipes name the folder from anywhere
    caption = reader.save(picture(size=(40, 30)), tmp_path / "caption.txt", max_new_tokens=8)
    assert (tmp_path / "caption.txt").read_text(encoding="utf-8") == caption == reader(picture(size=(40, 30)), max_new_tokens=8)
    assert gencore.replay(tmp_path / "caption.txt") == caption
    recipe = json.loads((tmp_path / "caption.txt.recipe.json").read_text())
    (tmp_path / "caption.txt.recipe.json").write_text(json.dumps({**recipe, "inputs": {"picture": "no base64!"}}))
    with pytest.raises(InputError, match="PNG in base64"):
        gencore.replay(tmp_path / "caption.txt")


# ---- training rows ----

def test_variation_is_a_function_of_seed_epoch_and_row():
    pictures = torch.randint(0, 256, (4, 4, 16, 16), dtype=torch.uint8)
    rows = CaptionRows(lambda i: pictures[i], ["a", "b", "c", "d"], repeats=[1, 2, 0, 1])

    def made(seed, epoch):
        data = CaptionBatchRows([rows], lambda caption: [5, 0], 2, patches=4, longest=6, seed=seed)
        assert len(data) == 4
        return collate([data.at(i, epoch) for i in range(4)])

    first = made(0, 0)
    assert torch.equal(first["pictures"], made(0, 0)["pictures"])
    assert not torch.equal(first["pictures"], made(0, 1)["pictures"]) and not torch.equal(first["pictures"], made(1, 0)["pictures"])
    assert first["ids"].tolist()[0] == [2, 2, 2, 2, 5, 0, 0, 0, 0, 0] and first["lengths"].tolist() == [2] * 4


def test_a_row_that_is_not_varied_is_the_picture_on_white():
    rgba = picture(1, (16, 16)).convert("RGBA")
    rgba.putalpha(Image.fromarray(np.random.default_rng(2).integers(0, 255, (16, 16), dtype=np.uint8)))
    row = torch.from_numpy(np.asarray(rgba).copy()).permute(2, 0, 1)[None]
    torch.testing.assert_close(vary(row, torch.zeros(1, VARIATION_DRAWS))[0], prepare(rgba, 16), rtol=0, atol=0.02)


def test_a_caption_that_is_too_long_is_named():
    rows = CaptionRows(lambda i: torch.zeros(4, 16, 16, dtype=torch.uint8), ["very long"])
    with pytest.raises(DataError, match='"very long.*9 tokens, 6 are the most'):                # before anything is learnt
        CaptionBatchRows([rows], lambda caption: [5] * 9, 2, patches=4, longest=6)
    tokenizer = tiny().tokenizer
    assert words_of(tokenizer, "a red circle")[-1] == tokenizer.eos_id
    for sign in ("<image>", "</s>"):
        with pytest.raises(DataError, match=f'the caption "a {sign} circle" holds {sign}'):
            words_of(tokenizer, f"a {sign} circle")


def test_a_row_is_varied_alone_as_in_a_batch():
    torch.manual_seed(0)
    pictures, draws = torch.randint(0, 256, (6, 4, 16, 16), dtype=torch.uint8), torch.rand(6, VARIATION_DRAWS) * 0.6 + 0.4
    draws[:, 14] = torch.tensor([0.9, 0.5, 0.9, 0.9, 0.5, 0.9])                       # most are noisy
    together = vary(pictures, draws)
    for i in range(6):
        torch.testing.assert_close(vary(pictures[i:i + 1], draws[i:i + 1])[0], together[i], rtol=0, atol=1e-5)


def test_a_caption_has_as_many_words_as_there_is_room_for_and_none_is_a_picture():
    reader = tiny()
    model = Spliced(replace(reader.model.cfg, context=20, tied=False))
    with torch.no_grad():
        model.head.weight.fill_(0)
        model.head.weight[5] = 0.5
        for sign in (1, -1):
            model.head.weight[model.cfg.image_token] = sign                           # one of them makes it the likeliest
            short = Captioner(model, reader.tokenizer)
            assert short.room == 16 and isinstance(short(picture()), str)
            assert model.cfg.image_token not in greedy(model, torch.randn(1, 3, 16, 16), 0, longest=16)[0]
    with pytest.raises(CheckpointError, match="reads 4 tokens, a picture takes 4: none is left for words"):
        Captioner(Spliced(replace(reader.model.cfg, context=4)), reader.tokenizer)


def test_a_recipe_needs_a_folder_and_folders_prepare_pictures_as_here(tmp_path):
    reader = tiny()
    with pytest.raises(InputError, match="lie in no folder that a recipe could name: save_pretrained first"):
        reader.save(picture(), tmp_path / "a.txt")
    reader.save_pretrained(tmp_path / "reader")
    reader.save(picture(), tmp_path / "a.txt")
    place = tmp_path / "reader" / "preprocessor_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "image_mean": [0.48, 0.46, 0.41]}))
    seal(tmp_path / "reader")
    with pytest.raises(ConfigError, match="image_mean should be"):
        Captioner.from_pretrained(tmp_path / "reader")


def test_a_users_folder_becomes_rows(tmp_path):
    from gencore.data_folder import image_folder
    for name in ("a", "b"):
        picture(size=(20, 10)).save(tmp_path / f"{name}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{n}.png", "text": f"it is {n}"}) for n in "ab"))
    rows = folder_rows(image_folder(tmp_path), 16)
    assert rows.captions == ["it is a", "it is b"] and rows[1][0].shape == (4, 16, 16)
    assert (rows[0][0][3, :4] == 0).all() and (rows[0][0][3, 5:11] == 255).all()


# ---- figures ----

def test_concept_and_tone_of_a_name():
    assert concept_of("woman firefighter: medium-light skin tone") == concept_of("man firefighter") == ("firefighter",)
    assert concept_of("men holding hands: dark skin tone, light skin tone") == ("holding", "hands")
    assert concept_of("light bulb") == ("light", "bulb")
    assert [tone_of(name) for name in ("light bulb", "ear: medium-dark skin tone", "x: dark skin tone, dark skin tone",
                                       "kiss: man, man, light skin tone, dark skin tone")] == ["none", "medium-dark", "dark", "mixed"]


def test_figures_count_what_they_say():
    figures = name_figures(["man singer: dark skin tone", "ear", "nose"], ["woman singer: dark skin tone", "ear: light skin tone", "mouth"])
    assert figures == {"concept": 2 / 3, "skin_tone": 1 / 2, "skin_tone_all": 2 / 3, "name": 0.0}


# ---- the shipped reader ----

def drawn(shape, colour):
    """A shape as the emoji draw it, 64x64."""
    sheet = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(sheet)
    (pen.ellipse if shape == "circle" else pen.rectangle)((16, 16, 240, 240), fill=colour)
    return sheet.resize((64, 64), Image.Resampling.LANCZOS)


@shipped
def test_the_shipped_reader_reads_shapes_drawn_here():
    asked = {("circle", "#dd2e44"): "red circle", ("circle", "#55acee"): "blue circle", ("square", "#31373d"): "black large square",
             ("square", "#78b159"): "green square", ("square", "#aa8ed6"): "purple square"}
    read = Captioner.from_pretrained("reader")([drawn(*what) for what in asked], progress=False)
    assert read == list(asked.values())


@shipped
def test_the_shipped_reader_opens_in_transformers_and_reads_the_same():
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    model = LlavaForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(SHIPPED)
    inputs = processor(images=drawn("circle", "#dd2e44"), text="<image>", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1]:]
    assert processor.decode(ids, skip_special_tokens=True) == "red circle"


def test_a_broken_picture_of_the_shipped_sources_is_named():
    def rows(*pictures):
        return Rows({"image": [{"bytes": picture} for picture in pictures], "name": ["cat"] * len(pictures), "label": [1] * len(pictures)}, pictures)

    def png(side):
        Image.new("RGBA", (side, side), "red").save(file := io.BytesIO(), "PNG")
        return file.getvalue()

    assert emoji_rows(rows(png(64)))[0][0].shape == (4, 64, 64)
    for picture, words in ((png(64)[:60], "emoji, picture 1 is not a picture"), (png(32), "emoji, picture 1 should have 64x64 pixels, got 32x32")):
        with pytest.raises(DataError, match=words):
            emoji_rows(rows(png(64), picture))
    with pytest.raises(DataError, match="mnist, picture 1 is not a picture"):
        mnist_rows(rows(png(28), b"none"))[1]
