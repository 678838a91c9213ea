"""`medha.v1.Inference` as a backend. Output tokens are counted by their ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from medha_jax.bench.backend import BackendError, Prompt, Reply, RequestFailedError, ServerFacts, Wanted
from medha_jax.client import Accepted, AsyncClient, Connection, Delta, Finished, ServerError

WHOLE = 16384  # prompts up to this many tokens become Python numbers before they are due
READY_SECONDS = 30.0


class Ids(Sequence[int]):
    """Token ids that become Python numbers when they are read, because long prompts are sent in parts."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        numbers: int | list[int] = self._ids[place].tolist()
        return numbers


@dataclass(frozen=True)
class Prepared:
    """Arguments of the client's `generate`."""

    prompt: str | Sequence[int]
    settings: dict[str, Any]


class GrpcBackend:
    """A medha-jax server.

    Args:
        connection: to the server.
        ignore_eos: generate all output tokens, even after an end-of-sequence token.
        temperature: of sampling.
    """

    name = "grpc"

    def __init__(self, connection: Connection, *, ignore_eos: bool = True, temperature: float = 0.0) -> None:
        self._address = connection.address
        self._client = AsyncClient(connection)
        self._ignore_eos, self._temperature = ignore_eos, temperature

    async def facts(self) -> ServerFacts:
        """The served model."""
        try:
            model = await self._client.model(timeout=READY_SECONDS)
        except ServerError as error:
            raise BackendError(f"no answer from {self._address}: {error}") from None
        return ServerFacts(model.name, model.vocab, model.context_tokens, model.version)

    async def prepare(self, prompt: Prompt, wanted: Wanted) -> Prepared:
        """Convert a short prompt to Python numbers; a long one is converted part by part when it is sent."""
        settings = dict(
            max_tokens=wanted.output_tokens,
            ignore_eos=self._ignore_eos,
            temperature=self._temperature,
            ttft_ms=None if wanted.ttft_s is None else 1000 * wanted.ttft_s,
            priority=wanted.priority or None,
            tpot_ms=None if wanted.tpot_s is None else 1000 * wanted.tpot_s,
        )
        if isinstance(prompt, str):
            return Prepared(prompt, settings)
        return Prepared(prompt.tolist() if len(prompt) <= WHOLE else Ids(prompt), settings)

    async def send(self, prepared: Prepared, taken: Callable[[], None], heard: Callable[[int], None]) -> Reply:
        """Stream one generation."""
        try:
            async with aclosing(self._client.generate(prepared.prompt, **prepared.settings)) as events:
                async for event in events:
                    match event:
                        case Delta(token_ids=ids):
                            if ids:
                                heard(len(ids))
                        case Accepted():
                            taken()
                        case Finished(usage=usage, timings=timings):
                            return Reply(
                                "ids",
                                prompt_tokens=usage.prompt_tokens,
                                output_tokens=usage.output_tokens,
                                cached_tokens=usage.cached_tokens,
                                preemptions=timings.preemptions,
                                queue_s=timings.queue_s,
                            )
        except ServerError as error:
            raise RequestFailedError(str(error)) from None
        raise RequestFailedError("the stream ended without its last event")

    async def close(self) -> None:
        """End the connection."""
        await self._client.close()
