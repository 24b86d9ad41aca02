"""Checks at the door: shapes, names, and the exceptions that say what was expected, what came, and what to do."""
import difflib


class CommonthreadError(ValueError):
    """Base of every error that this toolkit raises on purpose; each kind below is a ValueError too."""


class InputError(CommonthreadError):
    """An argument has a wrong shape, range or type."""


class UnknownNameError(CommonthreadError):
    """A model, voice, style or word that nobody here knows."""


class ConfigError(CommonthreadError):
    """A configuration holds an unknown field or a value that does not fit."""


class CheckpointError(CommonthreadError):
    """A folder of weights is missing, broken, foreign or changed."""


class DataError(CommonthreadError):
    """A data folder or one of its files can't be used."""


def dims(name, tensor, spec, **sizes):
    """Sizes of `tensor` in the order of `spec`: dims("codes", codes, "B K T", K=4) -> (B, K, T).

    A letter given by keyword must have that size, a digit in the spec must match itself. Raises InputError."""
    if not hasattr(tensor, "shape"):
        raise InputError(f"{name} should be a tensor ({spec}), got {type(tensor).__name__}")
    letters, shape = spec.split(), tuple(tensor.shape)
    if len(letters) != len(shape):
        raise InputError(f"{name}: expected {len(letters)} dimensions ({spec}), got {len(shape)} in shape {shape}")
    for letter, size in zip(letters, shape):
        wanted = int(letter) if letter.isdigit() else sizes.get(letter, size)
        if size != wanted:
            raise InputError(f"{name}: {letter} should be {wanted}, got {size} in shape {shape}")
    return shape


def nearest(name, known):
    """' (did you mean "novelist"?)' when a known name is close to `name`, else ''."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def unknown(kind, name, known):
    """The UnknownNameError for `name`: lists the known names and the nearest."""
    listed = ", ".join(sorted(str(k) for k in known)) or "none"
    return UnknownNameError(f'unknown {kind} "{name}"{nearest(name, known)}: known are {listed}')


def in_range(name, value, low, high):
    """`value` when low <= value <= high, else InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(f"{name} should be between {low} and {high}, got {value!r}")
    return value
