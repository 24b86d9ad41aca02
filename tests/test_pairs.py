"""textgen/pairs.py: files of both kinds, batches of one length that hold every pair once an epoch, processes that share them, wrong input."""
import datasets
import pytest
import torch

from gencore.check import DataError
from textgen.pairs import PairBatches, fitting, pairs_to_learn, read_pairs
from textgen.seq2seq import train_pair_tokenizer

PAIRS = [("7 " * n, "seven " * n) for n in range(1, 42)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_pair_tokenizer([text for pair in PAIRS for text in pair], 300)


def test_an_epoch_holds_every_pair_once_and_little_padding(tokenizer):
    batches = PairBatches(PAIRS, tokenizer, 4, seed=1, pool=10)
    seen = [batches.row_names(step) for step in range(len(batches))]
    assert len(seen) == 10 and len({i for row in seen for i in row}) == 40
    assert all(max(row) - min(row) <= 5 for row in seen)                              # neighbours in length
    assert [min(row) for row in seen] != sorted(min(row) for row in seen)             # the short ones don't come first
    assert [batches.row_names(step) for step in range(10, 20)] != seen
    again = PairBatches(PAIRS, tokenizer, 4, seed=1, pool=10)
    assert torch.equal(again.batch(13)["target"], batches.batch(13)["target"])


def test_processes_share_a_batch(tokenizer):
    batches = PairBatches(PAIRS, tokenizer, 4)
    assert batches.row_names(3, 0, 2) + batches.row_names(3, 1, 2) == batches.row_names(3)


def test_a_batch_is_padded_and_says_so(tokenizer):
    batch = PairBatches(PAIRS, tokenizer, 4).padded([0, 5])
    source, target = (tokenizer.encode(PAIRS[0][i], special=True) for i in (0, 1))
    assert batch["source"][0, :len(source)].tolist() == source and set(batch["source"][0, len(source):].tolist()) == {tokenizer.pad_id}
    assert batch["keep"].sum(1).tolist() == [len(source), len(tokenizer.encode(PAIRS[5][0], special=True))]
    assert batch["target"][0, :len(target)].tolist() == target


def test_in_order_gives_every_pair_once(tokenizer):
    parts = list(PairBatches(PAIRS, tokenizer, 4).in_order())
    assert sum(len(part["source"]) for part in parts) == 41 and parts[0]["source"].shape[1] < parts[-1]["source"].shape[1]


def test_files_of_both_kinds(tmp_path):
    rows = {"de": ["eins", "zwei", "drei"], "en": ["one", "two", "three"], "split": ["train", "validation", "train"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "pairs.parquet")
    assert pairs_to_learn(tmp_path / "pairs.parquet", "de", "en") == ([("eins", "one"), ("drei", "three")], [("zwei", "two")])
    datasets.Dataset.from_dict(rows | {"split": ["train", "test", "train"]}).to_parquet(tmp_path / "tested.parquet")
    assert pairs_to_learn(tmp_path / "tested.parquet", "de", "en")[1] == [("zwei", "two")]
    for name, word in (("train", "eins"), ("validation", "zwei"), ("test", "drei"), (".train", "hidden")):
        (tmp_path / "hub").mkdir(exist_ok=True)
        datasets.Dataset.from_dict({"de": [word], "en": [name]}).to_parquet(tmp_path / "hub" / f"{name}-00000-of-00001.parquet")
    assert pairs_to_learn(tmp_path / "hub", "de", "en") == ([("eins", "train")], [("zwei", "validation")])
    (tmp_path / "pairs.tsv").write_text("eins\tone\n\nzwei\ttwo\n", encoding="utf-8")
    learnt, unseen = pairs_to_learn(tmp_path / "pairs.tsv", "", "")
    assert sorted(learnt + unseen) == [("eins", "one"), ("zwei", "two")] and len(learnt) == len(unseen) == 1
    with pytest.raises(DataError, match='no column "fr", only'):
        read_pairs(tmp_path / "pairs.parquet", "de", "fr")


def test_only_line_ends_end_a_line(tmp_path):
    (tmp_path / "odd.tsv").write_bytes("eins\u2028zwei\tone\x0ctwo\r\ndrei\u0085\tthree\n".encode())
    assert read_pairs(tmp_path / "odd.tsv", "", "") == [("eins\u2028zwei", "one\x0ctwo"), ("drei\u0085", "three")]


def test_pairs_too_long_for_the_model_are_left_out_and_counted(tokenizer):
    most = max(len(tokenizer.encode(text, special=True)) for pair in PAIRS for text in pair)
    with pytest.warns(UserWarning, match=f"3 of {len(PAIRS) + 3} pairs are left out: a side has more than {most} tokens"):
        assert fitting(PAIRS + [("eins " * 400, "one")] * 3, tokenizer, most) == PAIRS
    with pytest.raises(DataError, match="none of 1 pairs fits: each has a side of more than 5 tokens"):
        fitting([("eins " * 400, "one")], tokenizer, 5)


def test_wrong_files_are_named(tmp_path, tokenizer):
    (tmp_path / "bad.tsv").write_text("eins\tone\n\nzwei\n", encoding="utf-8")
    with pytest.raises(DataError, match="two columns, source and target, in every line: line 3 hasn't"):
        read_pairs(tmp_path / "bad.tsv", "", "")
    for texts, said in ((["one", None], "None"), ([1, 2], "1")):
        datasets.Dataset.from_dict({"de": ["eins", "zwei"], "en": texts}).to_parquet(tmp_path / "odd.parquet")
        with pytest.raises(DataError, match=f'column "en" should hold text, row . has {said}'):
            read_pairs(tmp_path / "odd.parquet", "de", "en")
    (tmp_path / "empty.tsv").write_text("\n")
    with pytest.raises(DataError, match="it is empty"):
        read_pairs(tmp_path / "empty.tsv", "", "")
    (tmp_path / "latin.tsv").write_bytes("schön\tnice".encode("latin-1"))
    for name, words in (("latin.tsv", "byte 3 is not UTF-8"), ("gone.tsv", "gone.tsv is not a text file")):
        with pytest.raises(DataError, match=words):
            read_pairs(tmp_path / name, "", "")
    with pytest.raises(DataError, match="3 pairs are fewer than one batch of 8"):
        PairBatches(PAIRS[:3], tokenizer, 8)
