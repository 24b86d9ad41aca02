"""Frozen dataclasses to JSON and back: unknown keys name the nearest field, wrong types and values out of range name the field."""
import dataclasses
import json
import types
import typing

from gencore.check import ConfigError, nearest


class Within(typing.NamedTuple):
    """Bounds of a field's value, both allowed: `width: Annotated[int, Within(1, 8)]`."""
    low: float
    high: float


Size = typing.Annotated[int, Within(1, 2 ** 28)]           # of what has to be there: a width, a vocabulary, a context
Few = typing.Annotated[int, Within(1, 256)]                # parts that are built one by one: layers, heads, codebooks
Count = typing.Annotated[int, Within(0, 2 ** 31)]          # what may be none: an id of a token, steps of a warm-up
Positive = typing.Annotated[float, Within(1e-30, 1e30)]
Weight = typing.Annotated[float, Within(0, 1e6)]           # of a term in a sum
Share = typing.Annotated[float, Within(0, 1)]


def to_dict(cfg):
    """Dataclass -> dict of JSON values; nested dataclasses become dicts, tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def from_dict(cls, values, path=""):
    """dict -> `cls`, checked: unknown keys and wrong types raise ConfigError naming the field."""
    if not isinstance(values, dict):
        raise ConfigError(f"{path.rstrip('.') or cls.__name__} should be an object with fields, got {values!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in names:
            raise ConfigError(f'{cls.__name__} has no field "{path}{key}"{nearest(key, names)}')
    missing = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in values
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{cls.__name__} lacks the field {path}{missing[0]}")
    return cls(**{key: _convert(hints[key], value, path + key) for key, value in values.items()})


def check_fields(cfg):
    """For __post_init__: every field holds what its annotation says (2.0 for an int becomes 2), within its bounds, else ConfigError."""
    for name, hint in typing.get_type_hints(type(cfg), include_extras=True).items():
        object.__setattr__(cfg, name, _convert(hint, getattr(cfg, name), f"{type(cfg).__name__}.{name}"))


def check_values(values, hints, path=""):
    """A stranger's dict: what is named in `hints` {field: type} is of that type, however deep it lies, else ConfigError. None passes."""
    for name, value in values.items():
        if value is not None and name in hints:
            _convert(hints[name], value, path + name)
        if isinstance(value, dict):
            check_values(value, hints, f"{path}{name}.")


def check_ids(cfg, ids):
    """For __post_init__: {name in the files: id or ids of tokens} lie within cfg.vocab, else ConfigError."""
    for name, value in ids.items():
        for token in value if isinstance(value, tuple) else (value,):
            if token is not None and not 0 <= token < cfg.vocab:
                raise ConfigError(f"{type(cfg).__name__}: {name} should be the id of one of the {cfg.vocab} tokens, got {token}")


def override(cfg, pairs):
    """cfg, ["lr=1e-3", "attention.heads=4"] -> a copy with these fields replaced (values are read as JSON, else as text)."""
    values = to_dict(cfg)
    for pair in pairs:
        key, eq, text = pair.partition("=")
        if not eq:
            raise ConfigError(f'expected key=value, got "{pair}"')
        *parents, leaf = key.split(".")
        place = values
        for parent in parents:
            if place.get(parent) is None:                         # a part that was off is opened with its defaults
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ConfigError(f"{key}: {parent} has no fields inside")
        place[leaf] = _Given(text)
    return from_dict(type(cfg), values)


class _Given:
    """A value from a command line: JSON when the field takes that, else the text itself (name=2024)."""

    def __init__(self, text):
        self.text = text
        try:
            self.value = json.loads(text)
        except json.JSONDecodeError:
            self.value = {"None": None, "True": True, "False": False}.get(text, text)

    def convert(self, hint, field):
        try:
            return _convert(hint, self.value, field)
        except ConfigError:
            if hint is not str and str not in typing.get_args(hint):
                raise
            return self.text


def _convert(hint, value, field):
    """`value` as the annotated type of `field`, or ConfigError."""
    if isinstance(value, _Given):
        return value.convert(hint, field)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        value, (low, high) = _convert(args[0], value, field), args[1]
        if not low <= value <= high:
            raise ConfigError(f"{field} should be between {low:,} and {high:,}, got {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        return _first_fit(options, value, field)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, field + ".")
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [args[0]] * len(value) if args[-1:] == (...,) else args
        if len(kinds) == len(value):
            return tuple(_convert(k, v, f"{field}[{i}]") for i, (k, v) in enumerate(zip(kinds, value)))
    elif origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(f"{field} should be one of {', '.join(map(repr, args))}, got {value!r}{nearest(value, args)}")
    elif origin is dict and isinstance(value, dict):
        return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e308:     # no NaN either
        return float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(hint, type) and hint is not float and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{field} should be {getattr(hint, '__name__', hint)}, got {value!r}")


def _first_fit(options, value, field):
    errors = []
    for option in options:
        try:
            return _convert(option, value, field)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]
