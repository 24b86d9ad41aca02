"""CausalLM.trainable with a longer context, and generating with few bits in each dtype."""
from dataclasses import replace

import pytest
import torch

from gencore import replay
from gencore.check import InputError
from tests.test_causal_lm import STACK, small
from tests.test_lora import GPT2
from textgen import CausalLM
from textgen.model import CausalLMConfig


@pytest.fixture(scope="module")
def lm():
    return small()


def test_a_trainable_copy_reads_longer_windows_when_asked(lm, tmp_path):
    text, ids = "the rain fell on the old town. " * 5, torch.arange(3, 60)[None]
    wider = lm.trainable(context=96)
    torch.testing.assert_close(wider(ids), lm(ids))
    wider.save_pretrained(tmp_path)
    opened = CausalLM.from_pretrained(tmp_path)
    assert opened.cfg.context == opened.tokenizer.config["model_max_length"] == 96 and lm.cfg.context == 48
    with pytest.raises(InputError, match="the model reads 48: score it in parts"):
        lm.logprobs(text)
    assert len(opened.logprobs(text).values) == len(opened.tokenizer.encode(text)) > 48
    assert lm.trainable(context=8).cfg == lm.cfg and "model_max_length" not in lm.tokenizer.config
    with pytest.raises(InputError, match="context should be a whole number of at least 1, got 0"):
        lm.trainable(context=0)


@torch.no_grad()
def test_added_layers_change_nothing_until_they_are_trained(lm, tmp_path):
    ids, layers = torch.arange(3, 40)[None], lm.cfg.transformer.layers
    deep = lm.trainable(layers=layers + 3)
    assert torch.equal(deep(ids), lm(ids)) and deep.cfg.transformer.layers == len(deep.transformer.blocks) == layers + 3
    deep.save_pretrained(tmp_path)
    opened = CausalLM.from_pretrained(tmp_path)
    assert opened.cfg.transformer.layers == layers + 3
    torch.testing.assert_close(opened(ids), lm(ids))
    assert lm.trainable(layers=layers).cfg == lm.cfg
    with pytest.raises(InputError, match=f"layers should be a whole number of at least {layers}, got 1"):
        lm.trainable(layers=1)
    with torch.enable_grad():
        deep.loss(ids[:, :-1], ids[:, 1:])[0].backward()
    assert all(p.grad is not None for p in deep.parameters()) and deep.transformer.blocks[1].mlp.down.weight.grad.any()


def test_a_table_of_positions_cannot_grow():
    table = CausalLM(CausalLMConfig(vocab=8, context=48, transformer=replace(STACK, rotary=None), learned_positions=True))
    assert table.trainable(context=48).cfg == table.cfg
    with pytest.raises(InputError, match="context=49 is longer than this model's table of 48 positions: give context=48 or less"):
        table.trainable(context=49)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_few_bits_generate_in_every_dtype_one_text_or_several(layout, bits, dtype, lm, tmp_path):
    if layout == "gpt2":
        lm = CausalLM(replace(GPT2, vocab=len(lm.tokenizer), context=48, bos=0, eos=(0,), pad=1), lm.tokenizer).eval()
        torch.nn.init.normal_(lm.transformer.blocks[0].attention.qkv.bias)
    lm.save_pretrained(tmp_path)
    few = CausalLM.from_pretrained(tmp_path, quantize=bits, dtype=dtype)
    exact = CausalLM.from_pretrained(tmp_path)
    one, several = few.generate("the rain", max_new_tokens=8, seed=1), few.generate(["the rain", "It was"], max_new_tokens=8, seed=1)
    assert isinstance(one, str) and len(several) == 2
    ids = torch.tensor([lm.tokenizer.encode("the rain fell on")])
    with torch.no_grad():
        assert (few(ids).float() - exact(ids)).std() < {"int8": 0.1, "int4": 0.4}[bits] * exact(ids).std()


def test_compiled_steps_forget_few_bits_that_changed(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("gencore.decode.compiled", lambda function, device: function)
    lm.save_pretrained(tmp_path)
    few = CausalLM.from_pretrained(tmp_path, quantize="int8")
    before = few.fast_stepper(3).cache
    assert few.fast_stepper(3).cache is before                                  # nothing has changed: the steps that there are
    with torch.no_grad():
        few.transformer.blocks[0].attention.qkv.scales.mul_(2)
    assert few.fast_stepper(3).cache is not before


def test_what_was_trained_has_no_recipe_until_it_is_saved(lm, tmp_path):
    lm.save_pretrained(tmp_path / "base")
    ours = CausalLM.from_pretrained(tmp_path / "base")
    assert ours.generate("the rain", max_new_tokens=4, seed=1).recipe.model == str(tmp_path / "base")
    ours.train().eval()
    with torch.no_grad():
        ours.embedding.weight.mul_(1.5)
    assert ours.generate("the rain", max_new_tokens=4, seed=1).recipe is None
    ours.save_pretrained(tmp_path / "rounded", dtype="bfloat16")
    assert ours.generate("the rain", max_new_tokens=4, seed=1).recipe is None
    ours.save_pretrained(tmp_path / "further")
    text = ours.generate("the rain", max_new_tokens=12, seed=1)
    text.save(tmp_path / "a.txt")
    assert replay(tmp_path / "a.txt") == text
