"""benchmarks/device.py: operations are counted by hand, in the usual products and in oneDNN's; a run on the CPU."""
import json
import sys

import pytest
import torch
from torch import nn

from benchmarks import device as benchmark
from gencore.fused import fits, product


def test_operations_are_two_for_each_weight_and_row_in_either_kind_of_product():
    linear, x = nn.Linear(24, 40, bias=False), torch.randn(64, 24)
    with torch.no_grad():
        for work in (lambda: linear(x), lambda: product(x, linear, "gelu")):
            seconds, flops = benchmark.measured(work, torch.device("cpu"), 2)
            assert flops == 2 * 24 * 40 * 64 and seconds > 0
        assert fits(x, linear)


def test_rates_are_written_for_the_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "device.json")
    monkeypatch.setattr(benchmark, "SIDES", {"cpu": (64,)})
    monkeypatch.setattr(benchmark, "drawing", lambda painter, count, dtype: torch.ones(8, 8) @ torch.ones(8, 8))
    monkeypatch.setattr(sys, "argv", ["device", "--batches", "2", "--rounds", "1"])
    benchmark.main()
    rows = json.loads((tmp_path / "device.json").read_text())["cpu"]["rows"]
    assert rows["drawing, float32, 2 at once"]["gflop_per_picture"] == 0.0 and 0 < rows["training, float32, 2 at once"]["share_of_matrix_rate"]
    assert 1 < rows["training, float32, 2 at once"]["gflop_per_picture"] < 5 and "GFLOP/s" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["device", "--device", "meta"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--device should be cpu, or cuda where torch finds one, got meta" in capsys.readouterr().err
