"""Changed bytes are refused: hundreds of mutated weight files, digests and configurations, each naming the file and the tensor or field."""

import json
import random
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gencore.check import CheckpointError, CommonthreadError, ConfigError, InputError
from gencore.checkpoint import load_tensors, read_json, save_folder, seal
from gencore.config import from_dict, to_dict
from gencore.digest import DIGESTS, digests_text, parse_json, read_header, words_digest


@dataclass(frozen=True)
class Norm:
    eps: float = 1e-5
    kind: str = "rms"


@dataclass(frozen=True)
class Tiny:
    """The configuration of the model below."""
    width: int = 6
    layers: int = 2
    vocab: int = 9
    heads: int = 2
    tied: bool = False
    norm: Norm = Norm()


def shapes(cfg):
    """{name: shape} that a configuration makes."""
    blocks = {f"layers.{n}.{name}": shape for n in range(cfg.layers)
              for name, shape in {"q": (cfg.width, cfg.width), "k": (cfg.width, cfg.width), "norm": (cfg.width,)}.items()}
    return {"embed": (cfg.vocab, cfg.width), **blocks, "head": (cfg.vocab, cfg.width)}


def save(folder):
    generator = torch.Generator().manual_seed(1)
    kinds = {"norm": torch.float32, "q": torch.bfloat16, "k": torch.bfloat16, "embed": torch.float32, "head": torch.float32}
    tensors = {name: torch.randn(shape, generator=generator).to(kinds[name.split(".")[-1]]) for name, shape in shapes(Tiny()).items()}
    save_folder(folder, {"config.json": to_dict(Tiny()), "model.safetensors": tensors, "README.md": "card"})


def load(folder):
    """What a model's from_pretrained does with a folder."""
    cfg = from_dict(Tiny, read_json(folder / "config.json"))
    return load_tensors(folder / "model.safetensors", shapes(cfg))


@pytest.fixture
def model(tmp_path):
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else tmp_path) as folder:
        save(Path(folder) / "model")
        yield Path(folder) / "model"


# ---- mutations: bytes and a source of chance -> other bytes ----

def flip(raw, draw):
    at = draw.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ draw.randint(1, 255)]) + raw[at + 1:]


def truncate(raw, draw):
    return raw[:draw.randrange(len(raw))]


def insert(raw, draw):
    at = draw.randint(0, len(raw))
    return raw[:at] + draw.choice([b"\0", b" ", b"\n", draw.randbytes(draw.randint(1, 40))]) + raw[at:]


def cut_out(raw, draw):
    at = draw.randrange(len(raw) - 1)
    return raw[:at] + raw[at + draw.randint(1, 40):]


def erase(raw, draw):
    """Zeros or random bytes over a stretch, as a bad disk leaves them."""
    at, length = draw.randrange(len(raw)), draw.randint(16, 64)
    return (raw[:at] + draw.choice([bytes, draw.randbytes])(length) + raw[at + length:])[:len(raw)]


def with_header(raw, change):
    """A safetensors file with its header changed, everything else as before."""
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(change(json.loads(raw[8:8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + raw[8 + length:]


def swap_entries(raw, draw):
    """Two tensors change their places, wholly or in one of dtype, shape, offsets."""
    def change(header):
        one, other = draw.sample(sorted(set(header) - {"__metadata__"}), 2)
        for field in draw.choice([["data_offsets"], ["dtype"], ["shape"], ["dtype", "shape", "data_offsets"]]):
            header[one][field], header[other][field] = header[other][field], header[one][field]
        return header
    return with_header(raw, change)


def edit_header(raw, draw):
    """A name, a size, a dtype or the metadata is another; an entry goes or comes."""
    def change(header):
        name = draw.choice(sorted(set(header) - {"__metadata__"}))
        what = draw.randrange(6)
        if what == 0:
            header[name + draw.choice("sx_")] = header.pop(name)
        elif what == 1:
            header[name]["shape"][0] += draw.choice([-1, 1, 1 << 62])
        elif what == 2:
            header[name]["dtype"] = draw.choice(["F16", "I16", "I32", "F64", "Q4", "f32"])
        elif what == 3:
            header["__metadata__"] = draw.choice([{"format": "np"}, {}, {"format": 1}, 5])
        elif what == 4:
            del header[name]
        else:
            header["new"] = draw.choice([{**header[name]}, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, [], None])
        return header
    return with_header(raw, change)


BYTES = [flip, flip, truncate, insert, cut_out, erase]


def refused(folder, file, read):
    """The message of the CommonthreadError that `read(folder)` raises; it names the file."""
    with pytest.raises(CommonthreadError) as caught:
        read(folder)
    assert str(folder / file) in str(caught.value)
    return str(caught.value)


def mutate_weights(folder, times, seed):
    draw, raw = random.Random(seed), (folder / "model.safetensors").read_bytes()
    digests = (folder / DIGESTS).read_bytes()
    done = 0
    while done < times:
        change, file = draw.choice(BYTES + [swap_entries, swap_entries, edit_header]), "model.safetensors"
        if draw.random() < 0.15:
            change, file = draw.choice(BYTES), DIGESTS
        before = digests if file == DIGESTS else raw
        after = change(before, draw)
        if after == before:
            continue
        (folder / file).write_bytes(after)
        for read in (load, lambda folder: load_tensors(folder / "model.safetensors")):
            message = refused(folder, file, read)
            assert file == DIGESTS or "header" in message or re.search(r'tensor "[^"]+"', message), message
        (folder / file).write_bytes(before)
        done += 1
    assert load(folder).keys() == shapes(Tiny()).keys()


def test_200_mutated_weight_files_and_digests_are_refused(model):
    mutate_weights(model, 200, seed=1)


@pytest.mark.slow
def test_2000_mutated_weight_files_and_digests_are_refused(model):
    mutate_weights(model, 2000, seed=2)


def test_a_flipped_byte_names_its_own_tensor(model):
    path = model / "model.safetensors"
    raw, header = path.read_bytes(), read_header(path)
    for name, entry in header.items():
        for at in (entry.start, entry.stop - 1):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1:])
            assert f'tensor "{name}" differs from its digest;' in refused(model, "model.safetensors", load)


def test_the_part_of_a_pipeline_folder_is_checked_against_the_digests_above(tmp_path):
    save_folder(tmp_path / "painter", {"model_index.json": {"a": 1},
                                       "vae/config.json": {"b": 2}, "vae/w.safetensors": {"x": torch.ones(3)}})
    part = tmp_path / "painter" / "vae"
    assert torch.equal(load_tensors(part)["x"], torch.ones(3)) and read_json(part / "config.json") == {"b": 2}
    raw = (part / "w.safetensors").read_bytes()
    (part / "w.safetensors").write_bytes(raw[:-1] + b"\1")
    assert 'tensor "x" differs' in refused(part, "w.safetensors", load_tensors)
    (part / "config.json").write_text('{"b": 3}')
    assert 'field "b" differs' in refused(part, "config.json", lambda folder: read_json(folder / "config.json"))


def test_weights_that_nobody_listed_are_refused_beside_digests(model):
    raw = (model / "model.safetensors").read_bytes()
    (model / "other.safetensors").write_bytes(raw)
    assert "is not in the digests.json" in refused(model, "other.safetensors", lambda folder: load_tensors(folder / "other.safetensors"))


# ---- configurations ----

def edit_values(values, draw):
    """(changed copy, field): another value or type, a misspelt, missing or additional field."""
    values = json.loads(json.dumps(values))
    name = draw.choice(["width", "layers", "vocab", "heads", "tied", "norm"])
    what = draw.choice(["value", "type", "spelling", "missing", "additional"])
    if what == "value":
        values[name] = {"tied": True, "norm": {"eps": 1e-4, "kind": "rms"}}.get(name, draw.choice([0, 1, 5, -6, 1000]))
    elif what == "type":
        values[name] = draw.choice(["six", None, [6], {"n": 6}, 6.5])
    elif what == "spelling":
        values[name + "s"] = values.pop(name)
    elif what == "missing":
        del values[name]
    else:
        name = "windows"
        values[name] = 3
    return values, name


def mutate_config(folder, times, seed):
    draw, path = random.Random(seed), folder / "config.json"
    raw = path.read_bytes()
    for turn in range(times):
        if turn % 2:
            values, field = edit_values(json.loads(raw), draw)
            path.write_text(json.dumps(values, indent=2))
            assert f'"{field}' in refused(folder, "config.json", load)
        else:
            after = raw
            while after == raw:
                after = draw.choice(BYTES)(raw, draw)
            path.write_bytes(after)
            assert "field" in refused(folder, "config.json", load)
    path.write_bytes(raw)
    load(folder)


def test_50_mutated_configurations_are_refused(model):
    mutate_config(model, 50, seed=1)


@pytest.mark.slow
def test_500_mutated_configurations_are_refused(model):
    mutate_config(model, 500, seed=2)


def mutate_foreign_config(folder, times, seed):
    """Without digests: what the fields' names, types and the shapes of the weights can tell."""
    draw, path = random.Random(seed), folder / "config.json"
    (folder / DIGESTS).unlink()
    raw = path.read_bytes()
    load(folder)
    for _ in range(times):
        values = json.loads(raw)
        name = draw.choice(["width", "layers", "vocab"])
        wrong = draw.choice([values[name] + 1, values[name] - 1, "6", None, [6], 6.5, True, "misspelt"])
        if wrong == "misspelt":
            values[name + "_size"] = values.pop(name)
        else:
            values[name] = wrong
        path.write_text(json.dumps(values))
        with pytest.raises((ConfigError, CheckpointError)) as caught:
            load(folder)
        assert name in str(caught.value) or re.search(r'model.safetensors.*tensor "[^"]+"', str(caught.value))


def test_50_mutated_configurations_of_a_foreign_folder_are_refused(model):
    mutate_foreign_config(model, 50, seed=3)


@pytest.mark.slow
def test_500_mutated_configurations_of_a_foreign_folder_are_refused(model):
    mutate_foreign_config(model, 500, seed=4)


def test_a_configuration_edited_on_purpose_is_accepted_by_seal(model):
    path = model / "config.json"
    path.write_text(path.read_text().replace("1e-05", "1e-06"))
    message = refused(model, "config.json", load)
    assert 'field "norm" differs from its digest' in message and "run gencore.checkpoint.seal(folder)" in message
    seal(model)
    assert read_json(path)["norm"]["eps"] == 1e-6 and load(model)


def test_seal_gives_a_foreign_folder_its_digests(model):
    (model / DIGESTS).unlink()
    seal(model)
    raw = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert "differs from its digest" in refused(model, "model.safetensors", load)


def test_the_digest_of_the_words_follows_each_json_file_with_or_without_digests(model):
    before = words_digest(model)
    (model / "README.md").write_text("another card")
    (model / DIGESTS).unlink()
    assert words_digest(model) == before
    (model / "config.json").write_text("{}")
    foreign = words_digest(model)
    seal(model)
    assert words_digest(model) == foreign != before


@pytest.mark.parametrize("entry", [5, None, {}, {"sha256": 5}, {"sha256": "", "tensors": []}, {"sha256": "", "fields": 3}])
def test_digests_that_were_forged_whole_are_refused_too(model, entry):
    (model / DIGESTS).write_bytes(digests_text({"model.safetensors": entry, "config.json": entry}))
    refused(model, DIGESTS, load)
    refused(model, DIGESTS, load_tensors)


def test_seal_refuses_what_can_not_be_read(model, tmp_path):
    (model / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="header"):
        seal(model)
    with pytest.raises(CheckpointError, match="nothing to seal"):
        seal(tmp_path / "missing")


# ---- strict JSON ----

@pytest.mark.parametrize("raw, says", [
    (b'{"a": 1, "width": 2, "width": 3}', '"width" appears twice'),
    (b'{"a": NaN}', "NaN is not a finite number"),
    (b'{"a": -Infinity}', "-Infinity is not a finite number"),
    (b'{"a": 1e999}', "1e999 is not a finite number"),
    (b'{"a": 1, "eps": 1e-5,', 'near the field "eps"'),
    (b'{"a": 1, "eps": \xff}', 'not UTF-8 at byte 16 near the field "eps"'),
    (b'{"a": ' + b"[" * 100_000 + b"}", "nested too deep"),
    (b'{"a": ' + b"1" * 10_000 + b"}", "can be read"),
    (b"[1]", "one object with fields, got list"),
    (b"", "before its first field"),
    (b'{"a": "' + b"x" * 1000 + b'"}', "at most 100"),
])
def test_json_is_read_strictly(raw, says):
    with pytest.raises(CheckpointError, match=re.escape(says)):
        parse_json(raw, "config.json", limit=100 if b"xxx" in raw else 1 << 20)
    with pytest.raises(InputError):
        parse_json(raw, "recipe", limit=100 if b"xxx" in raw else 1 << 20, error=InputError)
