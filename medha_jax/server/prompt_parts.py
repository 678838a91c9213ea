"""The parts of a prompt as a client sends them, and how long it may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc import StatusCode

from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.calls import Calls
from medha_jax.server.receiving import NoMessageError
from medha_jax.server.refusal import Refusal, invalid
from medha_jax.server.request_parser import parse
from medha_jax.server.settings import Limits
from medha_jax.token_ids import IdArray, array_of


class PromptParts:
    """Reads the parts of one prompt, in order.

    Each part must come within `part_seconds`, and N tokens within `part_seconds + N / part_rate` seconds: who sends a
    little now and then holds a slot no longer than that.

    Attributes:
        came: when the last part came, in seconds of the engine's clock.
    """

    def __init__(self, parts: AsyncIterator[bytes], calls: Calls, limits: Limits) -> None:
        self._parts, self._calls, self._limits = parts, calls, limits
        self._began = asyncio.get_running_loop().time()
        self._tokens = 0
        self.came = calls.now()

    async def start(self) -> pb.GenerateStart:
        """The settings, which come first.

        Raises:
            Refusal: they do not, or no part came in time.
        """
        first = await self._next()
        if first is None or first[0].WhichOneof("part") != "start":
            raise invalid("the first part has no settings; give start, then token_ids")
        return first[0].start

    async def ids(self) -> IdArray | None:
        """Token ids of the next part; None after the last one.

        Raises:
            Refusal: the part has none, or did not come in time.
        """
        part = await self._next()
        if part is None:
            return None
        message, ids = part
        if message.WhichOneof("part") != "token_ids" or not len(ids):
            raise invalid("a part has no token_ids; give at least one in every part after the first")
        self._tokens += len(ids)
        return ids

    async def _next(self) -> tuple[pb.GeneratePart, IdArray] | None:
        each, rate = self._limits.part_seconds, self._limits.part_rate
        end = self._began + each + self._tokens / rate
        now = asyncio.get_running_loop().time()
        try:
            async with self._calls.receiving.message(self._parts, min(now + each, end)) as data:
                self.came = self._calls.now()
                return None if data is None else await self._calls.aside(len(data), lambda: _read(data))
        except NoMessageError:
            message = f"no part of the prompt came within {each:g} s"
            if self._tokens and end < now + each:
                message = (
                    f"the prompt has {self._tokens} tokens after {end - self._began:.3g} s; it must come at {rate:g} "
                    "tokens/s or faster"
                )
            raise Refusal(StatusCode.DEADLINE_EXCEEDED, message) from None


def _read(data: bytes) -> tuple[pb.GeneratePart, IdArray]:
    """A part from its bytes, and its token ids."""
    part = parse(pb.GeneratePart, data)
    return part, IdArray(array_of(part.token_ids.ids))
