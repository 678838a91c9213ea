"""Runs chat templates: as `transformers` does, with only what such templates need, and with their work counted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from medha_jax.chat.counted_filters import COUNTED_FILTERS, COUNTED_TESTS, LIMIT, check_format, check_method, written
from medha_jax.chat.counted_nodes import counted
from medha_jax.chat.work_limit import STEP, TooMuchWorkError, WorkLimit

LONGEST_DATE = 256  # characters of a format
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        """capitalize casefold count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit
        isidentifier islower isnumeric isprintable isspace istitle isupper join lower lstrip partition removeprefix
        removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title
        upper""".split()
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}


class RefusedConversationError(TemplateError):
    """A template has called `raise_exception`."""


class TemplateNamespace(Namespace):
    """`namespace`: no name begins with an underscore, and none is kept in another, whose text could then be endless."""

    # the signature is Jinja's, so that `self` may be a name
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name, value in given.items():
            _check_entry(name, value)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_entry(name, value)
        super().__setitem__(name, value)


class TemplateMapping:
    """`dict`, which is called and has `fromkeys`; its class is out of reach."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """A new dict with one value."""
        return dict.fromkeys(*args)


class GenerationBlock(Extension):
    """`{% generation %}`: marks what a model wrote, for training; its text stands as it is."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's content, with names of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates. Immutable once made, so threads may share it.

    Beside what Jinja's own sandbox refuses, only the filters, methods and functions are there that chat templates use.
    Every loop, call, filter, operator and output is counted by the rendering's `WorkLimit`.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # not `optimized`: Jinja would compute constants while it compiles, uncounted
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, loopcontrols],
            optimized=False,
            finalize=written,
        )
        self.filters, self.tests = dict(COUNTED_FILTERS), dict(COUNTED_TESTS)
        self.globals = {
            "range": self.globals["range"],
            "dict": TemplateMapping(),
            "namespace": TemplateNamespace,
            "raise_exception": _refuse,
            "strftime_now": _now,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(counted(source, self), *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may use an attribute: of plain values only some methods, of Jinja's own what it allows."""
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        own = isinstance(obj, (LoopContext, Macro, BlockReference, TemplateMapping, Namespace))
        return own and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator whose result can be large, after its size is known."""
        limit = context.parent[LIMIT]
        limit.spend(STEP)
        if operator == "+":
            limit.read(left, right)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    limit.spend(max(0, times) * (len(value) + 1))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            limit.spend(abs(right) * left.bit_length())
            if abs(right) * left.bit_length() > 4096:
                raise TooMuchWorkError("it makes a number of more than 4096 bits")
        elif operator == "%" and isinstance(left, str):
            check_format(limit, left, right)
        return limit.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method, after its arguments are counted; then count its result."""
        limit: WorkLimit = __context.parent[LIMIT]
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps a text's `format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        limit.read(owner, *args, *kwargs.values())
        if isinstance(__obj, (Macro, TemplateMapping)) or __obj is TemplateNamespace:
            limit.made([*args, *kwargs.values()])  # they can be named as one value
        elif isinstance(owner, str):
            args = check_method(limit, owner, name, args, kwargs)
        return limit.made(super().call(__context, __obj, *args, **kwargs))


def _check_entry(name: Any, value: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError("a namespace keeps no name that begins with an underscore")
    if isinstance(value, Namespace):
        raise SecurityError("a namespace keeps no other namespace")


def _now(format: str) -> str:
    if len(format) > LONGEST_DATE:
        raise SecurityError(f"a date's format has more than {LONGEST_DATE} characters")
    return datetime.now().strftime(format)


def _refuse(message: object) -> None:
    raise RefusedConversationError(str(message))
