"""Requests that are all at hand, run to their end in the caller's thread, first come first served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medha_jax.engine.admission import check_request
from medha_jax.engine.chunking import chunk_lengths
from medha_jax.engine.events import Delta, Finished, GenerationRequest, Prefilled, TokenLogprobs
from medha_jax.engine.output import RequestOutput
from medha_jax.kv.allocator import PageAllocator, pages_for
from medha_jax.plan import Chunk, InvalidRequestError, StepPlan
from medha_jax.runtime import MeshExecutor, TokenResult
from medha_jax.text import Tokenizer

Event = Prefilled | Delta | Finished


class ModelOutputError(RuntimeError):
    """The model produced logits that are not numbers."""


@dataclass
class _Running:
    """One admitted request: where it is, what it holds. Owned by the engine."""

    number: int
    request: GenerationRequest
    output: RequestOutput
    slot: int
    pages: tuple[int, ...]
    chunks: tuple[int, ...]
    started: float
    computed: int = 0
    chunk: int = 0
    first_token: float | None = None

    @property
    def prefilling(self) -> bool:
        return self.computed < len(self.request.prompt_ids)


class OfflineEngine:
    """Runs requests together: each tick carries every decode and as many prefill chunks as its shape holds.

    Args:
        executor: runs the plans.
        tokenizer: turns ids into text.
        clock: seconds, monotonic.
        on_result: sees every tick's raw results (for tests that look at logits).
    """

    def __init__(
        self,
        executor: MeshExecutor,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        on_result: Callable[[int, TokenResult], None] | None = None,
    ) -> None:
        self._executor = executor
        self._tokenizer = tokenizer
        self._clock = clock
        self._on_result = on_result
        self._allocator = PageAllocator(executor.pages)
        self._free_slots = list(range(executor.config.slots - 1, -1, -1))
        self._waiting: list[tuple[int, GenerationRequest, float]] = []
        self._running: list[_Running] = []
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._waiting or self._running)

    @property
    def free_pages(self) -> int:
        """Pages that no request holds."""
        return self._allocator.free

    def add(self, request: GenerationRequest) -> int:
        """Queue a request and return its number.

        Raises:
            InvalidRequestError: the prompt is empty, beyond the vocabulary, or cannot fit; nothing was queued.
        """
        check_request(request, self._executor.arch.vocab, self._executor.context)
        needed, total = self._pages_needed(request), self._executor.pages
        if needed > total:
            raise InvalidRequestError(f"prompt and output need {needed} KV pages; the pool has {total}")
        largest = self._executor.config.buckets.prefill[-1]
        if request.chunks is not None and max(chunk_lengths(len(request.prompt_ids), request.chunks)) > largest:
            raise InvalidRequestError(f"chunk sizes are {request.chunks}; allowed are 1 to {largest} tokens")
        self._waiting.append((self._count, request, self._clock()))
        self._count += 1
        return self._count - 1

    def step(self) -> list[tuple[int, Event]]:
        """Run one tick; returns what it brought, as (request number, event).

        Raises:
            ModelOutputError: logits are not finite; the request that they belong to is named.
        """
        self._admit()
        plan, carried = self._plan()
        results = self._executor.collect(self._executor.submit(plan))
        events: list[tuple[int, Event]] = []
        for running, chunk, result in zip(carried, plan.chunks, results, strict=True):
            events.extend((running.number, event) for event in self._deliver(running, chunk, result))
        return events

    def _pages_needed(self, request: GenerationRequest) -> int:
        context = self._executor.context
        tokens = min(len(request.prompt_ids) + (request.sampling.max_tokens or context), context)
        return pages_for(tokens, self._executor.config.page_size)

    def _admit(self) -> None:
        while self._waiting and self._free_slots:
            number, request, started = self._waiting[0]
            needed = self._pages_needed(request)
            if needed > self._allocator.free:
                return
            del self._waiting[0]
            prompt = len(request.prompt_ids)
            slot, pages = self._free_slots.pop(), self._allocator.allocate(needed)
            ends = (*request.eos_ids, *request.sampling.stop_token_ids)
            self._executor.admit(slot, request.sampling, prompt, ends)
            output = RequestOutput(request, self._tokenizer, limit=self._executor.context - prompt)
            chunks = chunk_lengths(prompt, request.chunks or (self._executor.config.buckets.prefill[-1],))
            self._running.append(_Running(number, request, output, slot, pages, chunks, started))

    def _plan(self) -> tuple[StepPlan, list[_Running]]:
        buckets = self._executor.config.buckets
        singles, room, places = buckets.decode[-1], buckets.prefill[-1], buckets.chunks
        chunks, carried = [], []
        # decodes first, so that a prompt never delays a token that is due
        for running in sorted(self._running, key=lambda r: r.prefilling):
            length = running.chunks[running.chunk] if running.prefilling else 1
            if length == 1 and singles:
                singles -= 1
            elif 1 < length <= room and places:
                room, places = room - length, places - 1
            else:
                continue
            chunks.append(self._chunk(running, length))
            carried.append(running)
        return StepPlan(tuple(chunks)), carried

    def _chunk(self, running: _Running, length: int) -> Chunk:
        start, page = running.computed, self._executor.config.page_size
        end, prompt = start + length, running.request.prompt_ids
        first, past = pages_for(start, page), pages_for(end, page)
        return Chunk(
            slot=running.slot,
            start=start,
            length=length,
            tokens=prompt[start:end] if running.prefilling else None,
            last=end >= len(prompt),
            first_page=first,
            pages=running.pages[first:past],
        )

    def _deliver(self, running: _Running, chunk: Chunk, result: TokenResult) -> Iterator[Event]:
        now, prompt = self._clock(), len(running.request.prompt_ids)
        if self._on_result is not None:
            self._on_result(running.number, result)
        if running.prefilling:
            running.chunk += 1
            yield Prefilled(chunk.end, prompt)
        running.computed = chunk.end
        if not chunk.last:
            return
        if not result.finite:
            self._finish(running)
            raise ModelOutputError(f"request {running.number}: the model's logits are not finite at {chunk.end} tokens")
        running.first_token = now if running.first_token is None else running.first_token
        wanted = running.request.sampling.logprobs
        logprobs = None
        if wanted is not None:
            logprobs = TokenLogprobs(result.token, result.logprob, result.top[:wanted])
        delta = running.output.push(result.token, logprobs)
        if delta is not None:
            yield delta
        if running.output.finished:
            self._finish(running)
            first, tokens = running.first_token, len(running.output.token_ids)
            tpot = (now - first) / (tokens - 1) if tokens > 1 else None
            yield Finished(
                running.output.completion(ttft_s=first - running.started, tpot_s=tpot, chunks=running.chunks)
            )

    def _finish(self, running: _Running) -> None:
        self._running.remove(running)
        self._allocator.release(running.pages)
        self._free_slots.append(running.slot)


def generate(
    executor: MeshExecutor, tokenizer: Tokenizer, request: GenerationRequest, clock: Callable[[], float]
) -> Iterator[Event]:
    """Run one request alone and stream its events; the last one is `Finished`.

    Raises:
        InvalidRequestError: the request cannot run.
        ModelOutputError: logits are not finite.
    """
    engine = OfflineEngine(executor, tokenizer, clock)
    engine.add(request)
    while engine.busy:
        for _, event in engine.step():
            yield event
