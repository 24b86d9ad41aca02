"""textgen/gguf_file.py: llama.cpp says the same greedy tokens as the model that was written; what can't be written is named, and leaves no file."""
import json
import random
from dataclasses import replace

import pytest
import torch

from gencore.attention import AttentionConfig
from gencore.check import ConfigError, InputError
from gencore.layers import MLPConfig, NormConfig
from gencore.positions import RotaryConfig
from gencore.tokenizer import Tokenizer, train_bpe, with_chat
from gencore.transformer import TransformerConfig
from textgen import CausalLM
from textgen.gguf_file import save_gguf
from textgen.model import CausalLMConfig

ATTENTION = {"llama": AttentionConfig(4, 2), "llama tied": AttentionConfig(4), "mistral": AttentionConfig(4, 2, 32),
             "qwen2": AttentionConfig(4, 2, bias=True), "qwen3": AttentionConfig(4, 2, 32, qk_norm="rms"),
             "gpt2": AttentionConfig(4, bias=True, out_bias=True)}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the rain fell upon the roof of the old house, where nobody had lived for years"] * 5, 320)


def model(name, tokenizer):
    """Random weights, larger than they start, so that what comes next is decided."""
    torch.manual_seed(3)
    family, gpt2 = name.split()[0], name == "gpt2"
    stack = TransformerConfig(64, 2, ATTENTION[name], MLPConfig(96, gated=not gpt2, bias=gpt2, activation="gelu_tanh" if gpt2 else "silu"),
                              NormConfig("layer" if gpt2 else "rms", eps=1e-5), rotary=None if gpt2 else RotaryConfig())
    cfg = CausalLMConfig(len(tokenizer), 64, stack, tied="tied" in name or gpt2, learned_positions=gpt2, family=family, bos=0, eos=(0,), pad=1)
    lm = CausalLM(cfg, tokenizer).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        lm.head.weight[[i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]] = 0    # llama.cpp holds half characters back
    return lm


def said_by_llama_cpp(path, prompts, count):
    """The ids of `count` greedy tokens after each prompt."""
    llama_cpp = pytest.importorskip("xllamacpp")
    params = llama_cpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(path), 64, 1, 1
    server = llama_cpp.Server(params)
    asked = {"max_tokens": count, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    answers = [server.handle_completions({"prompt": ids, **asked})["choices"][0] for ids in prompts]
    return [[token["id"] for token in answer["logprobs"]["content"]] for answer in answers]


@pytest.mark.parametrize("name, changed, words", [
    ("gpt2", {"mlp": MLPConfig(96, bias=True, activation="relu")}, "llama.cpp's GPT-2 has GELU by its tanh"),
    ("gpt2", {"attention": AttentionConfig(4, bias=True, out_bias=True, scale=1.0)}, "divides scores by the root of a head's width"),
    ("qwen3", {"attention": AttentionConfig(4, 2, 32, qk_norm="rms", bias=True, out_bias=True)}, "no place for model.layers.0.self_attn.*bias")])
def test_what_llama_cpp_would_run_otherwise_is_refused(name, changed, words, tokenizer, tmp_path):
    cfg = model(name, tokenizer).cfg
    lm = CausalLM(replace(cfg, transformer=replace(cfg.transformer, **changed)), tokenizer)
    with pytest.raises(ConfigError, match=words):
        save_gguf(lm, tmp_path / "lm.gguf")
    assert not list(tmp_path.glob("lm.gguf"))


@pytest.mark.parametrize("name", ATTENTION)
def test_llama_cpp_says_the_same_tokens(name, tokenizer, tmp_path):
    lm = model(name, tokenizer)
    save_gguf(lm, tmp_path / "lm.gguf")
    prompts = [random.Random(seed).sample(range(2, len(tokenizer)), 9) for seed in range(4)]
    ids = torch.tensor(prompts)
    with torch.no_grad():
        for _ in range(8):
            logits = lm(ids)[:, -1].index_fill(-1, torch.tensor([0]), float("-inf"))           # as ignore_eos does
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    wanted = ids[:, 9:].tolist()
    assert len({token for row in wanted for token in row}) > 2 and said_by_llama_cpp(tmp_path / "lm.gguf", prompts, 8) == wanted


def test_smaller_weights_stay_near(tokenizer, tmp_path):
    from gguf import GGUFReader, dequantize
    lm, sizes = model("llama", tokenizer), {}
    for weights, most in (("float16", 1e-3), ("q8_0", 0.01), ("q4_0", 0.15)):
        save_gguf(lm, tmp_path / "lm.gguf", weights=weights)
        stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "lm.gguf").tensors}
        up = torch.from_numpy(dequantize(stored["blk.1.ffn_up.weight"].data, stored["blk.1.ffn_up.weight"].tensor_type))
        there = dict(lm.files()["model.safetensors"])["model.layers.1.mlp.up_proj.weight"]
        assert (up - there).abs().max() < most * there.abs().max()
        sizes[weights] = (tmp_path / "lm.gguf").stat().st_size
    assert sizes["q4_0"] < sizes["q8_0"] < sizes["float16"]


LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize("rule, called", [(None, "gpt-2"), (LLAMA_3, "llama-bpe"), (LLAMA_3.replace("{1,3}", ""), "qwen2")])
def test_the_file_says_how_text_is_cut_how_it_begins_and_how_a_chat_is_written(rule, called, tokenizer, tmp_path):
    from gguf import GGUFReader
    from tokenizers import Regex, pre_tokenizers, processors
    engine = type(tokenizer.engine).from_str(tokenizer.engine.to_str())
    if rule:
        steps = [pre_tokenizers.Split(Regex(rule), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        engine.pre_tokenizer = pre_tokenizers.Sequence(steps)
        first = engine.id_to_token(0)
        engine.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    lm = CausalLM(model("llama", tokenizer).cfg, with_chat(Tokenizer(engine, tokenizer.config)) if rule else tokenizer)
    if rule:
        lm = CausalLM(replace(lm.cfg, vocab=len(lm.tokenizer)), lm.tokenizer)
    save_gguf(lm, tmp_path / "lm.gguf")
    said = GGUFReader(tmp_path / "lm.gguf").fields
    assert said["tokenizer.ggml.pre"].contents() == called and said["tokenizer.ggml.add_bos_token"].contents() == bool(rule)
    template = said.get("tokenizer.chat_template")
    assert (template and template.contents()) == lm.tokenizer.chat_template


def test_what_cannot_be_written_is_named(tokenizer, tmp_path):
    lm = model("llama", tokenizer)
    with pytest.raises(InputError, match='weights should be one of float32, float16, q8_0, q4_0, got "q8"'):
        save_gguf(lm, tmp_path / "lm.gguf", weights="q8")
    with pytest.raises(InputError, match="no tokenizer"):
        save_gguf(CausalLM(lm.cfg), tmp_path / "lm.gguf")
    engine = json.loads(tokenizer.engine.to_str())
    engine["model"]["byte_fallback"] = True                      # as Llama 2's
    with pytest.raises(ConfigError, match="byte-level BPE only, this tokenizer is another BPE"):
        save_gguf(CausalLM(lm.cfg, Tokenizer(type(tokenizer.engine).from_str(json.dumps(engine)), tokenizer.config)), tmp_path / "lm.gguf")
    lm.cfg = CausalLMConfig(family="phi3")
    with pytest.raises(ConfigError, match="phi3 can't be written as GGUF here: llama, mistral, qwen2, qwen3, gpt2 can"):
        save_gguf(lm, tmp_path / "lm.gguf")
    assert not list(tmp_path.iterdir())
