"""The error of this part, and the dtypes of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

DTYPES = ("bfloat16", "float16", "float32")
SHOWN = 8


class CheckpointError(ValueError):
    """A model directory cannot be read or written, or does not fit its config."""


def mismatch(subject: str, problems: Sequence[str], advice: str) -> CheckpointError:
    """One error for all problems of `subject`; it lists the first SHOWN."""
    shown = [f"\n  - {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(f"\n  - and {len(problems) - SHOWN} more like these")
    return CheckpointError(f"{subject}:{''.join(shown)}\n{advice}")


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """The NumPy dtype of a name or dtype.

    Raises:
        CheckpointError: weights cannot have this dtype.
    """
    try:
        found: np.dtype[Any] | None = np.dtype(jnp.dtype(dtype))
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        given = dtype if found is None else found.name
        raise CheckpointError(f"dtype {given!r} is not supported for weights; choose one of {', '.join(DTYPES)}")
    return found
