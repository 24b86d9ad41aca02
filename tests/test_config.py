"""gencore.config: dataclasses to JSON and back, with errors that name the field."""

import json
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from gencore.attention import AttentionConfig
from gencore.check import ConfigError
from gencore.config import from_dict, override, to_dict
from gencore.positions import RotaryConfig
from gencore.transformer import TransformerConfig
from textgen.negative_sampling import Word2VecConfig


@dataclass(frozen=True)
class Inner:
    heads: int = 4
    kind: Literal["rms", "layer"] = "rms"


@dataclass(frozen=True)
class Outer:
    steps: int
    lr: float = 1e-3
    name: str = "run"
    clip: float | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[str, float] = ("a", 1.0)
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    extra: dict | None = None
    verbose: bool = False


FULL = Outer(5, 2e-4, "x", 1.0, (3,), ("b", 0.5), Inner(2, "layer"), Inner(), {"rope_type": "linear", "factor": 2.0}, True)


@pytest.mark.parametrize("cfg", [Outer(1), FULL], ids=["defaults", "everything"])
def test_a_config_survives_json(cfg):
    assert from_dict(Outer, json.loads(json.dumps(to_dict(cfg)))) == cfg


def test_a_transformer_config_survives_json():
    cfg = TransformerConfig(width=32, attention=AttentionConfig(heads=4, kv_heads=2, softcap=50.0), windows=(4, None),
                            rotary=RotaryConfig(axes=(4, 4), scaling={"rope_type": "linear", "factor": 2.0}))
    assert from_dict(TransformerConfig, json.loads(json.dumps(to_dict(cfg)))) == cfg


@pytest.mark.parametrize("values, sentence", [
    ({"steps": 1, "lrr": 2}, 'Outer has no field "lrr" (did you mean "lr"?)'),
    ({"steps": 1, "inner": {"head": 2}}, 'Inner has no field "inner.head" (did you mean "heads"?)'),
    ({"lr": 1.0}, "Outer lacks the field steps"),
    ({"steps": "many"}, "steps should be int, got 'many'"),
    ({"steps": True}, "steps should be int, got True"),
    ({"steps": 1.5}, "steps should be int, got 1.5"),
    ({"steps": 1, "lr": "fast"}, "lr should be float, got 'fast'"),
    ({"steps": 1, "lr": None}, "lr should be float, got None"),
    ({"steps": 1, "name": 3}, "name should be str, got 3"),
    ({"steps": 1, "verbose": 1}, "verbose should be bool, got 1"),
    ({"steps": 1, "clip": "no"}, "clip should be float, got 'no'"),
    ({"steps": 1, "sizes": [1, "b"]}, "sizes[1] should be int, got 'b'"),
    ({"steps": 1, "sizes": 3}, "sizes should be"),
    ({"steps": 1, "pair": ["a"]}, "pair should be"),
    ({"steps": 1, "inner": 3}, "inner should be an object with fields, got 3"),
    ({"steps": 1, "inner": {"kind": "rmss"}}, "inner.kind should be one of 'rms', 'layer', got 'rmss' (did you mean \"rms\"?)"),
    ({"steps": 1, "maybe": {"heads": "x"}}, "maybe.heads should be int, got 'x'"),
    ([1], "Outer should be an object with fields, got [1]"),
])
def test_what_does_not_fit_is_named(values, sentence):
    with pytest.raises(ConfigError) as error:
        from_dict(Outer, values)
    assert sentence in str(error.value)


def test_whole_floats_are_ints_and_ints_are_floats():
    cfg = from_dict(Outer, {"steps": 1000.0, "lr": 1})
    made = Word2VecConfig(width=8.0, lr=1)
    assert (cfg.steps, type(cfg.steps), cfg.lr, type(cfg.lr)) == (1000, int, 1.0, float) and (type(made.width), type(made.lr)) == (int, float)


def test_override_reads_values_as_json_else_as_text():
    cfg = override(Outer(1), ["steps=1e3", "lr=3e-4", "name=my run", "clip=null", "sizes=[4,5]", "inner.heads=8", "verbose=True",
                              'extra={"a": 1}'])
    assert cfg == Outer(1000, 3e-4, "my run", None, (4, 5), inner=Inner(8), verbose=True, extra={"a": 1})


def test_override_leaves_the_original_alone():
    cfg = Outer(1)
    override(cfg, ["inner.heads=8"])
    assert cfg == Outer(1)


def test_override_opens_a_part_that_was_none():
    assert override(Outer(1), ["maybe.heads=2"]).maybe == Inner(2)
    assert override(TransformerConfig(), ["rotary.theta=5e5"]).rotary == RotaryConfig(theta=5e5)


def test_override_gives_text_to_a_text_field_even_when_it_looks_like_a_number():
    assert override(Outer(1), ["name=2024"]).name == "2024"


@pytest.mark.parametrize("pair, sentence", [
    ("steps", 'expected key=value, got "steps"'),
    ("setps=3", 'no field "setps" (did you mean "steps"?)'),
    ("inner.head=3", 'no field "inner.head" (did you mean "heads"?)'),
    ("steps.more=3", "steps.more: steps has no fields inside"),
    ("steps=many", "steps should be int, got 'many'"),
    ("attention.heads=3", 'no field "attention"'),
    ("maybe.x=1", 'no field "maybe.x"'),
])
def test_override_errors_name_the_field(pair, sentence):
    with pytest.raises(ConfigError) as error:
        override(Outer(1), [pair])
    assert sentence in str(error.value)


def test_a_config_that_contradicts_itself_is_refused():
    with pytest.raises(ConfigError, match="attention.heads should divide width 10, got 4"):
        TransformerConfig(width=10)
    with pytest.raises(ConfigError, match="attention.kv_heads should divide heads 4, got 3"):
        TransformerConfig(width=8, attention=AttentionConfig(heads=4, kv_heads=3))
    with pytest.raises(ConfigError, match='adaptive norm needs norm.place="pre", got "post"'):
        override(TransformerConfig(), ["condition=adaln_zero", "norm.place=post"])


def test_derived_sizes_follow_replace():
    cfg = TransformerConfig(width=32)
    assert replace(cfg, width=64).width == 64
    assert from_dict(TransformerConfig, {**to_dict(cfg), "layers": 3}) == replace(cfg, layers=3)
