"""The requests of a workload, and the tokens that they are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medha_jax.workload.config import ConvoyConfig, WorkloadConfig
from medha_jax.workload.mixes import WorkloadError
from medha_jax.workload.request_files import BLOCK_TOKENS

# Streams of random token ids under one seed. Other streams of the same seed begin with 16 (`build`).
REQUESTS, WARMUPS, PROBES, BLOCKS = range(4)


@dataclass(frozen=True)
class WorkloadRequest:
    """One request of a workload.

    Args:
        index: its place, from 0.
        at: seconds after the start when it is due.
        kind: "short", "long", "probe", "warmup", or "text" where the tokens of a text are not known.
        prompt_tokens: of the prompt; None for kind "text".
        output_tokens: to ask for.
        content: names what its token ids are drawn from: a stream, and a number in it.
        text: of the prompt, where a file gives it.
        ids: of the prompt, where a file gives them.
        blocks: ids of blocks of equal content, as Mooncake's traces have them.
        block_tokens: tokens of each block.
        cancel_after: output tokens after which the client cancels, 0 as soon as it is sent; None if it does not.
    """

    index: int
    at: float
    kind: str
    prompt_tokens: int | None
    output_tokens: int
    content: tuple[int, int] = (REQUESTS, 0)
    text: str | None = None
    ids: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    block_tokens: int = BLOCK_TOKENS
    cancel_after: int | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt.

        Raises:
            WorkloadError: it is a text whose tokens are not known.
        """
        if self.prompt_tokens is None:
            raise WorkloadError(f"request {self.index} is a text; its tokens are not known without a tokenizer")
        return self.prompt_tokens


@dataclass(frozen=True)
class Workload:
    """What to send, a function of the configuration alone.

    Args:
        config: that it was built from.
        warmup: to be finished before the start; no part of the measurement.
        requests: by the time when they are due.
    """

    config: WorkloadConfig | ConvoyConfig
    warmup: tuple[WorkloadRequest, ...]
    requests: tuple[WorkloadRequest, ...]

    def token_ids(self, request: WorkloadRequest) -> np.ndarray:
        """The prompt `[prompt_tokens]` of a request in int32, the same at every call.

        It is drawn at the call and not kept, so a workload of long prompts stays small.

        Raises:
            WorkloadError: the prompt is a text.
        """
        if request.ids is not None:
            return np.array(request.ids, np.int32)
        if request.prompt_tokens is None or request.text is not None:
            raise WorkloadError("the prompt is a text; it has no token ids of its own")
        parts, left = [], request.prompt_tokens
        for block in request.blocks or ():
            parts.append(self._drawn(BLOCKS, block, min(request.block_tokens, left)))
            left -= len(parts[-1])
        parts.append(self._drawn(*request.content, left))
        return np.concatenate(parts)

    def _drawn(self, stream: int, number: int, count: int) -> np.ndarray:
        """The first token ids of a stream's member."""
        rng = np.random.default_rng([self.config.seed, stream, number])
        return rng.integers(self.config.vocabulary, size=count, dtype=np.int32)
