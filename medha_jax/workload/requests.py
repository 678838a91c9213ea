"""The requests of a workload, and their tokens."""

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
        kind: "short", "long", "probe", "warmup", or "text" for a text of unknown length.
        prompt_tokens: None for kind "text".
        content: the stream, and the number in it, from which token ids are drawn.
        text: the prompt, if a file gives it as text.
        ids: the prompt, if a file gives it as ids.
        blocks: ids of blocks of equal content, as in Mooncake's traces.
        block_tokens: tokens of each block.
        priority: class of the request; a lower one goes first.
        cancel_after: output tokens after which the client cancels, 0 for at once; None if it does not cancel.
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
    priority: int = 0

    @property
    def length(self) -> int:
        """Tokens of the prompt.

        Raises:
            WorkloadError: the prompt is a text of unknown length.
        """
        if self.prompt_tokens is None:
            raise WorkloadError(f"request {self.index} is a text; its tokens are not known without a tokenizer")
        return self.prompt_tokens


@dataclass(frozen=True)
class Workload:
    """What to send, in order of due times; it depends on the configuration alone.

    `warmup` requests are finished before the start and not measured.
    """

    config: WorkloadConfig | ConvoyConfig
    warmup: tuple[WorkloadRequest, ...]
    requests: tuple[WorkloadRequest, ...]

    def token_ids(self, request: WorkloadRequest) -> np.ndarray:
        """The prompt of a request, int32 `[prompt_tokens]`, the same at every call.

        It is drawn at each call and not kept, so a workload of long prompts needs little memory.

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
        """The first `count` token ids of a stream's member."""
        rng = np.random.default_rng([self.config.seed, stream, number])
        return rng.integers(self.config.vocabulary, size=count, dtype=np.int32)
