"""The file of bearer tokens, which says whose each token is."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from medha_jax.config import ConfigError
from medha_jax.server.renewal import read_file

SHORTEST_TOKEN = 16  # characters
LONGEST_NAME = SHORTEST_TOKEN - 1  # so no token is ever taken for a name, which logs and metrics show
_TOKEN = re.compile(rb"[!-~]{%d,}" % SHORTEST_TOKEN)
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,%d}" % (LONGEST_NAME - 1))


@dataclass(frozen=True)
class Tokens:
    """Bearer tokens and whose they are. Those without a name are of the tenant ""; those of one name of one tenant."""

    tenants: Mapping[bytes, str] = field(repr=False)

    def tenant_of(self, token: bytes) -> str | None:
        """Whose a token is; None if nobody's. Every token is compared in constant time, even after a match."""
        matches = [tenant for known, tenant in self.tenants.items() if hmac.compare_digest(token, known)]
        return matches[0] if matches else None

    @cached_property
    def named_tenants(self) -> Set[str]:
        """All tenants, "" included if it has tokens, if any has a name; else none."""
        tenants = frozenset(self.tenants.values())
        return frozenset() if tenants == {""} else tenants


def read_tokens(path: Path) -> Tokens:
    """The tokens of a file: on each line a token, or the name of a tenant and a token. Empty lines are ignored.

    Raises:
        ConfigError: the file cannot be read or has no token, or a line is wrong. It shows nothing of the line, because
            that may be a token.
    """
    tenants: dict[bytes, str] = {}
    for number, line in enumerate(read_file(path).splitlines(), 1):
        name, token = _parts(line, f"{path}, line {number}")
        if not token:
            continue
        if tenants.setdefault(token, name.decode()) != name.decode():
            raise ConfigError(
                f"{path}, line {number}: the token stands above with another name; give each name its own"
            )
    if not tenants:
        raise ConfigError(f"{path} holds no token; give one a line, of at least {SHORTEST_TOKEN} characters")
    return Tokens(tenants)


def _parts(line: bytes, where: str) -> tuple[bytes, bytes]:
    """Name and token of a line; both are empty in an empty line.

    Raises:
        ConfigError: the line is wrong.
    """
    words = line.split()
    if not words:
        return b"", b""
    if not line.isascii():
        raise ConfigError(f"{where}: holds other than ASCII; give a token, or a name and a token")
    if len(words) > 2:
        raise ConfigError(f"{where}: holds {len(words)} words; give a token, or a name and a token")
    if not _TOKEN.fullmatch(words[-1]):
        raise ConfigError(f"{where}: the token is not at least {SHORTEST_TOKEN} visible ASCII characters")
    if len(words) == 2 and not _NAME.fullmatch(words[0]):
        raise ConfigError(
            f"{where}: the name is not 1 to {LONGEST_NAME} letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return words[0] if len(words) == 2 else b"", words[-1]
