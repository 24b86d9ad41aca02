"""torchaudio beside a torch it was not compiled for: imported without its compiled part instead of failing.

torchaudio's wheels are compiled for one CUDA build of torch. Beside another one (a CPU torch, say) its import raises, and since
transformers imports torchaudio whenever it is installed, every transformers and diffusers model class fails with it. `install()` puts a
finder in front of Python's own that watches for one name, `torchaudio`. Where the import works nothing is changed; where the compiled part
fails, torchaudio is told that it has none, which is a mode of its own (spectrograms, mel and resampling are plain torch).
"""

import functools
import importlib.abc
import sys

_UTILS = "torchaudio._extension.utils"                # stays in sys.modules when the import of its parent fails


class TorchaudioFinder(importlib.abc.MetaPathFinder):
    """Finds torchaudio where the others find it, with a loader that survives a compiled part that does not load."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchaudio":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader.exec_module = functools.partial(_run, spec.loader.exec_module)
        return spec


def _run(exec_module, module):
    """Runs torchaudio's `__init__`; once more without the compiled part if that was what failed."""
    try:
        exec_module(module)
    except (OSError, RuntimeError):                   # a missing symbol or library; another CUDA version
        utils = sys.modules.get(_UTILS)
        if not hasattr(utils, "_load_lib"):
            raise                                     # not the failure that is known here
        utils._load_lib = lambda lib: False           # what it answers itself when there is no compiled file
        exec_module(module)


def install() -> None:
    """Watch for torchaudio from now on; harmless when called again, when torchaudio is loaded, or when there is none."""
    if not any(isinstance(finder, TorchaudioFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchaudioFinder())
