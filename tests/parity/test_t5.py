"""T5EncoderModel and TextEncoder on the same random weights."""
import pytest
import torch

from gencore.check import CheckpointError, ConfigError
from gencore.text_encoder import TextEncoder
from imagegen.families.t5 import T5, encoder_only

FIELDS = {"vocab_size": 50, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 2, "num_heads": 3, "relative_attention_num_buckets": 8,
          "relative_attention_max_distance": 20}


def opened(form, whole=False):
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration
    torch.manual_seed(0)
    config = T5Config(**FIELDS, feed_forward_proj=form)
    theirs = (T5ForConditionalGeneration if whole else T5EncoderModel)(config).eval()
    for name, weight in theirs.named_parameters():
        if "layer_norm" in name:
            torch.nn.init.normal_(weight, 1, 0.2)
    cfg = T5.to_ours(config.to_dict())
    ours = TextEncoder(cfg).eval()
    ours.load_state_dict(T5.import_state(cfg, encoder_only(theirs.state_dict())))
    return theirs, ours


@pytest.mark.parametrize("form", ["relu", "gated-gelu"])
@torch.no_grad()
def test_t5_encoder_says_the_same_as_transformers(form):
    theirs, ours = opened(form)
    ids, keep = torch.randint(50, (2, 60)), torch.arange(60)[None] < torch.tensor([[60], [41]])
    expected = theirs(ids, attention_mask=keep.long()).last_hidden_state
    torch.testing.assert_close(ours(ids, keep)[keep], expected[keep], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_encoder_of_a_whole_t5_opens():
    theirs, ours = opened("gated-gelu", whole=True)
    ids = torch.randint(50, (1, 9))
    torch.testing.assert_close(ours(ids), theirs.encoder(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["relu", "gated-gelu"])
def test_t5_weights_survive_the_way_there_and_back(form):
    from transformers import T5Config, T5EncoderModel
    theirs, ours = opened(form)
    back = T5.export_state(ours.cfg, ours.state_dict())
    state = {name: t for name, t in theirs.state_dict().items() if name != "encoder.embed_tokens.weight"}
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert T5.to_ours(T5.to_theirs(ours.cfg)) == ours.cfg
    T5EncoderModel(T5Config(**T5.to_theirs(ours.cfg))).load_state_dict(theirs.state_dict())


def test_t5_of_another_form_or_without_encoder_is_refused():
    with pytest.raises(ConfigError, match="feed_forward_proj"):
        T5.to_ours(FIELDS | {"feed_forward_proj": "gated-silu"})
    with pytest.raises(CheckpointError, match="encoder"):
        encoder_only({"model.norm.weight": torch.zeros(1)})
