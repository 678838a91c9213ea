"""Files of TLS and tokens that change while a server runs: read again without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from medha_jax.config import ConfigError
from medha_jax.server.background import in_background

T = TypeVar("T")
LOOK_SECONDS = 2.0  # between looks; a change counts when two looks in a row see the same
MOST_BYTES = 4 * 2**20  # of a file; read at every look
Contents = tuple[bytes | str | None, ...]  # of each file: what it holds, why it cannot be read, or None for a pipe


def read_file(path: Path) -> bytes:
    """What a file of TLS or tokens holds.

    Raises:
        ConfigError: it cannot be read, or is too large for such a file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} is larger than {MOST_BYTES:,} bytes; give a file of a certificate, key or tokens")
    return content


class Renewable(Generic[T]):
    """A value that is read from files, and again when they change. What cannot be used keeps the value of before.

    Contents are compared, not times: files may be replaced one by one, or by a symbolic link that moves. What is no
    regular file, such as a pipe, is read once.

    Args:
        name: of the value, for lines of the log.
        files: what `read` reads.
        read: makes the value; raises ConfigError if it cannot.

    Attributes:
        value: the newest good one. Any thread may read it.

    Raises:
        ConfigError: there is no first value.
    """

    value: T

    def __init__(self, name: str, files: Sequence[Path], read: Callable[[], T]) -> None:
        self._name, self._files, self._read = name, tuple(files), read
        self._used: Contents = _contents(self._files)
        self._seen = self._used
        self._judged: Contents | None = self._used
        self.value = read()

    def look(self, asked: bool) -> str | None:
        """Look at the files; returns a line if there is something to say.

        A change counts once it was seen twice, because files are written in steps; or at once if a look is `asked` for.
        """
        contents = _contents(self._files)
        settled, self._seen = contents == self._seen, contents
        if not asked and (contents == self._judged or not settled):
            return None
        line = self._judge(contents)
        if _contents(self._files) != contents:  # changed while it was read: the next looks see to it
            self._judged = None
            return None
        self._judged = contents
        return line

    def _judge(self, contents: Contents) -> str:
        names = " and ".join(map(str, self._files))
        if contents == self._used:
            return f"{self._name} of {names}: unchanged"
        try:
            for path in self._files:
                if _is_special(path):
                    raise ConfigError(f"{path} is not a regular file, so it is not read again")
            self.value = self._read()
        except ConfigError as error:
            return f"warning: the {self._name} of before stay in use: {error}"
        self._used = contents
        return f"{self._name} of {names}: read again, for new connections and calls"


class Renewal:
    """Looks at files every `LOOK_SECONDS`, and at once when it is asked to. Belongs to the event loop."""

    def __init__(self, renewables: Sequence[Renewable[Any]], tell: Callable[[str], None]) -> None:
        self._renewables, self._tell = tuple(renewables), tell
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Look now; it is said what came of it, even if nothing changed."""
        self._asked.set()

    async def run(self) -> NoReturn:
        """Look until cancelled. The disk is read in threads: one that hangs delays nothing else."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), LOOK_SECONDS if self._renewables else None)
            asked = self._asked.is_set()
            self._asked.clear()
            if asked and not self._renewables:
                self._tell("SIGHUP: there are no files of TLS or tokens to read again")
            for renewable in self._renewables:
                line = await in_background(partial(renewable.look, asked), "renewal")
                if line is not None:
                    self._tell(line)


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _contents(files: Sequence[Path]) -> Contents:
    found: list[bytes | str | None] = []
    for path in files:
        try:
            found.append(None if _is_special(path) else read_file(path))
        except ConfigError as error:
            found.append(str(error))
    return tuple(found)
