"""textgen/families/llama.py against transformers: logits, state dicts to the bit, greedy tokens through both caches."""
import pytest
import torch

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


def random_model(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():                          # norms and biases too, and larger than they start
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_random_llama_comes_here_and_goes_back(case, tmp_path):
    from transformers import AutoModelForCausalLM
    theirs = random_model(**CASES[case])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = CausalLM.from_pretrained(tmp_path / "theirs")
    ids = torch.randint(0, 97, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)

    ours.save_pretrained(tmp_path / "ours")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert back.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), theirs.state_dict().values()))
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, theirs(ids).logits, atol=0, rtol=0)
    assert CausalLM.from_pretrained(tmp_path / "ours").cfg == ours.cfg


@pytest.mark.parametrize("case", ["plain", "grouped queries", "llama3"])
def test_greedy_tokens_are_the_same_through_both_caches(case, tmp_path):
    from textgen.model import sampling_of
    from textgen.text import Settings, run
    theirs = random_model(**CASES[case])
    theirs.save_pretrained(tmp_path)
    ours = CausalLM.from_pretrained(tmp_path)
    ids = torch.randint(2, 97, (1, 7))
    wanted = theirs.generate(ids, max_new_tokens=30, do_sample=False)[0, 7:].tolist()
    settings = Settings(max_new_tokens=30, temperature=0)
    got = [tokens[0] for tokens in run(ours, ids.tolist(), sampling_of(settings), seeds=[0], settings=settings)]
    assert got == wanted


def test_old_fields_of_rotary_positions_are_read():
    old = family("llama").to_ours({**SMALL, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    new = family("llama").to_ours({**SMALL, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}})
    assert old == new and new.transformer.rotary.theta == 5e5


def test_a_head_that_differs_is_kept_whatever_the_configuration_says(tmp_path):
    import json
    theirs = random_model()
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    ours, ids = CausalLM.from_pretrained(tmp_path), torch.randint(0, 97, (1, 9))
    assert not ours.cfg.tied
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_the_layout_cannot_say_is_refused():
    from dataclasses import replace

    from gencore.check import ConfigError
    cfg = family("llama").to_ours(SMALL)
    stack = cfg.transformer
    for changed, words in ((replace(stack, attention=replace(stack.attention, qk_norm="rms")), "attention"),
                           (replace(stack, norm=replace(stack.norm, kind="layer")), "norm"), (replace(stack, rotary=None), "positions"),
                           (replace(stack, mlp=replace(stack.mlp, activation="relu")), "mlp"), (replace(stack, windows=(4,)), "windows")):
        with pytest.raises(ConfigError, match=f"llama layout can't say this model's {words}"):
            family("llama").to_theirs(replace(cfg, transformer=changed))
    with pytest.raises(ConfigError, match="hidden_act should be 'silu' or 'swish', got 'relu'"):
        family("llama").to_ours({**SMALL, "hidden_act": "relu"})
