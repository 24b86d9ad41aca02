"""gencore/tokenizer.py."""
import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gencore.check import CheckpointError, DataError, InputError
from gencore.checkpoint import save_folder
from gencore.tokenizer import END, PAD, Tokenizer, train_bpe
from tests.reference import byte_pairs_by_counting

WORDS = ["The cat sat on the mat.\n\nThe dog sat on the log.", 'She said, "I shall never go there again," and went.\n'] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(WORDS, 320, length=64)


@settings(max_examples=200)
@given(text=st.text())
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), keep_special=True) == text


@pytest.mark.slow
def test_a_hundred_thousand_random_texts_come_back(tokenizer):
    draw = random.Random(0)
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]          # by length in UTF-8
    for _ in range(100_000):
        text = "".join(chr(draw.randrange(*draw.choice(planes))) for _ in range(draw.randrange(1, 24)))
        assert tokenizer.decode(tokenizer.encode(text), keep_special=True) == text


def test_merges_are_those_of_the_algorithm_in_the_paper():
    texts = [" ".join(random.Random(seed).choices("low lower lowest newer wider rain rained terrain señor 7 77".split(), k=300)) for seed in range(3)]
    tokenizer = train_bpe(texts, 300)
    words = Counter(tuple(word) for text in texts for word, _ in tokenizer.engine.pre_tokenizer.pre_tokenize_str(text))
    learnt = [tuple(pair) for pair in json.loads(tokenizer.engine.to_str())["model"]["merges"]]
    assert len(learnt) > 30 and learnt == byte_pairs_by_counting(words, len(learnt))


def test_special_tokens_come_first_and_have_their_roles(tokenizer):
    assert tokenizer.id(END) == tokenizer.bos_id == tokenizer.eos_id == 0
    assert tokenizer.id(PAD) == tokenizer.pad_id == 1
    assert 280 < len(tokenizer) <= 320                             # so little text has few pairs


def test_a_paragraph_break_is_one_token(tokenizer):
    first, second, both = (tokenizer.encode(text) for text in ("mat.", "The", "mat.\n\nThe"))
    assert len(both) == len(first) + len(second) + 1


def test_merges_are_learnt(tokenizer):
    assert len(tokenizer.encode("The cat sat on the mat.")) < 10


def test_special_tokens_are_left_out_unless_kept(tokenizer):
    ids = [tokenizer.eos_id, *tokenizer.encode("cat")]
    assert tokenizer.decode(ids) == "cat"
    assert tokenizer.decode(ids, keep_special=True) == END + "cat"


def test_a_folder_comes_back_with_its_template(tokenizer, tmp_path):
    tokenizer.config["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    save_folder(tmp_path / "t", tokenizer.files())
    del tokenizer.config["chat_template"]
    again = Tokenizer.from_folder(tmp_path / "t")
    assert again.encode("The cat\n\n") == tokenizer.encode("The cat\n\n")
    assert (again.bos_id, again.eos_id, again.pad_id) == (0, 0, 1)
    assert again.chat([{"role": "user", "content": "hi"}]) == f"user: hi{END}\n"
    with pytest.raises(InputError, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "hi"}])


def test_transformers_opens_the_folder_with_the_same_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer
    save_folder(tmp_path / "t", tokenizer.files())
    (tmp_path / "t" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "t")
    for text in ("The cat sat.\n\nShe", " é \t x", '"Never," she said.'):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.model_max_length) == (0, 1, 64)


@pytest.mark.parametrize("file, change, words", [
    ("tokenizer.json", lambda text: text.replace('"Ġcat"', '"Ġcot"'), r'tokenizer.json: field "model" differs from its digest'),
    ("tokenizer.json", None, "no file .*tokenizer.json: the checkpoint is incomplete"),
    ("tokenizer_config.json", lambda text: text.replace(PAD, END), r'field "pad_token" differs'),
    ("tokenizer_config.json", None, "no file .*tokenizer_config.json: the checkpoint is incomplete"),
    ("chat_template.jinja", lambda text: text + " ", "chat_template.jinja differs from its digest"),
    ("chat_template.jinja", None, "no file .*chat_template.jinja")])
def test_a_tampered_tokenizer_is_refused(tokenizer, tmp_path, file, change, words):
    chatty = Tokenizer(tokenizer.engine, {**tokenizer.config, "chat_template": "{{ messages[0].content }}"})
    save_folder(tmp_path / "t", chatty.files())
    path = tmp_path / "t" / file
    if change is None:
        path.unlink()
    else:
        text = path.read_text(encoding="utf-8")
        assert change(text) != text
        path.write_text(change(text), encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.from_folder(tmp_path / "t")


@pytest.mark.parametrize("config, words", [
    ("{", "tokenizer_config.json is not JSON"), ("[]", "should hold one object with fields, got list"),
    ('{"eos_token": 5}', 'field "eos_token" should be a token, got 5'), ('{"pad_token": {"content": []}}', 'field "pad_token" should be a token')])
def test_a_foreign_tokenizer_with_a_bad_configuration_is_refused(tokenizer, tmp_path, config, words):
    (tmp_path / "tokenizer.json").write_text(tokenizer.engine.to_str(), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.from_folder(tmp_path)


def test_wrong_input_is_named(tokenizer, tmp_path):
    with pytest.raises(InputError, match="at least 258"):
        train_bpe(WORDS, 100)
    for nothing in ([], ["", ""], iter(())):
        with pytest.raises(DataError, match="no text to learn a tokenizer from"):
            train_bpe(nothing, 300)
    with pytest.raises(InputError, match="expected text as str, got int"):
        tokenizer.encode(3)
    for call in (tokenizer.encode, tokenizer.id):
        with pytest.raises(InputError, match=r"holds half a character \(a lone surrogate\): it can't be encoded, leave it out"):
            call("a\ud800b")
    with pytest.raises(InputError, match='no token "<image>"'):
        tokenizer.id("<image>")
    with pytest.raises(CheckpointError, match="no tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="can't be read"):
        Tokenizer.from_folder(tmp_path)


def test_cutting_and_filling_that_a_file_asks_for_are_of_its_training(tokenizer, tmp_path):
    tokenizer.engine.enable_truncation(4)
    tokenizer.engine.enable_padding(length=6)
    save_folder(tmp_path / "t", tokenizer.files())
    tokenizer.engine.no_truncation()
    tokenizer.engine.no_padding()
    opened = Tokenizer.from_folder(tmp_path / "t")
    for text in ("The", "The cat sat on the mat and the dog sat on the log."):
        assert opened.encode(text) == tokenizer.encode(text) and opened.decode(opened.encode(text)) == text


def test_of_several_templates_the_default_is_used_and_saved(tokenizer, tmp_path):
    templates = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    several = Tokenizer(tokenizer.engine, tokenizer.config | {"chat_template": templates})
    save_folder(tmp_path / "t", several.files())
    assert Tokenizer.from_folder(tmp_path / "t").chat([{"role": "user", "content": "hi"}]) == "yes"


@pytest.mark.parametrize("template", [{"default": "x"}, ["x"], [{"name": "default", "template": ["x"]}], 7])
def test_a_template_that_is_no_text_is_refused(template, tokenizer, tmp_path):
    files = tokenizer.files()
    save_folder(tmp_path / "t", files | {"tokenizer_config.json": files["tokenizer_config.json"] | {"chat_template": template}})
    with pytest.raises(CheckpointError, match="chat_template should be a text, or several as name and template"):
        Tokenizer.from_folder(tmp_path / "t")


def test_texts_and_specials_that_make_no_tokenizer_are_named():
    with pytest.raises(DataError, match="a text holds half a character"):
        train_bpe(["a", "\ud800a"])
    with pytest.raises(InputError, match="specials should name at least one token"):
        train_bpe(["a"], specials=())
