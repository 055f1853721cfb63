"""Runs a chat template that came with a model, within bounds.

Owns the jinja environment (as `transformers` sets it up, so that templates render the same) and its meter. Knows no
messages. Invariant: a render ends, with text or an error, after a bounded number of loop turns and calls, a bounded
time and a bounded output.

Templates come from the hub, so they run in jinja's immutable sandbox: no attributes that reach Python's inside. What
the sandbox leaves open is bounded here. Every turn of a loop and every call counts a step and looks at the clock, also
where nothing is written; no thread, signal or tracing, so it is the same on every system and thread.
Values that go into filters, comparisons, calls and operators are weighed (characters and elements, nested ones
counted as often as they occur), which stops text that doubles itself; not where only a length or a kind is asked, as
templates do of all messages for every message. Text repeated, joined or replaced is bounded before it is made. Padding
by a number is not offered, nor are bytes.
"""

import functools
import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.filters
import jinja2.meta
import jinja2.runtime
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_REFUSED_FILTERS = ("center", "filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
_REFUSED_METHODS = frozenset(
    ("center", "encode", "expandtabs", "format_map", "ljust", "rjust", "to_bytes", "translate", "zfill")
)
_LARGEST_FILTER_NUMBER = 1_000
_LARGEST_INTEGER_BITS = 4_096
_CONSTANT_FILTERS = frozenset(("count", "d", "default", "first", "last", "length"))
_CONSTANT_TESTS = frozenset(
    ("boolean", "defined", "false", "integer", "mapping", "none", "string", "true", "undefined")
)
_SEQUENCES = (list, tuple, KeysView, ValuesView, ItemsView)
_ATTRIBUTES = "_Namespace__attrs"
_WIDE_FORMAT = re.compile(r"\d{4}|\*|\{[^}]*\{")


@dataclass(frozen=True)
class Limits:
    """The most that one render may use. `characters` bounds the output and each value on the way."""

    steps: int = 1_000_000
    seconds: float = 10.0
    characters: int = 1_000_000


class LimitError(jinja2.TemplateError):
    """A template that took more than its limits allow."""


class Sandbox:
    """One template, compiled once; TemplateError (or LimitError) if it cannot be compiled."""

    def __init__(self, source: str) -> None:
        self._environment = _Environment()
        if len(source) > Limits.characters:
            raise LimitError(f"the template itself has {len(source):,} characters")
        self._template = self._environment.from_string(source)
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(self._environment.parse(source)))
        """Names that the template reads without setting them first."""

    def render(self, variables: Mapping[str, Any], limits: Limits) -> str:
        """The output; TemplateError, LimitError or whatever else the template's own code raises."""
        self._environment.meter = meter = _Meter(limits)
        return meter.collect(self._template.generate(**variables))


class _Meter:
    """Counts what one render uses."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._steps = 0
        self._deadline_s = time.monotonic() + limits.seconds

    def step(self) -> None:
        self._steps += 1
        if self._steps > self._limits.steps:
            raise LimitError(f"it took more than {self._limits.steps:,} steps")
        if time.monotonic() > self._deadline_s:
            raise LimitError(f"it took more than {self._limits.seconds:g} s")

    def weigh(self, *values: object) -> int:
        """Characters and elements in the values, every nested one each time it occurs; refuses what is too heavy."""
        weight = 0
        pending: list[object] = list(values)
        while pending:
            value = pending.pop()
            if isinstance(value, str):
                weight += len(value)
            elif isinstance(value, int):
                if value.bit_length() > _LARGEST_INTEGER_BITS:
                    raise LimitError(f"a number grew beyond {_LARGEST_INTEGER_BITS} bits")
            elif isinstance(value, dict):
                weight += 1
                pending.extend(value)
                pending.extend(value.values())
            elif isinstance(value, _SEQUENCES):
                weight += 1
                pending.extend(value)
            elif isinstance(value, Namespace):
                weight += 1
                pending.append(object.__getattribute__(value, _ATTRIBUTES))
            if weight + len(pending) > self._limits.characters:
                raise LimitError(f"a value grew beyond {self._limits.characters:,} characters")
        return weight

    def collect(self, pieces: Iterable[str]) -> str:
        """The text of pieces that are made one at a time."""
        collected = self.buffer()
        for piece in pieces:
            self.step()
            collected.append(piece)
        return "".join(collected)

    def buffer(self) -> "_Buffer":
        """A place for output."""
        return _Buffer(self._limits.characters)

    def grow(self, count: int, *values: object) -> None:
        """Refuse an operation that would repeat the values `count` times beyond the limit."""
        if count * self.weigh(*values) > self._limits.characters:
            raise LimitError(f"a value grew beyond {self._limits.characters:,} characters")

    def replace(self, text: str, old: str, new: str) -> None:
        self.weigh(text)
        self.grow(text.count(old), new)

    def join(self, separator: str, items: list[Any]) -> None:
        self.weigh(items)
        self.grow(len(items), separator)

    def format(self, text: str, *values: object) -> None:
        """Refuse a format whose fields could be wider than 999 characters, or would show the values too often."""
        if _WIDE_FORMAT.search(text):
            raise LimitError(f"the format {text[:40]!r} is too wide")
        self.grow(text.count("%") + text.count("{"), values)


class _Buffer(list[str]):
    """Output as it comes, as much as may come."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit, self._written = limit, 0

    def append(self, piece: str) -> None:
        self._written += len(piece)
        if self._written > self._limit:
            raise LimitError(f"it wrote more than {self._limit:,} characters")
        super().append(piece)

    def extend(self, pieces: Iterable[str]) -> None:
        for piece in pieces:
            self.append(piece)


class _MeteredCode(CodeGenerator):
    """Puts the meter into every loop, comparison, key, buffer and `~` of the compiled template."""

    def buffer(self, frame: Frame) -> None:
        """Where a macro or block puts its output."""
        frame.buffer = self.temporary_identifier()
        self.writeline(f"{frame.buffer} = environment.meter.buffer()")

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        for loop in node.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "metered_loop")
        for comparison in node.find_all(nodes.Compare):
            for operand in comparison.ops:  # two large values are slow to compare, a large and a small one are not
                operand.expr = _filtered(operand.expr, "metered_value")
        for concatenation in node.find_all(nodes.Concat):
            concatenation.nodes = [_filtered(part, "metered_value") for part in concatenation.nodes]
        for pair in node.find_all(nodes.Pair):  # to hash a nested tuple takes as long as it is when written out
            pair.key = _filtered(pair.key, "metered_value")
        for item in node.find_all(nodes.Getitem):
            if not isinstance(item.arg, nodes.Const | nodes.Slice):
                item.arg = _filtered(item.arg, "metered_value")
        super().visit_Template(node, frame)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


class _GenerationBlock(Extension):
    """`{% generation %}`, a mark for training that renders as its body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type jinja expects

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _MeteredCode
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        self.meter = _Meter(Limits())
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _GenerationBlock],
            optimized=False,
            finalize=self._finalize,
        )
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=self._strftime_now)
        for name in _REFUSED_FILTERS:
            self.filters.pop(name)
        self.filters.update(join=self._join, replace=self._replace, format=self._format)
        self.filters.update(tojson=self._to_json, indent=self._indent, sum=self._sum)
        filters = cast(dict[str, Callable[..., Any]], self.filters)
        self.filters = {
            name: self._metered(name, function, name not in _CONSTANT_FILTERS) for name, function in filters.items()
        }
        tests = cast(dict[str, Callable[..., Any]], self.tests)
        self.tests = {
            name: self._metered("", function, name not in _CONSTANT_TESTS) for name, function in tests.items()
        }
        self.filters.update(metered_loop=self._metered_loop, metered_value=self._finalize)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template, macros and `loop(...)` included."""
        meter = __self.meter
        meter.step()
        meter.weigh(args, tuple(kwargs.values()))
        method = getattr(__obj, "__wrapped__", __obj)
        subject = getattr(method, "__self__", None)
        if isinstance(subject, str):
            match method.__name__, args:
                case "replace", (str(old), str(new), *_):
                    meter.replace(subject, old, new)
                case "join", (items,):
                    args = (list(items),)
                    meter.join(subject, args[0])
                case "format", _:
                    meter.format(subject, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise LimitError("the operator ** is not offered to templates here")
        if operator == "%" and isinstance(left, str):
            self.meter.format(left, right)
        if operator == "*":
            for count, value in ((left, right), (right, left)):
                if isinstance(count, int) and not isinstance(value, int | float):
                    self.meter.grow(count, value)
        self.meter.weigh(left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        refused = isinstance(obj, str | int) and attr in _REFUSED_METHODS
        return not refused and super().is_safe_attribute(obj, attr, value)

    def _metered(self, name: str, function: Callable[..., Any], weighed: bool) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.step()
            values = [value for value in (*args, *kwargs.values()) if not isinstance(value, jinja2.runtime.Context)]
            if weighed:
                self.meter.weigh(*values)
            numbers = [value for value in values[1:] if isinstance(value, int) and value > _LARGEST_FILTER_NUMBER]
            if name and numbers:
                raise LimitError(f"the number {numbers[0]} for the filter {name} is too large")
            return function(*args, **kwargs)

        return metered

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = map(jinja2.filters.make_attrgetter(self, attribute), value)
        items = list(value)
        self.meter.join(d, items)
        return d.join(map(str, items))

    def _replace(self, value: object, old: str, new: str, count: int = -1) -> str:
        text = str(value)
        self.meter.replace(text, old, new)
        return text.replace(old, new, count)

    def _format(self, value: object, *args: Any, **kwargs: Any) -> str:
        text = str(value)
        self.meter.format(text, args, kwargs)
        return text % (kwargs or args)

    def _indent(self, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        self.meter.grow(len(s.splitlines()), width if isinstance(width, str) else " " * width)
        return jinja2.filters.do_indent(s, width, first, blank)

    def _sum(self, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        """Lists that are added one by one are copied as often."""
        if attribute is not None:
            iterable = map(jinja2.filters.make_attrgetter(self, attribute), iterable)
        for value in iterable:
            self.meter.step()
            start = self.call_binop(None, "+", start, value)
        return start

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON without jinja's HTML escapes, as `transformers` gives it to templates."""
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.meter.collect(encoder.iterencode(value))

    def _strftime_now(self, format: str) -> str:
        self.meter.format(format)
        return datetime.now().strftime(format)

    def _metered_loop(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.meter.step()
            yield item

    def _finalize(self, value: Any) -> Any:
        self.meter.weigh(value)
        return value


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
