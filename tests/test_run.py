"""textgen/run.py: log-probabilities against transformers and the plain forward; beam search against transformers."""
import math
import subprocess
import sys

import pytest
import torch

import gencore
from gencore.check import InputError
from gencore.tokenizer import Tokenizer, train_bpe
from tests.test_causal_lm import TEXT, small
from textgen import CausalLM
from textgen.evaluate import bits_per_byte
from textgen.model import CausalLMConfig
from textgen.run import likeliest
from textgen.text import Row, Settings, tail

PROMPTS = ["It was", "the rain fell on the old town", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    small().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    return CausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder)


def padded(folder, prompts):
    """Prompts as transformers wants them."""
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(folder, padding_side="left")(prompts, return_tensors="pt", padding=True)


# ---- log-probabilities ----

def test_a_text_is_as_likely_as_the_forward_says_and_bits_per_byte_agree(lm):
    text = TEXT[:60]
    scored, ids = lm.logprobs(text), lm.tokenizer.encode(text)
    with torch.no_grad():
        wanted = lm(torch.tensor([[0, *ids]])).log_softmax(-1)[0, range(len(ids)), ids]
    assert scored.ids == ids and "".join(scored.tokens).replace("\ufffd", "") in text
    assert scored.values == pytest.approx(wanted.tolist(), abs=1e-5)
    assert scored.total == pytest.approx(-bits_per_byte(lm, [text]) * len(text.encode()) * math.log(2), rel=1e-5)


def test_a_list_of_texts_is_scored_as_each_alone(lm):
    texts = [TEXT[start:start + 3 * start] for start in range(11)]                        # the first is empty
    for text, scored in zip(texts, lm.logprobs(texts)):
        alone = lm.logprobs(text)
        assert scored.ids == alone.ids and scored.values == pytest.approx(alone.values, abs=1e-5)
    assert lm.logprobs("").total == 0


def test_generated_tokens_are_as_likely_as_transformers_says(lm, theirs, folder):
    inputs = padded(folder, PROMPTS)
    made = theirs.generate(**inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    wanted = theirs.compute_transition_scores(made.sequences, made.logits, normalize_logits=True)
    for text, ids, values in zip(lm.generate(PROMPTS, max_new_tokens=12, temperature=0), made.sequences[:, inputs.input_ids.shape[1]:], wanted):
        n = len(text.logprobs.ids)
        assert text.logprobs.ids == ids[:n].tolist() and n == (12 if 0 not in ids else ids.tolist().index(0) + 1)
        assert text.logprobs.values == pytest.approx(values[:n].tolist(), abs=1e-5)


def test_temperature_and_narrowing_do_not_change_the_log_probabilities(lm):
    text = lm.generate("It was", max_new_tokens=20, temperature=2.0, top_k=50, repetition_penalty=1.3, seed=4)
    prompt, said = lm.tokenizer.encode("It was"), text.logprobs.ids
    with torch.no_grad():
        logits = lm(torch.tensor([prompt + said]))[0, len(prompt) - 1:-1]
    assert len(said) > 5
    assert text.logprobs.values == pytest.approx(logits.log_softmax(-1)[range(len(said)), said].tolist(), abs=1e-5)


def test_a_stream_that_is_left_lying_is_silent_when_python_ends(folder):
    code = f"from textgen import CausalLM\nstream = CausalLM.from_pretrained({str(folder)!r}).stream('It', seed=0)\nprint(len(next(stream)) > 0)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def test_what_can_not_be_scored_is_said(lm):
    mute = CausalLM(CausalLMConfig(transformer=lm.cfg.transformer), lm.tokenizer)
    for call, words in ((lambda: lm.logprobs("rain " * 200), "tokens, the model reads 48: score it in parts"),
                        (lambda: lm.logprobs(3), "expected a text as str"),
                        (lambda: CausalLM(lm.cfg).logprobs("It"), "this model has no tokenizer"),
                        (lambda: bits_per_byte(lm, ["It"], overlap="x"), "overlap should be between 0 and 1, got 'x'"),
                        (lambda: bits_per_byte(lm, ["It"], overlap=1), "overlap should be from 0 to below 1"),
                        (lambda: CausalLM.from_pretrained("novelist", quantize=["int8"]), r'"int4", got \[\'int8\'\]'),
                        (lambda: mute.logprobs("It"), "no token that begins a text")):
        with pytest.raises(InputError, match=words):
            call()


# ---- beam search ----

@pytest.mark.parametrize("beams, penalty", [(2, 1.0), (4, 0.0), (5, 2.0)])
def test_beams_find_the_texts_that_transformers_finds(beams, penalty, folder, lm, theirs):
    """Prompts of unequal length, as one batch; ids and not only texts."""
    inputs = padded(folder, PROMPTS)
    made = theirs.generate(**inputs, max_new_tokens=20, num_beams=beams, do_sample=False, length_penalty=penalty, early_stopping=False)
    wanted = [row[:row.index(0) + 1] if 0 in row else row for row in made[:, inputs.input_ids.shape[1]:].tolist()]
    settings = Settings(max_new_tokens=20, beams=beams, length_penalty=penalty)
    assert likeliest(lm, [lm.tokenizer.encode(prompt) for prompt in PROMPTS], settings) == wanted
    texts = lm.generate(PROMPTS, max_new_tokens=20, beams=beams, length_penalty=penalty)
    assert texts == [prompt + lm.tokenizer.decode(ids) for prompt, ids in zip(PROMPTS, wanted)]
    assert texts == [lm.generate(prompt, max_new_tokens=20, beams=beams, length_penalty=penalty) for prompt in PROMPTS]


def test_beams_find_likelier_texts_than_greedy_and_are_replayed(lm, tmp_path):
    prompt = lm.tokenizer.encode("It was")
    ids = likeliest(lm, [prompt], Settings(max_new_tokens=20, beams=6))[0]
    with torch.no_grad():
        logits = lm(torch.tensor([prompt + ids]))[0, len(prompt) - 1:-1]
    greedy = lm.generate("It was", max_new_tokens=20, temperature=0).logprobs
    assert logits.log_softmax(-1)[range(len(ids)), ids].mean() > greedy.total / len(greedy.ids) + 0.1
    text = lm.generate("It was", max_new_tokens=20, beams=6)
    text.save(tmp_path / "a.txt")
    assert gencore.replay(tmp_path / "a.txt") == text and text.logprobs is None


def test_a_beam_search_is_cut_at_a_stop_string(lm):
    whole = lm.generate("It was", max_new_tokens=20, beams=3)
    assert lm.generate("It was", max_new_tokens=20, beams=3, stop=whole[10:14]) == whole[:whole.index(whole[10:14], 6)]


@pytest.mark.parametrize("options, words", [({"beams": 0}, "beams should be"), ({"beams": 2.0}, "beams should be"),
                                            ({"beams": 2, "repetition_penalty": 1.2}, "leave out repetition_penalty and constraint, or beams")])
def test_wrong_beams_are_named(lm, options, words):
    with pytest.raises(InputError, match=words):
        lm.generate("It", **options)


@pytest.mark.parametrize("text", ["日" * 9 + "本", "กำลัง" * 5, "日本国憲法は" + "憲" * 12, "a" + "\U0001f600" * 7])
def test_tokens_that_straddle_characters_lose_none_of_them(text):
    tokenizer = train_bpe([text[3:] * 3, text * 2], 300)
    row = Row(tokenizer, (), ())
    pieces = [row.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + row.end() == text and not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_given_up_on():
    tokenizer = train_bpe(["x"], 258)
    row, first = Row(tokenizer, (), ()), tokenizer.encode("é")[1]                       # a byte that only continues one
    pieces = [row.add(first) for _ in range(20)]
    assert any(pieces) and set("".join(pieces) + row.end()) == {"\ufffd"} and row.add(tokenizer.encode("x")[0]) == ""


@pytest.fixture(scope="module")
def spelt_in_bytes():
    """A tokenizer as SentencePiece makes them: what its vocabulary lacks is spelt in bytes."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, normalizers
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abc"]
    engine = Engine(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Replace(" ", "\u2581")
    engine.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(engine, {"unk_token": "<unk>"})


@pytest.mark.parametrize("prompt", ["a", "", "\u4f60\u597d\u4e16\u754c", "a\U0001f469"])
@pytest.mark.parametrize("text", ["\u4f60\u597d\u4e16\u754c\u4f60\u597d", "\U0001f469\U0001f469\u20ac\u20ac\U0001f469b", "\u00e9\u00e9 a\u4e16c" * 4])
def test_characters_spelt_in_bytes_come_out_whole(prompt, text, spelt_in_bytes):
    row = Row(spelt_in_bytes, (), (), context=tail(spelt_in_bytes, spelt_in_bytes.encode(prompt)))
    assert "".join(row.add(token) for token in spelt_in_bytes.encode(text)) + row.end() == text
