"""fit(): the one training loop, for every modality, on one CPU, one GPU or several processes.

Everything random is a function of (seed, step, process), so a run that was stopped and resumed ends with the bits of one that was not."""
import json
import math
import os
import random
import sys
import time
import zlib
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from gencore.check import CheckpointError, CommonthreadError, ConfigError, DataError
from gencore.checkpoint import file_bytes, save_folder
from gencore.config import to_dict
from gencore.optim import EMA, Optimizers, make_optimizer, scale_gradients, schedule
from gencore.processor import multiplies_bfloat16
from gencore.run_folder import (
    Run,
    append_metrics,
    checkpoints,
    draw_loss,
    load_state,
    model_card,
    open_run,
    save_checkpoint,
    truncate_metrics,
)
from gencore.train_config import TrainConfig, check_same_config
from gencore.watch import Pace, StopSignals

__all__ = ["Run", "TrainConfig", "TrainingError", "TrainingStopped", "fit"]


class TrainingError(CommonthreadError):
    """The training can't go on: a loss or a gradient is not finite."""


class TrainingStopped(SystemExit):
    """Raised after Ctrl-C or SIGTERM once the checkpoint is written: ends a script without a traceback (code 130 or 143)."""


@dataclass
class Work:
    """What the loop holds: the model, its optimizer and the counters."""
    model: nn.Module                # the caller's, also when the processes wrap it
    objective: nn.Module            # batch -> (summed loss, targets), prepared by accelerate
    optimizer: Optimizers
    accelerator: object
    config: TrainConfig
    run: Run
    home: torch.device              # where the caller had the model
    ema: EMA | None = None
    batch_mark: int | None = None   # of the first batch that the run learnt from: a resumed one goes on with the same data
    step: int = 0                   # steps done
    cpu_seconds: float = 0.0        # of this run's earlier parts
    started: float = field(default_factory=time.process_time)
    part_losses: list = field(default_factory=list)        # of the step's micro-batches: which one was not finite?

    def say(self, text, always=False):
        if self.accelerator.is_main_process and (always or self.run.progress):
            from tqdm import tqdm
            tqdm.write(text, file=sys.stderr)

    def used(self):
        """CPU seconds so far, over all parts of the run."""
        return self.cpu_seconds + time.process_time() - self.started

    @contextmanager
    def ready(self):
        """While open, the model is as it will be used: averaged weights, eval mode, no gradients, on the device that its caller had it on."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        with torch.no_grad(), (self.ema.applied(self.model) if self.ema else nullcontext()):
            try:
                yield self.model.to(self.home)
            finally:
                self.model.to(self.accelerator.device)
                for module in training:
                    module.training = True


class Objective(nn.Module):
    """Model and loss as one module: what DDP wraps, so that the loss may call any method of the model."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch, generator):
        summed, targets = self.loss(self.model, batch, generator)
        return summed, torch.as_tensor(targets, dtype=torch.float32, device=summed.device)


def fit(model, loss, data, config, *, run, optimizer=make_optimizer):
    """Trains `model` in place and returns it (with the averaged weights when config.ema is set), on the device that it came on.

    The training itself runs on the accelerator, where there is one. The run's evaluate, sample and export find the model where it came from.
    loss(model, batch, generator) -> (sum over targets, how many); data.batch(step, rank, world) -> dict of tensors.
    optimizer(model, config) -> Optimizers."""
    threads = torch.get_num_threads()
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        with StopSignals() as stop:
            work = start(model, loss, config, run=run, optimizer=optimizer)
            train(work, data, stop)
            return finish(work)
    finally:
        torch.set_num_threads(threads)


def train(work, data, stop):
    """The loop: schedule, accumulate, clip, step, EMA, evaluate, sample, save."""
    from tqdm import tqdm
    config, accelerator = work.config, work.accelerator
    note_data(work, data)
    bar = tqdm(total=config.steps, initial=work.step, unit="step", mininterval=0.2 if sys.stderr.isatty() else 30,      # short log files
               disable=not (work.run.progress and accelerator.is_main_process))
    pace = Pace(config.steps - work.step, accelerator.device, work.say)
    with bar:
        while work.step < config.steps:
            begun = time.perf_counter()
            generator = seed_all(config.seed, work.step, accelerator.process_index)
            share = schedule(work.step, config)
            work.optimizer.set_share(share)
            value, targets, stopping = accumulate(work, data, generator, stop)
            norm = clip(work, targets)
            check_finite(work, data, value, norm)
            work.optimizer.step()
            if work.ema:
                work.ema.update(work.model)
            work.step += 1
            row = {"step": work.step, "loss": value, "lr": config.lr * share, "grad_norm": norm, "targets": int(targets),
                   "seconds": round(time.perf_counter() - begun, 4)}
            bar.update()
            bar.set_postfix(loss=f"{value:.3f}", lr=f"{row['lr']:.1e}", refresh=False)
            pace.tell(row["seconds"])
            if due(work.step, config.eval_every, config.steps):
                row |= evaluated(work, row)
            if accelerator.is_main_process:
                append_metrics(work.run, row)
            saving = due(work.step, config.save_every, config.steps) or stopping
            if saving:
                save(work)
            if accelerator.is_main_process and (saving or due(work.step, config.eval_every, config.steps)):
                draw_loss(work.run)
            if stopping and work.step < config.steps:
                raise_stopped(work, stopping)


def note_data(work, data):
    """Marks the run's first batch; warns where a resumed run would have begun with another one."""
    seed_all(work.config.seed, 0, 0)
    mark = mark_of(data.batch(0, 0, 1))
    if work.batch_mark not in (None, mark):
        work.say(f"{work.run.folder} was begun with other data, or with other settings of it: it goes on with what it is given now", always=True)
    work.batch_mark = mark


def mark_of(batch):
    """A batch -> a checksum of it; of real numbers, which may be rounded differently elsewhere, the mean size counts, to three digits."""
    mark = 0
    for name, values in sorted((name, values) for name, values in batch.items() if torch.is_tensor(values)):
        real = values.is_floating_point()
        said = f"{float(values.double().abs().mean()):.3g}".encode() if real else values.contiguous().cpu().numpy().tobytes()
        mark = zlib.crc32(said, zlib.crc32(f"{name} {tuple(values.shape)}".encode(), mark))
    return mark


def accumulate(work, data, generator, stop):
    """Gradients of the summed loss over all micro-batches and processes -> (loss per target, targets, stop code of any process)."""
    accelerator, config = work.accelerator, work.config
    batch = data.batch(work.step, accelerator.process_index, accelerator.num_processes)
    parts = micro_batches(batch, config, accelerator.num_processes)
    work.optimizer.zero_grad()
    work.part_losses.clear()
    total = torch.zeros(4, device=accelerator.device)                                       # loss, targets, told to stop by Ctrl-C, by SIGTERM
    for i, part in enumerate(parts):
        part = {name: x.to(accelerator.device) if torch.is_tensor(x) else x for name, x in part.items()}
        alone = accelerator.no_sync(work.objective) if i + 1 < len(parts) else nullcontext()      # processes meet once a step
        with alone:
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=lowers(config, accelerator.device)):
                summed, targets = work.objective(part, generator)
            accelerator.backward(summed)
        work.part_losses.append(summed.detach())
        total[:2] += torch.stack((summed.detach().float(), targets))
    total[2], total[3] = stop.code == 130, stop.code == 143
    summed, targets, interrupted, terminated = accelerator.reduce(total, reduction="sum").tolist()
    if targets <= 0:
        raise DataError(f"the batch of step {work.step} has no targets: nothing can be learnt from it")
    return summed / targets, targets, 143 if terminated else 130 if interrupted else 0


def lowers(config, device):
    """Whether the products of this training are made in bfloat16."""
    return config.precision == "bf16" or config.precision == "auto" and multiplies_bfloat16(device.type)


def micro_batches(batch, config, world):
    """dict of (rows, ...) -> `accumulate` dicts of equal slices of its rows."""
    rows = {len(value) for value in batch.values()}
    if rows != {config.batch // world} or config.batch % world:
        raise ConfigError(f"data gave {sorted(rows)} rows to each of {world} processes, TrainConfig.batch is {config.batch}: "
                          f"make them agree")
    size, rest = divmod(config.batch // world, config.accumulate)
    if rest or not size:
        raise ConfigError(f"accumulate={config.accumulate} does not divide the {config.batch // world} rows of a process")
    return [{name: value[i * size:(i + 1) * size] for name, value in batch.items()} for i in range(config.accumulate)]


def clip(work, targets):
    """Turns summed gradients into those of the mean over targets, clips them, and returns their norm before clipping."""
    parameters = [p for p in work.model.parameters() if p.grad is not None]
    scale_gradients(parameters, work.accelerator.num_processes / targets)                    # DDP has divided by the processes
    return float(work.accelerator.clip_grad_norm_(parameters, work.config.clip or math.inf))


def check_finite(work, data, value, norm):
    """Stops before the weights are touched; the message names step, rate, rows and the checkpoint to go back to."""
    if math.isfinite(value) and math.isfinite(norm):
        return
    rows = bad_rows(work, data)
    listed = ", ".join(str(row) for row in rows[:16]) + (", ..." if len(rows) > 16 else "")
    rate = work.config.lr * schedule(work.step, work.config)
    good = checkpoints(work.run)
    kept = f"last good checkpoint: {good[-1][1]}" if good else "no checkpoint was written yet"
    what = f"loss is {value}" if not math.isfinite(value) else f"gradient norm is {norm}"
    raise TrainingError(f"{what} at step {work.step} (lr {rate:.3g}), batch rows {listed}; {kept}: lower lr or clip, or look at these rows")


def bad_rows(work, data):
    """Names of this process's rows whose micro-batch has no finite loss; of all its rows when there is no such micro-batch."""
    rank, world = work.accelerator.process_index, work.accelerator.num_processes
    size = work.config.batch // world // work.config.accumulate
    names = data.row_names(work.step, rank, world) if hasattr(data, "row_names") else range(size * work.config.accumulate)
    bad = [i for i, loss in enumerate(work.part_losses) if not math.isfinite(loss)] or range(work.config.accumulate)
    return [name for i in bad for name in list(names)[i * size:(i + 1) * size]]


def evaluated(work, row):
    """`evaluate`; where the run's own function fails, what was learnt is saved first, and a resumed run goes on behind it."""
    try:
        return evaluate(work)
    except Exception:
        if work.accelerator.is_main_process:
            append_metrics(work.run, row)
        save(work)
        raise


def evaluate(work):
    """Figures of the model that would be exported; samples go to samples/."""
    figures = {}
    work.accelerator.wait_for_everyone()
    if work.accelerator.is_main_process and (work.run.evaluate or work.run.sample):
        with work.ready():
            if work.run.evaluate:
                figures = {name: float(value) for name, value in work.run.evaluate(work.model).items()}
                work.say(f"step {work.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            if work.run.sample:
                folder = work.run.path("samples")
                folder.mkdir(exist_ok=True)
                work.run.sample(work.model, folder, work.step)
    work.accelerator.wait_for_everyone()
    return figures


def save(work):
    """Writes a whole checkpoint: exported files and the training state."""
    if work.accelerator.is_main_process:
        files = export(work)                                            # first: it may move the weights, and a state_dict is of where they were
        state = {"step": work.step, "config": to_dict(work.config), "plan": work.run.plan, "model": work.model.state_dict(),
                 "optimizer": work.optimizer.state_dict(), "ema": work.ema.state_dict() if work.ema else None, "cpu_seconds": work.used(),
                 "batch_mark": work.batch_mark, "folder": str(work.run.path().resolve())}
        save_checkpoint(work.run, work.step, files, state)
        work.run.path("README.md").write_text(model_card(work.run, to_dict(work.config), work.used()), encoding="utf-8")
    work.accelerator.wait_for_everyone()


def export(work):
    """Files of the pretrained folder, from the weights that are to be used."""
    with work.ready():
        files = work.run.export(work.model) if work.run.export else {"model.safetensors": dict(work.model.state_dict())}
        files = {name: {k: v.detach().cpu().clone() if torch.is_tensor(v) else v for k, v in content.items()}
                 if isinstance(content, dict) else content for name, content in files.items()}
    return files


def new_accelerator():
    """accelerate's Accelerator; without a GPU as well, processes that torchrun has started meet (over gloo)."""
    from accelerate import Accelerator
    return Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())   # bf16 is autocast, in plain sight


def start(model, loss, config, *, run, optimizer):
    """A new Work, or the one of the newest checkpoint when run.resume is set."""
    accelerator, home = new_accelerator(), device_of(model)
    if str(accelerator.distributed_type).rpartition(".")[2] in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ConfigError("fit() keeps whole weights on every process: launch it with DDP (accelerate launch --multi_gpu), not with shards")
    seed_all(config.seed, 0, accelerator.process_index)
    open_run(run)
    state = load_state(checkpoints(run)[-1][1]) if run.resume and checkpoints(run) else None
    if state:
        check_same_config(run.plan | state["config"] | state.get("plan", {}), to_dict(config) | run.plan, run)
        if state["step"] > config.steps:
            raise ConfigError(f"{run.folder} is at step {state['step']:,} already: give as many steps or more, got {config.steps:,}")
        load_weights(model, state["model"], run)
    objective, *parts = accelerator.prepare(Objective(model, loss).train(), *optimizer(model, config).parts)
    ema = EMA(model, config.ema) if config.ema else None
    work = Work(model, objective, Optimizers(parts), accelerator, config, run, home, ema)
    if state:
        work.optimizer.load_state_dict(state["optimizer"])
        if ema:
            ema.load_state_dict(state["ema"])
        work.step, work.cpu_seconds, work.batch_mark = state["step"], state["cpu_seconds"], state.get("batch_mark")
        check_same_files(work, checkpoints(run)[-1][1], state.get("folder", ""))
        work.say(f"resumed {run.folder} at step {work.step}")
    elif run.resume:
        work.say(f"nothing to resume in {run.folder}: starting at step 0")
    if accelerator.is_main_process:
        truncate_metrics(run, work.step)
        run.path("config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")
    accelerator.wait_for_everyone()
    return work


def load_weights(model, saved, run):
    """Puts a checkpoint's weights into the model, or says which do not fit."""
    ours = model.state_dict()
    wrong = [name for name in ours.keys() | saved.keys() if name not in ours or name not in saved or ours[name].shape != saved[name].shape]
    if wrong:
        raise CheckpointError(f"the checkpoint in {run.folder} is of another model: {sorted(wrong)[0]} does not fit "
                              f"({len(wrong)} weights in all)")
    model.load_state_dict(saved)


def check_same_files(work, folder, before):
    """ConfigError where the run would now write other files beside its weights than it did: a tokenizer of other data, another base's shape.

    before: where the run lay then; files may name it."""
    moved = lambda written: written.replace(os.fsencode(before), os.fsencode(work.run.path().resolve())) if before else written
    for name, content in export(work).items():
        known = name != "README.md" and not name.endswith(".safetensors") and (folder / name).is_file()
        if known and moved((folder / name).read_bytes()) != file_bytes(name, content):
            raise ConfigError(f"{work.run.folder} was begun with another {name}: resume it with the data, the base and the settings that it had, or "
                              "start in another folder")


def finish(work):
    """Writes model/ and returns the model, carrying the weights that were exported."""
    if work.accelerator.is_main_process:
        files = export(work)
        files.setdefault("README.md", model_card(work.run, to_dict(work.config), work.used()))
        save_folder(work.run.path("model"), files)
        if not work.run.path("README.md").exists():
            work.run.path("README.md").write_text(files["README.md"], encoding="utf-8")
        work.say(f"done: {work.run.path('model')}")
    work.accelerator.wait_for_everyone()
    if work.ema:
        work.ema.copy_to(work.model)
    return work.model.eval().to(work.home)


def device_of(model):
    return next(model.parameters()).device


def raise_stopped(work, code):
    saved = f"; saved {checkpoints(work.run)[-1][1]}. To go on: the same command with --resume, if it knows that (Run(..., resume=True))"
    work.say(f"stopped after step {work.step} of {work.config.steps}{saved if work.run.kept else ', and can not go on from there'}", always=True)
    raise TrainingStopped(code)


def due(step, every, steps):
    """Whether something done `every` steps, and at the end, is due after `step` steps."""
    return step == steps or (every > 0 and step % every == 0)


def seed_all(seed, step, rank):
    """Seeds torch, numpy and python from (seed, step, rank); returns a CPU generator for the noise of the step."""
    number = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002  (a data set may draw from the old global state)
    random.seed(number)
    return torch.Generator().manual_seed(number)
