"""Checkpoints: folders of safetensors and JSON that are written whole, read only when they are what was written, never pickles.

`save_folder` writes one, `load_tensors` and `read_json` read it, `resolve` finds it by name, `seal` accepts changes made by hand.
A folder without digests.json is another library's (the Hub's layout): its format and shapes are checked, its bytes can't be."""
import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch

from gencore import digest
from gencore.check import CheckpointError, ConfigError, InputError, UnknownNameError, nearest, unknown
from gencore.digest import DIGESTS
from gencore.folder import appearing, carry, files_below, recover, write_file

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
INDEX = ".safetensors.index.json"
CARRIED_LIMIT = 1000            # files of somebody else that a save takes along; more of them is no checkpoint folder


def save_folder(folder, files):
    """{relative name: dict of tensors (*.safetensors), dict (*.json), str or bytes} -> a folder that appears by one rename.

    An existing checkpoint is replaced; what no save has written there (notes, samples, .git) stays. Adds digests.json."""
    folder = Path(folder).resolve()                             # a link to a folder stays a link
    for name, value in files.items():
        _check_file(name, value)
    kept = _foreign_files(folder, files)
    try:
        with appearing(folder) as fresh:
            for name, value in files.items():
                _write(fresh / name, value)
            entries = {name: digest.describe(fresh / name) for name in files}
            (fresh / DIGESTS).write_bytes(digest.digests_text(entries))
            for name in kept:
                carry(folder / name, fresh / name)
    except OSError as error:
        raise CheckpointError(f"could not save {folder}: {error.strerror or error}; what was there before is unharmed") from error


def seal(folder):
    """Accepts a folder as it is now: digests.json is written anew for its weights, its JSON files and what it listed before."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no folder {folder}: nothing to seal")
    listed, found = _written(folder), {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
    entries = {name: digest.describe(path) for name, path in found.items()
               if path.name != DIGESTS and (name in listed or path.suffix in (".safetensors", ".json"))}
    write_file(folder / DIGESTS, digest.digests_text(entries))


def load_tensors(path, expect=None):
    """A .safetensors file, an index of shards or a folder with one of them -> {name: tensor} on the CPU, in the file's dtypes.

    `expect` is {name: shape} of the model: other names or shapes are refused before anything is allocated."""
    path = Path(path)
    for attempt in range(10):
        before = _identity(path)
        try:
            tensors = _load(path, expect)
            if _identity(path) == before:
                return tensors
        except (CheckpointError, OSError, RuntimeError) as error:                                # safetensors itself raises RuntimeError
            gone = "no such file" in str(error).lower() or str(error).startswith("no file")      # between the two renames of a writer?
            if _identity(path) == before and not (gone and attempt < 9):
                raise error if isinstance(error, CheckpointError) else CheckpointError(f"could not read {path}: {error}") from error
        # somebody replaced the folder meanwhile: what was read may be of two checkpoints, so read again
    raise CheckpointError(f"{path} is replaced faster than it can be read: wait for its writer, or copy it first")


def tensor_shapes(path):
    """What load_tensors would give, from the headers alone -> {name: shape}."""
    return {name: tuple(entry.shape) for file in _weight_files(Path(path)) for name, entry in digest.read_header(file).items()}


def read_json(path, *, lowest=False):
    """A JSON file -> dict, compared with its digest; CheckpointError names the file and the field. lowest: -Infinity is a number there."""
    path = Path(path)
    recover(path)
    if not path.is_file():
        raise CheckpointError(f"no file {path}: the checkpoint is incomplete, save or download it again")
    raw = path.read_bytes()
    values = digest.parse_json(raw, path, lowest=lowest)
    digest.check_fields(path, raw, values)
    return values


def read_text(path, *, limit):
    """A text file of at most `limit` bytes -> str, compared with its digest."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file {path}: the checkpoint is incomplete, save or download it again")
    if path.stat().st_size > limit:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, expected at most {limit:,}: it is not what its name says")
    raw = path.read_bytes()
    digest.check_bytes(path, raw)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 at byte {error.start}") from None


@contextlib.contextmanager
def naming(path):
    """Around the reading of a file: what is refused inside names it. A wrong argument there is a wrong configuration."""
    try:
        yield
    except (CheckpointError, ConfigError, InputError, UnknownNameError) as error:
        if str(path) in str(error):
            raise
        kind = ConfigError if isinstance(error, InputError) else type(error)
        raise kind(f"{path}: {error}") from error


def belongs(path):
    """Whether a file is there, or its folder's digests say that it should be."""
    return Path(path).is_file() or digest.find_digest(path) is not None


def resolve(name_or_folder, package, *, hub=True):
    """A shipped name of `package` ("textgen"), an existing folder, else (if `hub`) a Hub id "owner/name" -> Path of the folder."""
    shipped = {path.name: path for path in _pretrained(package).glob("*") if path.is_dir() and path.name[0] not in "._"}
    if not isinstance(name_or_folder, (str, os.PathLike)) or not os.fspath(name_or_folder):
        raise InputError(f"expected the name or folder of a {package} model, got {name_or_folder!r}")
    name = os.fspath(name_or_folder)
    if name in shipped:
        return _checked_folder(shipped[name])
    if not hub and name.startswith(("//", "\\\\")):             # a share of another computer
        raise CheckpointError(f'"{name}" lies on the network: copy it to a folder here')
    folder = Path(name).expanduser()
    recover(folder)
    if os.path.exists(folder):
        return _checked_folder(folder)
    if isinstance(name_or_folder, Path) or _is_path(name):
        known = ", ".join(sorted(shipped)) or "none"
        raise CheckpointError(f"no folder {name}: give an existing folder or a shipped name (of {package}: {known})")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise unknown(f"{package} model", name, shipped)
    if not hub:
        raise CheckpointError(f'no folder "{name}" here, and nothing is fetched for it: give a folder that holds it')
    return _checked_folder(_download(name))


def weights_digest(folder):
    """16 hex digits that stand for every weight under `folder`, whatever their order and shards."""
    folder = Path(folder)
    entries = digest.read_digests(folder)
    if entries is None:
        found = {path.relative_to(folder).as_posix(): path for path in files_below(folder) if path.suffix == ".safetensors"}
        entries = {name: {"tensors": digest.tensor_digests(path, digest.read_header(path))} for name, path in found.items()}
    lines = sorted(f"{PurePosixPath(file).parent}/{tensor} {sha256}"
                   for file, entry in entries.items() for tensor, sha256 in entry.get("tensors", {}).items())
    if not lines:
        raise CheckpointError(f"{folder} holds no weights (.safetensors)")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# ---- writing ----

def _check_file(name, value):
    """One item of save_folder's `files`, or InputError."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or ":" in name or any(part.startswith(".") for part in parts) or name == DIGESTS:
        raise InputError(f'"{name}" should be a relative name inside the folder, without "..", other than {DIGESTS}')
    fits = {".safetensors": isinstance(value, Mapping) and all(isinstance(t, torch.Tensor) for t in value.values()),
            ".json": isinstance(value, (Mapping, str, bytes))}
    if not fits.get(PurePosixPath(name).suffix, isinstance(value, (str, bytes))):
        raise InputError(f"{name} should be a dict of tensors (*.safetensors), a dict (*.json), str or bytes, got {type(value).__name__}")


def _write(path, value):
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        seen = set()
        tensors = {name: _alone(tensor, seen) for name, tensor in value.items()}
        path.touch()
        mode = path.stat().st_mode                              # save_file itself makes files that nobody else may read
        try:
            save_file(tensors, path, metadata={"format": "pt"})  # transformers wants the format
        except SafetensorError as error:                        # a full disk, which it does not call an OSError
            raise OSError(str(error)) from error
        path.chmod(mode)
    else:
        path.write_bytes(file_bytes(path.name, value))


def file_bytes(name, value):
    """What save_folder writes for a dict (*.json), str or bytes."""
    if isinstance(value, Mapping):
        try:
            value = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} should hold only JSON values: {error}") from None
    return value.encode("utf-8") if isinstance(value, str) else value


def _alone(tensor, seen):
    """The tensor on the CPU with memory of its own: views of one storage (a split matrix, tied weights) become copies."""
    tensor = tensor.detach().cpu().contiguous()
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
        return tensor.clone()
    seen.add(storage.data_ptr())
    return tensor


def _foreign_files(folder, files):
    """Names of what is in an existing folder that no save has written; InputError where replacing would confuse. Hidden files don't count."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder")
    names, hidden, written = [], [], _written(folder)
    for path in files_below(folder, everything=True):
        name = path.relative_to(folder).as_posix()
        if name == DIGESTS or name in written or name in files:
            continue
        if name.startswith(".") or "/." in name:
            hidden.append(name)
            continue
        if name.endswith((".safetensors", INDEX)):
            raise InputError(f"{folder} holds weights that were not saved by this toolkit ({name}): save into another folder")
        if len(names) == CARRIED_LIMIT:
            raise InputError(f"{folder} holds more than {CARRIED_LIMIT} other files ({names[0]}): save into a folder of its own")
        names.append(name)
    return names + hidden


def _written(folder):
    """Names of the files that saves have written; also those of a damaged digests.json, which is about to be replaced."""
    try:
        return set(digest.parse_json((folder / DIGESTS).read_bytes(), folder / DIGESTS))
    except (OSError, CheckpointError):
        return set()


# ---- reading ----

def _load(path, expect):
    """load_tensors, once."""
    from safetensors import safe_open

    headers = {file: digest.read_header(file) for file in _weight_files(path)}
    _check_index(path, headers)
    if expect is not None:
        have = {name: entry.shape for header in headers.values() for name, entry in header.items()}
        _check_expected(path, have, {name: tuple(shape) for name, shape in expect.items()})
    tensors = {}
    for file, header in headers.items():
        digest.check_weights(file, header)
        with safe_open(file, framework="pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in header})
    return tensors


def _identity(path):
    """What changes when the folder of `path` is replaced by another of the same name."""
    recover(path)
    folder = path if path.is_dir() else path.parent
    places = [place for place in (folder, folder / DIGESTS, folder.parent / DIGESTS) if place.exists()]
    try:
        stats = [place.stat() for place in places]
    except FileNotFoundError:                                   # gone since: equal to nothing, so that it is read again
        return object()
    return [(stat.st_dev, stat.st_ino, stat.st_mtime_ns * (not place.is_dir())) for place, stat in zip(places, stats)]


def _weight_files(path):
    """The .safetensors files behind a file, an index or a folder."""
    path = weights_file(path)
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path} is a pickle, which can run any code when it is read: convert it to safetensors first")
    if not path.is_file():
        raise CheckpointError(f"no file {path}: the checkpoint is incomplete, save or download it again")
    if not path.name.endswith(INDEX):
        return [path]
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f'{path}: the field "weight_map" should map tensors to files')
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
            raise CheckpointError(f'{path}: tensor "{tensor}" should lie in a .safetensors file beside it, got {shard!r}')
    return [_present(path.parent / shard) for shard in sorted(set(shards.values()))]


def weights_file(path):
    """A folder, or a file that exists only in shards -> the one file or index to read."""
    if path.name.endswith(".safetensors") and not path.is_file() and (index := path.with_name(path.name + ".index.json")).is_file():
        return index
    if not path.is_dir():
        return path
    found = sorted(path.glob("*" + INDEX)) or sorted(path.glob("*.safetensors"))
    if len(found) > 1:
        raise CheckpointError(f"{path} holds several weight files ({', '.join(f.name for f in found[:5])}): name one of them")
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    return found[0] if found else pickles[0] if pickles else path / "model.safetensors"


def _present(path):
    if not path.is_file():
        raise CheckpointError(f"no file {path}, which the index names: the checkpoint is incomplete, download it again")
    return path


def _check_index(path, headers):
    """Every tensor lies in the shard that the index names, and nowhere else."""
    index = weights_file(path)
    if not index.name.endswith(INDEX):
        return
    shards = read_json(index)["weight_map"]
    for file, header in headers.items():
        wrong = [name for name in header if shards.get(name) != file.name]
        if wrong:
            raise CheckpointError(f'{file}: tensor "{wrong[0]}" should be in {shards.get(wrong[0], "no shard")} by the index {index.name}')
    have = {name for header in headers.values() for name in header}
    missing = [name for name in shards if name not in have]
    if missing:
        raise CheckpointError(f'{index}: tensor "{missing[0]}" is missing from {shards[missing[0]]}: download it again')


def _check_expected(path, have, expect):
    """CheckpointError unless names and shapes of the file are those that the configuration makes."""
    missing, extra = [n for n in expect if n not in have], [n for n in have if n not in expect]
    shapes = [f'tensor "{n}" should have shape {expect[n]}, got {have[n]}' for n in expect if n in have and have[n] != expect[n]]
    notes = []
    if missing:
        hints = [nearest(name, extra[:1000]) for name in missing[:5]] + [""] * len(missing)      # the search is slow
        notes.append("missing " + _listed([f'tensor "{name}"{hint}' for name, hint in zip(missing, hints)]))
    if extra:
        notes.append("unexpected " + _listed([f'tensor "{name}"' for name in extra]))
    if shapes:
        notes.append(_listed(shapes))
    if notes:
        raise CheckpointError(f"{path} does not fit its configuration: {'; '.join(notes)}")


def _listed(items):
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


# ---- finding ----

def _is_path(name):
    """Does a name that doesn't exist mean a place on this disk, rather than a shipped or Hub name?"""
    parent = os.path.dirname(name)
    return "\\" in name or name.count("/") > 1 or re.match(r"[.~/]|\w:", name) or (parent and os.path.exists(parent))


def _pretrained(package):
    """Folder of the weights that ship with a package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f'no package "{package}"')
    return Path(list(spec.submodule_search_locations)[0]) / "pretrained"


def _checked_folder(folder):
    """`folder` when it looks like a checkpoint."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: give the folder that holds it")
    if not any(folder.iterdir()):
        raise CheckpointError(f"the folder {folder} is empty: it should hold config.json and *.safetensors")
    if not (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        raise CheckpointError(f"the folder {folder} has no config.json (or model_index.json): it is no checkpoint, or an incomplete one")
    for name in digest.read_digests(folder) or {}:
        if name.endswith(".json") and name != DIGESTS:
            read_json(folder / name)                            # also those that only other libraries read
        elif not (folder / name).is_file() and not name.endswith(".md"):                   # the card may stay at home
            raise CheckpointError(f"no file {folder / name}, which {DIGESTS} lists: the checkpoint is incomplete, save or download it again")
    return folder


def _download(name):
    """The folder of a Hub id in the local cache, fetched when the network allows."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f'no folder "{name}" here, and the Hub gave no model of that name: {reason[:200]}') from error
