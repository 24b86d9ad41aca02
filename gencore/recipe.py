"""Recipes: how an output was made, carried inside its PNG or WAV or beside its text, and made again by `replay(file)`.

A package that makes outputs of a kind calls `register(kind, maker)`, when it or the file of a public name of it is imported:
    maker(recipe) -> the output as a user gets it: a str, or a picture or sound with `.save(path)` (PIL.Image, Audio)
It loads `from_pretrained(recipe.model)` (checked before: a shipped name or a folder here, never the network) and calls it with
`recipe.inputs`, `recipe.seed` and `recipe.settings`, which come from a file: they are checked like a stranger's arguments.
One recipe makes one output. The output is saved beside the file's format and compared by pixels, samples or text; a package
whose files need another comparison passes `same(output, path) -> bool` as the third argument."""
import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import platform
import tempfile
import unicodedata
import warnings
from dataclasses import dataclass
from pathlib import Path

from gencore.check import CommonthreadError, InputError, floating, nearest
from gencore.checkpoint import resolve, weights_digest
from gencore.digest import parse_json, words_digest
from gencore.folder import write_file, writing
from gencore.metadata import LIMIT, png_text, png_with_text, wav_comment, wav_samples, wav_with_comment
from gencore.sounds import SAMPLES

PACKAGES = {"text": "textgen", "chat": "textgen", "audio": "audiogen", "caption": "multimodal",                             # who makes which kind
            "image": "imagegen", "gan": "imagegen", "edit": "imagegen", "control": "imagegen", "diffusion": "imagegen"}
SEEDS = range(-(1 << 63), 1 << 64)                                                                    # what torch accepts
MAKERS = {}


class ReplayError(CommonthreadError):
    """The output could not be made again; `.output` is what was made instead (None when nothing was)."""

    def __init__(self, message, output=None):
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Recipe:
    """How one output was made. Values are those of JSON: a recipe equals what is read back from a file."""
    kind: str           # a key of PACKAGES
    model: str          # shipped name, folder or Hub id
    digest: str         # made_with(its folder); in old recipes weights_digest alone
    inputs: dict        # what the user asked for: {"prompt": ...}
    seed: int
    settings: dict      # every other argument that shapes the output: steps, guidance, temperature ...
    versions: dict      # what else shapes the bits: see versions()

    def __post_init__(self):
        for name in ("kind", "model", "digest"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or _broken(value) or len(value) > 4096:
                raise InputError(f"recipe: {name} should be a short text, got {value!r:.80}")
        if type(self.seed) is not int or self.seed not in SEEDS:
            raise InputError(f"recipe: seed should be a whole number of 64 bits, got {self.seed!r:.80}")
        for name in ("inputs", "settings", "versions"):
            value = getattr(self, name)
            if not isinstance(value, dict):
                raise InputError(f"recipe: {name} should be a dict, got {value!r:.80}")
            object.__setattr__(self, name, _plain(name, value))

    @classmethod
    def made(cls, kind, model, digest, *, inputs, seed, settings):
        """The recipe of an output that is made here and now: versions and thread count are filled in."""
        return cls(kind, os.fspath(model), digest, inputs, seed, settings, versions())

    def to_json(self):
        """One line of ASCII."""
        return _line(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text):
        """JSON text or bytes of anybody -> Recipe, or InputError naming the field."""
        return cls._from_values(_parsed(text))

    @classmethod
    def _from_values(cls, values):
        if not isinstance(values, dict):
            raise InputError(f"recipe: expected one object with fields, got {values!r:.80}")
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise InputError(f'recipe: unknown field "{key}"{nearest(key, names)}')
        for name in names:
            if name not in values:
                raise InputError(f"recipe: the field {name} is missing")
        return cls(**values)


def lasting_name(folder):
    """What a recipe calls a model's folder: the name of one that ships, else the whole path, so that replay finds it from anywhere."""
    folder, here = Path(folder).resolve(), Path(__file__).resolve().parents[1]
    shipped = [here / package / "pretrained" for package in PACKAGES.values()]
    return folder.name if folder.parent in shipped else os.fspath(folder)


def versions():
    """What shapes the bits of an output besides its recipe: {"commonthread", "torch", "threads", "cpu"}."""
    import torch

    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"commonthread": _own_version(), "torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu}


# ---- in and out of files ----

def embed_png(path, recipe):
    """Writes the recipe, or the list of those of its parts, into a PNG file that exists (text chunk "recipe"); the pixels stay."""
    write_file(path, png_with_text(_bytes(path), "recipe", _json(recipe)))


def embed_wav(path, recipe):
    """Writes the recipe, or the list of those of its parts, into a WAV file that exists (RIFF INFO, ICMT); the samples stay."""
    write_file(path, wav_with_comment(_bytes(path), _json(recipe)))


def save_text(path, text, recipe):
    """Writes the text as UTF-8, and its recipe beside it as `<name>.recipe.json`."""
    with writing(path):
        write_file(_sidecar(path), (recipe.to_json() + "\n").encode())
        write_file(path, text.encode("utf-8"))


def read(file):
    """PNG, WAV, FLAC, or any file with `<name>.recipe.json` beside it -> its Recipe, or a list of those of its parts; InputError without one."""
    text = find(_bytes(file))
    if text is None and _sidecar(file).is_file():
        if _sidecar(file).stat().st_size > LIMIT + 1:
            raise InputError(f"{_sidecar(file)} has more than {LIMIT} bytes: it is no recipe")
        text = _sidecar(file).read_bytes()
    if text is None:
        raise InputError(f"{file} holds no recipe: it was not made by this toolkit, or a program has stripped its metadata "
                         f"(a text's recipe lies beside it, in {_sidecar(file).name})")
    try:
        values = _parsed(text)
        if values.keys() == {"parts"} and isinstance(values["parts"], list):
            return [Recipe._from_values(part) for part in values["parts"]]
        return Recipe._from_values(values)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def find(raw):
    """The bytes of a PNG, WAV or FLAC file -> the JSON of the recipe inside, as bytes; None when there is none."""
    if raw[:4] == b"\x89PNG":
        return png_text(raw, "recipe")
    if raw[:4] == b"RIFF":
        return wav_comment(raw)
    if raw[:4] == b"fLaC":
        comment = _flac(raw, lambda file: file.comment)
        return comment.encode() if comment.startswith("{") else None
    return None


# ---- making it again ----

def register(kind, maker, same=None):
    """Names the function that makes outputs of a kind; the contract is at the top of this file."""
    MAKERS[kind] = maker, same or _same


def replay(file, *, model=None):
    """A PNG, WAV or text file with its recipe -> the same output, made again; ReplayError says what differs when it is not.

    `model` replaces the model's name, for a folder that has moved or a Hub model that was copied here. A file that was put together from several
    outputs (a grid of pictures) gives the list of them; they are not compared with it, and a warning says what differs."""
    found = read(file)
    if isinstance(found, list):
        made = [_made_again(file, recipe, model) for recipe in found]
        for differing in dict.fromkeys("; ".join(differing) for _, _, differing in made if differing):
            warnings.warn(f"{file}: its parts may have come out differently. What differs: {differing}", stacklevel=2)
        return [output for output, _, _ in made]
    output, same, differing = _made_again(file, found, model)
    if same(output, Path(file)):
        return output
    reason = "; ".join(differing) or "nothing that the recipe records; the file was changed after it was made"
    raise ReplayError(f"{file} came out differently. What differs: {reason}", output)


def _made_again(file, recipe, model):
    """(output, the function that compares it with a file, what differs from when it was made)."""
    if model is not None:
        recipe = dataclasses.replace(recipe, model=os.fspath(model))
    if recipe.kind not in PACKAGES:
        raise InputError(f'{file}: nobody makes outputs of the kind "{recipe.kind}"{nearest(recipe.kind, PACKAGES)}')
    folder = resolve(recipe.model, PACKAGES[recipe.kind], hub=False)
    maker, same = _maker(recipe.kind)
    with _threads(recipe.versions.get("threads")):
        differing = differences(recipe, made_with(folder))
        try:
            output = maker(recipe)
        except (KeyError, TypeError) as error:
            raise ReplayError(f"{file}: its recipe has inputs or settings that {recipe.kind} doesn't know: {error!r}") from error
    return output, same, differing


def differences(recipe, digest):
    """What is not as it was when the output was made: ["torch 2.9.0, now 2.13.0", ...]."""
    then, now = ({**dict(zip(("weights", "configuration"), both.split("-"))), **others}
                 for both, others in ((recipe.digest, recipe.versions), (digest, versions())))
    if "configuration" not in then:                     # a recipe of old, or a digest of the weights alone
        now.pop("configuration", None)
    return [f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]]


def made_with(folder):
    """A model's folder -> "0123456789abcdef-01234567": digests of its weights and of its configuration and tokenizer."""
    return f"{weights_digest(folder)}-{words_digest(folder)}"


def survives(module, dtype, *, own=False):
    """Does every weight, opened in float32 again, come back from that dtype as it was? own: opened in its own dtype."""
    dtype, opened = floating(dtype), floating("float32")
    return all((own or p.dtype == opened) and p.equal(p.to(dtype).to(p.dtype)) for p in module.parameters())


def _maker(kind):
    """(maker, same) of a kind; its package is imported for it."""
    if kind not in MAKERS:
        package = importlib.import_module(PACKAGES[kind])
        for name in getattr(package, "__all__", ()):
            getattr(package, name)                      # public names are imported when first used; their files register
    if kind not in MAKERS:
        raise ReplayError(f'{PACKAGES[kind]} registers no maker for "{kind}": this version can\'t replay it')
    return MAKERS[kind]


@contextlib.contextmanager
def _threads(count):
    """Computes with as many threads as the recipe says (sums of another split round differently), within reason."""
    import torch

    before = torch.get_num_threads()
    if type(count) is int and 1 <= count <= 4 * (os.cpu_count() or 1):
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _same(output, path):
    """Is the output what the file holds: the same text, pixels or samples?"""
    if isinstance(output, str):
        return output.encode("utf-8") == _bytes(path)
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder, "again" + path.suffix.lower())
        output.save(again)
        if path.suffix.lower() == ".wav":
            return wav_samples(_bytes(again)) == wav_samples(_bytes(path))
        if path.suffix.lower() == ".flac":
            return _flac(_bytes(again), _samples) == _flac(_bytes(path), _samples)
        if path.suffix.lower() == ".png":
            return _same_pixels(again, path)
        return _bytes(again) == _bytes(path)


def _same_pixels(one, other):
    from PIL import Image

    with Image.open(one) as a, Image.open(other) as b:
        return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()     # sizes first: nothing huge is decoded


# ---- small parts ----

def _broken(text):
    """Whether a text holds control characters. Spaces of every kind, and bytes that are no UTF-8, are in the names of folders."""
    return any(unicodedata.category(character) == "Cc" for character in text)


def _flac(raw, wanted):
    """The bytes of a FLAC file -> wanted(it, opened)."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as file:
            return wanted(file)
    except soundfile.LibsndfileError as error:
        raise InputError(f"the FLAC can't be read: {error}") from None


def _samples(file):
    """An opened sound -> (rate, samples as bytes); InputError when it has more than a data folder's may have."""
    if file.frames * file.channels > SAMPLES:
        raise InputError(f"the FLAC has {file.frames * file.channels:,} samples, at most {SAMPLES:,} are read")
    return file.samplerate, file.read(dtype="int32", always_2d=True).tobytes()


def _line(values):
    """Values -> one line of ASCII, or InputError when it is longer than a file should carry."""
    text = json.dumps(values, sort_keys=True)
    if len(text) > LIMIT:
        raise InputError(f"recipe: {len(text)} bytes of JSON, expected at most {LIMIT}: shorten inputs")
    return text


def _json(recipe):
    """A Recipe, or a list of them -> one line of ASCII."""
    return recipe.to_json() if isinstance(recipe, Recipe) else _line({"parts": [dataclasses.asdict(part) for part in recipe]})


def _parsed(text):
    """JSON text or bytes of anybody -> a dict, or InputError."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return parse_json(raw, "recipe", limit=LIMIT, error=InputError)


def _plain(name, value):
    """A copy in JSON's own types, or InputError."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"recipe: {name} should hold only JSON values (numbers, texts, lists, dicts): {error}") from None


def _sidecar(path):
    path = Path(path)
    return path.with_name(path.name + ".recipe.json")


def _bytes(path):
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"expected the path of a file, got {path!r:.80}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        what = "it is a folder, give one of its files" if os.path.isdir(path) else error.strerror
        raise InputError(f"can't read {path}: {what}") from None


@functools.cache
def _own_version():
    from importlib import metadata

    try:
        return metadata.version("commonthread")
    except metadata.PackageNotFoundError:
        return "source"
