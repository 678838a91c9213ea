"""What the load generator asks of a way to reach a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Prompt = str | np.ndarray
Counted = Literal["ids", "usage", "chunks"]


class RequestFailedError(RuntimeError):
    """A request did not end well; the text is one line that says how."""


class BackendError(RuntimeError):
    """A server cannot be reached, or nothing can be asked of it."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside the prompt.

    Args:
        output_tokens: at most.
        ttft_s: seconds to the first token that the server is told of, None for nothing.
        tpot_s: seconds per output token after it, likewise.
    """

    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True)
class Reply:
    """What the server said about a request that ended well; None is what it did not say.

    Args:
        counted: what the numbers of output tokens are taken from: the token ids of each message; the server's usage at
            the end, spread over its messages; or one token a message, where there was no usage.
        output_tokens: of the usage, where they are counted so.
    """

    counted: Counted
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    preemptions: int | None = None
    queue_s: float | None = None


@dataclass(frozen=True)
class ServerFacts:
    """What a server says about itself; None is what it did not say."""

    model: str
    vocabulary: int | None = None
    context_tokens: int | None = None
    version: str | None = None


class Backend(Protocol):
    """A way to reach a server, used from one event loop."""

    @property
    def name(self) -> str:
        """The protocol."""

    async def facts(self) -> ServerFacts:
        """What the server is.

        Raises:
            BackendError: it does not answer.
        """

    async def prepare(self, prompt: Prompt, wanted: Wanted) -> Any:
        """Do beforehand what can be done, in pieces of a millisecond or so; the result is for `send`."""

    async def send(self, prepared: Any, taken: Callable[[], None], heard: Callable[[int], None]) -> Reply:
        """Send a request and read its stream to the end. Cancelled or left by an exception, it ends the stream.

        Args:
            prepared: of `prepare`.
            taken: called when the server has taken the request, before the first `heard`.
            heard: called with the tokens of every message that brings any.

        Raises:
            RequestFailedError: the request failed, in whatever way.
        """

    async def close(self) -> None:
        """End the connections."""
