"""Data folders as the ecosystem has them (text files, imagefolder, audiofolder, parquet) -> rows by number.

Files are not trusted: each is opened once at the start, a bad one is named, and the caller chooses to stop or to go without it."""
import csv
import io
import json
import os
import re
import sysconfig
import warnings
from pathlib import Path

from gencore.check import DataError, InputError
from gencore.pictures import read_picture
from gencore.sounds import SAMPLES, read_sound

TABLES = ("metadata.jsonl", "metadata.csv")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")

FILES = "{} beside a metadata.jsonl or metadata.csv (file_name, text), one subfolder per class, or parquet with an {} column"
LAYOUTS = {
    "text": "a folder of .txt files, or parquet with a text column",
    "image": FILES.format("pictures", "image"),
    "audio": FILES.format("sound files", "audio"),
}


class Rows:
    """Rows by number, each a dict; files are decoded when their row is asked for. `skipped` names the files that were left out."""

    def __init__(self, columns, names, decode=None):
        self.columns, self.names, self.decode, self.skipped = columns, names, decode, []

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = {name: column[index] for name, column in self.columns.items()}
        row = {name: value.as_py() if hasattr(value, "as_py") else value for name, value in row.items()}
        return self.decode(row, self.names[index]) if self.decode else row

    def column(self, name):
        """All values of a column that is not decoded, as a list."""
        column = self.columns[name]
        return column.to_pylist() if hasattr(column, "to_pylist") else list(column)

    def select(self, indices):
        """The rows of these numbers, in this order."""
        kept = {name: column.take(list(indices)) if hasattr(column, "take") else [column[i] for i in indices]
                for name, column in self.columns.items()}
        return Rows(kept, [self.names[i] for i in indices], self.decode)

    def checked(self, on_error):
        """Reads every row once. A bad one: DataError ("stop"), or the rows without it and a warning ("skip")."""
        good, bad = [], []
        for index in _progress(range(len(self))):
            try:
                self[index]
                good.append(index)
            except DataError as error:
                if on_error == "stop":
                    raise
                bad.append(str(error))
        return _without(self, good, bad)


def learn_and_held_out(path=None):
    """Text for the examples: (texts to learn from, texts held out, what they are). path: as of `text_folder`; None = Python's standard library.

    Held out is what lies in a split of its own (`held_out_split`), or the rows whose column "split" says validation, or else test; without
    one, the last twentieth of each text, or one in twenty of texts too short for that."""
    if path is None:
        folder = Path(sysconfig.get_path("stdlib"))
        files = sorted(file for file in folder.glob("*.py") if file.stat().st_size > 4000)
        texts, what = [file.read_text(encoding="utf-8", errors="replace") for file in files], "Python's standard library"
    elif held := held_out_split(path):
        return text_folder(path, "train").column("text"), text_folder(path, held).column("text"), Path(path).name
    else:
        rows, what = text_folder(path), Path(path).name
        texts = rows.column("text")
        if "split" in rows.columns:
            by_split = lambda wanted: [text for text, split in zip(texts, rows.column("split")) if split == wanted]
            learnt, held = by_split("train"), by_split("validation") or by_split("test")
            if learnt and held:
                return learnt, held, what
    if max(map(len, texts)) < 200 and len(texts) > 1:                               # lines, not texts
        return [text for i, text in enumerate(texts) if i % 20 != 1], texts[1::20], what
    cuts = [len(text) - len(text) // 20 for text in texts]
    return [text[:cut] for text, cut in zip(texts, cuts)], [text[cut:] for text, cut in zip(texts, cuts)], what


def held_out_split(path):
    """A folder -> "validation" or "test" where it has such a subfolder or parquet beside one called "train", else None."""
    names = [child.name for child in Path(path).glob("*") if child.is_dir() or child.suffix == ".parquet"]
    there = [split for split in ("train", "validation", "test") if any(re.fullmatch(rf"{split}|{split}(-.*)?\.parquet", name) for name in names)]
    return there[1] if there[:1] == ["train"] and len(there) > 1 else None


def text_folder(path, split=None, *, text="text", on_error="stop", suffixes=(".txt",)):
    """Folder (or one file) of text -> Rows with "text" and what else a parquet file has.

    `split` is a value of the column split, a subfolder, or the start of a file's name (train-00000-of-00002.parquet)."""
    _check_choice(on_error)
    path, split = _place(path, split, "text")
    if tables := _parquets(path):
        return _named_text(_table(tables, split, "text"), text, "text")
    _no_split_left(path, split, "text")
    files = [path] if path.is_file() else _files(path, suffixes)
    names, texts, bad = [], [], []
    for file in files:
        try:
            content = text_of_file(file)
        except DataError as error:
            if on_error == "stop":
                raise DataError(f'{error} (on_error="skip" goes without it)') from error
            bad.append(str(error))
            continue
        if content.strip():
            names.append(str(file))
            texts.append(content)
    rows = Rows({"text": texts, "file_name": names}, names)
    _not_empty(rows, path, "text", bad)
    return _without(rows, range(len(rows)), bad)


def text_of_file(path):
    """A file in UTF-8 -> its text, or DataError."""
    try:
        return Path(path).read_bytes().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except (UnicodeDecodeError, OSError) as error:
        reason = f"byte {error.start} is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise DataError(f"{path} is not a text file: {reason}") from error


def image_folder(path, split=None, *, text="text", on_error="stop", check=True):
    """imagefolder or parquet -> Rows with "image" (a PIL picture, RGB or RGBA), "text" and the other columns.

    `text` names the column with the words; None when none are needed. `check` decodes every picture once at the start."""
    return _media_folder(path, split, "image", text=text, on_error=on_error, check=check)


def audio_folder(path, split=None, *, text="text", on_error="stop", check=True):
    """audiofolder or parquet -> Rows with "audio" (a float32 tensor (C, L) in [-1, 1]), "sample_rate", "text" and the other columns."""
    return _media_folder(path, split, "audio", text=text, on_error=on_error, check=check)


def _media_folder(path, split, kind, *, text, on_error, check):
    _check_choice(on_error)
    path, split = _place(path, split, kind)
    if (tables := _parquets(path)):
        rows = _table(tables, split, kind)
        if kind not in rows.columns:
            raise DataError(f'{tables[0]} has no column "{kind}" (it has {", ".join(rows.columns)}): expected {LAYOUTS[kind]}')
    else:
        _no_split_left(path, split, kind)
        rows = _media_files(path, kind, text, on_error)
    rows = _named_text(rows, text, kind) if text else rows
    rows.decode = _decode_image if kind == "image" else _decode_audio
    return rows.checked(on_error) if check else rows


def _media_files(path, kind, text, on_error):
    """Rows of a folder: by its metadata files, else by its subfolders, else (when no text is needed) just its files."""
    files = _files(path, IMAGES if kind == "image" else SOUNDS)
    tables = sorted(Path(folder, name) for folder, below, names in _walk(path) for name in below + names if name in TABLES)
    if twice := next((one.parent for one, other in zip(tables, tables[1:]) if one.parent == other.parent), None):
        raise DataError(f"{twice} has a metadata.jsonl and a metadata.csv: take one away, else each file comes twice")
    entries, bad = [], []
    if tables:
        for table in tables:
            for number, entry in _metadata(table):
                try:
                    entries.append({**entry, kind: _beside(table, number, entry)})
                except DataError as error:
                    if on_error == "stop":
                        raise
                    bad.append(str(error))
    elif any(file.parent != path for file in files):
        loose = [file for file in files if file.parent == path]
        why = "lies beside the subfolders, which say what their files show: move it into one"
        if loose and on_error == "stop":
            raise DataError(f"{loose[0]} ({len(loose)} such in all) {why}")
        bad += [f"{file} {why}" for file in loose]
        if min(len(file.relative_to(path).parts) for file in files if file.parent != path) > 2:
            tops = sorted({file.relative_to(path).parts[0] for file in files})
            raise DataError(f"{path}: its files lie two folders deep, in {', '.join(tops):.80}: name one as the split, or give the folder that holds "
                            "those of the classes")
        entries = [{kind: file, "label": (label := file.relative_to(path).parts[0]), text or "text": label}
                   for file in files if file.parent != path]
    elif text is None:
        entries = [{kind: file} for file in files]
    elif files:
        raise DataError(f"{path} has {kind} files but nothing says what they show: expected {LAYOUTS[kind]}")
    names = [str(entry[kind]) for entry in entries]
    keys = list(dict.fromkeys(key for entry in entries for key in entry))
    rows = Rows({key: [entry.get(key) for entry in entries] for key in keys}, names)
    _not_empty(rows, path, kind, bad)
    return _without(rows, range(len(rows)), bad)


def _metadata(table):
    """metadata.jsonl or .csv -> (line number, dict) of each line."""
    number = 1
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".csv":
                for entry in (lines := csv.DictReader(file, strict=True)):
                    number = lines.line_num
                    if None in entry:
                        raise DataError(f"{table} line {number} has more fields than its header names: put words with a comma into quotes")
                    yield number, entry
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    entry = json.loads(line)
                    if not isinstance(entry, dict):
                        raise DataError(f'{table} line {number} should be an object such as {{"file_name": "1.png", "text": "a cat"}}')
                    yield number, entry
    except DataError:
        raise
    except RecursionError as error:
        raise DataError(f"{table} line {number} can't be read: its brackets are nested too deeply") from error
    except (ValueError, csv.Error, OSError) as error:
        why = "it is a folder, expected a file" if table.is_dir() else error
        raise DataError(f"{table} can't be read: {why}") from error


def _beside(table, number, entry):
    """Path of the file that a metadata line names; it must lie in the metadata's own folder."""
    if not isinstance(name := entry.get("file_name"), str) or not name:
        raise DataError(f"{table} line {number} has no file_name (it has {', '.join(map(str, entry))})")
    file = table.parent / name
    try:
        home, real = table.parent.resolve(), file.resolve()
        blobs = [parent / "blobs" for parent in home.parents]                       # the files of a snapshot in the Hub's cache are links to there
        linked = ".." not in Path(name).parts and any(map(real.is_relative_to, blobs))
        inside, there = real.is_relative_to(home) or linked, file.is_file()
    except (OSError, ValueError, RuntimeError) as error:                            # too long, a NUL, half a character, links in a circle
        raise DataError(f"{table} line {number}: file_name should be the name of a file, got {name!r:.80} "
                        f"({getattr(error, 'strerror', None) or error})") from error
    if not inside:
        raise DataError(f"{table} line {number} names {name}, which lies outside its folder")
    if not there:
        raise DataError(f"{table} line {number} names {name}, which is not there")
    return file


def _decode_image(row, name):
    """row["image"] (path, bytes or {"bytes", "path"}) -> a PIL picture, RGB or RGBA: the first frame, turned as its camera says."""
    try:
        row["image"] = read_picture(file_of(row["image"], name), name)
    except InputError as error:                                                     # too large, or empty
        raise DataError(str(error)) from error
    return row


def _decode_audio(row, name):
    """row["audio"] (path, bytes or {"bytes", "path"}) -> float32 tensor (C, L), and row["sample_rate"]."""
    waveform, rate, _ = read_sound(file_of(row["audio"], name), name, samples=SAMPLES)
    if not waveform.shape[1]:
        raise DataError(f"{name} holds no sound")
    return {**row, "audio": waveform, "sample_rate": rate}


def file_of(value, name):
    """What a decoder can open: a path, or the bytes of a parquet cell as a file."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if isinstance(value, Path):
        return value
    raise DataError(f"{name} holds no file bytes")


def _table(files, split, kind):
    """Parquet files -> Rows of all of them, of one split where a column or the file names tell."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    by_name = [file for file in files if split and (file.stem == split or file.stem.startswith(f"{split}-"))]
    tables, names = [], []
    for file in by_name or files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} is not a parquet file that can be read: {str(error).splitlines()[0]}") from error
        if tables and table.schema.names != tables[0].schema.names:
            raise DataError(f"{file} has other columns than {files[0].name}: name the one file that is meant")
        tables.append(table)
        names += [f"{file} row {i}" for i in range(len(table))]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{files[0]} and the others hold other kinds of values under one name: {str(error).splitlines()[0]}") from error
    if split and not by_name:
        if "split" not in table.schema.names:
            raise DataError(f'{files[0].parent} has no split "{split}": expected a split column, a subfolder or a file of that name')
        try:
            splits = table["split"].cast(pa.string())
        except pa.ArrowException:
            raise DataError(f"{files[0]}: the column split should hold words, such as train, it holds {table['split'].type}") from None
        known = sorted(set(splits.to_pylist()) - {None})
        keep = pc.equal(splits, split).fill_null(False)
        names = [name for name, kept in zip(names, keep.to_pylist()) if kept]
        table = table.filter(keep)
        if not names:
            raise DataError(f'{files[0]} has no split "{split}": its splits are {", ".join(known)}')
    rows = Rows({name: table[name] for name in table.schema.names}, names)
    _not_empty(rows, files[0], kind, [])
    return rows


def _named_text(rows, text, kind):
    """Rows whose column `text` is called "text" as well; each has words there."""
    if text not in rows.columns:
        other = next((name for name in rows.columns if name not in (kind, "file_name", "split")), "caption")
        raise DataError(f'{rows.names[0]} and the others have no column "{text}" (they have {", ".join(rows.columns)}): '
                        f'say which one holds the words, such as text="{other}"')
    for name, words in zip(rows.names, rows.column(text)):
        if not isinstance(words, str) or (not words and kind != "text"):                # an empty line of a text is one
            raise DataError(f'{name} has no words in "{text}", got {words!r}: give it some, or take it out of the data')
    rows.columns["text"] = rows.columns[text]
    return rows


def _place(path, split, kind):
    """(path, split) -> the subfolder of that split where there is one, else as given."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(split, (str, type(None))):
        raise DataError(f"expected the path of {LAYOUTS[kind]}, and a split's name or None, got {path!r:.80} and {split!r:.80}")
    if not os.path.exists(path):                                                    # of a path that can't be as well
        raise DataError(f"{path!s:.200} is not there: expected {LAYOUTS[kind]}")
    path = Path(path)
    if split and os.path.isdir(path / split):
        return path / split, None
    return path, split


def _no_split_left(path, split, kind):
    if split:
        raise DataError(f'{path} has no split "{split}": expected a subfolder of that name, or parquet with a split column')


def _parquets(path):
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))


def _files(path, suffixes):
    """Files below `path` with one of these suffixes, sorted by path."""
    found = (Path(folder, name) for folder, _, names in _walk(path) for name in names if Path(name).suffix.lower() in suffixes)
    return sorted(filter(Path.is_file, found))


def _walk(path):
    """os.walk into linked folders too, each folder once; hidden ones, hidden files and the folders of trainings are left alone."""
    seen = set()
    for folder, below, names in os.walk(path, onerror=_unreadable, followlinks=True):
        real, own = os.path.realpath(folder), [name for name in below if not os.path.exists(os.path.join(folder, name, "metrics.jsonl"))]
        below[:] = [] if real in seen else [name for name in own if not name.startswith(".")]         # links in a circle
        if real not in seen:
            yield folder, below, [name for name in names if not name.startswith(".")]
        seen.add(real)


def _unreadable(error):
    """For os.walk, which would leave such a folder out without a word."""
    raise DataError(f"{error.filename} can't be read: {error.strerror}") from error


def _not_empty(rows, path, kind, bad):
    if not len(rows):
        why = f"nothing readable is left ({bad[0]})" if bad else "nothing to read there"
        raise DataError(f"{path}: {why}; expected {LAYOUTS[kind]}")


def _without(rows, good, bad):
    """`rows` at the numbers `good`; says how many `bad` ones were left out."""
    if not bad:
        return rows
    kept = rows.select(good) if len(good) < len(rows) else rows
    kept.skipped = [*rows.skipped, *bad]
    if not len(kept):
        raise DataError(f"not one file can be read: {bad[0]}")
    warnings.warn(f"left out {len(bad)} of {len(kept) + len(bad)} files: {'; '.join(bad[:3] + ['...'] * (len(bad) > 3))}", stacklevel=3)
    return kept


def _check_choice(on_error):
    if on_error not in ("stop", "skip"):
        raise InputError(f'on_error should be "stop" or "skip", got {on_error!r}')


def _progress(numbers):
    from tqdm import tqdm
    return tqdm(numbers, desc="reading files", unit="file", delay=2, leave=False, disable=None)
