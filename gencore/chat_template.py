"""Chat templates of anybody, run in a room without doors: Jinja's sandbox, with few functions and a bounded amount of work.

transformers runs templates in ImmutableSandboxedEnvironment; here filters, methods and functions are those that published templates
use, and every loop, call and sum is paid for before it is made, so that a template can neither reach out nor run on."""
import json
import time
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_environment
from jinja2.visitor import NodeTransformer

from gencore.check import InputError

LENGTH = 100_000                # characters of a template
OUTPUT = 4_000_000              # characters that it may write
WORK = 20_000_000               # characters that it may handle on its way
STEP = 200                      # what a round of a loop, a call, a filter or an item costs, in characters
SECONDS = 10                    # of one rendering

_account = ContextVar("account")                       # [work left, time at which it ends]: of this rendering, in this thread
_moment = ContextVar("moment", default=None)           # what templates take for now

LISTS = (list, tuple, KeysView, ValuesView, ItemsView)
QUADRATIC = {"rfind", "rsplit", "strip", "lstrip", "rstrip"}           # of str: as much work as both lengths multiplied
REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Pow)
METHODS = {
    str: {"strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "replace", "upper", "lower", "title",
          "capitalize", "find", "rfind", "count", "index", "removeprefix", "removesuffix", "isdigit", "isalpha", "join"},
    dict: {"get", "items", "keys", "values"},
    list: {"index", "count"},
    LoopContext: {"index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "depth", "cycle", "changed"},
}


@lru_cache(maxsize=16)
def compiled(source):
    """Text of a template -> what `render` takes, or InputError."""
    if not isinstance(source, str) or len(source) > LENGTH:
        size = f"{len(source):,} characters" if isinstance(source, str) else type(source).__name__
        raise InputError(f"the chat template should be a text of at most {LENGTH:,} characters, got {size}")
    room = Room()
    with _bounded():
        tree = Paying().visit(room.parse(source))
        return Template.from_code(room, room.compile(tree), room.make_globals(None))


def render(template, values):
    """A compiled template and the JSON values that it sees -> text, or InputError."""
    parts, length = [], 0
    with _bounded():
        for part in template.generate(values):
            parts.append(part)
            length += len(part)
            if length > OUTPUT:
                raise SecurityError(f"it writes more than {OUTPUT:,} characters")
    return "".join(parts)


@contextmanager
def at(moment):
    """Inside, templates take this datetime for now: a recipe makes its text again on another day."""
    token = _moment.set(moment)
    try:
        yield
    finally:
        _moment.reset(token)


def now():
    """What templates take for now, without microseconds."""
    return _moment.get() or datetime.now().replace(microsecond=0)


@contextmanager
def _bounded():
    """An account to spend from; whatever goes wrong inside is the template's fault, and said in one sentence."""
    token = _account.set([WORK, time.monotonic() + SECONDS])
    try:
        yield
    except (RecursionError, MemoryError):
        raise InputError("the chat template was stopped: it is nested too deep") from None
    except Exception as error:                                       # a template can raise anything that Python can
        said = "refuses this conversation" if isinstance(error, Refusal) else "was stopped" if isinstance(error, SecurityError) else "fails"
        raise InputError(f"the chat template {said}: {str(error)[:300] or type(error).__name__}") from None
    finally:
        _account.reset(token)


class Refusal(TemplateError):
    """raise_exception() of the template itself."""


def spend(work):
    """Pays for what is about to be done; SecurityError when there is nothing left to pay with."""
    account = _account.get()
    account[0] -= work
    if account[0] < 0 or time.monotonic() > account[1]:
        raise SecurityError(f"it does more than {WORK:,} characters' work, or takes more than {SECONDS} seconds")


def weight(value):
    """What a value costs, with all that its lists hold; stops counting when nobody could pay."""
    total, waiting = 0, [value]
    while waiting and total <= WORK:
        value = waiting.pop()
        total += STEP
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, Namespace):
            waiting += value._Namespace__attrs.values()
        elif isinstance(value, LISTS):
            waiting += value
    return total


# ---- functions and filters ----

def raise_exception(message):
    raise Refusal(str(plain(message)))


def strftime_now(pattern):
    return now().strftime(plain(pattern)[:100])


def numbers(*limits):
    """range, as a list: it is paid for."""
    made = range(*limits)
    spend(len(made))
    return list(made)


def plain(value):
    """What may be written: text, numbers, None and what is not defined; a list or an object shows its inside."""
    if isinstance(value, (str, int, float, type(None), Undefined)):
        return value
    raise SecurityError(f"it writes a {type(value).__name__}, expected text")


def replaced(text, old, new, count=-1):
    spend(len(text) + text.count(old) * len(new))
    return text.replace(old, new, count)


def joined(items, between=""):
    items = [str(plain(item)) for item in items]
    spend(sum(map(len, items)) + len(items) * len(between))
    return between.join(items)


@pass_environment
def join_filter(environment, items, d="", attribute=None):
    return joined(items if attribute is None else map(make_attrgetter(environment, attribute), items), d)


def tojson(value, ensure_ascii=False, indent=None, *, separators=None, sort_keys=False):
    if (isinstance(indent, int) and not 0 <= indent <= 16) or any(len(between) > 16 for between in separators or ()):
        raise SecurityError("tojson takes an indent of 0 to 16, and separators of so many characters")
    spend(weight(value) * (1 + (indent or 0)))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def indented(text, width=4, first=False, blank=False):
    if not isinstance(width, int) or not 0 <= width <= 100:
        raise SecurityError("indent takes a width of 0 to 100")
    spend(len(text) + len(text.splitlines()) * width)
    return FILTERS["indent"](text, width, first, blank)


@pass_environment
def summed(environment, items, attribute=None, start=0):
    """Numbers alone: lists would be copied for each one that is added."""
    values = list(items if attribute is None else map(make_attrgetter(environment, attribute), items))
    spend(STEP + len(values))
    if not all(isinstance(value, (int, float)) for value in (start, *values)):
        raise SecurityError("sum takes numbers")
    return sum(values, start)


def trimmed(text, chars=None):
    text = str(plain(text))
    spend(len(text) * len(chars or " "))
    return text.strip(chars)


def whole_number(value, default=0, base=10):
    """int, of text that a person might write: numbers of thousands of digits make sums slow."""
    if isinstance(value, str) and len(value) > 300:
        raise SecurityError("int takes texts of at most 300 characters")
    return FILTERS["int"](value, default, base)


def dictionary(*pairs, **named):
    """dict(), paid for."""
    spend(weight([*pairs, named]))
    return dict(*pairs, **named)


def round_of(items, cost):
    """What a loop goes over: each round is paid when it begins, the text that stands in its body included."""
    for item in items:
        spend(cost)
        yield item


def literal(value):
    """A list or dict that is written in the template: lists of lists of lists are paid in full."""
    spend(weight(value))
    return value


def length(value):
    """What a value costs whose inside nobody looks at."""
    return len(value) if isinstance(value, (str, dict, *LISTS)) else 0


def _paid(function, cost=length):
    """A filter of Jinja's own, whose arguments are paid first and whose result is no generator: lists of lists of lists are paid in full."""
    def paid(*values, **named):
        spend(STEP + sum(cost(value) for value in (*values, *named.values())))
        made = function(*values, **named)
        if not isinstance(made, Iterator):
            return made
        made = list(made)
        spend(weight(made))
        return made

    if hasattr(function, "jinja_pass_arg"):                          # it wants the environment or the context first
        paid.jinja_pass_arg = function.jinja_pass_arg
    return paid


OWN = {"tojson": tojson, "join": join_filter, "indent": indented, "replace": replaced, "safe": plain, "string": lambda value: str(plain(value)),
       "sum": summed, "trim": trimmed, "int": whole_number, "_round": round_of, "_literal": literal}
USUAL = ("abs", "capitalize", "count", "d", "default", "first", "float", "items", "last", "length", "list", "lower", "map", "reject", "rejectattr",
         "reverse", "select", "selectattr", "title", "upper")
COMPARING = ("dictsort", "max", "min", "sort", "unique")               # these look into their items
FUNCTIONS = {"range": numbers, "dict": dictionary, "namespace": Namespace, "raise_exception": raise_exception, "strftime_now": strftime_now}


# ---- the room ----

class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's words for trainers: here its body."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class Paying(NodeTransformer):
    """Makes a parsed template pay for loops, lists and joined texts, and refuses what reaches other files."""

    def generic_visit(self, node):
        if isinstance(node, REFUSED):
            raise SecurityError(f"it uses {type(node).__name__.lower()}, line {node.lineno}")
        if isinstance(node, nodes.NSRef) and node.attr.startswith("_"):
            raise SecurityError(f'it sets "{node.attr}", line {node.lineno}')
        return super().generic_visit(node)

    def visit_For(self, node):
        if node.recursive:
            raise SecurityError(f"it has a recursive loop, line {node.lineno}")
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_round", [nodes.Const(STEP + text)])
        return node

    def visit_Concat(self, node):
        """a ~ b is a|string + b|string, and sums are paid."""
        self.generic_visit(node)
        parts = [_filtered(part, "string") for part in node.nodes]
        whole = parts[0]
        for part in parts[1:]:
            whole = nodes.Add(whole, part, lineno=node.lineno)
        return whole

    def visit_List(self, node):
        self.generic_visit(node)
        return _filtered(node, "_literal")

    visit_Dict = visit_List

    def visit_Tuple(self, node):
        self.generic_visit(node)
        return node if node.ctx != "load" else _filtered(node, "_literal")


def _filtered(node, name, args=()):
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class Room(ImmutableSandboxedEnvironment):
    """The environment: what is not listed above is not there."""
    intercepted_binops = frozenset(("+", "*", "%"))

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=written,
                         extensions=[Generation, "jinja2.ext.loopcontrols"])
        self.globals = dict(FUNCTIONS)
        self.filters = {name: _paid(FILTERS[name]) for name in USUAL} | {name: _paid(FILTERS[name], weight) for name in COMPARING} | OWN

    def getattr(self, obj, attribute):
        """obj.attribute: a method of the list above, what a namespace or loop holds, or an item."""
        spend(1)
        if attribute.startswith("_"):
            raise SecurityError(f'it reaches for "{attribute}"')
        if isinstance(obj, (Namespace, Undefined)):
            return getattr(obj, attribute, None) if isinstance(obj, Namespace) else getattr(obj, attribute)
        if attribute in METHODS.get(type(obj), ()):
            return getattr(obj, attribute)
        if isinstance(obj, dict):
            return obj.get(attribute, self.undefined(obj=obj, name=attribute))
        if hasattr(obj, attribute):
            raise SecurityError(f'it reaches for "{attribute}" of a {type(obj).__name__}')
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj, argument):
        spend(1)
        if isinstance(obj, (str, list, tuple, dict)):
            if isinstance(argument, slice):
                spend(len(obj))
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass
        return self.getattr(obj, argument) if isinstance(argument, str) else self.undefined(obj=obj, name=str(plain(argument)))

    def call(self, context, obj, /, *args, **named):
        owner = getattr(obj, "__self__", None)
        if not (isinstance(obj, Macro) or obj in FUNCTIONS.values() or type(owner) in METHODS):
            raise SecurityError(f"it calls a {type(obj).__name__}")
        name, given = getattr(obj, "__name__", ""), [*args, *named.values()]
        spend(weight(given) + length(owner) * (1 + (max(map(length, given), default=0) if isinstance(owner, str) and name in QUADRATIC else 0)))
        if isinstance(owner, str) and name in ("replace", "join"):
            return replaced(owner, *args) if name == "replace" else joined(*args, owner)
        made = context.call(obj, *args, **named)
        spend(len(made) if isinstance(made, str) else 0)
        return made

    def call_binop(self, context, operator, left, right):
        if operator == "*" and isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 256:
            raise SecurityError("it multiplies numbers of hundreds of bits")
        if operator == "%" and not isinstance(left, (int, float)):
            raise SecurityError("it formats text by %")
        sizes = [len(value) if isinstance(value, (str, list, tuple)) else None for value in (left, right)]
        times = next((abs(value) for value in (left, right) if isinstance(value, int)), 1)
        spend(STEP + sum(size or 0 for size in sizes) * (times if operator == "*" else 1))
        return super().call_binop(context, operator, left, right)


def written(value):
    """Every value that is written."""
    value = plain(value)
    spend(1 + (len(value) if isinstance(value, str) else 0))
    return value
