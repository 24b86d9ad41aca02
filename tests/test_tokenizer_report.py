"""textgen/tokenizer_report.py: each figure against a count by hand, unknown pieces, wrong input."""
import pytest

from gencore.check import DataError, InputError
from gencore.tokenizer import train_bpe
from textgen.tokenizer_report import UNKNOWN, BytePieces, CharacterPieces, TokenizerPieces, WordPieces, compare, report, table

TRAINED = ["the rain is understanding the rain, and the rain is kind"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TRAINED, 300)


def test_figures_of_the_baselines_are_what_counting_gives():
    text = "the rain é"
    row = report("bytes", BytePieces(), text, ["ab"])
    assert (row.vocab, row.fertility, row.bytes_per_token, row.unknown, row.splits) == (256, 11 / 3, 1.0, 0.0, {"ab": ["a", "b"]})
    row = report("characters", CharacterPieces(TRAINED), text, ["ax"])
    assert (row.fertility, row.bytes_per_token, row.unknown, row.splits) == (10 / 3, 1.1, 1 / 10, {"ax": ["a", UNKNOWN]})
    row = report("words", WordPieces(TRAINED, 4), "the rain, I", ["rain", "snow"])                  # the, rain and is, and the unknown one
    assert (row.vocab, row.fertility, row.unknown, row.splits) == (4, 4 / 3, 2 / 4, {"rain": ["rain"], "snow": [UNKNOWN]})


def test_a_tokenizer_is_counted_by_its_own_ids(tokenizer):
    text = "understanding rain and unprecedented snow"
    row = report("byte pairs", TokenizerPieces(tokenizer), text)
    assert row.fertility == len(tokenizer.encode(text)) / 5 and row.unknown == 0
    assert "".join(row.splits["understanding"]) == "understanding" and len(row.splits["understanding"]) < len(row.splits["unprecedented"])


def test_pieces_that_are_no_characters_are_named(tokenizer):
    pieces = TokenizerPieces(tokenizer).pieces("é")
    assert len(pieces) == 2 and UNKNOWN not in pieces


def test_byte_pairs_lie_between_words_and_characters(tokenizer):
    rows = {row.name: row for row in compare(tokenizer, TRAINED, "the kind rain is unkind")}
    assert rows["words"].fertility <= rows["byte pairs"].fertility < rows["characters"].fertility <= rows["bytes"].fertility
    assert rows["words"].unknown > 0 == rows["byte pairs"].unknown
    lines = list(table(rows.values()))
    assert lines[1].split()[0] == "words" and any("u n p r e c" in line for line in lines)


def test_wrong_input_is_named(tokenizer):
    with pytest.raises(DataError, match="no words"):
        compare(tokenizer, TRAINED, " ")
    with pytest.raises(InputError, match="expected a gencore Tokenizer, got str"):
        compare("gpt2", TRAINED, "rain")
