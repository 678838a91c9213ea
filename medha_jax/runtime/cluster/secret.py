"""The secret of a mesh. It never travels: both sides of a stream prove that they know it."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medha_jax.config import run_directory
from medha_jax.runtime.cluster.errors import ClusterError, ClusterSettingError

SHORTEST = 16  # bytes of a secret
DRAWN = 32  # bytes of challenges, nonces, and of secrets that process 0 makes
WORKER, LEADER = b"worker", b"leader"  # who proves


@dataclass(frozen=True)
class MeshSecret:
    """Where the secret is.

    Args:
        file: None if there is none, because certificates say who may join.
        made: whether process 0 makes the file; else whoever starts the processes does.
    """

    file: Path | None = None
    made: bool = False

    @classmethod
    def of_port(cls, port: int) -> MeshSecret:
        """The secret that process 0 makes for its user's processes on its machine, which find it by the plans' port."""
        return cls(run_directory() / f"plans-{port}", made=True)

    def make(self) -> None:
        """Draw a secret and keep it where only this user can read it. Without `made` this does nothing.

        Raises:
            ClusterError: the file cannot be written, or its directory is not this user's alone.
        """
        if self.file is None or not self.made:
            return
        folder = self.file.parent
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._check_private()
            descriptor, name = tempfile.mkstemp(dir=folder)  # with mode 0600
            with os.fdopen(descriptor, "w") as drawn:
                drawn.write(secrets.token_hex(DRAWN))
            Path(name).replace(self.file)
        except OSError as error:
            raise ClusterError(
                f"the mesh's secret cannot be kept in {self.file}: {error.strerror}; give --plans-token-file"
            ) from None

    def forget(self) -> None:
        """Remove what `make` made."""
        if self.file is not None and self.made:
            with contextlib.suppress(OSError):
                self.file.unlink()

    def read(self) -> bytes:
        """The secret; empty if there is none.

        Raises:
            ClusterError: what process 0 makes is not there, or its directory is not this user's alone.
            ClusterSettingError: a stated file cannot be read, or holds too little.
        """
        if self.file is None:
            return b""
        if self.made:
            try:
                self._check_private()
                return self.file.read_bytes()
            except OSError as error:
                raise ClusterError(
                    f"the secret of process 0 is not in {self.file}: {error.strerror}; start all processes as the same "
                    "user with the same TMPDIR and the same --plans, or give each --plans-token-file"
                ) from None
        try:
            secret = self.file.read_bytes().strip()
        except OSError as error:
            raise ClusterSettingError(f"cannot read {self.file}: {error.strerror}") from None
        if len(secret) < SHORTEST:
            raise ClusterSettingError(
                f"{self.file} holds {len(secret)} bytes; a secret has at least {SHORTEST}, as `openssl rand -hex 32` "
                "makes it"
            )
        return secret

    def _check_private(self) -> None:
        """Another user could have made the directory, for it is in one that all may write to."""
        assert self.file is not None
        folder = self.file.parent
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ClusterError(
                f"{folder} is not a directory of this user alone, so the mesh's secret is not safe there; remove it, "
                "or give --plans-token-file"
            )


def draw() -> bytes:
    """A challenge or a nonce."""
    return secrets.token_bytes(DRAWN)


def proof(secret: bytes, who: bytes, challenge: bytes, nonce: bytes, process: int) -> bytes:
    """What only somebody who knows the secret can say, about one stream of one process, as one side of it."""
    return hmac.digest(secret, b"".join((who, challenge, nonce, process.to_bytes(8))), "sha256")


def is_proof(said: bytes, expected: bytes) -> bool:
    """Compare two proofs; the time tells nothing about them."""
    return hmac.compare_digest(said, expected)
