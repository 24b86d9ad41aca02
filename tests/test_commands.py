"""Every script's main ends in one line and exit code 2 when its data or its numbers can't be."""
import ast
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
           for folder in ("examples", "gencore", "textgen", "imagegen", "audiogen", "multimodal", "benchmarks")
           for path in sorted((ROOT / folder).rglob("*.py")) if path.name != "__main__.py"}
MAINS = {name: node for name, tree in SCRIPTS.items() for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"}
TAKE_DATA = [name for name in MAINS if not name.startswith("benchmarks/") and '"--data"' in (ROOT / name).read_text(encoding="utf-8")]
ON_WRONG_NUMBERS = [("examples/train_image.py", "size=16", "multiple of 32"), ("examples/train_image.py", "size=48", "multiple of 32"),
                    ("examples/train_image.py", "painting.steps=0", "steps should be at least 1"), ("examples/train_text.py", "widht=3", "width"),
                    ("examples/train_text.py", f"train.seed={2 ** 70}", "seed should be below"), ("examples/train_audio.py", "codec.hop=x", "hop"),
                    ("examples/quickstart.py", f"--seed={2 ** 70}", "seed should be"),
                    ("examples/image/diffusion.py", "steps=0", "steps"), ("examples/image/diffusion.py", "channels=2", "1 channel"),
                    ("examples/image/diffusion.py", "schedule.predicts=v", "velocity or data"),
                    ("examples/image/diffusion.py", "autoencoder=nowhere", "nowhere"), ("examples/image/autoencoder.py", "size=30", "multiple of 4"),
                    ("examples/text/word_senses.py", "--seed=-1", "seed should be")]


def test_every_main_is_a_command():
    assert len(MAINS) > 20 and len(TAKE_DATA) >= 11
    assert not [name for name, node in MAINS.items() if "command" not in map(ast.unparse, node.decorator_list)]


def ended(name, arguments, capsys, monkeypatch):
    """Runs a script in this process -> its exit code and what it said in the end."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    return stopped.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", TAKE_DATA)
def test_data_that_is_not_there_ends_in_one_line(name, tmp_path, capsys, monkeypatch):
    out = ["--base", "novelist"] if name.endswith("finetune_lora.py") else []
    code, said = ended(name, ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *out], capsys, monkeypatch)
    assert code == 2 and said.startswith("error: ") and "nowhere" in said


@pytest.mark.parametrize("name, setting, words", ON_WRONG_NUMBERS)
def test_numbers_that_can_not_be_end_in_one_line(name, setting, words, tmp_path, capsys, monkeypatch):
    code, said = ended(name, [setting, "--out", str(tmp_path / "out")], capsys, monkeypatch)
    assert code == 2 and said.startswith("error: ") and words in said
