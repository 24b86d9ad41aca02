"""What the README says is true: its Python runs, its commands exist, its pictures and links are there."""

import re
from pathlib import Path

import pytest
import torch

from gencore.checkpoint import load_tensors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line.split(" #")[0].strip() for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line.strip()]


def test_there_are_blocks_to_run():
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 5


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_every_python_block_runs(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[index], f"README.md python block {index + 1}", "exec"), {"__name__": "__main__"})


def test_the_api_fits_in_fifteen_lines_that_call_it():
    lines = [line for line in PYTHON[0].splitlines() if line.strip() and "import " not in line]
    assert len(lines) <= 15


@pytest.mark.parametrize("command", sorted({command for command in COMMANDS if command.startswith("make ")}))
def test_every_make_target_exists(command):
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("command", sorted({command for command in COMMANDS if command.startswith("python ")}))
def test_every_python_command_takes_its_options(command, help_of):
    words = command.split()
    printed = help_of(words[2] if words[1] == "-m" else words[1])
    assert not [word for word in words if word.startswith("--") and word.split("=")[0] not in printed]


def test_pictures_and_links_to_files_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert not [target for target in targets if not target.startswith("https://") and not (ROOT / target).exists()]


def test_the_files_that_the_readme_names_exist():
    named = set(re.findall(r"`((?:\w+/)+[\w.]+\.\w+)`", README))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_shipped_weights_are_bfloat16_and_small():
    weights = sorted(path for package in ("textgen", "imagegen", "audiogen", "multimodal")
                     for path in (ROOT / package / "pretrained").rglob("*.safetensors"))
    size = lambda *names: sum(path.stat().st_size for path in weights if not {*path.parts}.isdisjoint(names))
    assert size("textgen") < 40e6 and size("imagegen") < 45e6 and size("pretrained") < 120e6 and size("chat") > 1e6
    for path in weights:
        assert {tensor.dtype for tensor in load_tensors(path).values() if tensor.is_floating_point()} == {torch.bfloat16}, path
