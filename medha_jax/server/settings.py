"""Settings of a server: address, limits, TLS and token files. No JAX, no gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medha_jax.config import ConfigError, check_settings, setting
from medha_jax.net import TlsFiles, is_protected, join_address

LogFormat = Literal["text", "json", "off"]
LOG_FORMATS = ("text", "json", "off")
BYTES_PER_TOKEN = 8  # of a message; packed ids take at most 5, code and prose about 4
SETTINGS_BYTES = 65536  # of a message without its prompt
LARGEST_MESSAGE = 64 * 2**20  # bytes; longer prompts come in parts
LONGEST_S = 1e9  # that anything waits: 31 years; a timer of the system holds no more than ten times that
MOST_STREAMS = 2048  # unless something else is stated
OTHER_CALLS = 256  # at once, beside streams: load, tokenize, model info
SHORTEST_TIMER_S = 0.01  # of a connection; gRPC counts in ms
LONGEST_TIMER_S = 2e6  # in 32 bits: 23 days
LEAST_UNREAD = 65536  # bytes; fewer would end good readers
_LISTEN, _LIMITS, _SECURITY = "Where to listen", "Limits", "Security"


@dataclass(frozen=True)
class Limits:
    """What a server takes. None is derived from the model's context."""

    max_output: int | None = setting(
        None, "Output tokens of a request. Default: the context.", at_least=1, panel=_LIMITS
    )
    max_streams: int | None = setting(
        None,
        f"Streams at once, served or waiting. Default: {MOST_STREAMS}, or what the open files allow.",
        at_least=1,
        panel=_LIMITS,
    )
    tenant_streams: int | None = setting(
        None, "The same for each tenant of the token file. Default: as --max-streams.", at_least=1, panel=_LIMITS
    )
    max_message_bytes: int | None = setting(
        None, "Default: from the context.", at_least=1024, at_most=2**31 - 1, panel=_LIMITS
    )
    part_seconds: float = setting(
        60.0,
        "To wait for a call's message, or for the next part of a prompt.",
        above=0,
        at_most=LONGEST_S,
        panel=_LIMITS,
    )
    part_rate: float = setting(
        100.0, "Tokens a second at which a prompt in parts must come, after --part-seconds.", above=0, panel=_LIMITS
    )
    receiving_bytes: int = setting(
        2**30, "Of messages that are received and parsed at once; one always is.", at_least=2**20, panel=_LIMITS
    )
    connection_streams: int = setting(1024, "Calls at once on one connection.", at_least=1, panel=_LIMITS)
    max_watches: int = setting(64, "Health.Watch calls at once; Check is always answered.", at_least=1, panel=_LIMITS)
    unread_bytes: int = setting(
        8 * 2**20, "Of a stream's output that its client may leave unread.", at_least=LEAST_UNREAD, panel=_LIMITS
    )
    unread_total_bytes: int = setting(
        256 * 2**20, "The same for all streams together.", at_least=LEAST_UNREAD, panel=_LIMITS
    )
    write_seconds: float = setting(
        60.0, "That one write to a client may take.", above=0, at_most=LONGEST_S, panel=_LIMITS
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def streams(self) -> int:
        """Streams at once."""
        return MOST_STREAMS if self.max_streams is None else self.max_streams

    def message_bytes(self, context: int) -> int:
        """Bytes of the largest message, for a context in tokens."""
        return self.max_message_bytes or min(SETTINGS_BYTES + BYTES_PER_TOKEN * context, LARGEST_MESSAGE)

    def receiving(self, context: int) -> int:
        """Messages that are received at once, for a context in tokens."""
        return max(1, min(self.streams + OTHER_CALLS, self.receiving_bytes // self.message_bytes(context)))

    def text_bytes(self, context: int) -> int:
        """UTF-8 bytes of the longest text that is tokenized, for a context in tokens."""
        return min(BYTES_PER_TOKEN * context, self.message_bytes(context))


@dataclass(frozen=True)
class ServerSettings:
    """Where and how a server listens.

    Raises:
        ConfigError: a value is out of range, or prompts would cross a network unprotected.
    """

    host: str = setting("127.0.0.1", "Address to listen on.", panel=_LISTEN)
    port: int = setting(9320, "0 picks a free one.", at_least=0, at_most=2**16 - 1, panel=_LISTEN)
    http_port: int | None = setting(
        None, "The OpenAI API; 0 picks a free one. Default: off.", at_least=0, at_most=2**16 - 1, panel=_LISTEN
    )
    http_origins: str | None = setting(
        None,
        "Web pages that may ask over HTTP, such as https://chat.example.org, with commas between; * for all.",
        panel=_SECURITY,
    )
    metrics_port: int | None = setting(
        None, "Prometheus; 0 picks a free one. Default: off.", at_least=0, at_most=2**16 - 1, panel=_LISTEN
    )
    metrics_host: str = setting("127.0.0.1", "Address for the metrics, which need no token.", panel=_LISTEN)
    tls: TlsFiles | None = None  # None: no encryption; with an authority, clients need certificates
    token_file: Path | None = setting(
        None,
        "Bearer tokens, one a line, perhaps after its tenant's name; a call needs one.",
        option="auth_token_file",
        panel=_SECURITY,
    )
    insecure: bool = setting(False, "Other machines may be served without TLS.", switch=True, panel=_SECURITY)
    drain_seconds: float = setting(
        30.0, "That streams may run on after SIGTERM.", at_least=0, at_most=LONGEST_S, panel=_LIMITS
    )
    tick_seconds: float = setting(
        60.0,
        "That a tick may take, or 20 times its prediction if that is more; then the engine counts as hung.",
        above=0,
        at_most=LONGEST_S,
        panel=_LIMITS,
    )
    handshake_seconds: float = setting(
        20.0,
        "That a new connection may take to speak HTTP/2 and TLS.",
        at_least=SHORTEST_TIMER_S,
        at_most=LONGEST_TIMER_S,
        panel=_LIMITS,
    )
    idle_seconds: float = setting(
        300.0,
        "That a connection may have no call; then it is closed.",
        at_least=SHORTEST_TIMER_S,
        at_most=LONGEST_TIMER_S,
        panel=_LIMITS,
    )
    connection_seconds: float | None = setting(
        None,
        "After which a connection takes no new calls, so that clients spread over servers. Default: never.",
        at_least=SHORTEST_TIMER_S,
        at_most=LONGEST_TIMER_S,
        panel=_LIMITS,
    )
    access_log: LogFormat = setting(
        "text", "A line a call, on standard error.", choices=LOG_FORMATS, metavar="text|json|off"
    )
    trace: Path | None = setting(None, "Write every tick for ui.perfetto.dev.")
    compile_all_first: bool = setting(
        False, "Serve only once every shape is compiled: a later start, and then no change of speed.", switch=True
    )
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_settings(self)
        if not is_protected(self.host, self.tls, self.insecure):
            where = self.host or "every address"
            raise ConfigError(
                f"prompts would travel unprotected to {where}; give --tls-cert and --tls-key, a loopback --host, "
                "or --insecure in a network that you trust"
            )

    @property
    def web_origins(self) -> tuple[str, ...]:
        """The origins of `http_origins`."""
        return tuple(filter(None, (origin.strip() for origin in (self.http_origins or "").split(","))))

    @property
    def address(self) -> str:
        """HOST:PORT as gRPC takes it, which has no empty host."""
        return join_address(self.host or "0.0.0.0", self.port)
