"""Recipes: they survive files and strangers, and replay makes the same output again or says what differs."""

import dataclasses
import json
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from gencore import metadata
from gencore import recipe as module
from gencore.check import CheckpointError, InputError
from gencore.checkpoint import save_folder, weights_digest
from gencore.recipe import Recipe, ReplayError, differences, embed_png, embed_wav, read, register, replay, save_text, versions

soundfile = pytest.importorskip("soundfile")

TEXTS = st.text(max_size=8)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=4)
DICTS = st.dictionaries(TEXTS, VALUES, max_size=3)
DIGEST = "0123456789abcdef"
RECIPES = st.builds(lambda inputs, seed, settings: Recipe.made("image", "painter", DIGEST, inputs=inputs, seed=seed, settings=settings),
                    DICTS, st.integers(-(1 << 63), (1 << 64) - 1), DICTS)


def made(**changes):
    inputs = {"prompt": "a \u2028 „seven“ \U0001f355"}
    recipe = Recipe.made("image", "painter", DIGEST, inputs=inputs, seed=3, settings={"steps": 20})
    return dataclasses.replace(recipe, **changes)


def png(path, size=(5, 4), mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    Image.fromarray(values.squeeze(), mode).save(path)
    return path


def wav(path, channels=1, length=801, subtype="PCM_16"):
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, (length, channels)), 16000, subtype=subtype, format="WAV")
    return path


# ---- the recipe itself ----

def test_a_recipe_equals_what_is_read_back(cases):
    @settings(max_examples=cases)
    @given(RECIPES)
    def holds(recipe):
        text = recipe.to_json()
        assert Recipe.from_json(text) == recipe == Recipe.from_json(text.encode())
        assert text.isascii() and "\n" not in text

    holds()


def test_a_recipe_knows_what_it_was_made_with():
    found = made().versions
    assert found == versions() and found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert set(found) == {"commonthread", "torch", "threads", "cpu"}


def test_tuples_and_numbers_become_those_of_json():
    assert made(settings={"size": (2, 3), 4: True}).settings == {"size": [2, 3], "4": True}


@pytest.mark.parametrize("changes, says", [
    ({"kind": ""}, "kind should be a short text"), ({"model": 5}, "model should be"), ({"model": "a\0b"}, "model should be"),
    ({"model": "x" * 5000}, "model should be"), ({"digest": None}, "digest should be"), ({"seed": 1.0}, "seed should be a whole number"),
    ({"seed": True}, "seed"), ({"seed": 1 << 64}, "64 bits"), ({"inputs": []}, "inputs should be a dict"),
    ({"settings": {"x": torch.ones(1)}}, "settings should hold only JSON values"), ({"settings": {"x": float("nan")}}, "only JSON values"),
    ({"versions": "2.9"}, "versions should be a dict"),
])
def test_a_recipe_holds_what_it_should(changes, says):
    with pytest.raises(InputError, match=re.escape(says)):
        made(**changes)


@pytest.mark.parametrize("change, says", [
    (lambda d: d | {"sede": 1}, 'unknown field "sede" (did you mean "seed"?)'),
    (lambda d: {k: d[k] for k in d if k != "seed"}, "the field seed is missing"),
    (lambda d: d | {"seed": "3"}, "seed should be"), (lambda d: [d], "one object"),
    (lambda d: d | {"inputs": {"p": "x" * (1 << 20)}}, "at most 1048576"),
])
def test_what_a_stranger_wrote_is_checked(change, says):
    with pytest.raises(InputError, match=re.escape(says)):
        Recipe.from_json(json.dumps(change(dataclasses.asdict(made()))))


@pytest.mark.parametrize("text", ["", "{", '{"seed": NaN}', "[" * 100_000, '{"kind": "a", "kind": "b"}', b"\xff\xfe", "\ud800"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(InputError, match="^recipe"):
        Recipe.from_json(text)


def test_a_recipe_over_a_megabyte_is_not_written():
    with pytest.raises(InputError, match="shorten inputs"):
        made(inputs={"prompt": "x" * (1 << 20)}).to_json()


# ---- files ----

@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_png_keeps_its_pixels_and_carries_one_recipe(tmp_path, mode):
    path = png(tmp_path / "a.png", mode=mode)
    pixels = Image.open(path).tobytes()
    for recipe in (made(), made(seed=4)):
        embed_png(path, recipe)
        assert read(path) == recipe
    with Image.open(path) as picture:
        picture.load()
        assert picture.tobytes() == pixels and picture.info["recipe"] == made(seed=4).to_json()
    assert path.read_bytes().count(b"tEXt") == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("packed, international", [(False, False), (True, False), (False, True), (True, True)])
def test_a_recipe_that_pillow_wrote_is_read(tmp_path, packed, international):
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "somebody")
    (info.add_itxt if international else info.add_text)("recipe", made().to_json(), zip=packed)
    png(tmp_path / "a.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "b.png", pnginfo=info)
    assert read(tmp_path / "b.png") == made()
    embed_png(tmp_path / "b.png", made(seed=9))
    assert read(tmp_path / "b.png").seed == 9 and Image.open(tmp_path / "b.png").info["Author"] == "somebody"


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_packed_text_never_grows_beyond_the_cap(tmp_path):
    bomb = chunk(b"zTXt", b"recipe\0\0" + zlib.compress(b" " * (64 << 20), 9))
    raw = png(tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(raw[:33] + bomb + raw[33:])
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        read(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(raw[:33] + chunk(b"zTXt", b"recipe\0\0not packed") + raw[33:])
    with pytest.raises(InputError, match="can't be unpacked"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("channels, length, subtype", [(1, 801, "PCM_16"), (2, 800, "PCM_16"), (1, 333, "PCM_U8"), (1, 800, "FLOAT")])
def test_a_wav_keeps_its_samples_and_carries_one_recipe(tmp_path, channels, length, subtype):
    path = wav(tmp_path / "a.wav", channels, length, subtype)
    samples, rate = soundfile.read(path, dtype="int32")
    payload = metadata.wav_samples(path.read_bytes())
    for recipe in (made(inputs={"prompt": "x" * 50_000}), made(), made(seed=4), made(seed=4, inputs={"p": "ab"})):
        embed_wav(path, recipe)
        assert read(path) == recipe
    again, same_rate = soundfile.read(path, dtype="int32")
    assert np.array_equal(samples, again) and rate == same_rate and metadata.wav_samples(path.read_bytes()) == payload
    raw = path.read_bytes()
    assert raw.count(b"ICMT") == 1 and int.from_bytes(raw[4:8], "little") == len(raw) - 8


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_recipe_that_libsndfile_wrote_is_read(tmp_path, kind):
    path = tmp_path / f"a.{kind.lower()}"
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16", format=kind) as file:
        file.comment, file.artist = made().to_json(), "somebody"
        file.write(np.zeros(9))
    assert read(path) == made()
    if kind == "WAV":
        embed_wav(path, made(seed=9))
        with soundfile.SoundFile(path) as file:
            assert read(path).seed == 9 and file.artist == "somebody" and file.frames == 9
            assert file.comment == made(seed=9).to_json()


def test_a_text_has_its_recipe_beside_it(tmp_path):
    save_text(tmp_path / "tale.txt", "Es war\r\neinmal\n„ü“", made(kind="text"))
    assert (tmp_path / "tale.txt").read_bytes().decode() == "Es war\r\neinmal\n„ü“"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tale.txt", "tale.txt.recipe.json"]
    assert read(tmp_path / "tale.txt") == read(str(tmp_path / "tale.txt")) == made(kind="text")
    (tmp_path / "tale.txt.recipe.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(InputError, match="it is no recipe"):
        read(tmp_path / "tale.txt")


def test_files_without_a_recipe_say_so(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    for path in (png(tmp_path / "a.png"), wav(tmp_path / "a.wav"), tmp_path / "a.txt"):
        with pytest.raises(InputError, match="holds no recipe"):
            read(path)
    for path, says in ((tmp_path / "missing.png", "can't read .*No such file"), (tmp_path, "it is a folder, give one of its files"),
                       (None, "expected the path of a file, got None"), (5, "expected the path"), (tmp_path / "a.txt", "in a.txt.recipe.json")):
        with pytest.raises(InputError, match=says):
            replay(path)


def test_mutated_files_give_a_recipe_or_a_sentence(tmp_path):
    """300 damaged PNG and WAV files: the same recipe, another valid one, or InputError; nothing else is ever raised."""
    draw, seen = np.random.default_rng(0), set()
    embed_png(png(tmp_path / "a.png"), made())
    embed_wav(wav(tmp_path / "a.wav", length=20), made())
    for turn in range(300):
        raw = bytearray((tmp_path / ("a.png" if turn % 2 else "a.wav")).read_bytes())
        if turn % 3:
            raw[draw.integers(len(raw))] ^= int(draw.integers(1, 256))
        else:
            raw = raw[:draw.integers(len(raw))]
        (tmp_path / "b").write_bytes(raw)
        try:
            seen.add(type(read(tmp_path / "b")))
        except InputError as error:
            seen.add(type(error))
    assert seen == {Recipe, InputError}


# ---- making it again ----

@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model folder and makers whose outputs depend on weights, inputs, seed and settings."""
    folder = tmp_path / "models" / "tiny"
    save_folder(folder, {"config.json": {}, "model.safetensors": {"w": torch.arange(4.0)}})

    def numbers(recipe):
        from gencore.checkpoint import load_tensors
        generator = torch.Generator().manual_seed(recipe.seed)
        return torch.rand(60, generator=generator) * recipe.settings["gain"] + load_tensors(recipe.model)["w"].sum()

    def text(recipe):
        return f"{recipe.inputs['prompt']} {numbers(recipe).sum():.6f} ö\n"

    def image(recipe):
        picture = Image.fromarray((numbers(recipe) * 25).byte().view(4, 5, 3).numpy())
        picture.info["recipe"] = recipe.to_json()
        return picture

    def audio(recipe):
        return Clip(numbers(recipe) / 20)

    monkeypatch.setattr(module, "MAKERS", {})
    for kind, maker in {"text": text, "image": image, "audio": audio}.items():
        register(kind, maker)
    return folder


class Clip:
    def __init__(self, waveform):
        self.waveform = waveform

    def save(self, path):
        soundfile.write(path, self.waveform.numpy(), 16000, subtype="PCM_16")


def draw(folder, kind, path, **changes):
    """Makes an output as a package does, saves it with its recipe; returns the path."""
    recipe = Recipe.made(kind, folder, weights_digest(folder), inputs={"prompt": "a seven"}, seed=5, settings={"gain": 2.0})
    recipe = dataclasses.replace(recipe, **changes)
    output = module.MAKERS[kind][0](recipe)
    if kind == "text":
        save_text(path, output, recipe)
        return path
    output.save(path)
    if path.suffix == ".flac":
        path.with_name(path.name + ".recipe.json").write_text(recipe.to_json())
    else:
        (embed_png if kind == "image" else embed_wav)(path, recipe)
    return path


@pytest.mark.parametrize("kind, name", [("text", "a.txt"), ("image", "a.png"), ("audio", "a.wav"), ("audio", "a.flac")])
def test_replay_makes_the_same_output(model, tmp_path, kind, name):
    file = draw(model, kind, tmp_path / name)
    output = replay(file)
    assert isinstance(output, {"text": str, "image": Image.Image, "audio": Clip}[kind])
    assert replay(str(file)) is not None


@pytest.mark.parametrize("kind, name", [("text", "a.txt"), ("image", "a.png"), ("audio", "a.wav"), ("audio", "a.flac")])
def test_other_weights_are_named_as_what_differs(model, tmp_path, kind, name):
    file, before = draw(model, kind, tmp_path / name), weights_digest(model)
    save_folder(model, {"config.json": {}, "model.safetensors": {"w": torch.arange(4.0) / 2}})
    with pytest.raises(ReplayError, match=f"What differs: weights {before}, now {weights_digest(model)}$") as caught:
        replay(file)
    assert caught.value.output is not None


def test_other_versions_are_named_when_the_output_differs(model, tmp_path):
    other = versions() | {"torch": "2.9.0", "cpu": "arm64 DEFAULT"}
    assert replay(draw(model, "text", tmp_path / "a.txt", versions=other))                       # the same text: no complaint
    (tmp_path / "a.txt").write_text("something else")
    with pytest.raises(ReplayError, match=f"torch 2.9.0, now {re.escape(torch.__version__)}; cpu arm64 DEFAULT, now"):
        replay(tmp_path / "a.txt")


def test_a_file_that_was_edited_says_so(model, tmp_path):
    file = draw(model, "text", tmp_path / "a.txt")
    file.write_text("something else", encoding="utf-8")
    with pytest.raises(ReplayError, match="the file was changed after it was made"):
        replay(file)
    picture = draw(model, "image", tmp_path / "a.png")
    recipe = read(picture)
    png(picture)
    embed_png(picture, recipe)
    with pytest.raises(ReplayError, match="the file was changed"):
        replay(picture)


def test_replay_computes_with_the_threads_of_the_recipe(model, tmp_path):
    seen = []
    maker = module.MAKERS["text"][0]
    register("text", lambda recipe: seen.append(torch.get_num_threads()) or maker(recipe))
    replay(draw(model, "text", tmp_path / "a.txt", versions=versions() | {"threads": 2}))
    assert seen[-1] == 2 and torch.get_num_threads() == 1
    for wrong in (0, 1_000_000, "2", None):
        replay(draw(model, "text", tmp_path / "b.txt", versions=versions() | {"threads": wrong}))
        assert seen[-1] == 1


def test_a_package_may_compare_its_files_itself(model, tmp_path):
    calls = []
    register("text", lambda recipe: "anything", lambda output, path: calls.append((output, path)) or True)
    save_text(tmp_path / "a.txt", "x", Recipe.made("text", model, "0", inputs={}, seed=0, settings={}))
    assert replay(tmp_path / "a.txt") == "anything" and calls == [("anything", tmp_path / "a.txt")]


def test_a_recipe_never_reaches_the_network(model, tmp_path, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    register("text", lambda recipe: pytest.fail("a model was made"))
    for name in ("owner/name", "//server/share", "https://example.com/model", "../missing"):
        save_text(tmp_path / "a.txt", "x", Recipe.made("text", name, "0", inputs={}, seed=0, settings={}))
        with pytest.raises(CheckpointError):
            replay(tmp_path / "a.txt")


def test_a_model_that_moved_is_given_to_replay(model, tmp_path):
    file = draw(model, "text", tmp_path / "a.txt")
    model.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="no folder"):
        replay(file)
    assert replay(file, model=tmp_path / "moved") == file.read_text(encoding="utf-8")


def test_unknown_kinds_and_settings_are_said(model, tmp_path):
    save_text(tmp_path / "a.txt", "x", Recipe.made("imaje", model, "0", inputs={}, seed=0, settings={}))
    with pytest.raises(InputError, match=re.escape('kind "imaje" (did you mean "image"?)')):
        replay(tmp_path / "a.txt")
    save_text(tmp_path / "a.txt", "x", Recipe.made("text", model, "0", inputs={}, seed=0, settings={}))
    with pytest.raises(ReplayError, match="inputs or settings that text doesn't know"):
        replay(tmp_path / "a.txt")
    packages = module.PACKAGES | {"text": "json"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PACKAGES", packages)
        patch.setattr(module, "MAKERS", {})
        with pytest.raises(ReplayError, match="json registers no maker"):
            module._maker("text")


def test_a_package_registers_when_it_is_imported_for_replay(model, tmp_path, monkeypatch):
    (tmp_path / "latecomer.py").write_text("from gencore.recipe import register\nregister('text', lambda recipe: 'late')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "PACKAGES", {"text": "latecomer"})
    monkeypatch.setattr(module, "MAKERS", {})
    assert module._maker("text")[0](None) == "late"


def test_a_lazy_package_registers_in_the_file_of_a_public_name(tmp_path, monkeypatch):
    (tmp_path / "dozing").mkdir()
    (tmp_path / "dozing" / "__init__.py").write_text("from gencore.lazy import lazy\n"
                                                     "__getattr__, __dir__, __all__ = lazy(__name__, {'Maker': 'maker'})\n")
    (tmp_path / "dozing" / "maker.py").write_text("from gencore.recipe import register\n"
                                                  "Maker = 1\nregister('text', lambda recipe: 'awake')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "PACKAGES", {"text": "dozing"})
    monkeypatch.setattr(module, "MAKERS", {})
    assert module._maker("text")[0](None) == "awake"


@pytest.mark.parametrize("name, make, embed", [("whole.png", png, embed_png), ("whole.wav", wav, embed_wav)])
def test_a_file_of_several_outputs_gives_them_all_again(model, tmp_path, name, make, embed):
    whole, files = make(tmp_path / name), [draw(model, "text", tmp_path / f"{seed}.txt", seed=seed) for seed in (1, 2)]
    embed(whole, [read(file) for file in files])
    assert replay(whole) == [file.read_text(encoding="utf-8") for file in files]
    embed(whole, [read(files[0]), dataclasses.replace(read(files[1]), digest="f" * 16)])
    with pytest.warns(UserWarning, match="parts may have come out differently. What differs: weights ffffffffffffffff, now"):
        assert len(replay(whole)) == 2


def test_differences_are_listed_old_and_new():
    recipe = made(versions=versions() | {"torch": "1.0"})
    assert differences(recipe, recipe.digest) == [f"torch 1.0, now {torch.__version__}"]
    assert differences(made(), "f" * 16) == ["weights 0123456789abcdef, now ffffffffffffffff"]


def test_a_changed_configuration_is_named_as_what_differs(model, tmp_path):
    draw(model, "text", tmp_path / "a.txt", digest=(before := module.made_with(model))).write_text("something else", encoding="utf-8")
    save_folder(model, {"config.json": {"eps": 1}, "model.safetensors": {"w": torch.arange(4.0)}})
    with pytest.raises(ReplayError, match=f"What differs: configuration {before[17:]}, now {module.made_with(model)[17:]}$"):
        replay(tmp_path / "a.txt")
