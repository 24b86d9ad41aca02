"""multimodal/scenes.py: what is drawn is what was asked for, known to the pixel, and nothing else is taken for it."""
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from gencore.check import InputError
from imagegen.data import caption as caption_of_row
from imagegen.data import scenes as read_scenes
from imagegen.train_painter import cells_of, words_of
from multimodal import scenes
from multimodal.scenes import COLOURS, HELD_OUT, NUMBERS, SHAPES, Group, Request, Thing, answered, caption, compose, masks, paint, requests


def some(count=200, **which):
    rng = np.random.default_rng(0)
    return [(request, compose(request, rng), caption(request, rng)) for request in itertools.islice(requests(rng, **which), count)]


def read(text):
    """A second reading of captions, by pattern: text -> Request."""
    names = r"(an?|\d|" + "|".join(NUMBERS) + r") (?:(small|large) )?(" + "|".join(COLOURS) + ") (" + "|".join(SHAPES) + ")(?:e?s)?"
    counts = {"a": 1, "an": 1} | {word: i for i, word in enumerate(NUMBERS, 1)} | {str(i): i for i in range(1, 5)}
    groups = tuple(Group(colour, shape, size or None, counts[number]) for number, size, colour, shape in re.findall(names, text))
    rest = re.sub(names, "", text).strip()
    relation = {"over": "above", "under": "below", "to the left of": "left of", "to the right of": "right of"}.get(rest, rest)
    return Request(groups, relation=relation if relation in scenes.RELATIONS else None, place=rest if rest in scenes.PLACES else None)


def test_a_scene_answers_its_request_and_its_caption():
    for request, things, text in some():
        assert all(answered(request, things).values())
        assert all(answered(read(text), things).values()), text


def test_held_out_pairs_are_never_learnt_from_and_always_asked_for_elsewhere():
    assert {colour for colour, _ in HELD_OUT} == set(COLOURS) and {shape for _, shape in HELD_OUT} == set(SHAPES)
    assert not any((thing.colour, thing.shape) in HELD_OUT for _, things, _ in some() for thing in things)
    assert all(any((thing.colour, thing.shape) in HELD_OUT for thing in things) for _, things, _ in some(held_out=True))


def test_masks_are_apart_and_are_where_the_picture_has_each_colour():
    for _, things, _ in some(40):
        own, picture = masks(things), np.asarray(paint(things))
        assert own.sum(0).max() == 1 and own.any((1, 2)).all()
        assert (picture[~own.any(0)].astype(int).sum(-1) > 3 * 60).all()                      # outside: at most half covered
        for thing, mask in zip(things, own):
            inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
            assert (picture[1:-1, 1:-1][inner] == COLOURS[thing.colour]).all(-1).mean() > 0.8        # tips aside


def test_areas_are_those_of_geometry():
    middle = {"x": 0.5, "y": 0.5, "radius": 0.2, "size": "large", "colour": "red"}
    areas = {shape: masks([Thing(shape=shape, **middle)], 256)[0].sum() / 256 ** 2 / 0.2 ** 2 for shape in SHAPES}
    wanted = {"circle": np.pi, "ring": np.pi * 0.75, "square": 1.8 ** 2, "triangle": 1.8, "cross": 4 * 5 / 9,
              "star": 10 / 2 * 0.45 * 1.1 * np.sin(np.pi / 5)}
    assert areas == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("aspect, change", [("colour", {"colour": "green"}), ("shape", {"shape": "cross"}), ("size", {"size": "large"}),
                                            ("position", {"y": 0.9})])
def test_one_thing_wrong_is_that_aspect_wrong_and_no_other(aspect, change):
    request = Request((Group("red", "circle", "small"), Group("blue", "square", "large")), relation="above")
    things = Thing("red", "circle", "small", 0.5, 0.2, 0.1), Thing("blue", "square", "large", 0.5, 0.6, 0.18)
    verdict = answered(request, [replace(things[0], **change), things[1]])
    assert [name for name in scenes.ASPECTS if not verdict[name]] == [aspect] and not verdict["joint"]


def test_colours_belong_to_their_shapes():
    request = Request((Group("red", "circle"), Group("blue", "square")))
    swapped = Thing("blue", "circle", "small", 0.2, 0.2, 0.1), Thing("red", "square", "small", 0.7, 0.7, 0.1)
    assert not answered(request, swapped)["colour"] or not answered(request, swapped)["shape"]


def test_too_many_and_too_few_are_told_apart():
    three = Request((Group("red", "star", count=3),))
    things = compose(replace(three, groups=(replace(three.groups[0], count=4),)), np.random.default_rng(0))
    assert {name for name, right in answered(three, things).items() if not right} == {"count", "joint"}
    assert not answered(three, things[:2])["presence"]


def test_of_three_alike_one_lies_above_in_the_middle():
    for shape, size in itertools.product(SHAPES, scenes.SIZES):
        things = compose(Request((Group("red", shape, size, 3),)), np.random.default_rng(1))
        top, left, right = sorted(things, key=lambda thing: (thing.y > 0.5, thing.x))
        assert top.y < 0.5 < min(left.y, right.y) and 0.25 < top.x < 0.75 and left.x < 0.5 < right.x


def test_relations_have_their_opposites():
    back = scenes.OPPOSITE
    assert back.keys() == scenes.RELATIONS.keys() and all(back[back[name]] == name for name in back)
    for _, things, _ in some(50):
        found = scenes.relations(things)
        assert {(j, back[name], i) for i, name, j in found} == set(found)


def test_cells_say_what_lies_where():
    shape, colour, size = scenes.cells([Thing("red", "square", "large", 0.25, 0.25, 0.18), Thing("black", "ring", "small", 0.75, 0.75, 0.11)])
    assert shape[:4, :4].max() == 1 + scenes.SHAPES.index("square") and (shape[:4, 4:] == 0).all() and (shape[4:, :4] == 0).all()
    assert set(colour[4:, 4:].flatten()) == {0, 1 + list(scenes.COLOURS).index("black")} and set(size[4:, 4:].flatten()) == {0, 1}
    assert ((shape > 0) == (colour > 0)).all() and (size[1:3, 1:3] == 2).all()


def test_meanings_say_what_each_word_is_about():
    rng, both = np.random.default_rng(0), Request((Group("red", "circle", "small"), Group("blue", "square")), relation="above")
    ways = set()
    for _ in range(40):
        parts = scenes.wording(both, rng)
        words = " ".join(text for text, _, _ in parts).split()
        rows = dict(zip(words, scenes.meanings(parts).tolist(), strict=True))
        first, how = words[-1] == "square", {"above": 1, "below": 2}
        ways.add(first)
        assert rows["red"] == rows["small"] == rows["circle"] == [0, 0, 1, 0, how["above"]]
        assert rows["blue"] == rows["square"] == [1, 4, 0, 0, how["below"]]
        assert all(rows[word] == [-1] * 5 for word in {"above", "over", "below", "under"} & set(words))
    assert ways == {True, False}
    alone = scenes.meanings(scenes.wording(Request((Group("pink", "cross", "large", 3),)), rng))
    corner = scenes.meanings(scenes.wording(Request((Group("red", "star"),), place="in the top left corner"), rng))
    assert (alone == [4, 6, 2, 2, 0]).all() and len(alone) == 4
    assert (corner[:3] == [3, 0, 0, 0, 5 + list(scenes.PLACES).index("in the top left corner")]).all()
    assert (corner[3:] == -1).all() and len(corner) == 8


@pytest.mark.parametrize("wrong, words", [
    (lambda: Request((Group("mauve", "circle"),)), "colour should be one of red"),
    (lambda: Request((Group("red", "circle", count=5),)), "count should be a whole number between 1 and 4, got 5"),
    (lambda: Request((Group("red", "circle", count=1.5),)), "count should be a whole number between 1 and 4, got 1.5"),
    (lambda: Request((Group("red", "circle", count=3), Group("blue", "circle", count=2))), "at most 4 things"),
    (lambda: Request((Group("red", "circle", count=2),), place="at the top"), "a place belongs to one"),
    (lambda: Request((Group("red", "circle"),), relation="above"), "a relation lies between two")])
def test_a_request_that_no_scene_answers_is_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        wrong()


def test_written_scenes_are_read_back(tmp_path):
    scenes.write(tmp_path / "train.parquet", 12, seed=3)
    found, rng = read_scenes(tmp_path), np.random.default_rng(3)
    assert len(found) == 12
    for pixels, row, request in zip(found.pixels, found.rows, requests(rng)):
        things = compose(request, rng)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(paint(things)))
        assert torch.equal(cells_of(row), torch.from_numpy(scenes.cells(things)))
        wordings = [scenes.wording(request, rng) for _ in range(4)]
        assert row["captions"] == [" ".join(text for text, _, _ in parts) for parts in wordings]
        assert [words_of(words).tolist() for words in row["words"]] == [scenes.meanings(parts).tolist() for parts in wordings]
        assert caption_of_row(row, np.random.default_rng(0)) in row["captions"]
    import pyarrow.parquet as parquet
    assert json.loads(parquet.read_table(tmp_path / "train.parquet").column("scene")[-1].as_py()) == json.loads(json.dumps(scenes.graph(things)))
