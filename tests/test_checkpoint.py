"""Folders of weights: what is saved comes back, what does not fit is refused in one sentence before memory is taken."""

import json
import os
import re
import stat
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from gencore.check import CheckpointError, InputError, UnknownNameError
from gencore.checkpoint import load_tensors, read_json, resolve, save_folder, seal, tensor_shapes, weights_digest

WEIGHTS = {"embed.weight": torch.arange(12.0).view(4, 3), "head.weight": torch.ones(2, 3, dtype=torch.bfloat16), "steps": torch.tensor(7)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in WEIGHTS.items()}


@pytest.fixture
def model(tmp_path):
    save_folder(tmp_path / "model", {"config.json": {"width": 3, "name": "größer"}, "model.safetensors": WEIGHTS, "README.md": "# card\n"})
    return tmp_path / "model"


def refusal(error, call, *arguments):
    """The message of the error that a call raises: one line, not too long."""
    with pytest.raises(error) as caught:
        call(*arguments)
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message and len(message) < 800
    return message


# ---- there and back ----

def test_tensors_come_back_to_the_bit_in_their_dtypes(model):
    loaded = load_tensors(model / "model.safetensors", SHAPES)
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {name: tensor.dtype for name, tensor in WEIGHTS.items()}
    assert all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS)
    assert load_tensors(model).keys() == WEIGHTS.keys()


def test_json_and_text_come_back(model):
    assert read_json(model / "config.json") == {"width": 3, "name": "größer"}
    assert (model / "README.md").read_text() == "# card\n"


def test_the_ecosystem_opens_the_file(model):
    from safetensors import safe_open
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in load_file(model / "model.safetensors").items())
    with safe_open(model / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_weights_may_be_read_by_whoever_may_read_the_other_files(model):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in model.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_views_and_tied_tensors_are_saved_as_what_they_show(tmp_path):
    whole = torch.randn(6, 4)
    tensors = {"q": whole[:2], "k": whole[2:4], "t": whole.T, "tied": whole, "same": whole, "one": torch.ones(()).expand(3)}
    save_folder(tmp_path / "m", {"model.safetensors": tensors})
    loaded = load_tensors(tmp_path / "m")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_parameters_are_saved_without_their_graph(tmp_path):
    layer = torch.nn.Linear(3, 2)
    save_folder(tmp_path / "m", {"model.safetensors": layer.state_dict() | {"extra": layer.weight * 2}})
    assert not any(tensor.requires_grad for tensor in load_tensors(tmp_path / "m").values())


def test_a_folder_replaces_the_one_before_and_keeps_what_others_put_there(model):
    (model / "samples").mkdir()
    (model / "samples" / "note.txt").write_text("mine")
    save_folder(model, {"config.json": {"width": 4}, "w/part.safetensors": {"x": torch.ones(2)}})
    found = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    assert found == ["config.json", "digests.json", "samples/note.txt", "w/part.safetensors"]


def test_a_link_to_a_folder_stays_a_link(model, tmp_path):
    (tmp_path / "latest").symlink_to(model)
    save_folder(tmp_path / "latest", {"config.json": {"width": 5}})
    assert (tmp_path / "latest").is_symlink() and read_json(model / "config.json") == {"width": 5}


def test_a_save_does_not_bury_the_weights_of_somebody_else(tmp_path):
    foreign = tmp_path / "hub"
    foreign.mkdir()
    save_file(WEIGHTS, foreign / "model-00001-of-00002.safetensors")
    message = refusal(InputError, save_folder, foreign, {"model.safetensors": WEIGHTS})
    assert "model-00001-of-00002.safetensors" in message and "another folder" in message
    crowded = tmp_path / "home"
    crowded.mkdir()
    for number in range(1001):
        (crowded / f"letter{number}.txt").touch()
    assert "a folder of its own" in refusal(InputError, save_folder, crowded, {"model.safetensors": WEIGHTS})
    assert len(list(crowded.iterdir())) == 1001


@pytest.mark.parametrize("name, value", [
    ("../out.json", {}), ("/etc/x.json", {}), ("a/../../b.txt", "x"), (".hidden", "x"), ("digests.json", {}), ("", "x"), ("a\\b.txt", "x"),
    ("w.safetensors", b"bytes"), ("w.safetensors", {"a": 1}), ("config.json", 3), ("note.txt", {"a": 1}),
])
def test_files_that_do_not_belong_in_a_folder_are_refused(tmp_path, name, value):
    assert "should be" in refusal(InputError, save_folder, tmp_path / "m", {name: value})
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_no_json_leaves_the_folder_as_it_was(model):
    for value in (float("nan"), torch.ones(1), {1, 2}):
        assert "config.json should hold only JSON values" in refusal(InputError, save_folder, model, {"config.json": {"width": value}})
    assert read_json(model / "config.json")["width"] == 3 and len(list(model.parent.iterdir())) == 1


def test_a_damaged_checkpoint_can_be_saved_over(model):
    (model / "digests.json").write_bytes(b"{")
    (model / "config.json").write_bytes(b"")
    save_folder(model, {"config.json": {"width": 4}, "model.safetensors": WEIGHTS})
    assert read_json(model / "config.json") == {"width": 4} and load_tensors(model, SHAPES)


def test_lists_of_the_hub_are_kept_and_sealed(model):
    save_folder(model, {"modules.json": "[1, 2]", "model.safetensors": WEIGHTS})
    seal(model)
    assert (model / "modules.json").read_text() == "[1, 2]" and load_tensors(model, SHAPES)


# ---- a configuration that doesn't fit ----

def test_missing_and_unexpected_names_are_listed_with_the_nearest(model):
    expect = {"embed.weights": (4, 3), "steps": (), **{f"layers.{n}.q": (3,) for n in range(7)}}
    message = refusal(CheckpointError, load_tensors, model, expect)
    assert 'missing tensor "embed.weights" (did you mean "embed.weight"?)' in message
    assert '"layers.3.q" and 3 more' in message and 'layers.4.q' not in message
    assert 'unexpected tensor "embed.weight", tensor "head.weight"' in message


def test_thousands_of_other_names_are_refused_at_once(tmp_path):
    save_folder(tmp_path / "m", {"model.safetensors": {f"layers.{n}.attention.weight": torch.zeros(1) for n in range(3000)}})
    begin = time.process_time()
    refusal(CheckpointError, load_tensors, tmp_path / "m", {f"blocks.{n}.attention.weights": (1,) for n in range(3000)})
    assert time.process_time() - begin < 2


def test_other_shapes_are_listed(model):
    message = refusal(CheckpointError, load_tensors, model, SHAPES | {"embed.weight": torch.Size([4, 4])})
    assert 'tensor "embed.weight" should have shape (4, 4), got (4, 3)' in message and "head" not in message


def test_a_misfit_is_refused_before_anything_is_allocated(tmp_path, monkeypatch):
    """64 GB of zeros that take no place on the disk: they would take a minute to hash and can't be held."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 34], "data_offsets": [0, 1 << 36]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(tmp_path / "model.safetensors", 8 + len(header) + (1 << 36))
    import safetensors
    monkeypatch.setattr(safetensors, "safe_open", lambda *_, **__: pytest.fail("the file was opened for reading"))
    assert "got (17179869184,)" in refusal(CheckpointError, load_tensors, tmp_path / "model.safetensors", {"w": (3,)})


# ---- broken and foreign files ----

@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "state.pth"])
def test_pickles_are_refused(tmp_path, name):
    torch.save({"w": torch.ones(2)}, tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        message = refusal(CheckpointError, load_tensors, path)
        assert "is a pickle" in message and "convert it to safetensors" in message


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("header, size, says", [
    ({"a": entry()}, 8, None),
    ({"a": entry()}, 7, "truncated"),
    ({"a": entry()}, 9, "something was added"),
    ({"a": entry(shape=(3,))}, 8, 'tensor "a": F32 in shape (3,) needs 12 bytes'),
    ({"a": entry("F12")}, 8, "dtype 'F12'"),
    ({"a": entry(shape=(-2,))}, 8, "shape should be whole numbers"),
    ({"a": entry(offsets=(0, 8, 9))}, 8, "data_offsets are [0, 8, 9]"),
    ({"a": entry(), "b": entry()}, 8, 'tensor "b" should begin at byte'),
    ({"a": entry(), "b": entry(offsets=(9, 17))}, 17, 'tensor "b" should begin at byte'),
    ({"a": entry(shape=[1 << 62] * 65)}, 8, "shape should be whole numbers"),
    ({"a": 5}, 8, "should have dtype, shape and data_offsets"),
    ({"a": entry(), "__metadata__": {"x": 1}}, 8, "__metadata__"),
    ({}, 0, None),
])
def test_the_header_accounts_for_every_byte(tmp_path, header, size, says):
    raw = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))
    if says is None:
        assert list(load_tensors(tmp_path / "w.safetensors")) == list(header)
    else:
        assert says in refusal(CheckpointError, load_tensors, tmp_path / "w.safetensors")


@pytest.mark.parametrize("raw", [b"", b"\0", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\noid",
                                 b"PK\3\4" * 9])
def test_other_files_under_the_name_of_weights_are_refused(tmp_path, raw):
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert "model.safetensors: header" in refusal(CheckpointError, load_tensors, tmp_path)


def test_missing_files_and_several_files_are_said(model):
    assert "no file" in refusal(CheckpointError, load_tensors, model / "weights.safetensors")
    assert "no file" in refusal(CheckpointError, load_tensors, model.parent / "nowhere")
    assert "no file" in refusal(CheckpointError, read_json, model / "generation_config.json")
    save_folder(model, {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS})
    assert "several weight files (a.safetensors, b.safetensors)" in refusal(CheckpointError, load_tensors, model)


# ---- shards ----

@pytest.fixture
def sharded(tmp_path):
    """The layout of the Hub, without digests."""
    parts = [["embed.weight"], ["head.weight", "steps"]]
    names = [f"model-0000{n + 1}-of-00002.safetensors" for n in range(2)]
    for name, part in zip(names, parts):
        save_file({tensor: WEIGHTS[tensor] for tensor in part}, tmp_path / name)
    write_index(tmp_path, {tensor: name for name, part in zip(names, parts) for tensor in part})
    return tmp_path


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 68}, "weight_map": weight_map}))


def test_shards_are_one_model(sharded):
    for path in (sharded, sharded / "model.safetensors", sharded / "model.safetensors.index.json"):
        loaded = load_tensors(path, SHAPES)
        assert all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS) and tensor_shapes(path) == SHAPES
    assert "should have shape" in refusal(CheckpointError, load_tensors, sharded, SHAPES | {"steps": (1,)})


@pytest.mark.parametrize("shard", ["../model-00002-of-00002.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", 5, "",
                                   "..safetensors", "C:\\x.safetensors", "-"])
def test_shards_lie_beside_their_index(sharded, shard):
    write_index(sharded, {"embed.weight": "model-00001-of-00002.safetensors", "steps": shard})
    assert 'tensor "steps" should lie in a .safetensors file beside it' in refusal(CheckpointError, load_tensors, sharded)


def test_an_index_that_tells_stories_is_refused(sharded):
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_index(sharded, {"embed.weight": one, "head.weight": one, "steps": two})
    assert 'tensor "head.weight" should be in model-00001' in refusal(CheckpointError, load_tensors, sharded)
    write_index(sharded, {"embed.weight": one, "head.weight": two, "steps": two, "bias": two})
    assert 'tensor "bias" is missing from model-00002' in refusal(CheckpointError, load_tensors, sharded)
    write_index(sharded, {"embed.weight": one})
    (sharded / one).unlink()
    assert "which the index names" in refusal(CheckpointError, load_tensors, sharded)
    write_index(sharded, {})
    assert "weight_map" in refusal(CheckpointError, load_tensors, sharded)


# ---- the digest of the weights ----

def test_the_digest_stands_for_the_weights_and_not_for_their_files(model, sharded, tmp_path):
    digest = weights_digest(model)
    assert re.fullmatch("[0-9a-f]{16}", digest)
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in sharded.glob("model*.*"):
        path.rename(shards / path.name)
    assert weights_digest(shards) == digest
    seal(shards)
    assert weights_digest(shards) == digest
    save_folder(model, {"model.safetensors": WEIGHTS | {"steps": torch.tensor(8)}})
    assert weights_digest(model) != digest
    save_folder(model, {"config.json": {}})
    assert "holds no weights" in refusal(CheckpointError, weights_digest, model)


# ---- names ----

@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that ships two models."""
    for name in ("novelist", "poet"):
        save_folder(tmp_path / "shipper" / "pretrained" / name, {"config.json": {}, "model.safetensors": WEIGHTS})
    (tmp_path / "shipper" / "__init__.py").write_text("raise RuntimeError('finding a model does not import its package')")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "shipper"


def test_a_shipped_name_and_a_folder_are_found(package, model):
    assert resolve("novelist", "shipper") == package / "pretrained" / "novelist"
    assert resolve(str(model), "shipper") == resolve(model, "shipper") == model
    assert "shipper" not in sys.modules


def test_an_unknown_name_lists_the_shipped_and_the_nearest(package):
    message = refusal(UnknownNameError, resolve, "novellist", "shipper")
    assert message == 'unknown shipper model "novellist" (did you mean "novelist"?): known are novelist, poet'


@pytest.mark.parametrize("name", ["./novelist", "/no/such/folder", "~/no_such_folder", "a/b/c", "..", "../elsewhere2", "../shipper/none"])
def test_a_missing_folder_is_said(package, name):
    message = refusal(CheckpointError, resolve, name, "shipper")
    assert "no folder" in message and "novelist, poet" in message or name == ".." and "no config.json" in message


@pytest.mark.parametrize("name", ["", None, 5, ["novelist"]])
def test_a_name_is_a_text_or_a_path(package, name):
    assert "expected the name or folder" in refusal(InputError, resolve, name, "shipper")


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0byte", "a/" + "b" * 5000, "new\nline", "../pretrained/novelist",
                                  "pretrained\\novelist"])
def test_strange_names_are_refused_in_a_sentence(package, name):
    with pytest.raises((UnknownNameError, CheckpointError)):
        resolve(name, "shipper", hub=False)


def test_an_empty_folder_and_one_without_configuration_are_said(package, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(CheckpointError, resolve, tmp_path / "empty", "shipper")
    (tmp_path / "empty" / "model.safetensors").touch()
    assert "has no config.json" in refusal(CheckpointError, resolve, tmp_path / "empty", "shipper")
    assert "is a file" in refusal(CheckpointError, resolve, tmp_path / "empty" / "model.safetensors", "shipper")
    (tmp_path / "empty" / "model_index.json").write_text("{}")
    assert resolve(tmp_path / "empty", "shipper") == tmp_path / "empty"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub, offline."""
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_hub_id_is_found_in_the_local_cache(package, hub):
    revision, place = "a" * 40, hub / "models--owner--name"
    save_folder(place / "snapshots" / revision, {"config.json": {}, "model.safetensors": WEIGHTS})
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    folder = resolve("owner/name", "shipper")
    assert folder == place / "snapshots" / revision and load_tensors(folder, SHAPES)
    assert "nothing is fetched" in refusal(CheckpointError, lambda: resolve("owner/name", "shipper", hub=False))


def test_a_hub_id_that_can_not_be_fetched_is_said_in_one_sentence(package, hub):
    assert 'no folder "owner/other" here, and the Hub gave no model' in refusal(CheckpointError, resolve, "owner/other", "shipper")


def test_without_the_hub_no_name_reaches_the_network(package, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    for name in ("owner/name", "//server/share", "\\\\server\\share", "https://example.com/x"):
        with pytest.raises(CheckpointError):
            resolve(name, "shipper", hub=False)


def test_what_no_save_has_written_stays_hidden_or_not(model):
    (model / ".git" / "refs").mkdir(parents=True)
    (model / ".git" / "HEAD").write_text("ref: main")
    (model / ".gitattributes").write_text("*.safetensors filter=lfs")
    (model / "notes" / ".drafts").mkdir(parents=True)
    (model / "notes" / ".drafts" / "a.txt").write_text("a")
    (model / "samples").symlink_to(model.parent)
    (model / "gone").symlink_to(model.parent / "nowhere")
    save_folder(model, {"config.json": {"width": 4}, "model.safetensors": WEIGHTS})
    assert (model / ".git" / "HEAD").read_text() == "ref: main" and (model / ".git" / "refs").is_dir() and (model / ".gitattributes").is_file()
    assert (model / "notes" / ".drafts" / "a.txt").read_text() == "a" and (model / "samples").is_symlink() and (model / "gone").is_symlink()
    assert read_json(model / "config.json") == {"width": 4} and not (model / "README.md").exists()


def test_a_disk_that_is_full_is_said_and_leaves_the_old_weights(model, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **options):
        raise SafetensorError("I/O error: No space left on device")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    message = refusal(CheckpointError, save_folder, model, {"model.safetensors": {"head.weight": torch.zeros(2)}})
    assert "No space left" in message and "unharmed" in message
    assert load_tensors(model)["head.weight"].shape == (2, 3)
