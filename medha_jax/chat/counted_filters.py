"""Jinja's filters and tests that chat templates use, each with its work counted before it is done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, str_join
from jinja2.tests import TESTS
from jinja2.utils import _PassArg

from medha_jax.chat.counted_nodes import CONCAT, MADE, READ, SLICE, STEP_FILTER
from medha_jax.chat.work_limit import STEP, WorkLimit

LIMIT = " limit"  # the variable of a rendering's WorkLimit; a template cannot write this name
MOST_WIDTH = 64  # of an indentation, a separator of JSON, a precision
# a field of printf's format that is at most 99 characters wide, by itself
_FIELD = re.compile(r"%(?:\([^()]*\))?[#0 +-]*\d{0,2}(?:\.\d{0,2})?[diouxXeEfFgGcrsa%]")

# filters that take one step; those that go through the outermost value; and those that read or write the whole of it
_QUICK = "attr count d default first last length".split()
_SHALLOW = "items list map reject rejectattr reverse select selectattr".split()
_DEEP = """abs capitalize dictsort e escape float format indent int join lower max min replace round safe sort string
    title trim truncate unique upper""".split()
_COMPARISONS = "in eq equalto == ne != gt greaterthan > ge >= lt lessthan < le <=".split()


def _limit(context: Context) -> WorkLimit:
    limit: WorkLimit = context.parent[LIMIT]
    return limit


@pass_context
def written(context: Context, value: Any) -> Any:
    """What `{{ value }}` writes, into the prompt or into a variable."""
    _limit(context).write(value)
    return value


@pass_context
def _step(context: Context, units: int) -> bool:
    _limit(context).spend(units)
    return True


@pass_context
def _concatenated(context: Context, first: Any, *others: Any) -> str:
    _limit(context).write(first, *others)
    return str_join((first, *others))


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _limit(context).made(value)


@pass_context
def _sliced(context: Context, value: Any, start: Any, stop: Any, step: Any) -> Any:
    return _limit(context).made(value[start:stop:step])


@pass_context
def _read(context: Context, value: Any) -> Any:
    limit = _limit(context)
    if isinstance(value, (list, tuple, dict)):
        limit.write(value)
    else:
        limit.read(value)
    return value


def _counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja that counts what it reads, what it may write, and what it made."""
    asked = _PassArg.from_obj(function)

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        limit = _limit(context)
        limit.read(*() if name in _QUICK else (value, *args, *kwargs.values()))
        if name == "join" and not hasattr(value, "__len__"):
            value = limit.made(list(value))
        if name in _DEEP:
            limit.write(value)
            _check_filter(limit, name, value, args, kwargs)
        first = {
            _PassArg.context: (context,),
            _PassArg.eval_context: (context.eval_ctx,),
            _PassArg.environment: (context.environment,),
            None: (),
        }[asked]
        return limit.made(function(*first, value, *args, **kwargs))

    return run


def _check_filter(limit: WorkLimit, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Count what a filter makes of its arguments beyond the value's own text."""
    if name == "replace":
        old, new = (str(kwargs.get(key, args[at] if len(args) > at else "")) for at, key in enumerate(("old", "new")))
        limit.spend(_replaced(str(value), old, new))
    elif name == "format":
        check_format(limit, str(value), [*args, *kwargs.values()])
    elif name == "indent":
        _check_width(kwargs.get("width", args[0] if args else 4))
        limit.spend(MOST_WIDTH * str(value).count("\n"))
    elif name == "join":
        separator = kwargs.get("d", args[0] if args else "")
        limit.write(separator)
        limit.spend(len(str(separator)) * len(value))
    elif name == "round":
        _check_width(kwargs.get("precision", args[0] if args else 0))


def _replaced(text: str, old: str, new: str) -> int:
    """Characters of a text in which `new` replaces `old`."""
    return len(text) + text.count(old) * len(new)


def check_format(limit: WorkLimit, text: str, values: Any) -> None:
    """Count what printf's format makes of values."""
    if "%" in _FIELD.sub("", text):
        raise SecurityError("a format has a field of more than 99 characters, or of an unknown kind")
    limit.spend(text.count("%") * (100 + limit.weight(values)))


def check_method(
    limit: WorkLimit, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Count what a text's method makes of its arguments; an iterator becomes a list, whose length is known."""
    if name == "replace":
        old, new = (str(args[at]) if len(args) > at else "" for at in range(2))
        limit.spend(_replaced(text, old, new))
    elif name == "join" and args:
        items = args[0] if isinstance(args[0], (str, list, tuple, dict)) else limit.made(list(args[0]))
        limit.write(items)
        limit.spend(len(text) * len(items))
        return (items, *args[1:])
    elif name in ("format", "format_map"):
        fields = [
            (spec or "", conversion) for _, field, spec, conversion in Formatter().parse(text) if field is not None
        ]
        if any("{" in spec or re.search(r"\d{3}", spec) for spec, _ in fields):
            raise SecurityError("a format has a field of more than 99 characters")
        limit.spend(len(fields) * (100 + limit.weight([*args, *kwargs.values()])))
    return args


def _check_width(width: Any) -> None:
    size = len(width) if isinstance(width, str) else width
    if size is not None and not 0 <= size <= MOST_WIDTH:
        raise SecurityError(f"a width is above {MOST_WIDTH}")


@pass_context
def _json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: nothing is escaped for HTML."""
    limit = _limit(context)
    for width in (indent, *(separators or ())):
        _check_width(width)
    limit.indented(value, len(indent) if isinstance(indent, str) else indent or 0)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    limit.spend(len(text))
    return text


@pass_context
def _total(context: Context, values: Any, attribute: Any = None, start: Any = 0) -> Any:
    """The sum of numbers; lists would be copied again and again."""
    if attribute is not None:
        values = context.environment.call_filter("map", values, kwargs={"attribute": attribute}, context=context)
    total = start
    for number in values:
        _limit(context).spend(STEP)
        total = _limit(context).made(_number(total) + _number(number))
    return total


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)):
        raise SecurityError("only numbers are added up")
    return value


def _comparing(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test of Jinja that compares two values, and counts that."""

    @pass_context
    def run(context: Context, *values: Any) -> Any:
        for value in values:
            _read(context, value)
        return test(*values)

    return run


COUNTED_FILTERS: Mapping[str, Callable[..., Any]] = {
    **{name: _counting(name, FILTERS[name]) for name in (*_QUICK, *_SHALLOW, *_DEEP)},
    "tojson": _json,
    "sum": _total,
    STEP_FILTER: _step,
    CONCAT: _concatenated,
    MADE: _made,
    SLICE: _sliced,
    READ: _read,
}
_TESTS: Mapping[str, Any] = TESTS
COUNTED_TESTS: Mapping[str, Callable[..., Any]] = {
    name: _comparing(test) if name in _COMPARISONS else test for name, test in _TESTS.items()
}
