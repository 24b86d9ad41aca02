"""Trains a byte-level BPE tokenizer on your text, and reports how it cuts text that it has not seen, beside bytes, characters and words.

    python examples/text/tokenizer.py                                 Python's own standard library as text: half a minute
    python examples/text/tokenizer.py --data FOLDER --vocab 8192      .txt files in a folder, or parquet with a text column

Writes --out, a folder that Tokenizer.from_folder and transformers' AutoTokenizer open, with report.txt, and sizes.png: how much text a
token holds as the vocabulary grows. The last twentieth of each text is held out for the report (or rows whose column "split" says validation)."""
import argparse
import json
from pathlib import Path

from gencore.check import command
from gencore.checkpoint import save_folder
from gencore.data_folder import learn_and_held_out
from gencore.folder import folder_for
from gencore.tokenizer import train_bpe
from textgen.tokenizer_report import TokenizerPieces, compare, report, table

WRITTEN = ("tokenizer.json", "tokenizer_config.json", "digests.json", "report.txt", "sizes.png", "sizes.json")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of .txt files, one text file, or parquet; default: Python's standard library")
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer"), help="folder (default runs/tokenizer)")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens (default 4096)")
    parser.add_argument("--words", default="understanding,unprecedented", help="words whose pieces are shown, with commas between")
    return parser.parse_args()


@command
def main():
    args = arguments()
    args.out = folder_for(args.out, only=WRITTEN)
    texts, held_out, what = learn_and_held_out(args.data)
    unseen = "\n\n".join(held_out)
    print(f"{what}: {sum(map(len, texts)):,} characters to learn from, {len(unseen):,} held out")
    tokenizer = train_bpe(texts, args.vocab)
    said = "\n".join(table(compare(tokenizer, texts, unseen, args.words.split(","))))
    print(said)
    save_folder(args.out, tokenizer.files())
    (args.out / "report.txt").write_text(said + "\n", encoding="utf-8")
    draw_sizes(texts, unseen, args)
    print(f'done: Tokenizer.from_folder("{args.out}")')


def draw_sizes(texts, unseen, args):
    """Bytes per token for vocabularies of 320 tokens up to --vocab, each trained."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    sizes = [size for size in (320, 512, 1024, 2048, 4096, 8192, 16384, 32768) if size < args.vocab] + [args.vocab]
    rows = [report(str(size), TokenizerPieces(train_bpe(texts, size)), unseen, ()) for size in sizes]
    figure, axis = pyplot.subplots(figsize=(6, 4))
    axis.semilogx([row.vocab for row in rows], [row.bytes_per_token for row in rows], "o-", base=2)
    axis.set(xlabel="tokens in the vocabulary", ylabel="bytes of unseen text per token", title="What a larger vocabulary buys")
    figure.tight_layout()
    figure.savefig(args.out / "sizes.png", dpi=120)
    (args.out / "sizes.json").write_text(json.dumps({row.vocab: row.bytes_per_token for row in rows}) + "\n")


if __name__ == "__main__":
    main()
