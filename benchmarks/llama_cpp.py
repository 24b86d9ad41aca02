"""Decoding against llama.cpp and transformers on the same weights: the shipped novelist and GPT-2's smallest shape (random weights).

    python -m benchmarks.llama_cpp                       needs xllamacpp and gguf (the extra "bench")
    python -m benchmarks.llama_cpp --models novelist     one of the two; --batch 16: sixteen prompts at a time alone

Every contender has a process of its own (in one process their thread pools take the cores from each other), and they take turns: greedy, after
the same prompt of 32 ids; medians count. "bandwidth" is bytes of weights read per second (two a weight where compiled steps read bfloat16, since
that holds these weights exactly) over what summing a large array reaches with the same threads. Writes benchmarks/results/llama_cpp.json."""
import argparse
import functools
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.text import PROMPT
from gencore.check import command
from gencore.choose import Sampling
from gencore.recipe import versions
from textgen import CausalLM
from textgen.gguf_file import save_gguf
from textgen.presets import preset
from textgen.text import Settings, run

RESULTS = Path(__file__).parent / "results" / "llama_cpp.json"


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["novelist", "gpt2"], choices=["novelist", "gpt2"])
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 16], help="prompts at a time (default: 1 and 16)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="of each contender")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a round, for each prompt")
    parser.add_argument("--compile", action="store_true", help="compiled contenders too (one prompt): half a minute each to compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    read = bandwidth()
    print(f"{read / 1e9:.1f} GB/s read, {args.threads} thread(s)", flush=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results = kept if kept.get("threads") == args.threads else {}                     # rows of as many threads stand beside each other
    results["threads"] = args.threads
    for name in args.models:
        found = {f"batch {batch}": compare(name, batch, args, read) for batch in args.batch}
        results[name] = results.get(name, {}) | found | {"versions": versions(), "read_bytes_per_second": read}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def bandwidth():
    """Bytes a second that a sum over 512 MB reads."""
    block = torch.ones(128 * 2 ** 20)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - begun)
    return block.numel() * 4 / statistics.median(seconds)


def compare(name, batch, args, read):
    """One shape, so many prompts at a time -> rows of tokens per second, ratio to transformers in float32, share of the bandwidth."""
    print(f"\n{name}, {batch} at a time", flush=True)
    contenders = {"transformers float32": (by_transformers,), "commonthread float32": (by_us, None, False),
                  "commonthread int8": (by_us, "int8", False)}
    if args.compile and batch == 1:
        contenders |= {"commonthread float32 compiled": (by_us, None, True), "commonthread int8 compiled": (by_us, "int8", True)}
    contenders |= {f"llama.cpp {weights}": (by_llama_cpp, weights) for weights in ("float32", "q8_0")}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        lm = written(name, Path(folder))
        turn = (lm.tokenizer.encode(PROMPT)[:32], batch, args.tokens)
        turns = {contender: stack.enter_context(Turns(Path(folder), args.threads, *made)) for contender, made in contenders.items()}
        said = {contender: speak(turn)[1] for contender, speak in turns.items()}         # warm-up; compiles
        seconds = {contender: [] for contender in turns}
        for _ in range(args.rounds):
            for contender, speak in turns.items():
                seconds[contender].append(speak(turn)[0])
    seconds = {contender: statistics.median(values) for contender, values in seconds.items()}
    matrices, base, rows = sum(p.numel() for p in lm.parameters()) - (0 if lm.cfg.tied else lm.embedding.weight.numel()), "transformers float32", {}
    short = all(torch.equal(p, p.bfloat16().float()) for p in lm.parameters())
    for contender, value in seconds.items():
        each = 1 if "8" in contender else 2 if short and "compiled" in contender else 4
        share = matrices * each * args.tokens / value / read
        rows[contender] = {"tokens_per_second": round(batch * args.tokens / value, 1), "ratio": round(seconds[base] / value, 2),
                           "bandwidth": round(share, 3), "same_tokens": said[contender] == said[base]}
        print(f"{contender:30} {batch * args.tokens / value:8.1f} tokens/s   {seconds[base] / value:.2f} x   bandwidth {share:4.0%}   "
              f"same tokens: {rows[contender]['same_tokens']}", flush=True)
    return rows


def written(name, folder):
    """The shipped novelist, or GPT-2's smallest shape with random weights and the novelist's tokenizer; its folder and its GGUF files are written."""
    lm = CausalLM.from_pretrained("novelist")
    if name == "gpt2":
        torch.manual_seed(0)
        lm = CausalLM(preset("gpt2"), lm.tokenizer).eval()
    lm.save_pretrained(folder / "lm")
    for weights in ("float32", "q8_0"):
        save_gguf(lm, folder / f"{weights}.gguf", weights=weights)
    return lm


class Turns:
    """A contender in a process of its own: called with (prompt, batch, tokens) -> (seconds, ids of each row)."""

    def __init__(self, folder, threads, make, *settings):
        self.pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, folder, threads, make, settings), daemon=True)

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.join()

    def __call__(self, turn):
        self.pipe.send(turn)
        while not self.pipe.poll(1):
            if not self.process.is_alive():
                raise RuntimeError("a contender has died: its last words are above")
        return self.pipe.recv()


def serve(pipe, folder, threads, make, settings):
    torch.set_num_threads(threads)
    speak = make(folder, threads, *settings)
    while True:
        prompt, batch, tokens = pipe.recv()
        begun = time.perf_counter()
        said = speak(prompt, batch, tokens)
        pipe.send((time.perf_counter() - begun, said))


def by_us(folder, threads, quantize, compile):
    lm = CausalLM.from_pretrained(folder / "lm", quantize=quantize, compile=compile)

    def speak(prompt, batch, tokens):
        settings = Settings(max_new_tokens=tokens, temperature=0.0, compile=compile)
        steps = run(lm, [prompt] * batch, Sampling(temperature=0), seeds=list(range(batch)), settings=settings)
        return [list(row) for row in zip(*steps)]

    return speak


def by_transformers(folder, threads):
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=torch.float32).eval()

    def speak(prompt, batch, tokens):
        ids = torch.tensor([prompt] * batch)
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        return said[:, len(prompt):].tolist()

    return speak


def by_llama_cpp(folder, threads, weights):
    import xllamacpp

    @functools.cache
    def server(batch):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(folder / f"{weights}.gguf"), 512 * batch, batch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cpuparams.poll = params.cpuparams_batch.poll = 0           # idle threads that poll would take the cores from the others' turns
        return xllamacpp.Server(params)

    told = False

    def speak(prompt, batch, tokens):
        """Its ids come with their log-probabilities, which cost time: they are asked for in the first turn, which warms up."""
        nonlocal told
        asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        made, asked, told = server(batch), asked if told else asked | {"logprobs": 1}, True
        with ThreadPoolExecutor(batch) as pool:
            answers = list(pool.map(lambda _: made.handle_completions(asked), range(batch)))
        return [[token["id"] for token in answer["choices"][0]["logprobs"]["content"]] for answer in answers] if "logprobs" in asked else None

    return speak


if __name__ == "__main__":
    main()
