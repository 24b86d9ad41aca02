"""Every benchmark in this folder, one after another; those that judge models on real data want to be told where it is.

    python -m benchmarks                                     those that need no data; names the others
    python -m benchmarks audio=FOLDER reader=FOLDER          these on that data as well (make bench DATA="audio=FOLDER reader=FOLDER")
    python -m benchmarks --only text                         this one alone

Each prints its table and writes benchmarks/results/<name>.json with machine and versions."""
import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """{name: its help} of the files here that are run by themselves."""
    names = [path.stem for path in sorted(HERE.glob("*.py")) if path.stem != "__main__"]
    names = [name for name in names if '__name__ == "__main__"' in (HERE / f"{name}.py").read_text("utf-8")]
    return {name: subprocess.run(command(name, "--help"), stdout=subprocess.PIPE, text=True, check=True).stdout for name in names}


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{name}", *arguments]


def needed(words: str) -> str | None:
    """The option that the usage line of this help shows without brackets: --data, or another folder."""
    usage = words.split("\n\n")[0]
    return next((option for option in re.findall(r"(?<!\[)--[a-z]+(?= [A-Z])", usage)), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", metavar="NAME=FOLDER", help="where the data of a benchmark is")
    parser.add_argument("--only", help="run this benchmark alone")
    args = parser.parse_args()
    known = benchmarks()
    folders = dict(pair.partition("=")[::2] for pair in args.data)
    for name in [*folders, *([args.only] if args.only else [])]:
        if name not in known:
            parser.error(f'no benchmark "{name}": there are {", ".join(known)}')
    failed = []
    for name, words in known.items():
        if args.only not in (None, name):
            continue
        option = needed(words)
        if option and name not in folders:
            print(f"\n## {name}: left out, it needs a folder or file: python -m benchmarks {name}=FOLDER ({words.split(chr(10) * 2)[1].strip()})")
            continue
        print(f"\n## {name}\n", flush=True)
        if subprocess.run(command(name, *([option or "--data", folders[name]] if name in folders else []))).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
