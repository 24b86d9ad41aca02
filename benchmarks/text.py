"""Words: bits per byte of the shipped novelist, decoding against transformers, training against nanoGPT and transformers.

    python -m benchmarks.text                                     decoding and training speed
    python -m benchmarks.text --data novels.parquet               quality as well, on its validation split (bits per byte); --split test
    python -m benchmarks.text --nanogpt FOLDER                    nanoGPT (github.com/karpathy/nanoGPT: its model.py, its optimizer and the
                                                                  order of its loop) takes part in training

Both sides run alternately in this one process; ratios of medians count. transformers takes part in decoding as it is, and with its static cache
compiled. Writes benchmarks/results/text.json; a training without nanoGPT has a section of its own there, whose ratios have another base."""
import argparse
import importlib.util
import io
import json
import statistics
import tempfile
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gencore.check import command
from gencore.choose import Sampling
from gencore.data import text_folder
from gencore.optim import make_optimizer, schedule
from gencore.processor import multiplies_bfloat16
from gencore.recipe import versions
from gencore.train import TrainConfig
from textgen import CausalLM
from textgen.evaluate import bits_per_byte
from textgen.text import Settings, run

RESULTS = Path(__file__).parent / "results" / "text.json"
PROMPT = "It was a dark night, and the rain fell in torrents upon the roof of the old house, where nobody had lived for years; "
BATCH, RATE, LAST = 8, 1e-3, 10                                # rows of a training step, AdamW's peak rate, steps whose loss is told
PASSAGE = PROMPT + ("but that evening there was a light in the window, and a man who had lost his way saw it from the road "
                    "and turned in at the gate. ") * 4


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="text with a validation split (parquet with text and split columns, or folders)")
    parser.add_argument("--split", default="validation", help="that quality is measured on (default: validation)")
    parser.add_argument("--nanogpt", type=Path, help="folder with nanoGPT's model.py")
    parser.add_argument("--model", default="novelist")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="of decoding, by each contender")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of a decoding round")
    parser.add_argument("--steps", type=int, default=60, help="of training, by each contender")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window of training (default 512)")
    parser.add_argument("--skip", nargs="*", default=[], choices=["quality", "decode", "compile", "train"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    if args.data and "quality" not in args.skip:
        results["quality" + ("" if args.split == "validation" else f", {args.split}")] = quality(args)
    if "decode" not in args.skip:
        results["decode"] = decoding(args)
    if "train" not in args.skip:
        results["train" if args.nanogpt else "train, without nanoGPT"] = training(args)
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    measured = {part: figures | {"versions": versions()} for part, figures in results.items()}         # each on a machine and a day of its own
    RESULTS.write_text(json.dumps({**kept, **measured}, indent=2) + "\n")


def quality(args):
    """Bits per byte on a whole split; the floor is a guess by the frequency of bytes, aim on validation <= 1.40."""
    texts = text_folder(args.data, args.split).column("text")
    lm = CausalLM.from_pretrained(args.model)
    size = len("".join(texts).encode())
    counts = torch.bincount(torch.frombuffer(bytearray("".join(texts).encode()), dtype=torch.uint8).long()).double()
    floor = float(-(counts / size * (counts / size).clamp(min=1e-12).log2()).sum())
    blind, sliding = bits_per_byte(lm, texts), bits_per_byte(lm, texts, overlap=0.5)
    print(f"bits per byte on {size:,} bytes: {blind:.4f} in windows that start blind, {sliding:.4f} with half a window before each token "
          f"(order-0 bytes: {floor:.2f})")
    return {"bits_per_byte": round(blind, 4), "bits_per_byte_sliding": round(sliding, 4), "order_0": round(floor, 3), "bytes": size}


def decoding(args):
    """Tokens per second at batch 1, greedy, the same prompt; every contender must say the same tokens as transformers (int8, int4 may not)."""
    from transformers import AutoModelForCausalLM

    from gencore.checkpoint import resolve
    plain = CausalLM.from_pretrained(args.model)
    theirs = AutoModelForCausalLM.from_pretrained(resolve(args.model, "textgen"), dtype=torch.float32).eval()
    prompt = plain.tokenizer.encode(PROMPT)[:32]
    contenders = {"transformers float32": lambda: generated(theirs, prompt, args.tokens), "commonthread": ours(plain, prompt, args.tokens)}
    few = {bits: CausalLM.from_pretrained(args.model, quantize=bits) for bits in ("int8", "int4")}
    contenders |= {f"commonthread {bits}": ours(lm, prompt, args.tokens) for bits, lm in few.items()}
    if "compile" not in args.skip:
        static = AutoModelForCausalLM.from_pretrained(resolve(args.model, "textgen"), dtype=torch.float32).eval()
        contenders["transformers compiled, static cache"] = lambda: generated(static, prompt, args.tokens, compile=True)
        for name, weights in (("commonthread compiled", None), ("commonthread int8 compiled", "int8")):
            contenders[name] = ours(CausalLM.from_pretrained(args.model, compile=True, quantize=weights), prompt, args.tokens)
    said = {name: contender() for name, contender in contenders.items()}               # warm-up; compiles
    seconds = alternating(contenders, args.rounds)
    exact, rows = bits_per_byte(plain, evaluation_text(args), limit=24), {}
    cost = {bits: bits_per_byte(lm, evaluation_text(args), limit=24) - exact for bits, lm in few.items()}
    for name, value in seconds.items():
        rows[name] = {"tokens_per_second": round(args.tokens / value, 1), "ratio": round(seconds["transformers float32"] / value, 2),
                      "same_tokens": said[name] == said["transformers float32"]}
        print(f"{name:36} {rows[name]['tokens_per_second']:8.1f} tokens/s   {rows[name]['ratio']:.2f} x   same tokens: {rows[name]['same_tokens']}")
    print(", ".join(f"{bits} costs {value:+.4f}" for bits, value in cost.items()) + f" bits per byte   ({args.threads} threads)")
    return {"rows": rows, **{f"{bits}_cost_bits_per_byte": round(value, 5) for bits, value in cost.items()}, "threads": args.threads}


def ours(lm, prompt, tokens):
    settings = Settings(max_new_tokens=tokens, temperature=0.0, compile=lm.compile)
    return lambda: [ids[0] for ids in run(lm, [prompt], Sampling(temperature=0), seeds=[0], settings=settings)]


def generated(model, prompt, tokens, compile=False):
    """The same through transformers, end token ignored; compile: its steps over a static cache, which it compiles by itself on a GPU alone."""
    from transformers import CompileConfig
    fast = {}
    if compile:
        fast = {"cache_implementation": "static", "compile_config": CompileConfig(mode="default")}
        fast["compile_config"]._compile_all_devices = True
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=0, do_sample=False, eos_token_id=None,
                         pad_token_id=0, **fast)
    return out[0, len(prompt):].tolist()


def evaluation_text(args):
    return text_folder(args.data, "validation").column("text") if args.data else [PASSAGE]


def training(args):
    """Tokens per second of whole training steps on the novelist's shape, and the loss after the same steps on the same batches.

    All have one schedule; Muon its own peak, the others RATE. nanoGPT's train.py computes in float32 on a CPU; its autocast for GPUs runs too."""
    lm, bf16 = CausalLM.from_pretrained(args.model), multiplies_bfloat16("cpu")
    cfg, text = replace(lm.cfg, context=args.context), "\n".join(evaluation_text(args))[:400_000] if args.data else PASSAGE * 200
    draws = Draws(lm.tokenizer.encode(text), cfg.context)
    steps = {"commonthread, Muon": Step(CausalLM(cfg), draws, bf16=bf16, muon=True),
             "commonthread, AdamW": Step(CausalLM(cfg), draws, bf16=bf16), "transformers Llama": Step(llama(cfg), draws, bf16=bf16)}
    if args.nanogpt:
        steps["nanoGPT"] = NanoGPT(nanogpt(args.nanogpt, cfg), draws, bf16=False)
        if bf16:
            steps["nanoGPT, autocast"] = NanoGPT(nanogpt(args.nanogpt, cfg), draws, bf16=True)
    config, rate, losses = TrainConfig(steps=args.steps, warmup=args.steps // 10, decay=0.5), {}, {}
    for number in range(args.steps):
        for name, step in steps.items():
            begun = time.perf_counter()
            losses.setdefault(name, []).append(step(number, schedule(number, config)))
            rate.setdefault(name, []).append(BATCH * cfg.context / (time.perf_counter() - begun))
    rows, base = {}, list(steps)[-1]
    peer = statistics.median(rate[base][1:])                                           # the first step warms up
    for name in steps:
        middle, loss = statistics.median(rate[name][1:]), statistics.fmean(losses[name][-LAST:])
        size = sum(p.numel() for p in steps[name].model.parameters())
        rows[name] = {"tokens_per_second": round(middle), "ratio": round(middle / peer, 2), "loss": round(loss, 3), "parameters": size}
        print(f"{name:22} {size:11,} parameters {middle:8.0f} tokens/s   {middle / peer:.2f} x {base}   loss after {args.steps} steps {loss:.3f}")
    return {"rows": rows, "base": base, "precision": "bf16" if bf16 else "float32 (this CPU has no bf16)", "threads": args.threads,
            "steps": args.steps, "context": cfg.context, "loss": f"mean of the last {LAST} steps"}


class Draws:
    """Which windows of a text step `number` learns from: the same for all, as tensors or from a file of 16-bit numbers."""

    def __init__(self, ids, context):
        self.ids, self.context = torch.tensor(ids), context
        self.folder = tempfile.TemporaryDirectory()                                    # gone with this object
        self.file = Path(self.folder.name, "train.bin")
        np.array(ids, dtype=np.uint16).tofile(self.file)

    def starts(self, number):
        return torch.randint(0, len(self.ids) - self.context - 1, (BATCH,), generator=torch.Generator().manual_seed(number))

    def batch(self, number):
        """inputs, targets (B,T)."""
        windows = self.ids[self.starts(number)[:, None] + torch.arange(self.context + 1)]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def mapped(self, number):
        """The same as nanoGPT reads it: a memory map that is opened anew, a tensor for each window."""
        data, T = np.memmap(self.file, dtype=np.uint16, mode="r"), self.context
        pairs = [(data[i:i + T], data[i + 1:i + 1 + T]) for i in self.starts(number).tolist()]
        return tuple(torch.stack([torch.from_numpy(window.astype(np.int64)) for window in windows]) for windows in zip(*pairs))


class Step:
    """One training step of gencore.train.fit, for our model and for transformers': rate, batch, loss, backward, clip, step."""

    def __init__(self, model, draws, *, bf16, muon=False):
        self.model, self.draws, self.bf16 = model.train(), draws, bf16
        self.optimizer = make_optimizer(model, TrainConfig(lr=3e-3 if muon else RATE, muon_lr=6e-3 if muon else None))

    def __call__(self, number, share):
        self.optimizer.set_share(share)
        inputs, targets = self.draws.batch(number)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            if isinstance(self.model, CausalLM):
                summed, count = self.model.loss(inputs, targets)
                loss = summed / count
            else:
                logits = self.model(inputs, use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


class NanoGPT:
    """One pass of nanoGPT's training loop: rate, forward, the next batch, backward, clip, step, gradients let go; its optimizer and its settings."""

    def __init__(self, model, draws, *, bf16):
        self.model, self.draws, self.bf16 = model.train(), draws, bf16
        self.next = draws.mapped(0)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)                       # its train.py has one: at work in float16 alone
        with redirect_stdout(io.StringIO()):                                           # it tells what it counts
            self.optimizer = model.configure_optimizers(0.1, RATE, (0.9, 0.95), "cpu")

    def __call__(self, number, share):
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * share
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            _, loss = self.model(*self.next)
        self.next = self.draws.mapped(number + 1)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def llama(cfg):
    from transformers import AutoConfig, AutoModelForCausalLM

    from textgen.families import family
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**family("llama").to_theirs(cfg)))


def nanogpt(folder, cfg):
    """nanoGPT's GPT with the novelist's width, depth and context; its MLP is 4 x width and its head is tied."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stack = cfg.transformer
    return module.GPT(module.GPTConfig(block_size=cfg.context, vocab_size=cfg.vocab, n_layer=stack.layers, n_head=stack.attention.heads,
                                       n_embd=stack.width, dropout=0.0, bias=False))


def alternating(contenders, rounds):
    """{name: function} -> {name: median seconds}, one round of each in turn."""
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            begun = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
