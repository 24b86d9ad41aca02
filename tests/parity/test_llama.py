"""textgen/families/llama.py against transformers: logits, state dicts to the bit, greedy tokens through both caches."""
import pytest
import torch

from tests.parity.causal import check_greedy_tokens, check_round_trip, random_model
from textgen import CausalLM
from textgen.families import family

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 1}
CASES = {
    "plain": {},
    "grouped queries": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1, "rms_norm_eps": 1e-5},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head width": {"head_dim": 16, "num_key_value_heads": 2},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "llama3": {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                   "original_max_position_embeddings": 16, "rope_theta": 10000.0}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}},
    "dynamic, shorter than training": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
}


def model_of(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM
    return random_model(LlamaForCausalLM, LlamaConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize("case", CASES)
def test_a_random_llama_comes_here_and_goes_back(case, tmp_path):
    check_round_trip(model_of(**CASES[case]), tmp_path)


@pytest.mark.parametrize("case", ["plain", "grouped queries", "llama3"])
def test_greedy_tokens_are_the_same_through_both_caches(case, tmp_path):
    check_greedy_tokens(model_of(**CASES[case]), tmp_path)


def test_old_fields_of_rotary_positions_are_read():
    old = family("llama").to_ours({**SMALL, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    new = family("llama").to_ours({**SMALL, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}})
    assert old == new and new.transformer.rotary.theta == 5e5


def test_a_head_that_differs_is_kept_whatever_the_configuration_says(tmp_path):
    import json
    theirs = model_of()
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    ours, ids = CausalLM.from_pretrained(tmp_path), torch.randint(0, 97, (1, 9))
    assert not ours.cfg.tied
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_pad_of_minus_one_is_none(tmp_path):
    import json
    model_of().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": -1}))
    with pytest.warns(UserWarning, match=r"pad_token_id: \[-1\] are ids of none of the 97 tokens: left out"):
        assert CausalLM.from_pretrained(tmp_path).cfg.pad is None


def test_what_the_layout_cannot_say_is_refused():
    from dataclasses import replace

    from gencore.check import ConfigError
    cfg = family("llama").to_ours(SMALL)
    stack = cfg.transformer
    normed = replace(stack.attention, qk_norm="rms")
    for changed, words in ((replace(stack, attention=normed), r"attention.qk_norm='rms' \(it would be read as 'none'"),
                           (replace(stack, norm=replace(stack.norm, kind="layer")), "norm.kind='layer'"),
                           (replace(stack, rotary=None), "rotary=None"),
                           (replace(stack, mlp=replace(stack.mlp, activation="relu")), "mlp.activation='relu'"),
                           (replace(stack, windows=(4,)), r"windows=\[4, 4\]")):
        with pytest.raises(ConfigError, match=f"llama layout can't say this model's (transformer.)?{words}"):
            family("llama").to_theirs(replace(cfg, transformer=changed))
    with pytest.raises(ConfigError, match="hidden_act should be 'silu' or 'swish', got 'relu'"):
        family("llama").to_ours({**SMALL, "hidden_act": "relu"})
