"""textgen/constraint.py: untrained models write what matches a regular expression or a JSON schema, each row its own."""
import json
import re
import sys

import pytest

from gencore.check import InputError
from tests.test_causal_lm import small
from textgen import CausalLM

pytest.importorskip("llguidance")
PHONE = r"(\+[0-9]{1,3} )?[0-9]{3}-[0-9]{4}|né{2,3}"
CAT = {"type": "object", "additionalProperties": False, "required": ["name", "age", "kind", "tags"], "properties": {
    "name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "kind": {"enum": ["cat", "dög"]},
    "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}}}
OPTIONS = {"temperature": 1.0, "top_p": None, "seed": 0}


@pytest.fixture(scope="module")
def lm():
    return small()


def test_thirty_rows_match_a_regular_expression(lm):
    texts = lm.generate(["a"] * 30, max_new_tokens=40, constraint=PHONE, **OPTIONS)
    assert all(re.fullmatch(PHONE, text[1:]) for text in texts) and len(set(texts)) > 20
    assert any("é" in text for text in texts) and all(text.logprobs.ids[-1] == 0 for text in texts)
    assert lm.generate("a", max_new_tokens=40, constraint=PHONE, **{**OPTIONS, "seed": 7}) == texts[7]
    assert not re.fullmatch(PHONE, lm.generate("a", max_new_tokens=40, **OPTIONS)[1:])


def test_thirty_rows_are_json_of_the_schema(lm):
    prompts = ["a", "It was a dark night"] * 15
    for prompt, text in zip(prompts, lm.generate(prompts, max_new_tokens=150, constraint=CAT, **OPTIONS)):
        cat = json.loads(text[len(prompt):])
        assert list(cat) == ["name", "age", "kind", "tags"] and len(cat["name"]) <= 6 and cat["kind"] in ("cat", "dög")
        assert type(cat["age"]) is int and 0 <= cat["age"] <= 120 and len(cat["tags"]) <= 2 and all(type(tag) is bool for tag in cat["tags"])


def test_log_probabilities_are_those_without_the_constraint(lm):
    text = lm.generate("a", max_new_tokens=4, constraint="the", temperature=0)
    assert text == "athe" and text.logprobs.total < -5                                    # the only text that it may say, likely or not


def test_text_that_looks_like_a_special_token_is_spelt(lm):
    for constraint, text in ((r"<\|endoftext\|>x", "<|endoftext|>x"), ({"const": "<|pad|>"}, '"<|pad|>"')):
        made = lm.generate(["a", "It was"], max_new_tokens=30, constraint=constraint, **OPTIONS)
        assert made == ["a" + text, "It was" + text] and all(min(each.logprobs.ids[:-1]) > 1 for each in made)


@pytest.mark.parametrize("constraint, words", [("(", r"constraint: [^\n]*$"), ({"type": "nonsense"}, "constraint: "), (7, "constraint should be"),
                                               ({"a": {1}}, "constraint: "), ("a\ud800", "constraint: ")])
def test_what_is_no_constraint_is_said(lm, constraint, words):
    with pytest.raises(InputError, match=words):
        lm.generate("a", constraint=constraint)


def test_what_is_missing_is_said(lm, monkeypatch):
    from dataclasses import replace
    with pytest.raises(InputError, match="a model with an end token"):
        CausalLM(replace(lm.cfg, eos=()), lm.tokenizer).generate("a", constraint="b")
    with pytest.raises(InputError, match="leave out repetition_penalty and constraint, or beams"):
        lm.generate("a", constraint="b", beams=2)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match="pip install llguidance"):
        lm.generate("a", constraint="b")
