"""The one error of this package, and the dtypes it accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = ("bfloat16", "float16", "float32")
SHOWN = 8


class CheckpointError(ValueError):
    """A model directory cannot be read, does not hold what its config says, or cannot be written."""


def mismatch(subject: str, problems: Sequence[str], advice: str) -> CheckpointError:
    """One error for everything that is wrong with `subject`; the first few problems are spelled out."""
    shown = [f"\n  - {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(f"\n  - and {len(problems) - SHOWN} more like these")
    return CheckpointError(f"{subject}:{''.join(shown)}\n{advice}")


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """The NumPy dtype of a name or dtype.

    Raises:
        CheckpointError: it is not one that weights may have.
    """
    try:
        found = np.dtype(jnp.dtype(dtype))
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        given = dtype if found is None else found.name
        raise CheckpointError(f"dtype {given!r} is not supported for weights; choose one of {', '.join(DTYPES)}")
    return found
