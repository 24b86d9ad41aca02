"""The house rules, read from the source: who may import whom, how long files and functions are, what an import costs, the README's tree."""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "gencore": {"gencore"},
    "textgen": {"gencore", "textgen"},
    "imagegen": {"gencore", "imagegen"},
    "audiogen": {"gencore", "audiogen"},
    "multimodal": {"gencore", "textgen", "imagegen", "audiogen", "multimodal"},
}
PACKAGES = list(MAY_IMPORT)
OUTSIDE = ["tests", "examples", "benchmarks"]
HEAVY = {"transformers", "diffusers", "datasets", "accelerate", "peft", "torchaudio", "matplotlib", "soundfile", "scipy", "sklearn",
         "pandas"}

# "file:function": why it may have more arguments than six, or more by position than four
MANY_ARGUMENTS = {
    "gencore/loss.py:forward": "autograd passes by position",
    "gencore/transformer.py:forward": "every stream that a block can read: mask, positions, cache, memory, its mask, condition",
}
FRONT_DOORS = {"__call__", "generate", "stream", "outpaint", "variations", "between"}      # what users of transformers and diffusers pass by name
TAKES_KWARGS = {
    "gencore/check.py:dims": "the named sizes of the shape it checks",
    "gencore/chat_template.py:call": "Jinja's own signature: what a template passes",
    "gencore/chat_template.py:paid": "the same, around any filter",
    "gencore/chat_template.py:dictionary": "the same, of dict()",
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def imported(nodes) -> set[str]:
    """Top-level names of the modules that these nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def functions(path: Path):
    """(name, node) of every function and method."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{name_of(path)}:{node.name}", node


def body_lines(node) -> int:
    """Lines from `def` to the end without the docstring: it is a contract, not a path to follow."""
    words = node.body[0] if ast.get_docstring(node) is not None else None
    return node.end_lineno - node.lineno + 1 - (words.end_lineno - words.lineno + 1 if words else 0)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    wrong = {}
    for path in sources(package):
        found = imported(ast.walk(tree_of(path))) & {*PACKAGES, *OUTSIDE}
        if found - MAY_IMPORT[package]:
            wrong[name_of(path)] = found - MAY_IMPORT[package]
    assert not wrong


def test_heavy_libraries_are_imported_inside_functions():
    wrong = {}
    for path in sources(*PACKAGES):
        if found := imported(tree_of(path).body) & HEAVY:
            wrong[name_of(path)] = found
    assert not wrong


def test_files_are_at_most_400_lines_and_examples_120():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*PACKAGES, *OUTSIDE)}
    limits = {name: 120 if name.startswith("examples/") else 400 for name in lengths}
    assert not {name: lines for name, lines in lengths.items() if lines > limits[name]}


def test_functions_are_at_most_40_lines():
    assert not {name: body_lines(node) for path in sources(*PACKAGES) for name, node in functions(path) if body_lines(node) > 40}


def test_functions_take_at_most_six_arguments_and_four_by_position():
    wrong = {}
    for path in sources(*PACKAGES):
        for name, node in functions(path):
            by_position = [a.arg for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls", "ctx")]
            total = len(by_position) + (0 if node.name in FRONT_DOORS else len(node.args.kwonlyargs))
            if (total > 6 or len(by_position) > 4) and name not in MANY_ARGUMENTS:
                wrong[name] = f"{len(by_position)} by position, {total} in all"
    assert not wrong


def test_library_code_takes_no_kwargs():
    found = {name for path in sources(*PACKAGES) for name, node in functions(path) if node.args.kwarg}
    assert found <= set(TAKES_KWARGS)


def test_frozen_dataclasses_have_at_most_15_fields():
    wrong = {}
    for path in sources(*PACKAGES):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = sum(isinstance(statement, ast.AnnAssign) for statement in node.body)
                if fields > 15:
                    wrong[f"{name_of(path)}:{node.name}"] = fields
    assert not wrong


def test_exceptions_are_still_needed():
    names = {name for path in sources(*PACKAGES) for name, _ in functions(path)}
    assert {*MANY_ARGUMENTS, *TAKES_KWARGS} <= names


def readme_tree() -> set[str]:
    """Paths in the README's tree: two spaces a level, a name, then what it is; several names may share a line before two spaces."""
    block = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1], re.S)[1]
    paths, above = set(), []
    for line in filter(str.strip, block.splitlines()):
        level = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        above = [*above[:level], name.rstrip("/")]
        paths.add("/".join(above) + ("/" if name.endswith("/") else ""))
    return paths


def test_the_readme_tree_lists_every_file():
    listed = {path for path in readme_tree() if path.endswith(".py")}
    present = {name_of(path) for path in sources(*PACKAGES, *OUTSIDE)}
    weights = {name_of(path) + "/" for package in PACKAGES for path in (ROOT / package / "pretrained").glob("*") if path.is_dir()}
    assert (present - listed, listed - present) == (set(), set())
    assert weights == {path for path in readme_tree() if re.search("/pretrained/.+/$", path)}


IMPORT_COST = """
import importlib, json, os, sys, time
import torch
for package in sys.argv[2:]:
    for _ in range(5):                      # a fork has torch imported already and nothing of ours
        sys.stdout.flush()
        if os.fork() == 0:
            wall, cpu = time.perf_counter(), time.process_time()
            module = importlib.import_module(package)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            at_import = sorted(set(sys.modules) & set(sys.argv[1].split()))
            for name in module.__all__:
                getattr(module, name)
            at_use = sorted(set(sys.modules) & set(sys.argv[1].split()))
            print(json.dumps([package, wall, cpu, at_import, at_use]))
            sys.stdout.flush()
            os._exit(0)
        assert os.wait()[1] == 0, package
"""


@pytest.fixture(scope="module")
def import_costs():
    if not hasattr(os, "fork"):
        pytest.skip("measured in forks of a process that has torch")
    command = [sys.executable, "-c", IMPORT_COST, " ".join(HEAVY), *PACKAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("package", PACKAGES)
def test_an_import_adds_less_than_0_3_seconds_to_torch(package, import_costs):
    walls, cpus = zip(*[(wall, cpu) for name, wall, cpu, _, _ in import_costs if name == package])
    assert len(walls) == 5
    assert min(statistics.median(walls), statistics.median(cpus)) < 0.3      # CPU time, where others keep the machine busy


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_heavy_is_imported_until_a_model_is_used(package, import_costs):
    for name, _, _, at_import, at_use in import_costs:
        if name == package:
            assert (at_import, at_use) == ([], [])


def test_an_unknown_public_name_lists_the_known_ones():
    import textgen
    with pytest.raises(AttributeError, match="CausalLM"):
        _ = textgen.CausalLanguageModel
