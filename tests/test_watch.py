"""Ctrl-C and SIGTERM, and what a run says of its time and memory."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import HARD, Toy, metrics, noisy_loss, stop_at, toy_fit

from gencore.run_folder import Run, checkpoints, load_state
from gencore.watch import Pace, spoken

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_train as t
if __name__ == "__main__":
    data = t.Ragged()
    steps = t.replace(t.HARD, steps=100_000, save_every=0)
    t.fit(t.Toy(0.2), t.noisy_loss, data, steps, run=t.Run({folder!r}, resume={resume}))
"""


def script(tmp_path, folder, resume=False):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder), resume=resume))
    return [sys.executable, str(path)]


def wait_for_steps(process, folder, steps):
    for _ in range(2400):                                                           # a loaded machine takes its time
        file = folder / "metrics.jsonl"
        if file.is_file() and len(file.read_text().splitlines()) >= steps:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the run did not get going")


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(script(tmp_path, folder), stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for_steps(process, folder, 15)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in words and "Traceback" not in words
    assert "a step, evaluation not counted" in words and "GiB" in words
    (step, saved), = checkpoints(Run(folder))
    assert step == len(metrics(folder)) and f"saved {saved}" in words
    stop_at(tmp_path / "here", replace(HARD, steps=100_000, save_every=0, eval_every=1), step - 1, model=Toy(0.2), loss=noisy_loss)
    there, here = load_state(saved), load_state(checkpoints(Run(tmp_path / "here"))[-1][1])
    assert all(torch.equal(there["model"][name], here["model"][name]) for name in here["model"])


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def evaluate(model):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)                                        # in the background of a shell it is ignored
    with pytest.raises(KeyboardInterrupt):
        toy_fit(tmp_path / "run", HARD, evaluate=evaluate)
    assert before in (signal.default_int_handler, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before                                # and the handlers are the old ones again


def test_progress_false_is_silent_and_progress_tells_time_and_memory(tmp_path, capfd):
    toy_fit(tmp_path / "run", HARD)
    assert capfd.readouterr() == ("", "")
    toy_fit(tmp_path / "loud", HARD, progress=True)
    words = capfd.readouterr().err
    assert "for the 2 steps left" in words and "peak memory so far" in words and f"done: {tmp_path / 'loud/model'}" in words


def test_the_time_left_is_the_median_of_ten_steps_times_the_steps_left():
    said = []
    pace = Pace(110, torch.device("cpu"), said.append)
    for seconds in [50.0] + [3.0] * 8 + [40.0]:                                     # the first step and a disturbed one do not count
        pace.tell(seconds)
    pace.tell(9.0)
    assert len(said) == 1 and said[0].startswith("about 5 minutes for the 100 steps left (3 s a step, evaluation not counted); peak memory")


@pytest.mark.parametrize("seconds, words", [(41.2, "41 s"), (720, "12 minutes"), (12240, "3.4 hours")])
def test_durations_are_spoken_as_people_do(seconds, words):
    assert spoken(seconds) == words
