"""Data folders: what the ecosystem has, and every way in which a folder can be bad."""

import io
import json

import numpy as np
import pytest
import torch

from gencore import data_folder
from gencore.check import DataError, InputError
from gencore.data import Batches, audio_folder, image_folder, text_folder


def image_bytes(color=(200, 10, 10), size=(6, 4), kind="PNG"):
    from PIL import Image
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def sound_bytes(seconds=0.05, channels=1, rate=8000):
    import soundfile
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(int(seconds * rate)) / 5)[:, None].repeat(channels, 1) * 0.5, rate, format="WAV")
    return buffer.getvalue()


MEDIA = {"image": (image_folder, image_bytes, "png"), "audio": (audio_folder, sound_bytes, "wav")}


def write(folder, files):
    """files: relative name -> str or bytes."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_parquet(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


# text

def test_a_folder_of_text_files_is_read_in_order_with_subfolders(tmp_path):
    write(tmp_path, {"b.txt": "zwei ü", "a.txt": "one", "deep/c.txt": "three", "blank.txt": " \n", ".hidden/d.txt": "no", "e.md": "no"})
    rows = text_folder(tmp_path)
    assert [row["text"] for row in rows] == ["one", "zwei ü", "three"] == rows.column("text")
    assert [row["text"] for row in text_folder(tmp_path, suffixes=(".md",))] == ["no"]
    assert text_folder(tmp_path / "a.txt")[0]["text"] == "one"


def test_splits_come_from_subfolders_file_names_or_a_column(tmp_path):
    write(tmp_path / "folders", {"train/a.txt": "one", "test/b.txt": "two"})
    assert text_folder(tmp_path / "folders", "test").column("text") == ["two"]
    write_parquet(tmp_path / "files/train-00000-of-00002.parquet", {"text": ["a"]})
    write_parquet(tmp_path / "files/train-00001-of-00002.parquet", {"text": ["b"]})
    write_parquet(tmp_path / "files/test.parquet", {"text": ["c"]})
    assert text_folder(tmp_path / "files", "train").column("text") == ["a", "b"]
    assert text_folder(tmp_path / "files").column("text") == ["c", "a", "b"]
    one = write_parquet(tmp_path / "column/all.parquet", {"text": ["a", "b", "c"], "split": ["train", "test", None]})
    assert text_folder(one, "train").column("text") == ["a"] == text_folder(tmp_path / "column", "train").column("text")
    assert text_folder(one)[1] == {"text": "b", "split": "test"}


@pytest.mark.parametrize("files, split, words", [
    (None, None, r"gone is not there: expected a folder of .txt files, or parquet with a text column"),
    ({"readme.md": "x"}, None, "nothing to read there; expected a folder of .txt files"),
    ({"a.txt": " "}, None, "nothing to read there"),
    ({"a.txt": b"\xff\xfe\x00", "b.txt": "fine"}, None, "a.txt is not a text file: byte 0 is not UTF-8"),
    ({"a.txt": "x"}, "train", 'has no split "train": expected a subfolder of that name'),
    ({"a.parquet": "not parquet at all"}, None, "a.parquet is not a parquet file that can be read"),
])
def test_a_bad_text_folder_is_one_clear_sentence(tmp_path, files, split, words):
    folder = write(tmp_path, files) if files else tmp_path / "gone"
    with pytest.raises(DataError, match=words) as error:
        text_folder(folder, split)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", [text_folder, image_folder, audio_folder])
@pytest.mark.parametrize("path, split, words", [
    (None, None, "expected the path of .*, got None and None"), (5, None, "expected the path of .*, got 5 and None"),
    (".", 7, "and a split's name or None, got '.' and 7"), ("a\0b", None, "is not there: expected"), ("x" * 5000, None, "xxx is not there: expected"),
])
def test_what_is_no_path_is_one_clear_sentence(folder, path, split, words):
    with pytest.raises(DataError, match=words) as error:
        folder(path, split)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("columns, split, words", [
    ({"words": ["a"], "n": [1]}, None, r'no column "text" \(they have words, n\): .* such as text="words"'),
    ({"text": ["a"]}, "train", 'has no split "train": expected a split column'),
    ({"text": ["a", "b"], "split": ["test", "dev"]}, "train", 'has no split "train": its splits are dev, test'),
    ({"text": []}, None, "nothing to read there"),
])
def test_a_parquet_without_what_is_asked_is_one_clear_sentence(tmp_path, columns, split, words):
    with pytest.raises(DataError, match=words):
        text_folder(write_parquet(tmp_path / "a.parquet", columns), split)


def test_parquet_files_of_different_columns_are_not_mixed(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["a"]})
    write_parquet(tmp_path / "b.parquet", {"text": ["b"], "author": ["x"]})
    with pytest.raises(DataError, match=r"b.parquet has other columns than a.parquet: name the one file"):
        text_folder(tmp_path)


def test_skipping_goes_without_the_bad_text_and_names_it(tmp_path):
    write(tmp_path, {"a.txt": b"\xff", "b.txt": "fine"})
    with pytest.warns(UserWarning, match=r"left out 1 of 2 files: .*a.txt"):
        rows = text_folder(tmp_path, on_error="skip")
    assert rows.column("text") == ["fine"] and "a.txt" in rows.skipped[0]


# pictures and sound

@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("metadata", ["jsonl", "csv"])
def test_metadata_gives_each_file_its_words(tmp_path, kind, metadata):
    folder, content, end = MEDIA[kind]
    rows = [{"file_name": f"sub/2.{end}", "text": "two, you know", "who": "x"}, {"file_name": f"1.{end}", "text": "one", "who": "y"}]
    table = lines(*rows) if metadata == "jsonl" else f'file_name,text,who\nsub/2.{end},"two, you know",x\n1.{end},one,y\n'
    write(tmp_path, {f"metadata.{metadata}": table, f"1.{end}": content(), f"sub/2.{end}": content(), f"unlisted.{end}": content()})
    got = folder(tmp_path)
    assert [(row["text"], row["who"]) for row in got] == [("two, you know", "x"), ("one", "y")]
    if kind == "image":
        assert got[0]["image"].size == (6, 4) and got[0]["image"].getpixel((0, 0)) == (200, 10, 10)
    else:
        assert got[0]["audio"].shape == (1, 400) and got[0]["audio"].dtype == torch.float32 and got[0]["sample_rate"] == 8000
        assert torch.allclose(got[0]["audio"][0], 0.5 * torch.sin(torch.arange(400) / 5), atol=1e-4)


@pytest.mark.parametrize("kind", MEDIA)
def test_subfolders_are_classes_and_a_bare_folder_will_do_without_words(tmp_path, kind):
    folder, content, end = MEDIA[kind]
    write(tmp_path / "classes", {f"cat/1.{end}": content(), f"dog/1.{end.upper()}": content(), f"dog/old/2.{end}": content()})
    assert [(row["label"], row["text"]) for row in folder(tmp_path / "classes")] == [("cat", "cat"), ("dog", "dog"), ("dog", "dog")]
    write(tmp_path / "splits", {f"train/cat/1.{end}": content(), f"test/dog/1.{end}": content()})
    assert [row["label"] for row in folder(tmp_path / "splits", "test")] == ["dog"]
    write(tmp_path / "bare", {f"1.{end}": content()})
    assert list(folder(tmp_path / "bare", text=None)[0])[0] == kind


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("wrapped", [True, False])
def test_parquet_holds_files_as_bytes_or_as_the_hub_wraps_them(tmp_path, kind, wrapped):
    folder, content, _ = MEDIA[kind]
    cells = [{"bytes": content(), "path": None} if wrapped else content() for _ in range(3)]
    path = write_parquet(tmp_path / "a.parquet", {kind: cells, "name": ["a", "b", "c"], "split": ["train", "test", "train"]})
    rows = folder(path, "train", text="name")
    assert [row["text"] for row in rows] == ["a", "c"] and rows.names[1] == f"{path} row 2"
    assert rows.column("name") == ["a", "c"]
    assert Batches(rows, 2, collate=lambda batch: sorted(row["text"] for row in batch)).batch(0) == ["a", "c"]


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("files, words", [
    (None, r"gone is not there: expected .* metadata.jsonl or metadata.csv \(file_name, text\), one subfolder per class, or parquet"),
    ({}, "nothing to read there; expected"),
    ({"1.END": None}, "nothing says what they show: expected"),
    ({"1.END": None, "metadata.jsonl": lines({"file_name": "2.END", "text": "a"})}, r"metadata.jsonl line 1 names 2\.\w+, which is not"),
    ({"1.END": None, "metadata.jsonl": lines({"file": "1.END"})}, r"line 1 has no file_name \(it has file\)"),
    ({"1.END": None, "metadata.jsonl": lines({"file_name": 1})}, "line 1 has no file_name"),
    ({"1.END": None, "metadata.jsonl": lines({"file_name": "1.END", "caption": "a"})}, r'no column "text" .* such as text="caption"'),
    ({"1.END": None, "2.END": None, "metadata.jsonl": lines({"file_name": "1.END", "text": "a"}, {"file_name": "2.END"})},
     r'2\.\w+ has no words in "text", got None'),
    ({"1.END": None, "metadata.jsonl": lines({"file_name": "1.END", "text": 7})}, r'1\.\w+ has no words in "text", got 7'),
    ({"1.END": None, "metadata.jsonl": '{"file_name": "1.EN'}, "metadata.jsonl can't be read: Unterminated string"),
    ({"1.END": None, "metadata.jsonl": '["1.END"]'}, "line 1 should be an object such as"),
    ({"1.END": None, "metadata.jsonl": b"\xff\xfe"}, "metadata.jsonl can't be read"),
    ({"1.END": None, "metadata.csv": 'file_name,text\n"1.END" x,a\n'}, "metadata.csv can't be read"),
    ({"1.END": None, "metadata.csv": ""}, "nothing to read there"),
    ({"1.END": None, "metadata.jsonl": "\n" + "[" * 100_000}, "metadata.jsonl line 2 can't be read: its brackets are nested too deeply"),
    ({"1.END": None, "metadata.jsonl": "1" * 5000}, "metadata.jsonl can't be read: Exceeds the limit"),
    ({"1.END": None, "metadata.jsonl/a.txt": "x"}, "metadata.jsonl can't be read: it is a folder"),
    ({"1.END": None, "metadata.csv/a.txt": "x"}, "metadata.csv can't be read: it is a folder"),
    *(({"1.END": None, "metadata.jsonl": "\n" + lines({"file_name": name, "text": "a"})},
       r"metadata.jsonl line 2: file_name should be the name of a file, got '\S{1,80} \(" + why)
      for name, why in (("a\0b", "embedded null"), ("x" * 5000, "File name too long"), ("\ud800.END", "'utf-8' codec can't encode"))),
    ({"1.END": None, "metadata.jsonl": lines({"file_name": "../secret.END", "text": "a"})}, "which lies outside its folder"),
    ({"1.END": None, "metadata.jsonl": lines({"file_name": "/etc/passwd", "text": "a"})}, "which lies outside its folder"),
    ({"cat/1.END": b"broken", "cat/2.END": None}, r"cat/1\.\w+ is not (a picture|sound) that can be read"),
    ({"cat/1.END": b"", "cat/2.END": None}, r"cat/1\.\w+ is not (a picture|sound) that can be read"),
])
def test_a_bad_media_folder_is_one_clear_sentence(tmp_path, kind, files, words):
    folder, content, end = MEDIA[kind]
    place = tmp_path / "data"
    write(tmp_path, {f"secret.{end}": content()})
    if files is None:
        place = tmp_path / "gone"
    else:
        place.mkdir()
        for name, value in files.items():
            value = value.replace("END", end) if isinstance(value, str) else value
            write(place, {name.replace("END", end): content() if value is None else value})
    with pytest.raises(DataError, match=words) as error:
        folder(place)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", MEDIA)
def test_files_beside_the_classes_or_without_words_are_named(tmp_path, kind):
    folder, content, end = MEDIA[kind]
    write(tmp_path / "classes", {f"a/1.{end}": content(), f"2.{end}": content()})
    with pytest.raises(DataError, match=rf"2\.{end} \(1 such in all\) lies beside the subfolders, which say what their files show: move it"):
        folder(tmp_path / "classes")
    with pytest.warns(UserWarning, match="lies beside the subfolders"):
        assert folder(tmp_path / "classes", on_error="skip").column("label") == ["a"]
    write(tmp_path / "told", {"metadata.csv": f"file_name,text\n1.{end},\n", f"1.{end}": content()})
    with pytest.raises(DataError, match=f"1.{end} has no words in \"text\", got ''"):
        folder(tmp_path / "told")


def test_splits_without_the_word_which_are_not_taken_for_classes(tmp_path):
    write(tmp_path, {f"{split}/{name}/0.png": image_bytes() for split in ("train", "test") for name in "ab"})
    with pytest.raises(DataError, match="files lie two folders deep, in test, train: name one as the split, or give the folder that holds"):
        image_folder(tmp_path)
    assert image_folder(tmp_path, "train").column("label") == ["a", "b"]


def test_linked_folders_and_the_hubs_cache_are_read_and_circles_end(tmp_path):
    write(tmp_path, {"far/cat/0.png": image_bytes(), "data/dog/0.png": image_bytes(), "hub/blobs/1f": image_bytes(),
                     "hub/snapshots/7/metadata.jsonl": '{"file_name": "0.png", "text": "a dog"}\n{"file_name": "../../blobs/1f", "text": "no"}'})
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "far" / "cat")
    (tmp_path / "data" / "dog" / "round").symlink_to(tmp_path / "data")
    assert image_folder(tmp_path / "data").column("label") == ["cat", "dog"]
    (tmp_path / "hub" / "snapshots" / "7" / "0.png").symlink_to("../../blobs/1f")
    with pytest.raises(DataError, match="line 2 names ../../blobs/1f, which lies outside its folder"):
        image_folder(tmp_path / "hub" / "snapshots" / "7")
    (tmp_path / "hub" / "snapshots" / "7" / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a dog"}')
    assert image_folder(tmp_path / "hub" / "snapshots" / "7").column("text") == ["a dog"]


def test_an_empty_line_of_a_text_is_one(tmp_path):
    assert text_folder(write_parquet(tmp_path / "a.parquet", {"text": ["a", "", "b"]})).column("text") == ["a", "", "b"]


@pytest.mark.parametrize("kind", MEDIA)
def test_skipping_goes_without_what_is_broken_missing_or_outside(tmp_path, kind):
    folder, content, end = MEDIA[kind]
    names = [f"1.{end}", f"2.{end}", f"3.{end}", f"../4.{end}"]
    write(tmp_path, {"metadata.jsonl": lines(*({"file_name": name, "text": name} for name in names)), names[0]: content(),
                     names[1]: content()[:40]})
    with pytest.warns(UserWarning, match="left out"):
        rows = folder(tmp_path, on_error="skip")
    assert [row["text"] for row in rows] == [names[0]] and len(rows.skipped) == 3
    (tmp_path / names[0]).write_bytes(b"")
    with pytest.raises(DataError, match="not one file can be read"), pytest.warns(UserWarning):
        folder(tmp_path, on_error="skip")


def test_without_the_check_a_broken_picture_is_named_when_its_row_is_asked_for(tmp_path):
    write(tmp_path, {"cat/1.png": image_bytes(), "cat/2.png": image_bytes()[:50]})
    rows = image_folder(tmp_path, check=False)
    assert rows[0]["image"].size == (6, 4)
    with pytest.raises(DataError, match="2.png is not a picture that can be read"):
        rows[1]


@pytest.mark.parametrize("kind", MEDIA)
def test_a_parquet_cell_without_bytes_is_named_by_its_row(tmp_path, kind):
    folder, content, _ = MEDIA[kind]
    cells = [{"bytes": content(), "path": None}, {"bytes": None, "path": "x"}]
    path = write_parquet(tmp_path / "a.parquet", {kind: cells, "text": ["a", "b"]})
    with pytest.raises(DataError, match=r"a.parquet row 1 holds no file bytes"):
        folder(path)
    with pytest.raises(DataError, match=rf'has no column "{kind}" \(it has text\)'):
        folder(write_parquet(tmp_path / "b.parquet", {"text": ["a"]}))


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write(tmp_path, {"cat/1.png": image_bytes(size=(100, 101))})
    monkeypatch.setattr("gencore.pictures.PIXELS", 10_000)
    with pytest.raises(DataError, match="1.png has 100 x 101 pixels, at most 10,000 are read"):
        image_folder(tmp_path)


def test_sound_that_is_too_long_empty_or_not_finite_is_refused(tmp_path, monkeypatch):
    import soundfile
    write(tmp_path / "long", {"a/1.wav": sound_bytes(0.5, channels=2)})
    monkeypatch.setattr(data_folder, "SAMPLES", 7_999)
    with pytest.raises(DataError, match="1.wav has 8,000 samples, at most 7,999 are read"):
        audio_folder(tmp_path / "long")
    write(tmp_path / "empty", {"a/1.wav": sound_bytes(0.0)})
    with pytest.raises(DataError, match="1.wav holds no sound"):
        audio_folder(tmp_path / "empty")
    (tmp_path / "nan/a").mkdir(parents=True)
    soundfile.write(tmp_path / "nan/a/1.wav", np.array([0.1, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match="1.wav holds samples that are not finite"):
        audio_folder(tmp_path / "nan")


def test_an_animated_picture_gives_its_first_frame_and_a_turned_one_is_set_upright(tmp_path):
    from PIL import Image
    (tmp_path / "a").mkdir()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a/1.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6                                                                            # turn by 90 degrees
    Image.new("RGB", (8, 2), "green").save(tmp_path / "a/2.jpg", exif=exif)
    rows = image_folder(tmp_path)
    assert rows[0]["image"].convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert rows[1]["image"].size == (2, 8)


def test_an_unknown_choice_for_bad_files_is_refused(tmp_path):
    for folder in (text_folder, image_folder, audio_folder):
        with pytest.raises(InputError, match="""on_error should be "stop" or "skip", got 'ignore'"""):
            folder(tmp_path, on_error="ignore")


def test_rows_by_number_end_and_count_from_both_sides(tmp_path):
    write(tmp_path, {"a.txt": "one", "b.txt": "two"})
    rows = text_folder(tmp_path)
    assert rows[-1]["text"] == "two" and len(list(rows)) == 2
    with pytest.raises(IndexError, match="row 2 of 2"):
        rows[2]
    assert rows.select([1]).column("text") == ["two"]


def test_words_with_a_comma_need_quotes(tmp_path):
    write(tmp_path, {"a.png": image_bytes(), "metadata.csv": 'file_name,text\na.png,"a red house, with a tree"\n'})
    assert image_folder(tmp_path).column("text") == ["a red house, with a tree"]
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"two\nlines"\na.png,a red house, with a tree\n')
    with pytest.raises(DataError, match="metadata.csv line 4 has more fields than its header names: put words with a comma into quotes"):
        image_folder(tmp_path)


def test_metadata_of_linked_folders_counts_and_of_hidden_ones_does_not(tmp_path):
    write(tmp_path / "real", {"a.png": image_bytes(), "metadata.jsonl": lines({"file_name": "a.png", "text": "a cat"})})
    write(tmp_path / "data", {".old/metadata.jsonl": lines({"file_name": "gone.png", "text": "no"})})
    (tmp_path / "data" / "train").symlink_to(tmp_path / "real")
    assert image_folder(tmp_path / "data").column("text") == ["a cat"]
    write(tmp_path / "real", {"metadata.csv": "file_name,text\na.png,a cat\n"})
    with pytest.raises(DataError, match="has a metadata.jsonl and a metadata.csv: take one away"):
        image_folder(tmp_path / "data")


def test_what_a_training_wrote_among_the_data_is_none_of_them(tmp_path):
    write(tmp_path, {"a.txt": "words", "run/metrics.jsonl": "{}", "run/samples/1.txt": "said by a model"})
    assert data_folder.text_folder(tmp_path).column("text") == ["words"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    import os
    write(tmp_path, {"ok/a.txt": "text", "closed/b.txt": "text"})
    scan = os.scandir

    def refusing(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match="closed can't be read: Permission denied"):
        text_folder(tmp_path)


def test_columns_of_two_kinds_are_refused_and_splits_may_be_numbers(tmp_path):
    write_parquet(tmp_path / "two" / "a.parquet", {"text": ["a"]})
    write_parquet(tmp_path / "two" / "b.parquet", {"text": [1]})
    with pytest.raises(DataError, match="a.parquet and the others hold other kinds of values under one name"):
        text_folder(tmp_path / "two")
    write_parquet(tmp_path / "numbers.parquet", {"text": ["a", "b"], "split": [0, 1]})
    assert text_folder(tmp_path / "numbers.parquet", split="1").column("text") == ["b"]
    write_parquet(tmp_path / "lists.parquet", {"text": ["a"], "split": [["train"]]})
    with pytest.raises(DataError, match="the column split should hold words, such as train, it holds list"):
        text_folder(tmp_path / "lists.parquet", split="train")


def test_a_byte_order_mark_is_no_text_and_lines_end_alike(tmp_path):
    write(tmp_path, {"a.txt": b"\xef\xbb\xbfhello\r\nthere\rall\n"})
    assert text_folder(tmp_path).column("text") == ["hello\nthere\nall\n"]


def test_what_is_held_out_is_a_split_of_its_own_or_some_of_many_short_texts(tmp_path):
    write(tmp_path / "short", {f"{i:02}.txt": f"line {i}" for i in range(50)})
    learn, held_out, _ = data_folder.learn_and_held_out(tmp_path / "short")
    assert len(learn) == 47 and held_out == ["line 1", "line 21", "line 41"] and not set(learn) & set(held_out)
    for name, text in (("train-00000-of-00001", "learn"), ("validation-00000-of-00001", "judge"), ("test-00000-of-00001", "test")):
        write_parquet(tmp_path / "hub" / f"{name}.parquet", {"text": [text]})
    assert data_folder.learn_and_held_out(tmp_path / "hub")[:2] == (["learn"], ["judge"])
    write(tmp_path / "folders", {"train/a.txt": "learn", "test/a.txt": "test"})
    assert data_folder.learn_and_held_out(tmp_path / "folders")[:2] == (["learn"], ["test"])
    write_parquet(tmp_path / "column" / "all.parquet", {"text": ["learn", "test"], "split": ["train", "test"]})
    assert data_folder.learn_and_held_out(tmp_path / "column")[:2] == (["learn"], ["test"])
    assert data_folder.held_out_split(tmp_path / "short") is None and data_folder.held_out_split(tmp_path / "short" / "00.txt") is None
