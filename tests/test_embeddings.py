"""gencore.embeddings: patches there and back, noise levels, labels, codebooks, places."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gencore.check import InputError
from gencore.embeddings import (
    CodebookEmbedding,
    LabelEmbedding,
    LearnedPositions,
    PatchEmbedding2D,
    PatchEmbedding3D,
    TimestepEmbedding,
    unpatchify,
)

close = torch.testing.assert_close


def test_patches_are_squares_row_by_row():
    embed, pictures = PatchEmbedding2D(3, 2, 8), torch.randn(2, 3, 4, 6)
    patches, flat = embed(pictures), embed.projection.weight.flatten(1)                         # (8, C*p*p)
    for row in range(2):
        for column in range(3):
            square = pictures[:, :, 2 * row:2 * row + 2, 2 * column:2 * column + 2].flatten(1)
            close(patches[:, 3 * row + column], square @ flat.T + embed.projection.bias, rtol=1e-5, atol=1e-6)


def test_video_patches_are_boxes_frame_by_frame():
    embed, video = PatchEmbedding3D(1, (2, 2, 3), 8), torch.randn(1, 1, 4, 4, 6)
    patches, flat = embed(video), embed.projection.weight.flatten(1)
    boxes = [(f, r, c) for f in range(2) for r in range(2) for c in range(2)]
    assert patches.shape == (1, len(boxes), 8)
    for p, (f, r, c) in enumerate(boxes):
        box = video[:, :, 2 * f:2 * f + 2, 2 * r:2 * r + 2, 3 * c:3 * c + 3].flatten(1)
        close(patches[:, p], box @ flat.T + embed.projection.bias, rtol=1e-5, atol=1e-6)


def test_a_video_of_one_frame_is_a_picture():
    flat, deep, pictures = PatchEmbedding2D(3, 2, 8), PatchEmbedding3D(3, (1, 2, 2), 8), torch.randn(2, 3, 4, 6)
    deep.projection.load_state_dict({"weight": flat.projection.weight[:, :, None], "bias": flat.projection.bias})
    close(deep(pictures[:, :, None]), flat(pictures))


def test_unpatchify_undoes_patches_with_the_channel_fastest():
    pictures = torch.randn(2, 3, 4, 6)
    squares = F.unfold(pictures, 2, stride=2).transpose(1, 2)                                   # (B, P, C*p*p), channel slowest
    patches = squares.unflatten(-1, (3, 4)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(patches, 2, 3, 2), pictures)


def test_timesteps_equal_diffusers():
    from diffusers.models.embeddings import TimestepEmbedding as Theirs
    from diffusers.models.embeddings import Timesteps

    for shift in (0.0, 1.0):
        ours, theirs, t = TimestepEmbedding(16, shift=shift), Theirs(256, 16), torch.tensor([0.0, 12.0, 999.0])
        theirs.load_state_dict(ours.state_dict())
        close(ours(t), theirs(Timesteps(256, True, shift)(t)), rtol=1e-4, atol=1e-5)


def test_dropped_labels_are_the_null_label():
    embed, labels = LabelEmbedding(10, 8), torch.tensor([3, 4])
    assert torch.equal(embed(labels, torch.tensor([False, True])), embed.table(torch.tensor([3, 10])))
    assert torch.equal(embed(labels), embed.table(labels))


def test_codebooks_are_summed_and_have_a_filler():
    embed, codes = CodebookEmbedding(3, 16, 8), torch.randint(17, (2, 3, 5))
    expected = sum(embed.tables[k].weight[codes[:, k]] for k in range(3))
    close(embed(codes), expected)
    assert embed.tables[0].weight.shape == (17, 8)


def test_learned_positions_may_start_with_an_offset():
    plain, offset = LearnedPositions(6, 8), LearnedPositions(6, 8, offset=2)
    assert offset.table.weight.shape == (8, 8)
    assert torch.equal(plain(torch.arange(6)), plain.table.weight)
    assert torch.equal(offset(torch.tensor([[0, 5]])), offset.table.weight[None, [2, 7]])


def test_embeddings_run_in_bfloat16():
    assert TimestepEmbedding(16).bfloat16()(torch.tensor([5.0])).dtype == torch.bfloat16
    assert PatchEmbedding2D(3, 2, 8).bfloat16()(torch.randn(1, 3, 4, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("make, sentence", [
    (lambda: PatchEmbedding2D(3, 2, 8)(torch.randn(1, 1, 4, 4)), "pictures: C should be 3, got 1"),
    (lambda: PatchEmbedding2D(3, 2, 8)(torch.randn(1, 3, 5, 4)), "pictures: height and width should be multiples of 2, got 5 x 4"),
    (lambda: PatchEmbedding2D(3, 2, 8)(torch.randn(3, 4, 4)), "pictures: expected 4 dimensions"),
    (lambda: PatchEmbedding3D(1, (2, 2, 2), 8)(torch.randn(1, 1, 3, 4, 4)), "video: frames, height and width should be multiples of"),
    (lambda: unpatchify(torch.randn(1, 6, 12), 2, 2, 2), "patches: P should be 4, got 6"),
    (lambda: unpatchify(torch.randn(1, 4, 13), 2, 2, 2), "patches: the last size should be a multiple of 4, got 13"),
    (lambda: CodebookEmbedding(3, 16, 8)(torch.zeros(2, 4, 5).long()), "codes: K should be 3, got 4"),
    (lambda: TimestepEmbedding(8)(torch.zeros(2, 1)), "t: expected 1 dimensions"),
    (lambda: LabelEmbedding(10, 8)(torch.zeros(2, 1).long()), "labels: expected 1 dimensions"),
    (lambda: LabelEmbedding(10, 8)(torch.tensor([3, 11])), "labels should be between 0 and 10, got 3 to 11"),
    (lambda: CodebookEmbedding(2, 16, 8)(torch.tensor([[[0], [-1]]])), "codes of book 1 should be between 0 and 16, got -1 to -1"),
    (lambda: LearnedPositions(6, 8)(torch.tensor([6])), "positions should be between 0 and 5, got 6 to 6"),
    (lambda: LearnedPositions(6, 8, offset=2)(torch.tensor([6])), r"positions \+ 2 should be between 0 and 7, got 8 to 8"),
])
def test_wrong_inputs_are_named(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_every_embedding_is_trained():
    for module, given in ((PatchEmbedding2D(3, 2, 8), torch.randn(1, 3, 4, 4)), (TimestepEmbedding(8), torch.ones(2)),
                          (LabelEmbedding(4, 8), torch.arange(5)), (CodebookEmbedding(2, 4, 8), torch.arange(5).expand(1, 2, 5))):
        module(given).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters() if isinstance(p, nn.Parameter))
