"""The torchaudio guard: nothing changes where its compiled part loads, it goes on without where that fails, and it may be absent.

Each case is a fresh process, since an import happens once."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INIT = """
from torchaudio import _extension
compiled = _extension.compiled
"""
EXTENSION = """
from torchaudio._extension.utils import _load_lib
compiled = _load_lib("libtorchaudio")
"""
UTILS = """
def _load_lib(lib):
    {body}
"""


def fake_torchaudio(folder: Path, body: str) -> Path:
    """A package shaped like torchaudio whose compiled part does `body` when it is loaded."""
    package = folder / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "__init__.py").write_text(INIT)
    (package / "_extension" / "__init__.py").write_text(EXTENSION)
    (package / "_extension" / "utils.py").write_text(UTILS.format(body=body))
    return folder


def run(code: str, *front: Path) -> str:
    """Standard output of `code` in a fresh process with folders `front` before everything else on its path."""
    path = [str(folder) for folder in front] + [str(ROOT)]
    code = f"import sys; sys.path[:0] = {path!r}\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FOUND = """
import gencore
import torchaudio
print(torchaudio.compiled, sys.modules["torchaudio._extension.utils"]._load_lib.__name__)
"""


def test_nothing_is_patched_where_the_extension_loads(tmp_path):
    assert run(FOUND, fake_torchaudio(tmp_path, "return True")) == "True _load_lib"


@pytest.mark.parametrize("error", ["OSError('undefined symbol')", "RuntimeError('compiled with different CUDA versions')"])
def test_a_failing_extension_is_left_out(tmp_path, error):
    assert run(FOUND, fake_torchaudio(tmp_path, f"raise {error}")) == "False <lambda>"


def test_the_guard_repairs_after_an_import_that_failed_before_it(tmp_path):
    code = "try: import torchaudio\nexcept OSError: print('failed', end=' ')\n" + FOUND
    assert run(code, fake_torchaudio(tmp_path, "raise OSError")) == "failed False <lambda>"


def test_a_torchaudio_imported_before_is_left_alone(tmp_path):
    code = "import torchaudio; before = torchaudio; import gencore, torchaudio; print(torchaudio is before)"
    assert run(code, fake_torchaudio(tmp_path, "return True")) == "True"


def test_an_unknown_failure_is_raised(tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('another cause')")
    code = "import gencore\ntry: import torchaudio\nexcept OSError as error: print(error)"
    assert run(code, tmp_path) == "another cause"


def test_an_absent_torchaudio_stays_absent():
    code = """
    import importlib.util
    sys.path = [folder for folder in sys.path if "site-packages" not in folder]
    import gencore
    print(importlib.util.find_spec("torchaudio"), len([f for f in sys.meta_path if type(f).__name__ == "TorchaudioFinder"]))
    """
    assert run(code) == "None 1"


def test_the_guard_is_installed_once():
    code = """
    import gencore, textgen, imagegen, audiogen, multimodal
    gencore.torchaudio_guard.install()
    print(len([finder for finder in sys.meta_path if type(finder).__name__ == "TorchaudioFinder"]))
    """
    assert run(code) == "1"


@pytest.mark.parametrize("package", ["gencore", "textgen", "imagegen", "audiogen", "multimodal"])
def test_every_package_brings_the_guard_and_no_torchaudio(package):
    code = f"import {package}; print(type(sys.meta_path[0]).__name__, 'torchaudio' in sys.modules)"
    assert run(code) == "TorchaudioFinder False"


def test_model_classes_import_beside_the_torchaudio_that_is_installed():
    code = """
    import transformers                       # lazily, before us: no model class is touched yet
    import gencore
    from transformers import LlamaForCausalLM
    from diffusers import AutoencoderTiny
    import peft, torchaudio
    print(LlamaForCausalLM.__name__, AutoencoderTiny.__name__, callable(torchaudio.functional.resample))
    """
    assert run(code) == "LlamaForCausalLM AutoencoderTiny True"
