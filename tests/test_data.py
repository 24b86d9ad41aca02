"""Batches as functions of the step, rows held out, documents packed."""

import numpy as np
import pytest
import torch

from gencore.check import DataError, InputError
from gencore.data import Batches, StreamBatches, TokenWindows, hold_out, pack_documents

# batches

class Numbers:
    """Rows 0, 1, ... with what was asked of them."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        return {"row": index}


def test_every_row_comes_once_an_epoch_in_a_new_order():
    batches = Batches(Numbers(10), 4, seed=3)
    rows = torch.cat([batches.batch(step)["row"] for step in range(10)]).tolist()              # four epochs
    epochs = [rows[i:i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_is_a_function_of_the_step_and_the_seed_alone():
    first, later = Batches(Numbers(10), 4, seed=3), Batches(Numbers(10), 4, seed=3)
    in_order = [first.batch(step)["row"].tolist() for step in range(8)]
    assert [later.batch(step)["row"].tolist() for step in (7, 0, 5)] == [in_order[step] for step in (7, 0, 5)]
    assert [Batches(Numbers(10), 4, seed=4).batch(step)["row"].tolist() for step in range(8)] != in_order


@pytest.mark.parametrize("make", [lambda: Batches(Numbers(10), 6, seed=1), lambda: TokenWindows(torch.arange(50), 5, 6, seed=1),
                                  lambda: StreamBatches(Numbers(10), 6)])
def test_processes_share_a_batch_by_its_rows(make):
    whole = make().batch(2)
    for world in (2, 3):
        parts = [make().batch(2, rank, world) for rank in range(world)]
        for name, value in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), value)
    with pytest.raises(InputError, match="batch 6 can't be shared by 4 processes: make it a multiple of 4"):
        make().batch(2, 0, 4)


def test_augmentation_is_asked_with_the_epoch():
    class Augmented(Numbers):
        def at(self, index, epoch):
            return {"row": index, "epoch": epoch}

    batches = Batches(Augmented(4), 3, seed=0)
    assert [batches.batch(step)["epoch"].tolist() for step in range(3)] == [[0, 0, 0], [0, 1, 1], [1, 1, 2]]


def test_collate_and_row_names_see_the_same_rows():
    batches = Batches(Numbers(10), 4, 3, lambda rows: [row["row"] for row in rows])
    assert batches.batch(5) == batches.row_names(5)


def test_epochs_limit_the_steps():
    batches = Batches(Numbers(10), 4, epochs=2)
    assert batches.steps == 5 and len(batches.batch(4)["row"]) == 4
    with pytest.raises(DataError, match=r"step 5 lies beyond 2 epochs \(5 steps of 4 rows\)"):
        batches.batch(5)


def test_a_datasets_object_is_batched_as_it_is():
    import datasets
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]})
    batch = Batches(table, 3).batch(0)
    assert sorted(zip(batch["text"], batch["label"].tolist())) == [("a", 0), ("b", 1), ("c", 2)]
    stream = table.to_iterable_dataset()
    assert StreamBatches(stream, 2).batch(1)["text"] == ["c", "a"]
    with pytest.raises(DataError, match="IterableDataset has no length .*: use StreamBatches"):
        Batches(stream, 2)


def test_a_stream_begun_again_gives_the_batch_of_its_step():
    stream = StreamBatches(Numbers(10), 4)
    in_order = [stream.batch(step)["row"].tolist() for step in range(6)]
    assert in_order[2:4] == [[8, 9, 0, 1], [2, 3, 4, 5]]
    assert StreamBatches(Numbers(10), 4).batch(5)["row"].tolist() == in_order[5]
    assert stream.batch(1)["row"].tolist() == in_order[1]
    with pytest.raises(DataError, match="the stream gave no row"):
        StreamBatches([], 4).batch(0)


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="the data set is empty"):
        Batches([], 4)


def test_token_windows_are_true_pieces_and_reach_both_ends():
    windows = TokenWindows(np.arange(12, dtype=np.uint16), 3, 64, seed=0)
    ids = torch.cat([windows.batch(step)["ids"] for step in range(4)])                          # (256, 4)
    assert ids.dtype == torch.long and torch.equal(ids - ids[:, :1], torch.arange(4).expand(256, 4))
    assert set(ids[:, 0].tolist()) == set(range(9))
    assert windows.row_names(2).tolist() == windows.batch(2)["ids"][:, 0].tolist()
    with pytest.raises(DataError, match=r"at least 13 tokens, got shape \(12,\)"):
        TokenWindows(np.arange(12), 12, 2)


def test_token_windows_of_an_epoch_do_not_overlap():
    windows = TokenWindows(np.arange(1000), 10, 7, seed=5)
    starts = np.concatenate([windows.starts(step) for step in range(28)])                        # two epochs of 98 windows
    for epoch in (starts[:98], starts[98:]):
        assert (np.diff(np.sort(epoch)) == 10).all()
    assert (starts[:98] % 10)[0] != (starts[98:] % 10)[0] and (np.sort(starts[:98]) != starts[:98]).any()


def test_held_out_rows_are_others_than_the_rest():
    rest, held = hold_out(Numbers(20), 0.2, seed=1)
    assert len(held) == 4 and sorted(row["row"] for part in (rest, held) for row in part) == list(range(20))
    assert [row["row"] for row in hold_out(Numbers(20), 0.2, seed=1)[1]] == [row["row"] for row in held]
    with pytest.raises(DataError, match="1 rows are too few"):
        hold_out(Numbers(1))


# packing

def test_packing_keeps_every_token_and_marks_the_documents():
    generator = np.random.default_rng(0)
    texts = [generator.integers(1, 100, size=size) for size in generator.integers(0, 25, size=60)]
    ids, documents = pack_documents(texts, 10, pad=0)
    assert ids.shape == documents.shape and ids.shape[1] == 10 and ids.dtype == documents.dtype == torch.long
    assert torch.equal(documents == -1, ids == 0)
    pieces = sorted(tuple(row[numbers == n].tolist()) for row, numbers in zip(ids, documents) for n in range(int(numbers.max()) + 1))
    expected = sorted(tuple(text[i:i + 10].tolist()) for text in texts for i in range(0, len(text), 10))
    assert pieces == expected
    for numbers in documents:                                                                   # each document is one run
        real = numbers[numbers >= 0]
        assert torch.equal(real, real.sort().values) and real[0] == 0


def test_packing_wastes_little():
    sizes = np.random.default_rng(1).integers(5, 100, size=400)
    ids, documents = pack_documents([[1] * size for size in sizes], 128)
    assert (documents >= 0).float().mean() > 0.97


def test_packing_nothing_is_refused():
    with pytest.raises(DataError, match="every document is empty"):
        pack_documents([[], []], 8)


def test_rows_that_vary_still_vary_where_some_are_held_out():
    class Varied(list):
        def at(self, index, epoch):
            return (self[index], epoch)

    most, few = hold_out(Varied(range(20)))
    assert most.at(3, 7) == (most[3], 7) and few.at(1, 2) == (few[1], 2)
    assert not hasattr(hold_out(list(range(20)))[0], "at")
