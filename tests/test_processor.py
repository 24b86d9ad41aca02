"""gencore/processor.py: where products of bfloat16 are worth it."""
import pytest
import torch

from gencore import processor


@pytest.mark.parametrize("has, bfloat16, worth", [(True, 1.0, True), (True, 3.0, False), (False, 1.0, False)])
def test_bfloat16_is_for_processors_that_have_it_and_are_faster_by_it(has, bfloat16, worth, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(processor, "seconds", {torch.bfloat16: bfloat16, torch.float32: 2.0}.get)
    processor.multiplies_bfloat16.cache_clear()
    assert processor.multiplies_bfloat16("cpu") == worth
    processor.multiplies_bfloat16.cache_clear()


def test_the_answer_is_a_constant_of_compiled_steps():
    step = torch.compile(lambda x: x * 2 if processor.multiplies_bfloat16("cpu") else x * 3, fullgraph=True, backend="eager")
    assert step(torch.ones(1)).item() == (2 if processor.multiplies_bfloat16("cpu") else 3)
    assert processor.seconds(torch.float32, size=8, times=2) > 0
