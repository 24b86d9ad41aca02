"""Checks at the door: shapes, names, and the exceptions that say what was expected, what came, and what to do."""
import difflib
import functools
import numbers
import operator
import sys


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


def whole(name, value, low, high=None):
    """`value` as an int when it is a whole number with low <= value <= high, else InputError."""
    wanted = f"of at least {low}" if high is None else f"between {low} and {high}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < low or (high is not None and number > high):
        raise InputError(f"{name} should be a whole number {wanted}, got {value!r:.80}")
    return number


def seeds_of(seed, rows=1):
    """A seed -> those of `rows` rows, seed + i; None: a new one, drawn by torch's own generator, so that torch.manual_seed holds."""
    import torch
    first = int(torch.randint(2 ** 31, ())) if seed is None else whole("seed", seed, 0, 2 ** 63 - rows)
    return [first + row for row in range(rows)]


def floating(dtype):
    """torch.bfloat16, or its name as transformers takes it -> torch.bfloat16; InputError for what weights can't be. None stays None."""
    import torch
    if dtype is None:
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f'dtype should be a floating one of torch or its name ("float32", "bfloat16", "float16"), got {dtype!r:.80}')
    return found


def present(device):
    """`device` as torch.device, None as the CPU; InputError for what is none, or none of this machine."""
    import torch
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError) as error:      # torch's builds without it each say it in their way
        raise InputError(f'device should be one of this machine, such as "cpu", "cuda" or "mps", got {str(device)!r:.80}') from error
    return found


def only_device(device):
    """`device` as torch.device, for the `to` of what computes in float32 alone; InputError for a dtype or what is no device."""
    import torch
    try:
        found = torch.device(device)
    except (TypeError, RuntimeError) as error:
        raise InputError(f'expected a device such as "cpu" or "cuda" (this computes in float32), got {device!r:.80}') from error
    return present(found)


def in_range(name, value, low, high):
    """`value`, as an int or a float, when low <= value <= high, else InputError. NumPy's numbers are numbers as well."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high:
        raise InputError(f"{name} should be between {low} and {high}, got {value!r}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def command(main):
    """Decorator for the main of a script: an error that this toolkit raises on purpose ends it as argparse does, in one line with exit code 2."""
    @functools.wraps(main)
    def run():
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")                # a console that can't write a letter ends no training
        try:
            return main()
        except CommonthreadError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error

    return run
