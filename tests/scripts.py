"""Runs a script of examples/ in this process: a process of its own would import torch and transformers again each time."""

import contextlib
import io
import runpy
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(script: Path, *arguments, typed: str = "") -> str:
    """What `python script arguments` prints. A refusal is its SystemExit, whose text is the message."""
    before, printed = (sys.argv, sys.stdin), io.StringIO()
    sys.argv, sys.stdin = [str(script), *map(str, arguments)], io.StringIO(typed)
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.stdin = before
    return printed.getvalue()
