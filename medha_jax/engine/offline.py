"""Requests that are all known at the start, run in the caller's thread, first come first served."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from medha_jax.config import SchedulerConfig
from medha_jax.engine.events import EngineEvent, Failed, GenerationRequest
from medha_jax.engine.executor import Executor
from medha_jax.engine.loop import Engine
from medha_jax.engine.output import text_outputs
from medha_jax.engine.scheduling import scheduler_for
from medha_jax.plan import InvalidRequestError, TokenResult
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.text import Tokenizer

OFFLINE = SchedulerConfig(policy="fcfs", preemption=False, prefix_cache=False, max_waiting=2**31)


class ModelOutputError(RuntimeError):
    """The model produced logits that are not finite."""


class OfflineEngine(Engine):
    """An engine whose chunks are as large as the shapes allow, because no client waits for a token.

    Arguments are as for `Engine` and `scheduler_for`.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        on_result: Callable[[int, TokenResult], None] | None = None,
        config: SchedulerConfig = OFFLINE,
        ahead: int | None = None,
    ) -> None:
        model = LinearTimeModel()  # every tick is free
        scheduler = scheduler_for(executor, config, model, ahead)
        outputs = text_outputs(tokenizer, keep_logprobs=True)
        super().__init__(executor, scheduler, model, clock, outputs, on_result=on_result)


def generate(
    executor: Executor, tokenizer: Tokenizer, request: GenerationRequest, clock: Callable[[], float]
) -> Iterator[EngineEvent]:
    """Run one request for one output alone and stream its events: the first one is `Queued`, the last one `Completed`.

    Raises:
        InvalidRequestError: the request cannot run.
        ModelOutputError: logits are not finite.
    """
    if request.n != 1:
        raise InvalidRequestError(f"n is {request.n}; generate gives 1 output, generate_outputs several")
    for _, event in generate_outputs(executor, tokenizer, request, clock):
        yield event


def generate_outputs(
    executor: Executor, tokenizer: Tokenizer, request: GenerationRequest, clock: Callable[[], float]
) -> Iterator[tuple[int, EngineEvent]]:
    """As `generate`, for all outputs of a request: the index of an output, and its next event."""
    config = dataclasses.replace(OFFLINE, prefix_cache=request.n > 1)  # the outputs share the pages of their prompt
    engine = OfflineEngine(executor, tokenizer, clock, config=config)
    first = engine.scheduler.next_number
    for number, queued in engine.begin(first, request, engine.prepare(request, clock())):
        yield number - first, queued
    while engine.busy:
        for number, event in engine.step():
            if isinstance(event, Failed):
                raise ModelOutputError(event.message)
            yield number - first, event
