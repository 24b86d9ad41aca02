"""Does an encoder that has learnt to fill in masks need fewer labels? The service of a dialogue, told from its first turn.

    python -m benchmarks.masked --data dialogues.parquet        learns the conversations of the training split without labels, then the labels

The labels: of conversations (source sgd) that have one service, the user's first words and that service. 200 of the training split are drawn for
each seed; a classifier on the encoder that has learnt and one on the same network with new weights are trained on them in the same way, each at
the rate that is best for it on the validation split, and judged on the test split. Beside them: logistic regression on the words that occur, and
the commonest service. Writes benchmarks/results/masked.json; runs/masked-benchmark holds the encoder and is used again."""
import argparse
import json
import random
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import torch

from gencore.check import command
from gencore.data import Batches, TokenWindows
from gencore.recipe import versions
from gencore.text_encoder import encode_prompts
from gencore.train import Run, TrainConfig, fit
from textgen import MaskedLM, TextClassifier
from textgen.conversations import read_conversations
from textgen.masked import CLS, EncoderConfig, bert_stack, mask_tokens, train_masked_tokenizer

RESULTS = Path(__file__).parent / "results" / "masked.json"
RATES = (1e-4, 3e-4, 1e-3)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="parquet with the columns messages, source, topic and split")
    parser.add_argument("--run", type=Path, default=Path("runs/masked-benchmark"), help="where the encoder learns, and is looked for")
    parser.add_argument("--steps", type=int, default=1800, help="of 64 windows of 64 tokens that the encoder learns from (default 1800)")
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = read_conversations(args.data)
    encoder, tokenizer = learnt(rows, args.run, args.steps)
    parts = {split: first_turns(rows, split) for split in ("train", "validation", "test")}
    names = sorted({label for _, label in parts["train"]})
    parts = {split: [pair for pair in pairs if pair[1] in names] for split, pairs in parts.items()}
    commonest = Counter(label for _, label in parts["train"]).most_common(1)[0][0]
    results = {"versions": versions(), "services": names, "turns": {split: len(pairs) for split, pairs in parts.items()}, "labels": args.labels,
               "steps": args.steps, "commonest": share(label == commonest for _, label in parts["test"])}
    for kind, network in (("fine-tuned", encoder), ("from scratch", None)):
        results[kind] = row = judged(network, encoder.cfg, tokenizer, (names, parts), args)
        print(f"{kind:14} {row['mean']:.1%} of {len(parts['test'])} right {row['test']}, rate {row['rate']} of {row['validation']}", flush=True)
    accuracy = [by_words(drawn(parts["train"], args.labels, seed), parts["test"]) for seed in range(args.seeds)]
    results["logistic regression on words"] = {"test": accuracy, "mean": round(statistics.mean(accuracy), 4)}
    gain = results["fine-tuned"]["mean"] - results["from scratch"]["mean"]
    print(f"logistic regression on words {statistics.mean(accuracy):.1%}; the commonest service {results['commonest']:.1%}")
    print(f"what was learnt without labels brings {100 * gain:.1f} points")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def judged(encoder, cfg, tokenizer, task, args):
    """Classifiers on that encoder, or on new ones when it is None -> {rate, its figures on the validation split, on the test split by seed}."""
    names, parts = task

    def made(seed, rate):
        network = encoder or fresh(cfg, seed)
        return tuned(network, names, tokenizer, drawn(parts["train"], args.labels, seed), (seed, rate))

    found = {rate: right(made(0, rate), parts["validation"]) for rate in RATES}
    rate = max(found, key=found.get)
    accuracy = [right(made(seed, rate), parts["test"]) for seed in range(args.seeds)]
    return {"rate": rate, "validation": found, "test": accuracy, "mean": round(statistics.mean(accuracy), 4)}


def learnt(rows, folder, steps):
    """The encoder that has learnt to fill in masks in the training split's conversations, and its tokenizer; trained if it isn't there."""
    if not (folder / "model").is_dir():
        texts = ["\n".join(message["content"] for message in row["messages"]) for row in rows if row["split"] == "train"]
        tokenizer = train_masked_tokenizer(texts, 4096, length=128)
        torch.manual_seed(0)
        lm = MaskedLM(EncoderConfig(len(tokenizer), 128, transformer=bert_stack(256, 4, 4, 1024), pad=tokenizer.pad_id), tokenizer)
        ids = torch.tensor([i for text in texts for i in tokenizer.encode(text, special=True)])

        def loss(model, batch, generator):
            ids = batch["ids"][:, :-1]
            ids[:, 0] = tokenizer.id(CLS)
            return model.loss(*mask_tokens(ids, tokenizer, generator, share=0.3))        # more hidden, more to learn from (Wettig et al. 2022)

        config = TrainConfig(steps=steps, batch=64, lr=2e-3, muon_lr=6e-3, decay=0.6, precision="auto")
        fit(lm, loss, TokenWindows(ids, 64, config.batch), config, run=Run(folder, resume=True, export=MaskedLM.files))
    lm = MaskedLM.from_pretrained(folder / "model")
    return lm.encoder, lm.tokenizer


def first_turns(rows, split):
    """-> [(the user's first words, the service), ...] of the conversations that have one service; the same words once."""
    pairs = [(row["messages"][0]["content"], row["topic"]) for row in rows
             if row["source"] == "sgd" and row["split"] == split and row["messages"][0]["role"] == "user" and "," not in row["topic"]]
    return list(dict(pairs).items())


def drawn(pairs, count, seed):
    return random.Random(seed).sample(pairs, count)


def fresh(cfg, seed):
    """The same network with new weights."""
    torch.manual_seed(seed)
    return MaskedLM(cfg).encoder


def tuned(encoder, names, tokenizer, pairs, how):
    """A classifier on that encoder, trained on the pairs; how: (seed, rate)."""
    seed, rate = how
    torch.manual_seed(seed)
    model = TextClassifier.on(encoder, names, tokenizer).requires_grad_(True)

    def collate(batch):
        ids, keep, _ = encode_prompts(tokenizer, [text for text, _ in batch], model.cfg.context)
        return {"ids": ids, "keep": keep, "labels": torch.tensor([names.index(label) for _, label in batch])}

    loss = lambda model, batch, generator: model.loss(batch["ids"], batch["labels"], batch["keep"])
    config = TrainConfig(steps=500, batch=16, lr=rate, warmup=50, decay=0.9, weight_decay=0.01, save_every=0, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        return fit(model, loss, Batches(pairs, config.batch, seed, collate), config, run=Run(Path(folder) / "run", progress=False)).eval()


def right(model, pairs):
    """Share of the pairs whose service is told."""
    texts, labels = zip(*pairs)
    found = [label for start in range(0, len(texts), 64) for label, _ in model.classify(texts[start:start + 64])]
    return share(mine == theirs for mine, theirs in zip(found, labels))


def by_words(learn, judge):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=30, max_iter=1000).fit(words.fit_transform([text for text, _ in learn]), [label for _, label in learn])
    return share(mine == theirs for mine, (_, theirs) in zip(model.predict(words.transform([text for text, _ in judge])), judge))


def share(hits):
    hits = list(hits)
    return round(sum(hits) / len(hits), 4)


if __name__ == "__main__":
    main()
