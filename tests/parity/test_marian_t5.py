"""textgen/families/marian.py and t5.py against transformers: logits, state dicts to the bit, the texts of greedy and of beam search."""
import pytest
import torch

from gencore.check import ConfigError
from gencore.checkpoint import load_tensors
from tests.parity.causal import random_model
from textgen import Seq2SeqLM
from textgen.families import family

MARIAN = {"vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
          "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 64, "pad_token_id": 60, "decoder_start_token_id": 60,
          "eos_token_id": 0, "forced_eos_token_id": None}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 6, "num_heads": 4, "d_ff": 48, "num_layers": 2, "relative_attention_num_buckets": 8,
      "relative_attention_max_distance": 20, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
CASES = {
    "marian": ("Marian", "MarianMTModel", MARIAN),
    "marian swish": ("Marian", "MarianMTModel", {**MARIAN, "activation_function": "swish", "scale_embedding": True}),
    "t5": ("T5", "T5ForConditionalGeneration", T5),
    "t5 1.1": ("T5", "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 3}),
}


def model_of(case):
    """Random weights; Marian's sinusoids stay what they are, and it never writes its padding, as its published configurations say."""
    import transformers
    kind, model, changes = CASES[case]
    theirs = random_model(getattr(transformers, model), getattr(transformers, kind + "Config")(**changes))
    if kind == "Marian":
        for side in (theirs.model.encoder, theirs.model.decoder):
            side.embed_positions.weight.data = side.embed_positions.create_weight()
        theirs.final_logits_bias = torch.randn(1, 61).masked_fill(torch.arange(61) == 60, -1e4)
    return theirs


def inputs():
    torch.manual_seed(1)
    keep = torch.ones(3, 18, dtype=torch.long)
    keep[1, 11:], keep[2, 5:] = 0, 0
    return torch.randint(2, 60, (3, 18)), keep, torch.randint(2, 60, (3, 30))


@pytest.mark.parametrize("case", CASES)
def test_a_random_model_comes_here_and_goes_back(case, tmp_path):
    from transformers import AutoModelForSeq2SeqLM
    theirs = model_of(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Seq2SeqLM.from_pretrained(tmp_path / "theirs")
    source, keep, target = inputs()
    with torch.no_grad():
        wanted = theirs(input_ids=source, attention_mask=keep, decoder_input_ids=target).logits
        torch.testing.assert_close(ours(source, target, keep.bool()), wanted, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    back, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert back.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), theirs.state_dict().values()))
    assert Seq2SeqLM.from_pretrained(tmp_path / "ours").cfg == ours.cfg


@pytest.mark.parametrize("beams, penalty", [(1, 1.0), (3, 1.0), (4, 0.6), (4, 2.0)])
@pytest.mark.parametrize("case", ["marian swish", "t5"])
def test_what_is_written_is_what_transformers_writes(case, beams, penalty, tmp_path):
    theirs = model_of(case)
    theirs.save_pretrained(tmp_path)
    ours, (source, keep, _) = Seq2SeqLM.from_pretrained(tmp_path), inputs()
    made = theirs.generate(input_ids=source, attention_mask=keep, num_beams=beams, do_sample=False, max_new_tokens=25, length_penalty=penalty,
                           early_stopping=False)
    wanted = [[token for token in row[1:].tolist() if token != theirs.config.pad_token_id] for row in made]
    assert ours.write(source, keep.bool(), beams=beams, limit=25, length_penalty=penalty) == wanted


def test_marian_never_says_its_padding(tmp_path):
    theirs = model_of("marian")
    theirs.final_logits_bias[:, 60] = 30.0                       # as published weights, which rate it highest
    theirs.save_pretrained(tmp_path)
    ours, (source, keep, _) = Seq2SeqLM.from_pretrained(tmp_path), inputs()
    made = theirs.generate(input_ids=source, attention_mask=keep, do_sample=False, max_new_tokens=25, bad_words_ids=[[60]])
    assert ours.write(source, keep.bool(), limit=25) == [[token for token in row[1:].tolist() if token != 60] for row in made]
    assert all(60 not in row for row in ours.write(source, keep.bool(), beams=3, limit=25))
    ours.save_pretrained(tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours")
    assert back.generate(input_ids=source, attention_mask=keep, do_sample=False, max_new_tokens=25).tolist() == made.tolist()


def test_the_bias_that_t5_never_read_is_left_out(tmp_path):
    theirs = model_of("t5")
    extra = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(8, 4)}
    theirs.save_pretrained(tmp_path, state_dict={**theirs.state_dict(), **extra})
    assert extra.keys() <= load_tensors(tmp_path / "model.safetensors").keys()
    source, keep, target = inputs()
    with torch.no_grad():
        wanted = theirs(input_ids=source, attention_mask=keep, decoder_input_ids=target).logits
        torch.testing.assert_close(Seq2SeqLM.from_pretrained(tmp_path)(source, target, keep.bool()), wanted, atol=1e-5, rtol=1e-5)


def test_what_is_not_done_here_is_refused():
    with pytest.raises(ConfigError, match="share_encoder_decoder_embeddings should be True"):
        family("marian", "Seq2SeqLM").to_ours({**MARIAN, "share_encoder_decoder_embeddings": False})
    with pytest.raises(ConfigError, match="feed_forward_proj should be"):
        family("t5", "Seq2SeqLM").to_ours({**T5, "feed_forward_proj": "gated-silu"})
