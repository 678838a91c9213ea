"""Machine code of kernels in files, so that a later start need not compile them."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 2**22  # of a kernel's machine code; they have some tens of KB
DIGEST_BYTES = 32
FORGEABLE = stat.S_IWGRP | stat.S_IWOTH
logger = logging.getLogger(__name__)


class CodeError(ValueError):
    """A file holds no machine code that may run here."""


@dataclass(frozen=True)
class CodeFolder:
    """A folder with a file for each kernel: a digest of its key and its machine code, then the code.

    Code is only taken from a file that this user or root owns and that nobody else can write to, and whose digest is
    right. So a broken file, and one for another key, is as good as none; a line in the log says so. What cannot be
    written is not kept.

    Keys are bytes that determine the code. Any number of processes may use a folder.
    """

    folder: Path

    def read(self, key: bytes) -> bytes | None:
        """The machine code of a key; None if there is none that may run."""
        path = self._path(key)
        try:
            stored = _read_own(path)
            digest, code = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
            if digest != _digest(key, code):
                raise CodeError("it is broken, or another kernel's")
        except FileNotFoundError:
            return None
        except (OSError, CodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            logger.warning("a kernel is compiled anew, because its file cannot be used: %s: %s", path, why)
            return None
        return code

    def write(self, key: bytes, code: bytes) -> None:
        """Keep the machine code of a key, in the place of what its file held."""
        if len(code) > MOST_BYTES:
            return
        path, new = self._path(key), None
        try:
            descriptor, new = tempfile.mkstemp(prefix=f"{path.name}.", dir=self.folder)  # with mode 0600
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(key, code) + code)
            os.replace(new, path)
        except OSError as error:
            logger.info("a kernel is not kept: %s: %s", path, error.strerror)
            if new is not None:
                Path(new).unlink(missing_ok=True)

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{hashlib.sha256(key).hexdigest()}.kernel"


def _digest(key: bytes, code: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key).digest() + code).digest()


def _read_own(path: Path) -> bytes:
    """The content of a file that nobody but this user and root can have written.

    Raises:
        CodeError: somebody else may have, or it is too large.
        OSError: it cannot be read.
    """
    # without O_NONBLOCK, opening a pipe would wait for its writer
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & FORGEABLE:
            raise CodeError("others may have written it")
        if found.st_size > DIGEST_BYTES + MOST_BYTES:
            raise CodeError(f"it has {found.st_size:,} bytes, a kernel at most {MOST_BYTES:,}")
        return file.read(DIGEST_BYTES + MOST_BYTES)
