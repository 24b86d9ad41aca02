"""Speculative decoding: how many of a draft's guesses stand, and what they are worth, against the same model alone.

    python examples/train_text.py --data novels.parquet --preset novelist --out runs/draft width=128 layers=2 heads=2 mlp=344 train.steps=2000
    python -m benchmarks.draft --draft runs/draft/model

The same texts give the draft the novelist's tokenizer. Prompts and seeds are the same for both; rounds alternate, medians count. Greedy text must be
the same. Writes benchmarks/results/draft.json."""
import argparse
import json
import statistics
from pathlib import Path

import torch

from benchmarks.text import alternating
from gencore.check import command
from gencore.recipe import versions
from textgen import CausalLM

RESULTS = Path(__file__).parent / "results" / "draft.json"
PROMPTS = ("It was a dark night, and the rain fell in torrents upon the roof", '"My dear sir," said the old gentleman,',
           "She had never been so happy in her life as on the morning when", "The captain looked out upon the sea, and")


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="novelist")
    parser.add_argument("--draft", required=True, help="a smaller model with the same tokenizer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens for each prompt")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm, draft = CausalLM.from_pretrained(args.model), CausalLM.from_pretrained(args.draft)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (lm, draft)]
    results = {"versions": versions(), "parameters": sizes, "threads": args.threads}
    print(f"{sizes[1]:,} parameters guess for {sizes[0]:,}")
    for name, temperature in (("greedy", 0.0), ("temperature 0.8", 0.8)):
        said = {}

        def speak(kind, guess, temperature=temperature, said=said):
            said[kind] = [lm.generate(prompt, max_new_tokens=args.tokens, temperature=temperature, seed=0, draft=guess) for prompt in PROMPTS]

        contenders = {"alone": lambda: speak("alone", None), "with the draft": lambda: speak("with the draft", draft)}
        for contender in contenders.values():
            contender()                                                                    # warm-up
        seconds = alternating(contenders, args.rounds)
        acceptance = statistics.mean(text.acceptance for text in said["with the draft"])
        same = said["alone"] == said["with the draft"]
        results[name] = {"acceptance": round(acceptance, 3), "speed": round(seconds["alone"] / seconds["with the draft"], 2), "same_text": same}
        print(f"{name:16} {acceptance:.1%} of the guesses stand, {results[name]['speed']:.2f} times the speed   same text: {same}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
