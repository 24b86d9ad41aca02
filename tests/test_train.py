"""fit(): its steps against a loop written out here, resume to the bit, refusals, two processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gencore import muon
from gencore.check import CheckpointError, ConfigError, DataError
from gencore.checkpoint import load_tensors
from gencore.optim import schedule
from gencore.run_folder import STATE, checkpoints, load_state
from gencore.train import Run, TrainConfig, TrainingError, TrainingStopped, fit

ROOT = Path(__file__).parents[1]
HARD = TrainConfig(steps=12, batch=8, accumulate=2, lr=1e-2, muon_lr=1e-2, warmup=3, ema=0.9, save_every=4, eval_every=3, seed=5)
PLAIN = TrainConfig(steps=6, batch=8, lr=1e-2, warmup=2, save_every=0, clip=0.5)


class Toy(nn.Module):
    """Embedding, two blocks with dropout, a head."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(13, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 16))
                                    for _ in range(2))
        self.head = nn.Linear(16, 13)

    def forward(self, ids):
        x = self.embed(ids)                                                         # (B, T, D)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)                                                         # (B, T, V)


class Ragged:
    """Rows of unequal length: targets beyond a row's end are -100. A pure function of the step."""

    def __init__(self, rows=8, length=9):
        self.rows, self.length = rows, length

    def batch(self, step, rank=0, world=1):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(13, (self.rows, self.length), generator=generator)
        lengths = torch.randint(1, self.length, (self.rows,), generator=generator)
        targets = ids.roll(-1, 1).masked_fill(torch.arange(self.length) >= lengths[:, None], -100)
        each = self.rows // world
        return {"ids": ids[rank * each:(rank + 1) * each], "targets": targets[rank * each:(rank + 1) * each]}


def loss(model, batch, generator):
    logits = model(batch["ids"])
    summed = nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100, reduction="sum")
    return summed, (batch["targets"] != -100).sum()


def noisy_loss(model, batch, generator):
    """Noise from the generator and from torch's own state, as diffusion and dropout have it."""
    summed, targets = loss(model, batch, generator)
    return summed * (1 + 0.1 * torch.rand((), generator=generator) + 0.1 * torch.rand(())), targets


def toy_fit(folder, config=PLAIN, **choices):
    """choices: model, loss, data for fit; everything else for Run."""
    model, its_loss, data = choices.pop("model", None) or Toy(), choices.pop("loss", loss), choices.pop("data", None) or Ragged()
    return fit(model, its_loss, data, config, run=Run(folder, progress=choices.pop("progress", False), **choices))


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def stop_at(folder, config, step, number=signal.SIGTERM, **choices):
    """Runs until a signal comes during the evaluation after `step`; the step after it is the last."""

    def evaluate(model):
        if len(metrics(folder)) == step - 1:
            os.kill(os.getpid(), number)
        return {}

    with pytest.raises(TrainingStopped) as stopped:
        toy_fit(folder, config, evaluate=evaluate, **choices)
    return stopped.value.code


# the mathematics of a step

def test_fit_equals_a_loop_written_out(tmp_path):
    ours = toy_fit(tmp_path / "run")
    model = Toy()
    decayed, plain = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.95))
    for step in range(PLAIN.steps):
        batch = Ragged().batch(step)
        value = nn.functional.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = PLAIN.lr * schedule(step, PLAIN)
        optimizer.step()
        row = metrics(tmp_path / "run")[step]
        assert row["loss"] == pytest.approx(value.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert row["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
    for a, b in zip(ours.parameters(), model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_gradient_equals_full_batch(tmp_path, parts):
    """SGD-like view: one step, ragged lengths, so that a mean of means would differ."""
    config = replace(PLAIN, steps=1)
    grads = []
    for accumulate in (1, parts):
        model = Toy()
        toy_fit(tmp_path / str(accumulate), replace(config, accumulate=accumulate), model=model)
        grads.append([p.grad for p in model.parameters()])
    for whole, summed in zip(*grads):
        torch.testing.assert_close(whole, summed, rtol=1e-5, atol=1e-6)
    whole, summed = metrics(tmp_path / "1")[0], metrics(tmp_path / str(parts))[0]
    assert whole["loss"] == pytest.approx(summed["loss"], rel=1e-6) and whole["targets"] == summed["targets"]


def test_every_model_overfits_eight_items(tmp_path):
    class One(Ragged):
        def batch(self, step, rank=0, world=1):
            ids = torch.arange(8)[:, None].repeat(1, 2)
            return {"ids": ids, "targets": (ids + 3) % 13}

    toy_fit(tmp_path / "run", replace(HARD, steps=80, save_every=0, eval_every=0), data=One(), model=Toy(dropout=0.1))
    assert metrics(tmp_path / "run")[-1]["loss"] < 0.05


def test_bf16_trains_float32_weights_close_to_float32(tmp_path):
    config = replace(PLAIN, steps=10)
    model = toy_fit(tmp_path / "bf16", replace(config, precision="bf16"))
    toy_fit(tmp_path / "float32", config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    half, full = metrics(tmp_path / "bf16"), metrics(tmp_path / "float32")
    assert half[-1]["loss"] == pytest.approx(full[-1]["loss"], rel=2e-2)
    assert [row["loss"] for row in half] != [row["loss"] for row in full]


@pytest.mark.parametrize("can", [True, False])
def test_auto_precision_is_bf16_exactly_where_the_processor_has_it(can, tmp_path, monkeypatch):
    monkeypatch.setattr("gencore.train.multiplies_bfloat16", lambda kind: can)
    config = replace(PLAIN, steps=3)
    toy_fit(tmp_path / "auto", replace(config, precision="auto"))
    toy_fit(tmp_path / "said", replace(config, precision="bf16" if can else "float32"))
    assert [row["loss"] for row in metrics(tmp_path / "auto")] == [row["loss"] for row in metrics(tmp_path / "said")]


def test_frozen_weights_stay_and_the_rest_moves(tmp_path):
    model = Toy()
    model.embed.weight.requires_grad_(False)
    toy_fit(tmp_path / "run", HARD, model=model)
    assert torch.equal(model.embed.weight, Toy().embed.weight)
    assert not torch.equal(model.head.weight, Toy().head.weight)


# exact resume

@pytest.mark.parametrize("stop", [3, 6, 9])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not(tmp_path, stop):
    """With dropout, noise, accumulation, Muon and EMA; stopped inside the constant part and inside the decay."""
    whole = toy_fit(tmp_path / "whole", HARD, model=Toy(0.2), loss=noisy_loss)
    assert stop_at(tmp_path / "cut", HARD, stop, model=Toy(0.2), loss=noisy_loss) == 143
    torch.manual_seed(99)                                                           # another process has other random states
    resumed = toy_fit(tmp_path / "cut", HARD, model=Toy(0.2), loss=noisy_loss, resume=True)
    assert equal(whole, resumed)
    one, two = (load_state(checkpoints(Run(tmp_path / name))[-1][1]) for name in ("whole", "cut"))
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    assert [{**row, "seconds": 0} for row in metrics(tmp_path / "whole")] == [{**row, "seconds": 0} for row in metrics(tmp_path / "cut")]


def test_evaluation_and_samples_do_not_disturb_the_training(tmp_path):
    def evaluate(model):
        torch.rand(7)
        return {"loud": float(torch.rand(()))}

    config = replace(HARD, ema=None)
    quiet = toy_fit(tmp_path / "quiet", replace(config, eval_every=0), model=Toy(0.2))
    busy = toy_fit(tmp_path / "busy", replace(config, eval_every=1), model=Toy(0.2), evaluate=evaluate,
                   sample=lambda model, folder, step: (folder / f"{step}.txt").write_text("x"))
    assert equal(quiet, busy)
    assert len(list((tmp_path / "busy/samples").iterdir())) == HARD.steps


def test_metrics_after_the_checkpoint_are_written_again(tmp_path):
    stop_at(tmp_path / "run", HARD, 6)
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 123.0}\n{"step": 9, "lo')                   # what a killed process may leave
    toy_fit(tmp_path / "run", HARD, resume=True)
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[7]["loss"] != 123.0


def test_resuming_a_finished_run_gives_its_model_again(tmp_path):
    first = toy_fit(tmp_path / "run", HARD)
    again = toy_fit(tmp_path / "run", HARD, resume=True)
    assert equal(first, again) and len(metrics(tmp_path / "run")) == 12


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    assert equal(toy_fit(tmp_path / "a", PLAIN), toy_fit(tmp_path / "b", PLAIN, resume=True))


def test_resume_under_other_settings_says_which_differ(tmp_path):
    stop_at(tmp_path / "run", HARD, 6)
    with pytest.raises(ConfigError, match="lr was 0.01, is 0.5.*clip was 1.0, is None"):
        toy_fit(tmp_path / "run", replace(HARD, lr=0.5, clip=None), resume=True)
    with pytest.raises(ConfigError, match="steps was 12, is 20"):
        toy_fit(tmp_path / "run", replace(HARD, steps=20), resume=True)
    toy_fit(tmp_path / "run", replace(HARD, threads=1, save_every=5, eval_every=2), resume=True)
    toy_fit(tmp_path / "run", replace(HARD, threads=1, steps=20), resume=True, extend=True)
    assert len(metrics(tmp_path / "run")) == 20


def test_resume_of_another_model_names_a_weight_that_does_not_fit(tmp_path):
    stop_at(tmp_path / "run", HARD, 6)
    other = Toy()
    other.head = nn.Linear(16, 14)
    with pytest.raises(CheckpointError, match=r"another model: head.bias does not fit \(2 weights in all\)"):
        toy_fit(tmp_path / "run", HARD, model=other, resume=True)


def test_a_training_state_that_runs_code_or_lacks_parts_is_refused(tmp_path):
    stop_at(tmp_path / "run", HARD, 6)
    _, folder = checkpoints(Run(tmp_path / "run"))[-1]
    torch.save({"step": 7}, folder / STATE)
    with pytest.raises(CheckpointError, match="training_state.pt can't be read"):
        toy_fit(tmp_path / "run", HARD, resume=True)
    torch.save({"step": 7, "run": Path("evil")}, folder / STATE)                      # any class that is not a plain value
    with pytest.raises(CheckpointError, match=r"training_state.pt can't be read .*: remove .*step-000007"):
        toy_fit(tmp_path / "run", HARD, resume=True)


def test_a_run_is_not_overwritten_by_accident(tmp_path):
    toy_fit(tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run at step 6: resume it"):
        toy_fit(tmp_path / "run")


# refusals

@pytest.mark.parametrize("bad, rows", [("loss", "904, 905, 906, 907;"), ("gradient norm", "900, 901, 902, 903, 904, 905, 906, 907;")])
def test_a_value_that_is_not_finite_stops_with_step_rate_rows_and_checkpoint(tmp_path, bad, rows):
    class Poisoned(Ragged):
        def row_names(self, step, rank=0, world=1):
            return [100 * step + row for row in range(self.rows)]

        def batch(self, step, rank=0, world=1):
            return {**super().batch(step), "poison": (torch.arange(8) == 5) & (step == 9)}

    def poisoned_loss(model, batch, generator):
        summed, targets = loss(model, batch, generator)
        if batch["poison"].any():                                                   # sqrt at 0: the value is finite, its slope is not
            summed = summed * torch.nan if bad == "loss" else summed + (summed * 0).sqrt()
        return summed, targets

    model = Toy()
    with pytest.raises(TrainingError) as error:
        toy_fit(tmp_path / "run", HARD, model=model, loss=poisoned_loss, data=Poisoned())
    words = str(error.value)
    assert words.startswith(f"{bad} is nan at step 9 (lr {HARD.lr * schedule(9, HARD):.3g}), batch rows {rows}")
    assert f"last good checkpoint: {tmp_path / 'run/checkpoints/step-000008'}" in words
    assert all(p.isfinite().all() for p in model.parameters()) and len(metrics(tmp_path / "run")) == 9


def test_threads_are_set_and_come_back(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    toy_fit(tmp_path / "run", replace(PLAIN, threads=3, steps=1))
    assert asked == [3, 1]


@pytest.mark.parametrize("change, words", [
    ({"steps": 0}, "steps should be at least 1, got 0"),
    ({"batch": 0}, "batch should be at least 1, got 0"),
    ({"precision": "fp8"}, 'precision should be "float32", "bf16" or "auto", got "fp8"'),
    ({"decay": 1.5}, "expected 0 to 1, got 1.5"),
    ({"lr": 0.0}, "lr and muon_lr should be above 0"), ({"lr": float("nan")}, "TrainConfig.lr"), ({"steps": 1.5}, "TrainConfig.steps"),
    ({"seed": -1}, "seed should be 0 or more, got -1"),
    ({"clip": -1.0}, "expected above 0, or None for no clipping, got -1.0"),
    ({"clip": 0.0}, "expected above 0, or None for no clipping, got 0.0"),
    ({"weight_decay": -0.1}, "weight_decay should be 0 or more, got -0.1"),
    ({"threads": 0}, "threads should be at least 1, got 0"),
    ({"ema": 1.0}, "ema should lie between 0 and 1, got 1.0"),
    ({"accumulate": 3}, "accumulate=3 does not divide the 8 rows"),
    ({"batch": 16}, r"data gave \[8\] rows to each of 1 processes, TrainConfig.batch is 16"),
])
def test_settings_that_do_not_fit_are_refused_in_a_sentence(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        toy_fit(tmp_path / "run", replace(PLAIN, **change))


def test_sharded_weights_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    from accelerate.utils import DistributedType
    monkeypatch.setattr("accelerate.Accelerator", lambda mixed_precision, cpu: SimpleNamespace(distributed_type=DistributedType.FSDP))
    with pytest.raises(ConfigError, match="launch it with DDP"):
        toy_fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_without_targets_is_refused(tmp_path):
    with pytest.raises(DataError, match="the batch of step 0 has no targets"):
        toy_fit(tmp_path / "run", loss=lambda model, batch, generator: (loss(model, batch, generator)[0], 0))


# two processes

TWO = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_train as t

def work():
    from accelerate import Accelerator
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    t.torch.set_num_threads(1)
    t.muon.multiplies_bfloat16 = lambda kind: False
    t.toy_fit({folder!r} + "/two", t.HARD)
    if accelerator.is_main_process:
        t.os.mkdir({folder!r} + "/done")
    config = t.replace(t.HARD, steps=12)

    def evaluate(model):                                          # at first the main process alone is signalled, then both, as Ctrl-C does
        done = len(t.metrics({folder!r} + "/cut"))
        if done == 5:
            t.os.kill(t.os.getpid(), t.signal.SIGTERM)
        if done == 8:
            for process in (t.os.getpid(), *others):
                t.os.kill(process, t.signal.SIGINT)
        return {{}}

    pids = accelerator.gather(t.torch.tensor([t.os.getpid()])).tolist()
    others = [pid for pid in pids if pid != t.os.getpid()]
    for resume, code in ((False, 143), (True, 130)):
        try:
            t.toy_fit({folder!r} + "/cut", config, resume=resume, evaluate=evaluate)
            raise AssertionError("it should have stopped")
        except t.TrainingStopped as stopped:
            assert stopped.code == code, stopped.code
    t.toy_fit({folder!r} + "/cut", config, resume=True)

if __name__ == "__main__":
    from accelerate import debug_launcher
    debug_launcher(work, num_processes=2)
"""


def test_two_processes_give_the_loss_curve_of_one_and_resume_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda kind: False)      # its bfloat16 magnifies how two sums are rounded; fit is on trial here
    path = tmp_path / "two.py"
    path.write_text(TWO.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    one = toy_fit(tmp_path / "one", HARD)
    first, both, cut = metrics(tmp_path / "one"), metrics(tmp_path / "two"), metrics(tmp_path / "cut")
    assert (tmp_path / "done").is_dir() and len(both) == 12
    assert [row["targets"] for row in both] == [row["targets"] for row in first]
    assert [row["loss"] for row in both] == pytest.approx([row["loss"] for row in first], rel=1e-4)
    assert [row["grad_norm"] for row in both] == pytest.approx([row["grad_norm"] for row in first], rel=1e-3)
    assert [row["loss"] for row in cut] == [row["loss"] for row in both]
    for name, weight in load_tensors(tmp_path / "two/model/model.safetensors").items():
        torch.testing.assert_close(weight, one.state_dict()[name], rtol=1e-3, atol=1e-4)
