"""gencore.masks: every rule against a double loop, alone and combined, whole and in chunks."""

import itertools

import pytest
import torch
from reference import visible_by_rules

from gencore.check import InputError
from gencore.masks import Mask, block_sparse, blocks, causal, documents, padding, prefix, sparse, window

B, S = 2, 9
KEEP = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 1, 1, 1]]).bool()
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 1, 1, 1]])
PREFIX = torch.tensor([3, 5])
BLOCKS = (torch.arange(S)[:, None] // 2 != torch.arange(S)[None, :] // 3)

RULES = {"causal": (True, causal()), "window": (3, window(3)), "keep": (KEEP, padding(KEEP)),
         "documents": (DOCUMENTS, documents(DOCUMENTS)), "prefix": (PREFIX, prefix(PREFIX)), "blocks": (BLOCKS, blocks(BLOCKS)),
         "sparse": ((2, 3, 1), sparse(width=2, stride=3, first=1))}


def by_loops(rules, queries=range(S), keys=range(S)):
    return torch.tensor([[[visible_by_rules(rules, b, t, s) for s in keys] for t in queries] for b in range(B)])      # (B, T, S)


def spread(seen, shape):
    """None, (T,S) or (B,1,T,S) -> (B,T,S)."""
    if seen is None:
        return torch.ones(shape, dtype=torch.bool)
    return (seen[:, 0] if seen.dim() == 4 else seen[None]).expand(shape)


def combined(names):
    rules = {name: RULES[name][0] for name in names}
    mask = Mask()
    for name in names:
        mask = mask & RULES[name][1]
    return rules, mask


SUBSETS = [names for n in range(1, 8) for names in itertools.combinations(RULES, n)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_a_mask_is_what_the_double_loop_says(names):
    rules, mask = combined(names)
    slots = torch.arange(S)
    assert torch.equal(spread(mask.dense(slots, slots), (B, S, S)), by_loops(rules))


@pytest.mark.parametrize("names", [names for names in SUBSETS if "causal" in names], ids="+".join)
def test_chunks_of_a_mask_are_rows_of_the_whole(names):
    rules, mask = combined(names)
    whole = by_loops(rules)
    for start, end in ((0, 1), (4, 5), (3, 6), (8, 9)):                    # slots after the chunk are not there yet
        queries, keys = torch.arange(start, end), torch.arange(end)
        assert torch.equal(spread(mask.dense(queries, keys), (B, end - start, end)), whole[:, start:end, :end])


def test_a_preallocated_tail_stays_hidden():
    seen = causal().dense(torch.tensor([4]), torch.arange(S), newest=False)
    assert seen.tolist() == [[True] * 5 + [False] * 4]


def test_squares_of_a_layout_are_blocks():
    layout, slots = torch.rand(3, 3) < 0.5, torch.arange(S)
    spelt_out = layout.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(block_sparse(layout, 4).dense(slots, slots), blocks(spelt_out).dense(slots, slots))


def test_a_single_newest_query_needs_no_mask():
    assert causal().dense(torch.tensor([4]), torch.arange(5)) is None
    assert Mask().dense(torch.arange(3), torch.arange(3)) is None


def test_keys_may_start_late():
    """A rolling cache holds slots 4..8 only."""
    rules, mask = combined(("causal", "window", "keep"))
    seen = mask.dense(torch.arange(7, 9), torch.arange(4, 9))
    assert torch.equal(spread(seen, (B, 2, 5)), by_loops(rules, range(7, 9), range(4, 9)))


def test_two_windows_make_the_narrower_and_two_paddings_both():
    assert (window(5) & window(3) & window(4)).width == 3
    other = torch.arange(S).expand(B, S) % 3 != 0
    assert torch.equal((padding(KEEP) & padding(other)).keep, KEEP & other)


def test_a_layer_window_narrows_and_never_widens():
    assert (causal() & window(3)).with_window(5).width == 3
    assert (causal() & window(5)).with_window(3).width == 3
    assert causal().with_window(None).width is None


def test_only_causal_is_only_causal():
    assert causal().only_causal
    assert not any((causal() & mask).only_causal for _, mask in list(RULES.values())[1:])
    assert not window(3).only_causal


def test_padding_takes_zeros_and_ones():
    assert torch.equal(padding(KEEP.long()).keep, KEEP)


@pytest.mark.parametrize("make, sentence", [
    (lambda: window(0), "window should be at least 1, got 0"),
    (lambda: padding(KEEP[0]), r"keep: expected 2 dimensions \(B S\), got 1"),
    (lambda: documents(DOCUMENTS[0]), r"documents: expected 2 dimensions \(B S\), got 1"),
    (lambda: prefix(3), r"prefix lengths should be a tensor \(B\), got int"),
    (lambda: documents(DOCUMENTS) & documents(DOCUMENTS), "two masks with groups cannot be combined: give one"),
    (lambda: sparse(width=3) & sparse(first=1), "two masks with sparse cannot be combined: give one"),
    (lambda: sparse(), "sparse needs a width, a stride or first slots, each at least 1, got 0, None, 0"),
    (lambda: sparse(stride=0, width=2), "sparse needs a width, a stride or first slots, each at least 1, got 2, 0, 0"),
    (lambda: block_sparse(torch.ones(3, 3), 0), "the squares of a layout should have at least 1 slot a side, got 0"),
    (lambda: block_sparse(torch.ones(3), 4), r"layout: expected 2 dimensions \(Q K\), got 1"),
    (lambda: padding(KEEP).dense(torch.arange(10), torch.arange(10)), "keep covers 9 slots, the attention looks at 10"),
    (lambda: documents(DOCUMENTS).dense(torch.arange(10), torch.arange(10)), "documents covers 9 slots, the attention looks at 10"),
])
def test_wrong_masks_are_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_patterns_of_wrong_sizes_are_refused_and_numbers_are_truths():
    with pytest.raises(InputError, match=r"visible covers \(4, 4\) slots, the attention looks at 6"):
        blocks(torch.ones(4, 4)).dense(torch.arange(6), torch.arange(6))
    for shape in ((6,), (2, 6, 6), (2, 3, 6, 6)):
        with pytest.raises(InputError, match=r"visible should be \(T, S\) or \(B, 1, T, S\)"):
            blocks(torch.ones(shape))
    assert blocks(torch.eye(6).long()).dense(torch.arange(6), torch.arange(6)).dtype == torch.bool
