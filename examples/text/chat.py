"""Talks with a chat model in the terminal; its answers appear as they are written.

    python examples/text/chat.py                                    the chat that ships: it books tables, hotels and rides
    python examples/text/chat.py MODEL                              MODEL: a folder, or a Hub id with a chat template
    python examples/text/chat.py runs/lora/model --system "You book taxis."
    echo "Hello" | python examples/text/chat.py --seed 0            reads its lines from a pipe as well

/new begins another conversation, /quit (or the end of the input) leaves. A conversation that outgrows the model's context loses its oldest turns
whole, and says so. A model of one's own is made in minutes by examples/text/finetune_lora.py."""
import argparse
import sys
import warnings

from gencore.check import CommonthreadError, command
from textgen import Chat


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="chat", help="a shipped name, a folder, or a Hub id (default: chat)")
    parser.add_argument("--system", help="what the model is told before the conversation")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 = the likeliest words always (default 0.7)")
    parser.add_argument("--max-new-tokens", type=int, help="of one answer (default 128, or a quarter of a shorter context)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answers")
    parser.add_argument("--quantize", choices=["int8"], help="8-bit weights: faster on a CPU")
    return parser.parse_args()


def lines():
    """What the user types, without the prompt sign where it comes from a pipe."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")                 # a byte that is no letter ends no conversation
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return


def answer(chat, messages, args):
    """Prints the answer while it is written -> the whole of it; what was written when Ctrl-C stops it."""
    said = []
    try:
        for piece in chat.stream(messages, temperature=args.temperature, max_new_tokens=args.max_new_tokens, seed=args.seed):
            print(piece, end="", flush=True)
            said.append(piece)
    except KeyboardInterrupt:
        pass
    print(flush=True)
    return "".join(said)


@command
def main():
    args = arguments()
    warnings.showwarning = lambda message, *_: print(f"({message})", file=sys.stderr)
    chat = Chat.from_pretrained(args.model, quantize=args.quantize)
    beginning = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(beginning)
    for line in lines():
        if line == "/quit":
            break
        if line == "/new":
            messages = list(beginning)
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            try:
                messages = [*asked, {"role": "assistant", "content": answer(chat, asked, args)}]
            except CommonthreadError as error:
                print(f"({error})", file=sys.stderr)


if __name__ == "__main__":
    main()
