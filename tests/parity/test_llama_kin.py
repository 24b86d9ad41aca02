"""The families that are Llama with changes, against transformers: logits, state dicts to the bit, greedy tokens through both caches."""
from dataclasses import replace

import pytest
import torch

from gencore.check import ConfigError, InputError
from gencore.positions import RotaryConfig
from gencore.tokenizer import train_bpe
from tests.parity.causal import check_greedy_tokens, check_round_trip, random_model
from textgen import CausalLM
from textgen.families import family
from textgen.run import run
from textgen.text import Settings

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 1}
CLASSES = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
          "rope_theta": 1e4}
FULL = ["full_attention"] * 4
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 5}
CASES = {
    "mistral window": ("mistral", {"sliding_window": 5}),
    "mistral whole": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral tied": ("mistral", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "qwen2 upper windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 eps": ("qwen3", {"head_dim": 8, "rms_norm_eps": 1e-2, "num_key_value_heads": 4}),
    "qwen3 biases, windows": ("qwen3", {"head_dim": 16, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4,
                                        "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "phi3": ("phi3", {"pad_token_id": 1}),
    "phi3 window, tied": ("phi3", {"sliding_window": 6, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "phi3 half turns": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "qwen2, a factor that it ignores": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "mistral dynamic, a length that it ignores": ("mistral", {"max_position_embeddings": 16, "rope_parameters": {
        "rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 8}}),
    "phi3 longrope, short text": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48, "max_position_embeddings": 192}),
    "phi3 longrope, long text": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16, "max_position_embeddings": 64}),
    "gemma2": ("gemma2", GEMMA),
    "gemma2 without caps": ("gemma2", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 16}),
    "gemma2 biases": ("gemma2", {**GEMMA, "attention_bias": True, "rms_norm_eps": 1e-5}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gemma3, its own pattern": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7, "final_logit_softcapping": 5.0}),
    "gemma3 scaled": ("gemma3_text", {**GEMMA, "layer_types": ["full_attention", "sliding_attention"] * 2, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}}),
    "gemma3 longrope": ("gemma3_text", {**GEMMA, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2, "rope_parameters": {
        "full_attention": {**LONGROPE, "original_max_position_embeddings": 16}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "gemma3 dynamic": ("gemma3_text", {**GEMMA, "max_position_embeddings": 16, "layer_types": ["sliding_attention", "full_attention"] * 2,
                                       "rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
                                                           "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "gemma2 without windows": ("gemma2", {**GEMMA, "layer_types": FULL}),
    "gemma3 without windows": ("gemma3_text", {**GEMMA, "layer_types": FULL}),
    "qwen2 yarn of its own factor": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": None, "rope_theta": 1e4,
                                                                   "original_max_position_embeddings": 16}}),
}
GREEDY = ("mistral window", "qwen2 upper windows", "qwen3", "phi3", "phi3 longrope, long text", "gemma2", "gemma3")


def model_of(case):
    import transformers
    name, changes = CASES[case]
    prefix = CLASSES[name]
    config = getattr(transformers, prefix + ("TextConfig" if prefix == "Gemma3" else "Config"))
    return random_model(getattr(transformers, prefix + "ForCausalLM"), config(**{**SMALL, **changes}))


@pytest.mark.parametrize("case", CASES)
def test_a_random_model_comes_here_and_goes_back(case, tmp_path):
    check_round_trip(model_of(case), tmp_path)


@pytest.mark.parametrize("case", GREEDY)
def test_greedy_tokens_are_the_same_through_both_caches(case, tmp_path):
    check_greedy_tokens(model_of(case), tmp_path)


@pytest.mark.parametrize("name", CLASSES)
def test_the_defaults_of_transformers_are_the_defaults_here(name):
    import transformers
    kind = getattr(transformers, CLASSES[name] + ("TextConfig" if name == "gemma3_text" else "Config"))
    needed = {"hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 32, "intermediate_size": 48, "vocab_size": 97, "head_dim": 16}
    theirs = kind(**needed).to_dict() | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    assert family(name).to_ours(needed) == family(name).to_ours(theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_old_fields_of_rotary_positions_are_read(name):
    old = {**SMALL, "rope_theta": 5e5, "rope_local_base_freq": 2e3}
    new = {"rope_type": "default", "rope_theta": 5e5}
    new = {"full_attention": new, "sliding_attention": {**new, "rope_theta": 2e3}} if name == "gemma3_text" else new
    ours = family(name).to_ours(old)
    assert ours == family(name).to_ours({**SMALL, "rope_parameters": new}) and ours.transformer.rotary.theta == 5e5


@pytest.mark.parametrize("name, change, words", [
    ("mistral", {"windows": (4, None)}, r"transformer.windows=\[4, None, 4, None\] \(it would be read as \[4, 4, 4, 4\]"),
    ("qwen3", {"windows": (4, 6)}, "transformer.windows"),
    ("qwen2", {"relative": "t5"}, "transformer.relative"),
    ("qwen2", {"rotary": RotaryConfig(partial=0.5)}, "transformer.rotary.partial=0.5"),
    ("phi3", {"final_norm": False}, "transformer.final_norm=False"),
    ("gemma2", {"condition": "adaln_zero"}, "transformer.condition='adaln_zero'")])
def test_what_a_layout_cannot_say_is_refused(name, change, words):
    from gencore.positions import RelativeConfig
    cfg = family(name).to_ours(SMALL)
    change = {"relative": RelativeConfig()} if "relative" in change else change
    norm = replace(cfg.transformer.norm, place="pre")
    changed = replace(cfg.transformer, **change, **({"norm": norm} if "condition" in change else {}))
    with pytest.raises(ConfigError, match=f"the {name} layout can't say this model's {words}"):
        family(name).to_theirs(replace(cfg, transformer=changed))


@pytest.mark.parametrize("name, field, words", [
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention should be None or False, got True"),
    ("gemma3_text", {"hidden_activation": "relu"}, "hidden_activation should be"),
    ("qwen3", {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 4}, "layer_types should be 4 of full_attention or"),
    ("mistral", {"hidden_act": "relu"}, "hidden_act should be")])
def test_what_is_not_done_here_is_refused(name, field, words):
    with pytest.raises(ConfigError, match=f"config.json of a {name} model: {words}"):
        family(name).to_ours({**SMALL, **field})


def test_the_loss_is_that_of_the_capped_logits(tmp_path):
    model_of("gemma2").save_pretrained(tmp_path)
    lm = CausalLM.from_pretrained(tmp_path).trainable().train()
    ids = torch.randint(0, 97, (2, 21))
    loss, count = lm.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    found = [p.grad.clone() for p in lm.parameters()]
    lm.zero_grad()
    plain = torch.nn.functional.cross_entropy(lm(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    plain.backward()
    assert count == 40
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    for mine, wanted in zip(found, [p.grad for p in lm.parameters()]):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


def test_a_text_that_grows_past_the_border_of_longrope_is_read_again(tmp_path):
    model_of("phi3 longrope, long text").save_pretrained(tmp_path)
    lm, settings = CausalLM.from_pretrained(tmp_path), Settings(max_new_tokens=30, temperature=0)
    prompts = [torch.randint(2, 97, (n,)).tolist() for n in (3, 16, 9, 20)]                # 16: the border lies behind its last
    alone = [[step[0] for step in run(lm, [ids], settings.sampling, seeds=[0], settings=settings)] for ids in prompts]
    for ids, said in zip(prompts, alone):
        for n in (1, 17 - len(ids), 18 - len(ids), 30):
            if n > 0:                                                                     # each word is the likeliest of the text read at once
                with torch.no_grad():
                    assert int(lm(torch.tensor([ids + said[:n - 1]]))[0, -1].argmax()) == said[n - 1]
    together = zip(*run(lm, prompts, settings.sampling, seeds=range(4), settings=settings))
    assert [list(row) for row in together] == alone
    beams = Settings(max_new_tokens=20, beams=3)
    found = [list(zip(*run(lm, part, beams.sampling, seeds=range(len(part)), settings=beams))) for part in (prompts, *([ids] for ids in prompts))]
    assert found[0] == [row for part in found[1:] for row in part]
    windowed = Settings(max_new_tokens=30, temperature=0, window=40)
    assert [step[0] for step in run(lm, prompts[:1], windowed.sampling, seeds=[0], settings=windowed)] == alone[0]


def test_a_draft_and_compiled_steps_know_positions_that_follow_the_length():
    cfg = family("gemma3_text").to_ours({**SMALL, "vocab_size": 300, "head_dim": 8})
    near = RotaryConfig(scaling={**LONGROPE, "original_max_position_embeddings": 8})
    stack = replace(cfg.transformer, local_rotary=near)
    lm = CausalLM(replace(cfg, transformer=stack), train_bpe(["the cat sat on the mat"], 300)).eval()
    assert stack.by_length and lm.fast_stepper(20) is None
    with pytest.raises(InputError, match="draft does not go together with positions that follow the text's length"):
        lm.generate("the cat", max_new_tokens=3, draft=lm)


def test_the_length_of_llama3_may_stand_beside_its_rule():
    rope = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    beside = {**SMALL, "rope_parameters": rope, "original_max_position_embeddings": 16}
    assert family("qwen2").to_ours(beside) == family("qwen2").to_ours({**SMALL, "rope_parameters": LLAMA3})
