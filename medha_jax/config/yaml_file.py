"""Reads the YAML files that people write: layouts, devices, options of the server."""

from __future__ import annotations

import re
from collections.abc import Hashable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from medha_jax.config.declaration import ConfigError

LONGEST_FILE = 2**20  # bytes


class KeysOnce:
    """Part of a YAML loader: refuses keys of one mapping that are equal, or differ only by - and _.

    YAML itself would take the last one without a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the other loader's, after the check."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value.replace("-", "_") if isinstance(key, yaml.ScalarNode) else str(id(key))
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is stated twice", key.start_mark)
            seen.add(name)
        made: dict[Hashable, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return made


class StrictLoader(KeysOnce, yaml.SafeLoader):
    """YAML's usual values, and each key once."""


class AsTyped(KeysOnce, yaml.BaseLoader):
    """Reads values as they are typed, so the words off, on, yes and no mean what they mean as a flag's value.

    YAML itself would make booleans, dates and numbers of base 60 of them; each option converts its own value.
    """


_NULL, _FLOAT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:float"
# a key without a value keeps its default; infinite numbers are typed otherwise on a command line
AsTyped.add_implicit_resolver(_NULL, re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
AsTyped.add_constructor(_NULL, lambda loader, node: None)
AsTyped.add_implicit_resolver(_FLOAT, re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"), list("-+."))
AsTyped.add_constructor(_FLOAT, lambda loader, node: node.value.replace(".", ""))


def read_mapping(
    path: Path | Traversable, error: type[ValueError] = ConfigError, loader: Any = StrictLoader, what: str | None = None
) -> dict[Any, Any]:
    """The mapping in a YAML file of at most `LONGEST_FILE` bytes.

    Args:
        error: what is raised for a wrong text.
        loader: makes values; it should refuse repeated keys.
        what: names the file in errors; the path if None.

    Raises:
        OSError: the file cannot be read.
        ValueError: of the class `error`; the text is too long, not YAML, or no mapping.
    """
    what = what or str(path)
    with path.open("rb") as file:
        text = file.read(LONGEST_FILE + 1)
    if len(text) > LONGEST_FILE:
        raise error(f"{what} has more than {LONGEST_FILE:,} bytes")
    try:
        stated = yaml.load(text, loader)
    except yaml.YAMLError as failure:
        raise error(f"{what} is not valid YAML: {failure}") from None
    except (ValueError, RecursionError) as failure:  # a number of thousands of digits, deep nesting
        raise error(f"{what} cannot be read as YAML: {failure}") from None
    if not isinstance(stated, dict):
        raise error(f"{what} must be a mapping of names to values")
    return stated
