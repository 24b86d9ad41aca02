"""textgen/families/gpt2.py against transformers: logits, state dicts to the bit, greedy tokens through both caches."""
import pytest
import torch

from gencore.check import ConfigError, InputError
from tests.parity.causal import check_greedy_tokens, check_round_trip, random_model
from textgen import CausalLM
from textgen.families import family

SMALL = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": None}
CASES = {
    "plain": {},
    "erf gelu": {"activation_function": "gelu"},
    "narrow": {"n_inner": 40, "layer_norm_epsilon": 1e-6},
    "untied": {"tie_word_embeddings": False},
    "unscaled": {"scale_attn_weights": False},
}


def model_of(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel
    return random_model(GPT2LMHeadModel, GPT2Config(**{**SMALL, **changes}))


@pytest.mark.parametrize("case", CASES)
def test_a_random_gpt2_comes_here_and_goes_back(case, tmp_path):
    check_round_trip(model_of(**CASES[case]), tmp_path)


def test_greedy_tokens_are_the_same_through_both_caches(tmp_path):
    check_greedy_tokens(model_of(), tmp_path)


def test_files_without_the_prefix_and_with_old_masks_are_read():
    theirs = model_of()
    state = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    cfg = family("gpt2").to_ours(SMALL)
    ours = CausalLM(cfg)
    ours.load_state_dict(family("gpt2").import_state(cfg, state), strict=False)
    ids = torch.randint(0, 97, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_is_not_done_here_is_refused():
    with pytest.raises(ConfigError, match="scale_attn_by_inverse_layer_idx should be False"):
        family("gpt2").to_ours({**SMALL, "scale_attn_by_inverse_layer_idx": True})
    with pytest.raises(ConfigError, match="gpt2 layout can't say this model's"):
        from textgen.model import CausalLMConfig
        family("gpt2").to_theirs(CausalLMConfig())


def test_texts_beyond_the_learned_positions_are_refused(tmp_path):
    from gencore.tokenizer import train_bpe
    tokenizer = train_bpe(["a cat sat on a mat " * 9], 260)
    lm = CausalLM(family("gpt2").to_ours({**SMALL, "vocab_size": 260}), tokenizer)
    with pytest.raises(InputError, match="64 positions: ask for at most"):
        lm.generate("a cat", max_new_tokens=64)
