"""How a setting is declared: once, with its default, its range and its meaning.

`check_settings` refuses values out of range, and the command line makes options of settings (`cli/option_groups.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any


class ConfigError(ValueError):
    """A setting is out of its range; the message says what is allowed."""


@dataclass(frozen=True)
class Setting:
    """Meaning and allowed values of one field of a dataclass of settings.

    Args:
        help: one line for `--help`; also the field's documentation.
        at_least, above: the smallest value, or an excluded lower limit.
        at_most, below: the largest value, or an excluded upper limit.
        words, option: name in error messages and on the command line, if it is not the field's.
        per: units of the option in one unit of the field: 1000 for an option in ms of a field in seconds.
        metavar: stands for the value in `--help`.
        panel: its heading in `--help`.
        switch: a flag that can only be turned on, without `--no-...`.
    """

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    words: str | None = None
    option: str | None = None
    per: float = 1
    metavar: str | None = None
    panel: str | None = None
    switch: bool = False

    @property
    def interval(self) -> str:
        """The range as text, e.g. `[0, 1)`."""
        if not self._bounded_below:
            return "a number"
        left = f"[{_shown(self.at_least)}" if self.above is None else f"({_shown(self.above)}"
        if self.at_most is None and self.below is None:
            return f"{left}, inf)"
        return f"{left}, {_shown(self.at_most)}]" if self.below is None else f"{left}, {_shown(self.below)})"

    def allows(self, value: Any) -> bool:
        """Whether a value is a choice or in the range; without an upper limit it must still be finite, and never NaN.

        Tuples are checked only where their options are parsed, because their owner may allow more.
        """
        if self.choices:
            return value in self.choices
        if isinstance(value, tuple):
            return True
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and (not self._bounded_below or value < math.inf or self.at_most == math.inf)
            and not (isinstance(value, float) and math.isnan(value))
        )

    @property
    def allowed(self) -> str:
        """The allowed values in words, for an error message."""
        if self.choices:
            return f"allowed are {', '.join(self.choices)}"
        if self.at_most is None and self.below is None:
            return f"it must be above {self.above}" if self.at_least is None else f"it must be at least {self.at_least}"
        if self.above is not None and self.below is not None:
            return f"it must be above {self.above} and below {self.below}"
        if isinstance(self.at_least, int) and isinstance(self.at_most, int):
            return f"allowed are {self.at_least} to {self.at_most}"
        return f"allowed is {self.interval}"

    @property
    def _bounded_below(self) -> bool:
        return self.at_least is not None or self.above is not None


def _shown(limit: float | None) -> str:
    """A limit as text: a whole number with all its digits."""
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def setting(default: Any, help: str, **allowed: Any) -> Any:
    """A field of a dataclass that is a setting; `allowed` are further fields of `Setting`."""
    return field(default=default, metadata={Setting.__name__: Setting(help, **allowed)})


def setting_of(declared: Any) -> Setting | None:
    """The setting that a dataclass field declares, or None."""
    found: Setting | None = declared.metadata.get(Setting.__name__)
    return found


def same_setting(kind: type, name: str, **changed: Any) -> Any:
    """A field declared like the field `name` of the dataclass `kind`.

    `changed` has another `default`, or other fields of `Setting`.
    """
    (declared,) = (one for one in fields(kind) if one.name == name)
    default = changed.pop("default", declared.default)
    stated = replace(declared.metadata[Setting.__name__], **changed)
    return field(default=default, metadata={Setting.__name__: stated})


def check_settings(group: Any) -> None:
    """Refuse the first setting of a dataclass that is out of its range; None is always allowed.

    Raises:
        ConfigError: states the allowed range.
    """
    for declared in fields(group):
        stated, value = setting_of(declared), getattr(group, declared.name)
        if stated is not None and value is not None and not stated.allows(value):
            shown = repr(value) if stated.choices else value
            raise ConfigError(f"{stated.words or declared.name} is {shown}; {stated.allowed}")
