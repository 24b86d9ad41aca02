"""The prompt encoder and its tokenizer."""
import pytest
import torch

from gencore.check import InputError
from gencore.text_encoder import TextEncoder, TextEncoderConfig, deeper, encode_prompts, train_prompt_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_prompt_tokenizer(["a handwritten seven", "slice of pizza, noto style", "red apple"] * 4, 320, length=8)


def small():
    return TextEncoder(TextEncoderConfig(vocab=320, width=24, layers=2, heads=2, head_width=8, mlp=32)).eval()


def test_prompts_end_with_their_mark_and_the_empty_one_is_the_mark_alone(tokenizer):
    ids, keep, cut = encode_prompts(tokenizer, ["", "red apple"], 8)
    end = tokenizer.eos_id
    assert ids[0, 0] == end and keep[0].tolist() == [True, False, False] and ids[0, 1:].eq(tokenizer.pad_id).all()
    assert ids[1].tolist()[-1] == end and keep[1].all() and cut == []


def test_case_and_outer_spaces_do_not_matter(tokenizer):
    ids, _, _ = encode_prompts(tokenizer, ["  Red APPLE ", "red apple"], 8)
    assert torch.equal(ids[0], ids[1])


def test_long_prompts_are_cut_and_keep_their_mark(tokenizer):
    ids, keep, cut = encode_prompts(tokenizer, ["red apple", "seven " * 30], 8)
    assert cut == [1] and ids.shape == (2, 8) and ids[1, -1] == tokenizer.eos_id


def test_a_bare_text_or_another_type_is_refused(tokenizer):
    with pytest.raises(InputError, match="list of texts"):
        encode_prompts(tokenizer, "red apple", 8)
    with pytest.raises(InputError, match="list of texts"):
        encode_prompts(tokenizer, [3], 8)


def test_transformers_reads_the_same_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    from gencore.checkpoint import save_folder
    save_folder(tmp_path / "t", tokenizer.files())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "t")
    prompts = ["", "Red apple", "seven " * 30]
    expected = theirs(prompts, padding=True, truncation=True, max_length=8, return_tensors="pt")
    ids, keep, _ = encode_prompts(tokenizer, prompts, 8)
    assert torch.equal(ids, expected.input_ids) and torch.equal(keep.long(), expected.attention_mask)


@torch.no_grad()
def test_padded_prompts_have_the_states_of_single_ones(tokenizer):
    model, prompts = small(), ["", "red apple", "a handwritten seven"]
    ids, keep, _ = encode_prompts(tokenizer, prompts, 8)
    together = model(ids, keep)
    for row, prompt in enumerate(prompts):
        alone, _, _ = encode_prompts(tokenizer, [prompt], 8)
        torch.testing.assert_close(together[row, :alone.shape[1]], model(alone)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_word_order_matters():
    model = small()
    assert not torch.allclose(model(torch.tensor([[5, 9]])).mean(1), model(torch.tensor([[9, 5]])).mean(1), atol=1e-4)


@torch.no_grad()
def test_a_deeper_encoder_gives_the_same_states_at_first(tokenizer):
    ids, keep, _ = encode_prompts(tokenizer, ["", "red apple"], 8)
    model = small()
    more = deeper(model, 5).eval()
    assert more.cfg.layers == 5 and torch.equal(more(ids, keep), model(ids, keep))
    assert more.transformer.blocks[4].mlp.gate_up.weight.any()
