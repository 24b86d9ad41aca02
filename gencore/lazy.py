"""A package's public names, each imported from its file when first used: `import textgen` stays cheap."""

import importlib
import sys
from collections.abc import Callable


def lazy(package: str, homes: dict[str, str]) -> tuple[Callable, Callable, list[str]]:
    """homes {public name: file that defines it} -> the package's `__getattr__`, `__dir__` and `__all__`."""

    def get(name: str):
        if name not in homes:
            raise AttributeError(f"{package} has no {name!r}: its public names are {', '.join(sorted(homes))}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)           # the next look-up does not come here
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes}), sorted(homes)
