"""Words in context: how often a linear probe tells the sense of a word, by contextual vectors, static ones and a bag of words.

    python -m benchmarks.word_senses                   the novelist that ships, and a small model trained here on made sentences: minutes

Each of the seeds is another split of frames and cue words into those that are learnt from and those that are judged. Aim: contextual 95 %,
static 50 %. Writes benchmarks/results/word_senses.json."""
import argparse
import json
import statistics
from pathlib import Path

from examples.text.word_senses import trained
from gencore.check import command
from gencore.recipe import versions
from textgen import CausalLM
from textgen.word_senses import SENSES, judged

RESULTS = Path(__file__).parent / "results" / "word_senses.json"


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["novelist"], help="beside the small one")
    parser.add_argument("--steps", type=int, default=250, help="of training the small one")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    results = {"versions": versions(), "seeds": args.seeds, "steps": args.steps}
    for name in ("trained here", *args.models):
        lm = trained(args.steps) if name == "trained here" else CausalLM.from_pretrained(name)
        runs = [{word: judged(lm, word, seed)[0] for word in SENSES} for seed in range(args.seeds)]
        figures = {kind: round(statistics.mean(right[kind] for run in runs for right in run.values()), 4) for kind in runs[0]["bark"]}
        words = {word: round(statistics.mean(run[word]["contextual"] for run in runs), 4) for word in SENSES}
        results[name] = {**figures, "contextual by word": words}
        print(f"{name:14} " + "   ".join(f"{kind} {share:.1%}" for kind, share in figures.items())
              + "   (" + ", ".join(f"{word} {share:.0%}" for word, share in words.items()) + ")", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
