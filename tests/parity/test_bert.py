"""textgen/families/bert.py against transformers: logits of both heads, state dicts to the bit, old spellings."""
import pytest
import torch

from gencore.check import CheckpointError, ConfigError
from gencore.checkpoint import save_folder
from tests.parity.causal import random_model
from textgen import CausalLM, MaskedLM, TextClassifier
from textgen.families import family

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 40}
CASES = {"plain": {}, "tanh gelu": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
         "three types": {"type_vocab_size": 3, "hidden_dropout_prob": 0.2}}


def model_of(kind, **changes):
    import transformers
    return random_model(getattr(transformers, kind), transformers.BertConfig(**{**SMALL, **changes}))


def inputs():
    torch.manual_seed(1)
    keep = torch.ones(3, 20, dtype=torch.long)
    keep[1, 13:], keep[2, 5:] = 0, 0
    return torch.randint(0, 97, (3, 20)), keep, torch.randint(0, 2, (3, 20))


@pytest.mark.parametrize("kind, ours", [("BertForMaskedLM", MaskedLM), ("BertForSequenceClassification", TextClassifier)])
@pytest.mark.parametrize("case", CASES)
def test_a_random_bert_comes_here_and_goes_back(case, kind, ours, tmp_path):
    import transformers
    theirs = model_of(kind, **CASES[case], **({"id2label": {0: "no", 1: "yes", 2: "maybe"}} if ours is TextClassifier else {}))
    theirs.save_pretrained(tmp_path / "theirs")
    model = ours.from_pretrained(tmp_path / "theirs")
    ids, keep, types = inputs()
    with torch.no_grad():
        wanted = theirs(ids, attention_mask=keep, token_type_ids=types).logits
        found = model(ids, keep.bool(), types)
    real = slice(None) if ours is TextClassifier else keep.bool()
    torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)

    model.save_pretrained(tmp_path / "ours")
    back = getattr(transformers, kind).from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.from_pretrained(tmp_path / "ours").cfg == model.cfg and back.config.id2label == theirs.config.id2label


def test_the_files_of_pretraining_and_old_spellings_are_read(tmp_path):
    theirs = model_of("BertForPreTraining")
    state = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
             for name, tensor in theirs.state_dict().items() if "predictions.decoder" not in name}
    save_folder(tmp_path / "old", {"config.json": {**theirs.config.to_dict(), "dtype": "float32"}, "model.safetensors": state})
    ids, keep, types = inputs()
    with torch.no_grad():
        torch.testing.assert_close(MaskedLM.from_pretrained(tmp_path / "old")(ids, keep.bool(), types)[keep.bool()],
                                   theirs(ids, attention_mask=keep, token_type_ids=types).prediction_logits[keep.bool()], atol=1e-5, rtol=1e-5)


def test_a_folder_of_another_kind_says_how_to_open_it(tmp_path):
    model_of("BertForMaskedLM").save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="an encoder: open it with textgen.MaskedLM.from_pretrained or textgen.TextClassifier.from"):
        CausalLM.from_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match='no tensor "bert.pooler.dense.weight"'):
        TextClassifier.from_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="novelist holds a causal language model: open it with textgen.CausalLM.from_pretrained"):
        MaskedLM.from_pretrained("novelist")


def test_what_is_not_done_here_is_refused():
    for field, words in (({"is_decoder": True}, "is_decoder should be False, got True"), ({"problem_type": "regression"}, "problem_type should be")):
        with pytest.raises(ConfigError, match=f"config.json of a bert model: {words}"):
            family("bert", "MaskedLM").to_ours({**SMALL, **field})
    assert family("bert", "MaskedLM").to_ours({**SMALL, "hidden_act": "swish"}).transformer.mlp.activation == "silu"
