"""The wheel: every package with the models that ship in it, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gencore", "textgen", "imagegen", "audiogen", "multimodal")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of what lies in a wheel that is built from a copy of the checkout, without network; weights are empty there, to be quick."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("checkout")
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"),
                        copy_function=lambda source, to: Path(to).touch() if source.endswith(".safetensors") else shutil.copy(source, to))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, folder / "dist"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(next((folder / "dist").glob("*.whl"))) as archive:
        return set(archive.namelist())


def test_a_wheel_holds_every_module_and_all_of_every_model_that_ships(wheel):
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= wheel
    weights = [name for name in wheel if name.endswith(".safetensors")]
    assert len(weights) >= 8 and all(f"{'/'.join(name.split('/')[:3])}/README.md" in wheel for name in weights)


def test_a_wheel_holds_no_tests_and_nothing_beside_the_packages(wheel):
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == set(PACKAGES)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
