"""Creates directories that appear complete or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medha_jax.checkpoints.errors import CheckpointError


@contextmanager
def new_directory(destination: Path) -> Iterator[Path]:
    """A temporary directory beside `destination`, renamed to it when the block ends without an error.

    Raises:
        CheckpointError: `destination` exists and is not an empty directory.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise CheckpointError(
            f"{destination} already exists and is not an empty directory; nothing is overwritten: "
            "choose another place, or remove it first"
        )
    final = destination.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.partial"
    temporary.mkdir()
    try:
        yield temporary
        # replaces an empty directory; fails if it was filled meanwhile
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
