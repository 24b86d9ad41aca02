"""textgen/presets.py: known shapes have their known sizes, and what is counted without tensors is what a real forward keeps."""
import pytest
import torch

from gencore.check import InputError, UnknownNameError
from textgen import CausalLM
from textgen.presets import PRESETS, gpt_shape, kept_bytes, main, needs, preset

PUBLISHED = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200, "llama3-8b": 8_030_261_248}


@pytest.mark.parametrize("name, parameters", PUBLISHED.items())
def test_a_known_shape_has_the_published_parameters(name, parameters):
    need = needs(preset(name), length=8)
    assert need.parameters == parameters and need.weights == 2 * parameters and need.states == 16 * parameters


@pytest.mark.parametrize("cfg", [PRESETS["1m"], gpt_shape(96, 3, 3, context=64)], ids=["llama", "gpt2"])
def test_the_count_is_what_a_real_forward_keeps(cfg):
    ids = torch.zeros(2, 48, dtype=torch.long)
    need = needs(cfg, batch=2, length=48, dtype=torch.float32)
    assert need.activations == kept_bytes(CausalLM(cfg), ids) > 48 * 2 * cfg.transformer.width * 4 * cfg.transformer.layers
    assert need.cache == 2 * cfg.transformer.layers * 2 * 48 * cfg.transformer.width * 4
    assert (need.inference, need.training) == (need.weights + need.cache, need.states + need.activations)


def test_memory_grows_linearly_with_the_text():
    short, long = (needs(PRESETS["3m"], length=length).activations for length in (128, 256))
    assert 1.95 < long / short < 2.05


def test_the_table_names_every_preset_and_gpt3_has_175_billion(capsys):
    main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in PRESETS) and "174,604,259,328" in printed


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="gpt2-xl"):
        preset("gpt2-x")


def test_memory_for_texts_that_a_model_cannot_read_is_no_figure():
    with pytest.raises(InputError, match="has 1024 learnt positions, it reads no 4,000 tokens"):
        needs(preset("gpt2"), length=4000)
    with pytest.raises(InputError, match="length should be"):
        needs(preset("gpt2"), length=-4)
    for batch in (0, -1, 1.5):
        with pytest.raises(InputError, match=f"batch should be a whole number of at least 1, got {batch}"):
            needs(preset("gpt2"), length=4, batch=batch)
