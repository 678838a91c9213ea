"""Reads the small JSON files of a model directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path, error: type[ValueError]) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file.

    Raises:
        ValueError: of the class `error`; names the file, which cannot be read, or holds no JSON object.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as failure:
        raise error(f"cannot read {path}: {failure.strerror}") from None
    except (ValueError, RecursionError) as failure:  # not JSON, not UTF-8, a number of thousands of digits
        raise error(f"{path} is not valid JSON: {failure}") from None
    if not isinstance(given, dict):
        kind = "null" if given is None else f"a {type(given).__name__}"
        raise error(f"{path} holds {kind}; it must be a JSON object")
    return given
