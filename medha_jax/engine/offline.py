"""Requests that are all at hand, run to their end in the caller's thread, first come first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from medha_jax.config import Buckets
from medha_jax.engine.admission import check_request
from medha_jax.scheduler.chunking import chunk_lengths
from medha_jax.engine.events import Delta, Finished, GenerationRequest, Prefilled, TokenLogprobs
from medha_jax.engine.output import RequestOutput
from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.kv.groups import GroupedPages, Holding
from medha_jax.plan import Chunk, InvalidRequestError, StepPlan
from medha_jax.runtime import Executor, TokenResult
from medha_jax.text import Tokenizer

Event = Prefilled | Delta | Finished


class ModelOutputError(RuntimeError):
    """The model produced logits that are not numbers."""


@dataclass
class _Running:
    """One admitted request: where it is, what it holds. Owned by the engine.

    `scheduled` tokens entered the first stage, `computed` ones left the last.
    """

    number: int
    request: GenerationRequest
    output: RequestOutput
    slot: int
    holding: Holding
    chunks: tuple[int, ...]
    started: float
    scheduled: int = 0
    computed: int = 0
    chunk: int = 0
    first_token: float | None = None

    @property
    def prefilling(self) -> bool:
        return self.scheduled < len(self.request.prompt_ids)

    @property
    def length(self) -> int:
        """Tokens of the next chunk."""
        return self.chunks[self.chunk] if self.prefilling else 1

    @property
    def begins_to_be_shared(self) -> bool:
        """Whether the next chunk is the first that lies on a second group."""
        start = self.scheduled
        return start > 0 and len(self.holding.owners(start)) == 2 and len(self.holding.owners(start - 1)) == 1

    @property
    def ready(self) -> bool:
        """Whether the next chunk may enter the pipeline.

        A decode waits for its token. So does the first shared chunk where penalties count tokens, because the other
        groups have to be told what was counted.
        """
        sampling = self.request.sampling
        counted = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1, 0, 0)
        waits = not self.prefilling or (counted and self.begins_to_be_shared)
        return not waits or self.scheduled == self.computed


class _Room:
    """What is left of a tick's largest shape while a plan is made."""

    def __init__(self, buckets: Buckets) -> None:
        self._singles, self._tokens, self._chunks = buckets.decode[-1], buckets.prefill[-1], buckets.chunks

    def take(self, length: int) -> bool:
        """Make room for a chunk; false, and nothing taken, if there is none."""
        if length == 1:
            self._singles -= 1
            return self._singles >= 0
        if length > self._tokens or not self._chunks:
            return False
        self._tokens, self._chunks = self._tokens - length, self._chunks - 1
        return True


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
        executor: Executor,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        on_result: Callable[[int, TokenResult], None] | None = None,
    ) -> None:
        self._executor = executor
        self._tokenizer = tokenizer
        self._clock = clock
        self._on_result = on_result
        mesh, sizes = executor.config.mesh, executor.sizes
        self._shared = mesh.shared_buckets or mesh.buckets  # without shared shapes no request is spread
        self._pages = GroupedPages(mesh.kvp, sizes.pages, mesh.page_size, executor.per_group)
        self._free_slots = list(range(executor.config.slots - 1, -1, -1))
        self._waiting: list[tuple[int, GenerationRequest, float]] = []
        self._running: list[_Running] = []
        self._flight: deque[list[_Running]] = deque()
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._waiting or self._running)

    @property
    def free_pages(self) -> int:
        """Pages of all groups that no request holds."""
        return sum(self._pages.free)

    def add(self, request: GenerationRequest) -> int:
        """Queue a request and return its number.

        Raises:
            InvalidRequestError: the prompt is empty, beyond the vocabulary, or cannot fit; nothing was queued.
        """
        check_request(request, self._executor.arch.vocab, self._executor.context)
        try:
            self._pages.check(self._tokens(request))
        except OutOfPagesError as error:
            raise InvalidRequestError(f"prompt and output: {error}") from None
        largest = self._executor.config.mesh.buckets.prefill[-1]
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
        handle = self._executor.submit(plan)
        self._flight.append(carried)
        if len(self._flight) < self._executor.layout.spp:
            return []
        leaving = self._flight.popleft()
        events: list[tuple[int, Event]] = []
        for running, chunk, result in zip(leaving, handle.leaving.chunks, self._executor.collect(handle), strict=True):
            events.extend((running.number, event) for event in self._deliver(running, chunk, result))
        return events

    def _tokens(self, request: GenerationRequest) -> int:
        context = self._executor.context
        return min(len(request.prompt_ids) + (request.sampling.max_tokens or context), context)

    def _admit(self) -> None:
        while self._waiting and self._free_slots:
            number, request, started = self._waiting[0]
            try:
                holding = self._pages.reserve(self._tokens(request))
            except OutOfPagesError:
                return
            del self._waiting[0]
            prompt, slot = len(request.prompt_ids), self._free_slots.pop()
            output = RequestOutput(request, self._tokenizer, limit=self._executor.context - prompt)
            sizes = request.chunks or (self._executor.config.mesh.buckets.prefill[-1],)
            chunks = chunk_lengths(prompt, sizes, partial(self._most, holding))
            running = _Running(number, request, output, slot, holding, chunks, started)
            self._tell(running)
            self._running.append(running)

    def _most(self, holding: Holding, start: int) -> int:
        """Tokens that a chunk may have: to the border of its group, and what its kind of rows has room for."""
        mesh = self._executor.config.mesh
        buckets = self._shared if len(holding.owners(start)) > 1 else mesh.buckets
        return min(holding.border(start), buckets.prefill[-1])

    def _tell(self, running: _Running) -> None:
        """Write the request's settings, and what it has counted so far, into its slot on every group."""
        request, generated = running.request, running.output.token_ids
        prompt = request.prompt_ids
        ends = (*request.eos_ids, *request.sampling.stop_token_ids)
        # the newest token is counted when it is fed
        self._executor.admit(
            running.slot, request.sampling, len(prompt), ends, prompt[: running.computed], generated[:-1]
        )

    def _plan(self) -> tuple[StepPlan, list[_Running]]:
        mesh = self._executor.config.mesh
        rooms = {group: _Room(mesh.buckets) for group in range(mesh.kvp)}
        shared = _Room(self._shared)
        chunks, carried = [], []
        # decodes first, so that a prompt never delays a token that is due
        for running in sorted(self._running, key=lambda r: r.prefilling):
            owners = running.holding.owners(running.scheduled)
            room = rooms[owners[0]] if len(owners) == 1 else shared
            if running.ready and room.take(running.length):
                chunks.append(self._chunk(running))
                carried.append(running)
        return StepPlan(tuple(chunks)), carried

    def _chunk(self, running: _Running) -> Chunk:
        start, prompt = running.scheduled, running.request.prompt_ids
        end = start + running.length
        tokens = prompt[start:end] if running.prefilling else None
        if running.begins_to_be_shared:
            if running.scheduled == running.computed:
                self._tell(running)
            if tokens is None:
                tokens = running.output.token_ids[-1:]  # the other groups have not sampled it
        first_page, pages = running.holding.new_pages(start, end)
        running.chunk += running.prefilling
        running.scheduled = end
        owners = running.holding.owners(start)
        return Chunk(running.slot, start, end - start, tokens, end >= len(prompt), first_page, pages, owners)

    def _deliver(self, running: _Running, chunk: Chunk, result: TokenResult) -> Iterator[Event]:
        now, prompt = self._clock(), len(running.request.prompt_ids)
        if self._on_result is not None:
            self._on_result(running.number, result)
        if chunk.start < prompt:
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
        self._pages.release(running.holding)
        self._free_slots.append(running.slot)


def generate(
    executor: Executor, tokenizer: Tokenizer, request: GenerationRequest, clock: Callable[[], float]
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
