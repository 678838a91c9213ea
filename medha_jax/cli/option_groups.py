"""Options from dataclasses: a command takes groups, and every setting of a group becomes an option.

`medha_jax.config.setting` declares settings; only this module makes options of them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from medha_jax.config import Setting, setting_of


@dataclass(frozen=True)
class Shown:
    """How a command shows a group, if that differs from its declaration.

    Args:
        of: the group, if the command takes a mapping of values instead of an instance.
        unset: drop all defaults, so that the command sees which values were stated; they are checked elsewhere.
        panel: heading in `--help` for settings that name none.
        without: settings without an option; they keep their defaults.
        defaults: replace declared defaults, by setting.
        options: replace names of options, by setting.
    """

    of: type | None = None
    unset: bool = False
    panel: str | None = None
    without: Collection[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def inside(self, outer: Shown) -> Shown:
        """How a group inside another one is shown."""
        return dataclasses.replace(
            self,
            panel=self.panel or outer.panel,
            without={*self.without, *outer.without},
            defaults={**self.defaults, **outer.defaults},
            options={**self.options, **outer.options},
        )


def takes_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn each parameter of a dataclass type into the options that its fields declare; other parameters stay.

    A parameter may be annotated with `Shown`. A field that is a dataclass of settings is a group, too. If groups share
    an option's name, there is one option, shown as in the first group, and all groups get its value. The command gets
    instances. It is not called if a group refuses its values.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, _Group] = {}
    parameters: dict[str, inspect.Parameter] = {}
    own: list[str] = []
    for name, parameter in inspect.signature(command).parameters.items():
        group = _group(hints[name], Shown())
        if group is None:
            own.append(name)
            parameters[name] = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        else:
            groups[name] = group
            for option in group.parameters():
                parameters.setdefault(option.name, option)

    def run(**given: Any) -> Any:
        made = {name: group.read(given) for name, group in groups.items()}
        return command(**{name: given[name] for name in own}, **made)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]  # read by typer
    run.__annotations__ = {}
    return run


def option_names(kind: type) -> list[str]:
    """Names of a group's options, as in a command's context."""
    return [option.name for option in _Group(kind, Shown()).parameters()]


def stated_options(context: typer.Context) -> set[str]:
    """Names of the options stated on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def as_flag(name: str) -> str:
    """An option as typed."""
    return f"--{name.replace('_', '-')}"


def as_flags(names: Iterable[str]) -> str:
    """Options as typed, separated by commas."""
    return ", ".join(map(as_flag, names))


def refusal(flag: str, why: str) -> typer.BadParameter:
    """The refusal of an option's value."""
    return typer.BadParameter(why, param_hint=f"'{flag}'")


@dataclass(frozen=True)
class _Option:
    """One option, which converts its value to the field's."""

    parameter: inspect.Parameter
    setting: Setting
    many: bool = False
    pairs: bool = False
    absent: tuple[()] | None = ()  # a list that was not stated

    def parameters(self) -> Iterator[inspect.Parameter]:
        yield self.parameter

    def read(self, given: Mapping[str, Any]) -> Any:
        value = given[self.parameter.name]
        if self.many:
            return tuple(map(self._one, value)) if value else self.absent
        return value if value is None else self._one(value)

    def check(self, value: Any) -> None:
        """Refuse a number out of the setting's range; typer's own check lets NaN and infinity pass.

        Raises:
            typer.BadParameter: states the range.
        """
        for one in value or () if self.many else (value,):
            if isinstance(one, (int, float)) and not self.setting.allows(one):
                raise refusal(
                    as_flag(self.parameter.name), f"{one} is out of range; allowed is {self.setting.interval}"
                )

    def _one(self, value: Any) -> Any:
        if self.pairs:
            return self._pair(value)
        if self.setting.choices:
            return str(value)
        return value if self.setting.per == 1 else value / self.setting.per

    def _pair(self, text: str) -> tuple[int, float]:
        """A whole number and a number from ID=NUMBER."""
        key, _, number = text.partition("=")
        try:
            return int(key), float(number)
        except ValueError:
            why = f"{text[:40]!r} is no {self.setting.metavar}, such as 5=-1.5"
            raise refusal(as_flag(self.parameter.name), why) from None


class _Group:
    """The options of a dataclass, including those of inner groups, in the order of the fields."""

    def __init__(self, kind: type, shown: Shown) -> None:
        self._kind, self._shown = kind, shown
        self._parts: dict[str, _Option | _Group] = {}
        hints = get_type_hints(kind, include_extras=True)
        for declared in dataclasses.fields(kind):
            if declared.name not in shown.without:
                hint = hints[declared.name]
                part = _group(hint, shown) or _option(declared, hint, shown)
                if part is not None:
                    self._parts[declared.name] = part

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The parameters for typer."""
        for part in self._parts.values():
            yield from part.parameters()

    def read(self, given: Mapping[str, Any]) -> Any:
        """The instance, or the mapping, from the values of the command line."""
        values = {name: part.read(given) for name, part in self._parts.items()}
        if self._shown.of is not None:
            return values
        hidden = {one.name for one in dataclasses.fields(self._kind)} & {*self._shown.without}
        made = self._kind(**{name: self._shown.defaults[name] for name in hidden & {*self._shown.defaults}}, **values)
        for name, part in self._parts.items():
            if isinstance(part, _Option):
                part.check(values[name])  # what the group itself did not refuse, such as NaN
        return made


def _group(annotation: Any, outer: Shown) -> _Group | None:
    kind, shown = annotation, Shown()
    if get_origin(annotation) is Annotated:
        kind, *extras = get_args(annotation)
        shown = next((one for one in extras if isinstance(one, Shown)), shown)
    kind = shown.of or kind
    return _Group(kind, shown.inside(outer)) if dataclasses.is_dataclass(kind) else None


def _option(declared: dataclasses.Field[Any], annotation: Any, shown: Shown) -> _Option | None:
    """The option of a field; None if the field is no setting."""
    stated = setting_of(declared)
    if stated is None:
        return None
    name = shown.options.get(declared.name, stated.option or declared.name)
    optional = get_origin(annotation) in (Union, UnionType)
    (kind,) = {*get_args(annotation)} - {type(None)} if optional else (annotation,)
    many = get_origin(kind) is tuple
    if many:
        kind = get_args(kind)[0]
    pairs = get_origin(kind) is tuple
    if pairs or get_origin(kind) is Literal:
        kind = str
    if stated.choices and stated.metavar is None:  # with a metavar, the group itself refuses unknown values
        kind = _choice(stated.choices)
    metavar = stated.metavar or (None if many else {int: "N", Path: "FILE"}.get(kind))
    if many:
        kind = GenericAlias(list, kind) | None
    elif optional:
        kind = kind | None
    default = None if many else shown.defaults.get(declared.name, declared.default)
    if shown.unset and annotation is not bool:
        kind, default = kind | None, None
    if stated.per != 1 and default is not None:
        default = default * stated.per
    # typer has no open ranges; without defaults the values are checked elsewhere
    checked_later = stated.above is not None or stated.below is not None or (shown.unset and not many)
    limits = (None, None) if checked_later else (stated.at_least, stated.at_most)
    low, high = (None if limit is None else limit * stated.per for limit in limits)
    told = typer.Option(
        *([as_flag(name)] if stated.switch else []),
        min=low,
        max=high,
        metavar=metavar,
        help=stated.help,
        rich_help_panel=stated.panel or shown.panel,
    )
    parameter = inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, told]
    )
    return _Option(parameter, stated, many, pairs, None if optional else ())


def _choice(words: Iterable[str]) -> Any:
    return StrEnum("Choice", {word: word for word in words})
