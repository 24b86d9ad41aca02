"""Training by gencore.train.fit against the transformers Trainer: the novelist's shape, the same windows in an order of each one's own, whole steps.

    python -m benchmarks.trainer                                  on a text that is made here; --data novels.parquet: on its training split

Rounds alternate, both in bf16 where the processor multiplies it, AdamW at one rate (the Trainer's fused one) and Muon beside it; the first steps of
a round are left out, medians count. The loss is that of the last step of a round, from new weights. Writes benchmarks/results/trainer.json."""
import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.text import PASSAGE, llama
from gencore.check import command
from gencore.data import TokenWindows, text_folder
from gencore.processor import multiplies_bfloat16
from gencore.recipe import versions
from gencore.train import Run, TrainConfig, fit
from textgen import CausalLM

RESULTS = Path(__file__).parent / "results" / "trainer.json"
BATCH, RATE, FIRST = 8, 1e-3, 5                                # rows of a step, AdamW's peak rate, steps that warm up


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="text with a training split (parquet with text and split columns, or folders)")
    parser.add_argument("--model", default="novelist", help="whose shape and tokenizer are taken")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25, help="of a round")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window (default 512)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = CausalLM.from_pretrained(args.model)
    cfg = replace(lm.cfg, context=args.context)
    text = "\n".join(text_folder(args.data, "train").column("text"))[:1_000_000] if args.data else PASSAGE * 200
    data = TokenWindows(torch.tensor(lm.tokenizer.encode(text)), cfg.context, BATCH)
    contenders = {"transformers Trainer": by_trainer, "commonthread, AdamW": by_fit, "commonthread, Muon": lambda *given: by_fit(*given, muon=6e-3)}
    seconds, losses = {name: [] for name in contenders}, {}
    for _ in range(args.rounds):
        for name, train in contenders.items():
            torch.manual_seed(0)
            steps, losses[name] = train(cfg, data, args.steps)
            seconds[name] += steps[FIRST:]
    rows, base = {}, statistics.median(seconds["transformers Trainer"])
    for name, values in seconds.items():
        middle, loss = statistics.median(values), losses[name]
        rows[name] = {"tokens_per_second": round(BATCH * cfg.context / middle), "ratio": round(base / middle, 2), "loss": round(loss, 3)}
        print(f"{name:22} {rows[name]['tokens_per_second']:8} tokens/s   {base / middle:.2f} x   loss after {args.steps} steps {loss:.3f}")
    results = {"versions": versions(), "threads": args.threads, "context": cfg.context, "bf16": multiplies_bfloat16("cpu"), "rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def by_fit(cfg, data, steps, muon=None):
    """New weights of that shape trained by fit -> (seconds of each step, the last loss)."""
    config = TrainConfig(steps=steps, batch=BATCH, lr=3e-3 if muon else RATE, muon_lr=muon, warmup=5, decay=0.5, precision="auto", save_every=0)
    with tempfile.TemporaryDirectory() as folder:
        fit(CausalLM(cfg), lambda model, batch, generator: model.loss(batch["ids"][:, :-1], batch["ids"][:, 1:]), data, config,
            run=Run(Path(folder) / "run", progress=False))
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return [row["seconds"] for row in rows], rows[-1]["loss"]


def by_trainer(cfg, data, steps):
    """New weights of transformers' Llama of that shape trained by its Trainer -> (seconds of each step, the last loss)."""
    from accelerate.state import AcceleratorState
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        seconds, losses = [], []

        def on_step_begin(self, args, state, control, **rest):
            self.begun = time.perf_counter()

        def on_step_end(self, args, state, control, **rest):
            self.seconds.append(time.perf_counter() - self.begun)

        def on_log(self, args, state, control, logs=None, **rest):
            self.losses += [logs["loss"]] if "loss" in logs else []

    rows = [{"input_ids": ids[:-1], "labels": ids[:-1]} for step in range(steps) for ids in data.batch(step)["ids"]]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE, adam_beta2=0.95,
                                     weight_decay=0.1, warmup_steps=5, max_grad_norm=1.0, optim="adamw_torch_fused", use_cpu=True,
                                     bf16=multiplies_bfloat16("cpu"), logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
                                     dataloader_pin_memory=False)
        clock = Clock()
        Trainer(llama(cfg), settings, train_dataset=rows, callbacks=[clock]).train()
    AcceleratorState._reset_state(reset_partial_state=True)                            # the Trainer's: fit makes its own
    return clock.seconds, clock.losses[-1]


if __name__ == "__main__":
    main()
