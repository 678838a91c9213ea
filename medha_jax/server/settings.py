"""Settings of a server: address, limits, TLS and token files. No JAX, no gRPC."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medha_jax.config import ConfigError
from medha_jax.net import TlsFiles, is_protected, join_address

LogFormat = Literal["text", "json", "off"]
LOG_FORMATS = ("text", "json", "off")
BYTES_PER_TOKEN = 8  # of a message; packed ids take 5 at most, text of code and prose about 4
SETTINGS_BYTES = 65536  # of a message beside its prompt
LARGEST_MESSAGE = 64 * 2**20  # longer prompts go in parts


@dataclass(frozen=True)
class Limits:
    """What a server takes. None is derived from the model's context.

    Args:
        max_output: output tokens of a request.
        max_streams: Generate and GenerateStream calls at once, served or waiting.
        max_message_bytes: of one message.
        part_seconds: that GenerateStream waits for the next part of a prompt.
    """

    max_output: int | None = None
    max_streams: int = 2048
    max_message_bytes: int | None = None
    part_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_output", "max_streams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        size = self.max_message_bytes
        if size is not None and not 1024 <= size < 2**31:
            raise ConfigError(f"max_message_bytes is {size}; allowed are 1024 to {2**31 - 1}")
        if not 0 < self.part_seconds < math.inf:
            raise ConfigError(f"part_seconds is {self.part_seconds}; it must be above 0")

    def message_bytes(self, context: int) -> int:
        """Bytes of the largest message, for a context in tokens."""
        return self.max_message_bytes or min(SETTINGS_BYTES + BYTES_PER_TOKEN * context, LARGEST_MESSAGE)

    def text_bytes(self, context: int) -> int:
        """UTF-8 bytes of the longest text that is looked at, for a context in tokens."""
        return min(BYTES_PER_TOKEN * context, self.message_bytes(context))


@dataclass(frozen=True)
class ServerSettings:
    """Where and how a server listens.

    Args:
        host: address to listen on.
        port: 0 picks a free one.
        metrics_port: of the Prometheus endpoint on the same host; 0 picks a free one, None is off.
        tls: without it nothing is encrypted; with an authority in it, every client needs a certificate.
        token_file: bearer tokens, one a line, one of which every call needs; None lets everybody in.
        insecure: whether other machines may be served without TLS.
        drain_seconds: that running streams have to finish when the server stops.
        access_log: form of the line that every call ends with.
        trace: file for every tick, for ui.perfetto.dev; it is replaced. None is off.
        limits: what is taken.

    Raises:
        ConfigError: a value is out of range, or prompts would cross a network unprotected.
    """

    host: str = "127.0.0.1"
    port: int = 9320
    metrics_port: int | None = None
    tls: TlsFiles | None = None
    token_file: Path | None = None
    insecure: bool = False
    drain_seconds: float = 30.0
    access_log: LogFormat = "text"
    trace: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("port", "metrics_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**16:
                raise ConfigError(f"{name} is {value}; allowed are 0 to {2**16 - 1}")
        if self.access_log not in LOG_FORMATS:
            raise ConfigError(f"access_log is {self.access_log!r}; allowed are {', '.join(LOG_FORMATS)}")
        if not 0 <= self.drain_seconds < math.inf:
            raise ConfigError(f"drain_seconds is {self.drain_seconds}; it must be at least 0")
        if not is_protected(self.host, self.tls, self.insecure):
            raise ConfigError(
                f"prompts would travel unprotected to {self.host}; give --tls-cert and --tls-key, a loopback --host, "
                "or --insecure in a network that you trust"
            )

    @property
    def address(self) -> str:
        """HOST:PORT as gRPC takes it."""
        return join_address(self.host, self.port)
