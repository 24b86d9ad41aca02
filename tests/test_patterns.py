"""Code layouts against their closed forms, and there and back again."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gencore.check import InputError
from gencore.patterns import Pattern, delay, flattened, parallel

kinds, sizes = st.sampled_from(["delay", "parallel", "flattened"]), st.integers(1, 6)


def test_delay_shifts_book_k_by_k_steps():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    assert delay(2).spread(codes, 9).tolist() == [[[1, 2, 3, 9], [9, 4, 5, 6]]]


def test_parallel_is_the_codes_themselves():
    codes = torch.randint(9, (2, 3, 5))
    assert parallel(3).spread(codes, 9).equal(codes)


def test_flattened_speaks_one_code_a_step():
    codes = torch.tensor([[[1, 2], [4, 5]]])
    assert flattened(2).spread(codes, 9).tolist() == [[[1, 9, 2, 9], [9, 4, 9, 5]]]


@given(kinds, sizes, st.integers(0, 9), sizes)
def test_every_pattern_comes_back(kind, books, frames, rows):
    pattern = Pattern(kind, books)
    codes = torch.arange(rows * books * frames).view(rows, books, frames)
    steps = pattern.spread(codes, -7)
    assert steps.shape == (rows, books, pattern.steps(frames))
    assert pattern.gather(steps).equal(codes)
    assert (steps == -7).sum() == rows * (books * steps.shape[2] - books * frames)


@given(kinds, sizes, st.integers(1, 9), st.integers(0, 9))
def test_a_longer_grid_begins_with_the_shorter_one(kind, books, steps, more):
    pattern = Pattern(kind, books)
    assert pattern.grid(steps + more)[:, :steps].equal(pattern.grid(steps))


def test_unfinished_frames_are_left_out():
    steps = delay(3).spread(torch.arange(12).view(1, 3, 4), 99)
    assert delay(3).gather(steps[:, :, :4]).tolist() == [[[0, 1], [4, 5], [8, 9]]]
    assert delay(3).gather(steps[:, :, :1]).shape == (1, 3, 0)


def test_wrong_books_are_named():
    with pytest.raises(InputError, match="K should be 4, got 2"):
        delay(4).spread(torch.zeros(1, 2, 5, dtype=torch.long), 0)
    with pytest.raises(InputError, match="zigzag"):
        Pattern("zigzag", 2)
    for books in ("2", 0, 1.5):
        with pytest.raises(InputError, match="books should be a whole number of at least 1, got"):
            Pattern("delay", books)
