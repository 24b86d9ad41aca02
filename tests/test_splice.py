"""Pictures among words: where their vectors go, cached = uncached, batch = single, the loss, and that it learns."""
import pytest
import torch

from gencore.cache import Cache
from gencore.check import ConfigError, InputError
from multimodal.splice import SpliceConfig, Spliced, caption_loss
from multimodal.vision import VisionConfig

IMAGE = 2
CFG = SpliceConfig(VisionConfig(image=16, patch=8, width=32, layers=2, heads=4, mlp=48), vocab=50, width=32, heads=4, kv_heads=2, mlp=48,
                   context=64, image_token=IMAGE)


def model_of(cfg=CFG):
    model = Spliced(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model


def batch(rows=2, words=5, before=0):
    ids = torch.randint(3, 50, (rows, before + 4 + words))
    ids[:, before:before + 4] = IMAGE
    return ids, torch.randn(rows, 3, 16, 16)


def test_the_pictures_vectors_take_the_places_of_their_tokens():
    model = model_of()
    ids, pictures = batch(before=3)
    x = model.embed(ids, pictures)
    torch.testing.assert_close(x[:, 3:7], model.projector(model.tower.features(pictures)))
    torch.testing.assert_close(x[:, :3], model.table(ids[:, :3]))
    torch.testing.assert_close(x[:, 7:], model.table(ids[:, 7:]))


def test_two_pictures_in_a_row_go_in_their_order():
    model = model_of()
    ids = torch.tensor([[IMAGE] * 4 + [5] + [IMAGE] * 4 + [6]])
    pictures = torch.randn(2, 3, 16, 16)
    x = model.embed(ids, pictures)
    torch.testing.assert_close(x[0, 5:9], model.projector(model.tower.features(pictures[1:]))[0])


def test_cached_steps_equal_the_whole():
    model = model_of()
    ids, pictures = batch(words=7)
    with torch.no_grad():
        whole = model(ids, pictures)
        cache = Cache(model.cfg.transformer, 2, ids.shape[1])
        parts = [model(ids[:, :5], pictures, cache=cache), *(model(ids[:, t:t + 1], cache=cache) for t in range(5, ids.shape[1]))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_a_row_of_a_batch_equals_the_row_alone():
    model = model_of()
    ids, pictures = batch(rows=3)
    with torch.no_grad():
        whole = model(ids, pictures)
        for i in range(3):
            torch.testing.assert_close(model(ids[i:i + 1], pictures[i:i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)


def test_left_padding_changes_nothing():
    model = model_of()
    ids, pictures = batch(rows=1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    keep = torch.arange(padded.shape[1])[None] >= 3
    positions = (torch.arange(padded.shape[1]) - 3).clamp(min=0)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(padded, pictures, keep, positions=positions)[:, 3:], model(ids, pictures), rtol=1e-4, atol=1e-5)


def test_words_do_not_see_what_comes_after_them():
    model = model_of()
    ids, pictures = batch(words=6)
    other = ids.clone()
    other[:, -1] = (ids[:, -1] - 3 + 7) % 47 + 3
    with torch.no_grad():
        torch.testing.assert_close(model(other, pictures)[:, :-1], model(ids, pictures)[:, :-1])


def test_placeholders_that_do_not_fit_the_pictures_are_counted():
    model = model_of()
    ids, pictures = batch()
    with pytest.raises(InputError, match="ids hold 8 placeholders, 1 pictures fill 4"):
        model(ids, pictures[:1])
    with pytest.raises(InputError, match="8 placeholders, 0 pictures"):
        model(ids)


def test_a_placeholder_beyond_the_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="image_token_index should be the id of one of the 50 tokens, got 50"):
        SpliceConfig(vocab=50, image_token=50)


def test_the_loss_is_the_cross_entropy_of_caption_and_end_alone():
    model = model_of()
    ids, pictures = batch(words=6)
    lengths = torch.tensor([6, 2])
    summed, targets = caption_loss(model, {"ids": ids, "pictures": pictures, "lengths": lengths})
    with torch.no_grad():
        logp = model(ids, pictures).log_softmax(-1)
    expected = -sum(logp[b, 3 + t, ids[b, 4 + t]] for b in range(2) for t in range(lengths[b]))
    assert targets == 8
    torch.testing.assert_close(summed, expected)
    ids[1, 7:] = 9                                                                   # padding: never looked at
    torch.testing.assert_close(caption_loss(model, {"ids": ids, "pictures": pictures, "lengths": lengths})[0], summed)


def test_it_learns_eight_captions_by_heart():
    torch.manual_seed(0)
    model = Spliced(CFG)
    ids, pictures = batch(rows=8, words=5)
    ids[:, -1] = 0
    data = {"ids": ids, "pictures": pictures, "lengths": torch.full((8,), 5)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        summed, targets = caption_loss(model, data)
        optimizer.zero_grad()
        (summed / targets).backward()
        optimizer.step()
    assert summed / targets < 0.05
    assert (model(ids, pictures)[:, 3:-1].argmax(-1) == ids[:, 4:]).all()
