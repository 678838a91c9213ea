"""The interface between the load generator and a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medha_jax.results import Counted

Prompt = str | np.ndarray


class RequestFailedError(RuntimeError):
    """A request failed; the text is one line."""


class BackendError(RuntimeError):
    """A server cannot be reached or used."""


@dataclass(frozen=True)
class Wanted:
    """The request beside its prompt.

    Args:
        output_tokens: most output tokens.
        ttft_s: target for the first token that the server is told, in seconds; None for none.
        tpot_s: target for each later token that the server is told, in seconds; None for none.
        priority: class of the request; the server is told it if it is not 0.
    """

    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    priority: int = 0


@dataclass(frozen=True)
class Reply:
    """What the server reported about a successful request; None for what it did not report.

    Args:
        counted: source of the token counts. "ids": the token ids of each message. "usage": the server's total, spread
            over its messages. "chunks": one token a message, because there was no usage.
        output_tokens: the server's total.
    """

    counted: Counted
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    preemptions: int | None = None
    queue_s: float | None = None


@dataclass(frozen=True)
class ServerFacts:
    """What a server reports about itself; None for what it does not report."""

    model: str
    vocabulary: int | None = None
    context_tokens: int | None = None
    version: str | None = None


class Backend(Protocol):
    """A connection to a server, used from one event loop."""

    @property
    def name(self) -> str:
        """Name of the protocol."""

    async def facts(self) -> ServerFacts:
        """Ask the server about itself.

        Raises:
            BackendError: it does not answer.
        """

    async def prepare(self, prompt: Prompt, wanted: Wanted) -> Any:
        """Prepare the argument of `send`; yields to the event loop about every millisecond."""

    async def send(self, prepared: Any, taken: Callable[[], None], heard: Callable[[int], None]) -> Reply:
        """Send a request and read its stream to the end. Cancellation or an exception ends the stream.

        Args:
            prepared: result of `prepare`.
            taken: called when the server has accepted the request, before the first `heard`.
            heard: called with the number of tokens of every message that has tokens.

        Raises:
            RequestFailedError: the request failed.
        """

    async def close(self) -> None:
        """End the connections."""
