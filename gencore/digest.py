"""What a checkpoint folder holds, checked: strict JSON, the header of a safetensors file, and digests.json.

digests.json maps each file to {"sha256": whole file}, with "tensors": {name: sha256} for weights and "fields": {name: sha256}
for JSON objects, so that a change is reported by its tensor or field. Its own entry is the digest of all the others."""
import contextlib
import hashlib
import json
import math
import mmap
import re
from pathlib import Path
from typing import NamedTuple

from gencore.check import CheckpointError

DIGESTS = "digests.json"
JSON_LIMIT = 64 << 20           # bytes of a JSON file (a large tokenizer has 20 MB)
HEADER_LIMIT = 100 << 20        # bytes of a safetensors header, as the format's own reader has it
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
         "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}       # bytes of an element
ON_PURPOSE = "if you changed it on purpose, run gencore.checkpoint.seal(folder) to accept it; else save or download it again"


class Entry(NamedTuple):
    """One tensor of a safetensors file."""
    dtype: str      # a key of SIZES
    shape: tuple
    start: int      # bytes from the beginning of the file
    stop: int


def parse_json(raw, name, *, limit=JSON_LIMIT, error=CheckpointError, lowest=False):
    """bytes -> dict, strictly: UTF-8, no field twice, finite numbers, at most `limit` bytes. `error` names the field.

    lowest: -Infinity is read as well."""
    if len(raw) > limit:
        raise error(f"{name} has {len(raw)} bytes, expected at most {limit}: it is not what its name says")

    def once(pairs):
        fields = {}
        for key, value in pairs:
            if key in fields:
                raise error(f'{name}: the field "{key}" appears twice: remove one')
            fields[key] = value
        return fields

    def finite(text):
        if lowest and text == "-Infinity":
            return -math.inf
        if not math.isfinite(float(text)):
            raise error(f"{name}: {text} is not a finite number: write one")
        return float(text)

    try:
        text = bytes(raw).decode("utf-8")
        values = json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except UnicodeDecodeError as bad:
        raise error(f"{name} is not UTF-8 at byte {bad.start}{_near(bytes(raw[:bad.start]).decode()[-200:])}") from None
    except json.JSONDecodeError as bad:
        raise error(f"{name} is not JSON: {bad.msg} in line {bad.lineno}, column {bad.colno}{_near(text[:bad.pos])}") from None
    except RecursionError:
        raise error(f"{name} is nested too deep: it is not what its name says") from None
    except error:
        raise
    except ValueError as bad:                                       # a whole number of thousands of digits
        raise error(f"{name} is not JSON that can be read: {bad}") from None
    if not isinstance(values, dict):
        raise error(f"{name} should hold one object with fields, got {type(values).__name__}")
    return values


def read_header(path):
    """safetensors file -> {name: Entry}: every byte of the file accounted for, nothing allocated."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if size < 8 or start > min(size, HEADER_LIMIT):
            raise CheckpointError(f"{path}: header: it should end at byte {start}, the file has {size}: "
                                  "truncated, or no safetensors file; save or download it again")
        values = parse_json(file.read(start - 8), f"{path}: header")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: header: __metadata__ should map words to words")
    header = {name: _entry(path, name, value, start) for name, value in values.items()}
    at, last = start, None
    for name, entry in sorted(header.items(), key=lambda item: item[1][2:]):
        if entry.start != at:
            raise CheckpointError(f'{path}: header: tensor "{name}" should begin at byte {at}, got {entry.start}')
        at, last = entry.stop, name
    if at != size:
        raise CheckpointError(f'{path}: the last tensor "{last}" should end at byte {at}, the file has {size}: '
                              f"{'truncated' if at > size else 'something was added'}; save or download it again")
    return header


def tensor_digests(path, header):
    """{name: sha256 over dtype, shape and bytes}, without loading the file."""
    found = {}
    with _mapped(path) as data:
        for name, entry in header.items():
            digest = hashlib.sha256(f"{entry.dtype} {list(entry.shape)}\n".encode())
            digest.update(data[entry.start:entry.stop])
            found[name] = digest.hexdigest()
    return found


def describe(path):
    """The entry of one file in digests.json."""
    entry = {"sha256": _file_digest(path)}
    if path.suffix == ".safetensors":
        entry["tensors"] = tensor_digests(path, read_header(path))
    elif path.suffix == ".json":
        with contextlib.suppress(CheckpointError):                  # a list, as some of the Hub's files are, has no fields
            entry["fields"] = _field_digests(parse_json(path.read_bytes(), path))
    return entry


def digests_text(entries):
    """{file: entry} -> the bytes of digests.json, its own entry included."""
    body = json.dumps(entries, sort_keys=True).encode()
    whole = {**entries, DIGESTS: {"sha256": hashlib.sha256(body).hexdigest()}}
    return (json.dumps(whole, sort_keys=True, indent=1) + "\n").encode()


def read_digests(folder):
    """folder -> {file: entry}; None when it has no digests.json (a folder of another library)."""
    path = Path(folder) / DIGESTS
    if not path.is_file():
        return None
    raw = path.read_bytes()
    entries = parse_json(raw, path)
    entries.pop(DIGESTS, None)
    if digests_text(entries) != raw or not all(_is_entry(entry) for entry in entries.values()):
        raise CheckpointError(f"{path} was changed or damaged; {ON_PURPOSE}")
    return entries


def find_digest(path):
    """The entry of `path` in the digests.json beside it or, for a part of a pipeline folder, up to two folders above; else None."""
    path = Path(path).absolute()
    for folder in path.parents[:3]:
        entries = read_digests(folder)
        if entries is None:
            continue
        entry = entries.get(path.relative_to(folder).as_posix())
        if entry is None and folder == path.parent and path.suffix == ".safetensors":
            raise CheckpointError(f"{path} is not in the {DIGESTS} beside it; {ON_PURPOSE}")
        return entry
    return None


def words_digest(folder):
    """8 hex digits that stand for what a folder says beside its weights: its .json and .jinja files."""
    folder, entries = Path(folder), read_digests(folder)
    if entries is None:
        names = {path.relative_to(folder) for kind in ("*.json", "*.jinja") for path in folder.rglob(kind)}
        entries = {name.as_posix(): {"sha256": _file_digest(folder / name)} for name in names if not any(part[0] == "." for part in name.parts)}
    lines = sorted(f"{name} {entry['sha256']}" for name, entry in entries.items()
                   if name.endswith((".json", ".jinja")) and not name.endswith(DIGESTS))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def check_weights(path, header):
    """Compares the file with its digests: CheckpointError naming the tensors, or the header when the tensors are the same."""
    entry = find_digest(path)
    if entry is None:
        return
    found, written = tensor_digests(path, header), entry.get("tensors", {})
    changed = _changed(found, written)
    if changed:
        raise CheckpointError(f"{path}: tensor {changed}; {ON_PURPOSE}")
    if _file_digest(path) != entry["sha256"]:
        raise CheckpointError(f"{path}: header: its metadata or order differs from its digest; {ON_PURPOSE}")


def check_fields(path, raw, values):
    """Compares a JSON file, read as `raw` and parsed as `values`, with its digests: CheckpointError naming the fields."""
    entry = find_digest(path)
    if entry is None or hashlib.sha256(raw).hexdigest() == entry["sha256"]:
        return
    changed = _changed(_field_digests(values), entry.get("fields", {}))
    if changed:
        raise CheckpointError(f"{path}: field {changed}; {ON_PURPOSE}")
    raise CheckpointError(f"{path}: spaces or the order of fields differ from the digest; {ON_PURPOSE}")


def check_bytes(path, raw):
    """Compares a file, read as `raw`, with its digest."""
    entry = find_digest(path)
    if entry is not None and hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path} differs from its digest; {ON_PURPOSE}")


def check_file(path):
    """check_bytes, of a file that is read block by block."""
    entry = find_digest(path)
    if entry is not None and _file_digest(path) != entry["sha256"]:
        raise CheckpointError(f"{path} differs from its digest; {ON_PURPOSE}")


def _entry(path, name, value, start):
    """One value of the header -> Entry, checked against itself."""
    where = f'{path}: header: tensor "{name}"'
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} should have dtype, shape and data_offsets, got {str(value)[:80]}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise CheckpointError(f"{where} has the dtype {str(dtype)[:20]!r}, expected one of {', '.join(SIZES)}")
    for field, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or len(numbers) > 64 or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise CheckpointError(f"{where}: {field} should be whole numbers, got {str(numbers)[:80]}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * SIZES[dtype]:
        raise CheckpointError(f"{where}: {dtype} in shape {tuple(shape)} needs {math.prod(shape) * SIZES[dtype]} bytes, "
                              f"its data_offsets are {offsets}")
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


@contextlib.contextmanager
def _mapped(path):
    """The bytes of a file as a memoryview that is read when touched."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        yield view


def _is_entry(entry):
    parts = [entry.get("tensors", {}), entry.get("fields", {})] if isinstance(entry, dict) else [None]
    return all(isinstance(part, dict) for part in parts) and isinstance(entry.get("sha256"), str)


def _file_digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _field_digests(values):
    return {key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for key, value in values.items()}


def _changed(found, written):
    """'"a" differs from its digest, "b" is missing, "c" is new' (at most five), or ''."""
    notes = [f'"{name}" differs from its digest' for name in found if name in written and found[name] != written[name]]
    notes += [f'"{name}" is missing' for name in written if name not in found]
    notes += [f'"{name}" is new' for name in found if name not in written]
    return ", ".join(notes[:5]) + (f" and {len(notes) - 5} more" if len(notes) > 5 else "")


def _near(before):
    """' near the field "width"': the last key that stands in the text before an error."""
    keys = re.findall(r'"([^"\\\n]{1,80})"\s*:', before[-2000:])
    return f' near the field "{keys[-1]}"' if keys else " before its first field"
