"""A run folder: config.json, metrics.jsonl, loss.png, samples/, checkpoints/step-000500/, model/, README.md (the model card)."""
import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gencore.check import CheckpointError, ConfigError
from gencore.checkpoint import save_folder
from gencore.digest import check_file, parse_json

STATE = "training_state.pt"
UNSTATED = {"Data": "Not stated: say what this was trained on, and whose it is.",
            "Licence": "Not stated: that of the data, and of the model that this one went on from, if any. Fill it in before the weights are shared."}
STATE_HOLDS = ("step", "config", "model", "optimizer", "ema", "cpu_seconds")


@dataclass(frozen=True)
class Run:
    """Where a training lives and what it makes on its way."""
    folder: str | Path                   # the run folder; made when it is not there
    resume: bool = False                 # go on from the newest checkpoint in `folder`
    extend: bool = False                 # on resume, `steps` may differ: the schedule is then that of the new length
    export: Callable | None = None       # model -> files for save_folder (a pretrained folder); None = the bare weights
    evaluate: Callable | None = None     # model -> {"name": number}, under no_grad, in eval mode
    sample: Callable | None = None       # (model, folder, step) writes samples into the folder
    card: dict = field(default_factory=dict)    # heading -> text for the model card: "Data", "Licence", "Command", ...
    plan: dict = field(default_factory=dict)    # what else a resumed run goes on under, beside its TrainConfig: name -> plain value
    progress: bool = True                # False silences bar and messages
    kept: bool = True                    # False: the folder goes when the script ends, so one that is stopped can't go on, and is not told to

    def path(self, *names):
        return Path(self.folder).joinpath(*names)


def make_folder(run):
    """Makes the run folder; ConfigError where that can't be, or where files lie that a run would write over and no run has written."""
    try:
        run.path().mkdir(parents=True, exist_ok=True)
        ours = not run.path("config.json").exists() or {"steps", "lr"} <= parse_json(run.path("config.json").read_bytes(), "config.json").keys()
    except CheckpointError:                                                          # no JSON: not ours
        ours = False
    except OSError as error:
        raise ConfigError(f"can't make the run folder {run.folder}: {error.strerror}; choose another folder") from error
    written = [name for name in ("config.json", "README.md", "metrics.jsonl", "model") if run.path(name).exists()]
    if written and (not ours or "config.json" not in written):
        raise ConfigError(f"{run.folder} holds a {written[0]} that is of no run: choose another folder, so that it is not written over")


def open_run(run):
    """Makes the folder of a run; ConfigError where that can't be, or where a run is already that is not to be resumed. For scripts with long work
    before `fit`, which does the same."""
    if not run.resume and checkpoints(run):
        step, _ = checkpoints(run)[-1]
        raise ConfigError(f"{run.folder} already holds a run at step {step}: resume it (resume=True, --resume) or choose another folder")
    make_folder(run)


def checkpoints(run):
    """Run -> [(step, folder)] of its whole checkpoints, oldest first."""
    found = []
    for folder in run.path("checkpoints").glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", folder.name)
        if match and (folder / STATE).is_file():
            found.append((int(match[1]), folder))
    return sorted(found)


def save_checkpoint(run, step, files, state):
    """Writes checkpoints/step-000500 by one rename (files of the model + the training state); keeps the last two. Returns the folder."""
    folder = run.path("checkpoints", f"step-{step:06d}")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stray in folder.parent.glob(".step-*"):                                      # of a run that was killed while it saved
        shutil.rmtree(stray, ignore_errors=True)
    save_folder(folder, {**files, STATE: buffer.getvalue()})
    for _, old in checkpoints(run)[:-2]:
        shutil.rmtree(old)
    return folder


def load_state(folder):
    """Checkpoint folder -> its training state on the CPU. Nothing but tensors and plain values is ever read."""
    path = Path(folder) / STATE
    try:
        check_file(path)                                                             # torch's reader takes flipped bits as they are
        state = torch.load(path, map_location="cpu", weights_only=True)
        if missing := [name for name in STATE_HOLDS if name not in state]:
            raise KeyError(missing[0])
        return state
    except Exception as error:                                                       # what a broken archive raises is torch's choice
        raise CheckpointError(f"{path} can't be read ({type(error).__name__}): remove {folder} "
                              f"to resume from the checkpoint before it") from error


def append_metrics(run, row):
    """Adds one line to metrics.jsonl."""
    with open(run.path("metrics.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_metrics(run):
    """Lines of metrics.jsonl as dicts; a line cut off by a crash, or of something else, is left out."""
    path = run.path("metrics.jsonl")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def truncate_metrics(run, step):
    """Forgets what metrics.jsonl says beyond `step`: a resumed run writes those lines again."""
    kept = [json.dumps(row) + "\n" for row in read_metrics(run) if row["step"] <= step]
    part = run.path("metrics.jsonl.part")
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, run.path("metrics.jsonl"))


def draw_loss(run):
    """Draws loss.png: the training loss, its running mean, and every evaluation called *loss."""
    from matplotlib.figure import Figure
    rows = read_metrics(run)
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    smooth, mean = [], None
    for value in losses:
        mean = value if mean is None else 0.98 * mean + 0.02 * value
        smooth.append(mean)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="loss of each step")
    axes.plot(steps, smooth, label="running mean")
    for name in sorted({key for row in rows for key in row if key.endswith("loss") and key != "loss"}):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points), marker="o", markersize=3, label=name)
    axes.set(xlabel="step", ylabel="loss per target")
    axes.legend()
    figure.savefig(run.path("loss.png"), dpi=120)


def filled_in(run):
    """{heading: text} of what was asked for in the run's last card, and has been filled in there or in that of its model."""
    found = {}
    for path in (run.path("model", "README.md"), run.path("README.md")):
        sections = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)[1:] if path.is_file() else []
        for heading, text in zip(sections[::2], sections[1::2]):
            if heading in UNSTATED and text.strip() not in (UNSTATED[heading], ""):
                found[heading] = text.strip()
    return found


def model_card(run, config, seconds):
    """Text of README.md: what the caller's card says, the last figures, the settings and the time."""
    rows = read_metrics(run)
    last = {}
    for row in rows:
        last.update(row)
    lines = [f"# {run.card.get('title', Path(run.folder).resolve().name)}", ""]
    command = f"```\n{shlex.join(['python', *sys.argv])}\n```"
    for heading, text in {"Command": command, **UNSTATED, **filled_in(run), **run.card}.items():
        if heading != "title":
            lines += [f"## {heading}", "", str(text), ""]
    lines += ["## Figures", "", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value:.6g} |" for name, value in last.items() if name not in ("seconds", "lr")]
    lines += ["", "## Training", "", f"- {last.get('step', 0):,} of {config['steps']:,} steps, {seconds / 60:.1f} minutes of CPU time",
              f"- torch {torch.__version__}, {torch.get_num_threads()} threads"]
    lines += [f"- {name}: {value}" for name, value in config.items()]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace").decode()     # a folder's name may be no UTF-8
