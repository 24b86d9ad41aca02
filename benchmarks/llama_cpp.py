"""Decoding against llama.cpp and transformers on the same weights: the shipped novelist and GPT-2's smallest shape (random weights), batch 1.

    python -m benchmarks.llama_cpp                       needs xllamacpp and gguf (the extra "bench")
    python -m benchmarks.llama_cpp --models novelist     one of the two

All contenders run alternately, greedy, after the same prompt of 32 ids; medians count. "bandwidth" is bytes of weights read per second over what
summing a large array reaches with the same threads. Writes benchmarks/results/llama_cpp.json."""
import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.text import PROMPT, alternating, generated, ours
from gencore.check import command
from gencore.recipe import versions
from textgen import CausalLM
from textgen.gguf_file import save_gguf
from textgen.presets import preset

RESULTS = Path(__file__).parent / "results" / "llama_cpp.json"


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["novelist", "gpt2"], choices=["novelist", "gpt2"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="of each contender")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a round")
    parser.add_argument("--compile", action="store_true", help="compiled contenders too: half a minute each to compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    read = bandwidth()
    print(f"{read / 1e9:.1f} GB/s read, {args.threads} thread(s)")
    results = {"versions": versions(), "threads": args.threads, "read_bytes_per_second": read}
    for name in args.models:
        results[name] = compare(name, args, read)
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


def compare(name, args, read):
    """One shape -> rows of tokens per second, ratio to transformers in float32, share of the bandwidth."""
    from transformers import AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model(name).save_pretrained(folder / "lm")
        lm = CausalLM.from_pretrained(folder / "lm")
        prompt = lm.tokenizer.encode(PROMPT)[:32]
        theirs = AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=torch.float32).eval()
        contenders = {"transformers float32": lambda: generated(theirs, prompt, args.tokens),
                      "commonthread float32": ours(lm, prompt, args.tokens),
                      "commonthread int8": ours(CausalLM.from_pretrained(folder / "lm", quantize="int8"), prompt, args.tokens)}
        if args.compile:
            for said, quantize in (("float32", None), ("int8", "int8")):
                fast = CausalLM.from_pretrained(folder / "lm", compile=True, quantize=quantize)
                contenders[f"commonthread {said} compiled"] = ours(fast, prompt, args.tokens)
        for weights in ("float32", "q8_0"):
            save_gguf(lm, folder / f"{weights}.gguf", weights=weights)
            contenders[f"llama.cpp {weights}"] = llama_cpp(folder / f"{weights}.gguf", prompt, args)
        said = {contender: speak() for contender, speak in contenders.items()}
        seconds = alternating(contenders, args.rounds)
    matrices = sum(p.numel() for p in lm.parameters()) - (0 if lm.cfg.tied else lm.embedding.weight.numel())
    return {contender: row(contender, value, args.tokens, base=seconds["transformers float32"],
                           share=matrices * (1 if "8" in contender else 4) * args.tokens / value / read,
                           same=said[contender] == said["transformers float32"]) for contender, value in seconds.items()}


def row(name, seconds, tokens, *, base, share, same):
    print(f"{name:30} {tokens / seconds:8.1f} tokens/s   {base / seconds:.2f} x   bandwidth {share:4.0%}   same tokens: {same}")
    return {"tokens_per_second": round(tokens / seconds, 1), "ratio": round(base / seconds, 2), "bandwidth": round(share, 3), "same_tokens": same}


def model(name):
    """The shipped novelist, or GPT-2's smallest shape with random weights and the novelist's tokenizer."""
    novelist = CausalLM.from_pretrained("novelist")
    if name == "novelist":
        return novelist
    torch.manual_seed(0)
    return CausalLM(preset("gpt2"), novelist.tokenizer).eval()


def llama_cpp(path, prompt, args):
    """A contender: greedy ids by llama.cpp."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(path), 512, 1, args.threads
    params.cpuparams.poll = 0                                           # idle threads that poll would take the cores from the others' turns
    server = xllamacpp.Server(params)
    asked = {"prompt": prompt, "max_tokens": args.tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "logprobs": 1}

    def speak():
        answer = server.handle_completions(asked)
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]

    return speak


if __name__ == "__main__":
    main()
