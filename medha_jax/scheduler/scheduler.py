"""The scheduler decides which chunks run in the next tick. It owns every request from `enqueue` to its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medha_jax.config import SchedulerConfig
from medha_jax.kv.groups import GroupedPages
from medha_jax.kv.host import UNUSED, HostUse
from medha_jax.plan import Chunk
from medha_jax.scheduler.deadlines import Expiries, expired_at
from medha_jax.scheduler.plan_builder import PlanBuilder
from medha_jax.scheduler.planned import Planned
from medha_jax.scheduler.prefill_queue import PrefillQueue
from medha_jax.scheduler.request import ENDED, LEAVING, RequestState, SchedulerRequest
from medha_jax.scheduler.running import RunningRequests
from medha_jax.scheduler.time_model import TimeModel
from medha_jax.specs.shape_grid import ShapeGrid
from medha_jax.specs.tick_shapes import TickShapes

TABLE_TICKS = 1024  # ticks between checks for a changed time model


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """A scheduler's requests and free pages.

    Args:
        running: requests that hold pages, in any of their outputs.
        waiting: requests without pages.
        waiting_tokens: of the waiting requests: prompts, also parts still to come, and what they generated.
        free_pages: pages of each group that are neither held nor set aside; cached ones included.
        cached_pages: free pages of each group that are in the prefix cache.
        host: pages in host memory.
        used_slots: outputs that hold pages: each has a slot.
        running_of: the running requests of each tenant that has some.
        waiting_tokens_of: the same for `waiting_tokens`.
    """

    running: int
    waiting: int
    waiting_tokens: int
    free_pages: tuple[int, ...]
    cached_pages: tuple[int, ...]
    host: HostUse = UNUSED
    used_slots: int = 0
    running_of: Mapping[str, int] = field(default_factory=dict)
    waiting_tokens_of: Mapping[str, int] = field(default_factory=dict)


class Scheduler:
    """Plans ticks: all decodes that are due, then prompt chunks in the order of the policy.

    An admitted prompt gets a chunk at least every `ageing_ticks * (slots + 1) + stages` plans. Every
    `ageing_ticks`-th plan begins with the smallest chunk of the prompt that has waited longest, and at most `slots`
    prompts are admitted. There are two exceptions. If the policy bounds waits itself, only the first prompt of its
    order is sure of a chunk or slice, at least every `ageing_ticks` ticks; it may wait for chunks that are in the slice
    lane. Without chunk preemption, a prompt waits until those before it are done. A decode that is due is planned
    within `2 * slots` plans. The policy chooses which request is admitted.

    Not thread-safe. `now` is always in seconds of one clock that does not go back. Nothing else may take `pages`.
    `ahead` ticks may be planned before the results of earlier ones are read.
    """

    def __init__(
        self, config: SchedulerConfig, shapes: TickShapes, pages: GroupedPages, model: TimeModel, ahead: int = 0
    ) -> None:
        self._config, self._shapes, self._pages, self._ahead = config, shapes, pages, ahead
        self._prefill_queue = PrefillQueue(config, shapes, model, sum(pages.free) * shapes.page_size)
        self._running = RunningRequests(config, shapes, pages, self._prefill_queue)
        self._states: dict[int, RequestState] = {}
        self._families: Counter[int] = Counter()  # outputs of each request that are not forgotten
        self._followers: dict[int, list[RequestState]] = {}  # outputs that wait for their lead's prompt, by its number
        self._expiries = Expiries()
        self._builder = PlanBuilder(config, shapes, model, self._prefill_queue, self._running, pages, ahead)
        self._count = self._tick = 0

    @property
    def config(self) -> SchedulerConfig:
        """Policy and limits."""
        return self._config

    @property
    def ahead(self) -> int:
        """Ticks that may be planned before the results of earlier ones are read."""
        return self._ahead

    @property
    def next_number(self) -> int:
        """The number of the next request."""
        return self._count

    @property
    def busy(self) -> bool:
        """Whether any request has not ended, or still holds something."""
        return bool(self._states)

    @property
    def stats(self) -> QueueStats:
        """The requests that run and wait now, and the free pages."""
        free, running, tokens = self._pages.free, self._running.requests, self._prefill_queue.waiting_tokens
        return QueueStats(
            running=running.total,
            waiting=len(self._families) - running.total,
            waiting_tokens=tokens.total,
            free_pages=free,
            cached_pages=tuple(map(min, self._pages.idle, free)),  # pages that are set aside may be cached ones
            host=self._pages.host,
            used_slots=len(self._running),
            running_of=running.copied(),
            waiting_tokens_of=tokens.copied(),
        )

    @property
    def next_expiry(self) -> float:
        """The next time at which a request may have to be dropped, in seconds; infinite if there is none."""
        return self._expiries.next

    @property
    def starved(self) -> bool:
        """Whether every request waits for more of its prompt and has nothing in flight; true without requests."""
        return not len(self._prefill_queue) and all(
            not state.complete and not state.in_flight for state in self._states.values()
        )

    def prefill_seconds(self, tokens: int) -> float:
        """Predicted seconds of a prompt of `tokens` tokens, alone on the machine."""
        return self._prefill_queue.seconds(tokens)

    def state(self, number: int) -> RequestState:
        """The record of a request.

        Raises:
            KeyError: the request is gone.
        """
        return self._states[number]

    def check_pages(self, request: SchedulerRequest) -> None:
        """Check that a request would fit empty pools. Any thread may call it.

        Raises:
            OutOfPagesError: it never fits.
        """
        self._pages.check(request.most)

    def enqueue(self, number: int, request: SchedulerRequest, lead: int | None = None) -> None:
        """Queue a checked request under a number larger than all before.

        With `lead` it is one more output of the request with this number, which was queued just before. It waits until
        that one has computed their prompt, or has ended. Then it finds the prompt's pages in the prefix cache.
        """
        self._count = number + 1
        state = self._states[number] = RequestState.new(number, request, self._config, lead)
        self._families[state.family] += 1
        if lead is not None:
            self._followers.setdefault(lead, []).append(state)
        self._prefill_queue.classes.enter(state)
        self._prefill_queue.add(state)
        self._expiries.add(number, request, state.due)

    def extend(self, number: int, ids: Sequence[int], complete: bool, now: float) -> None:
        """Extend an incomplete prompt; `complete` with the last part. A request that has ended is ignored.

        If no pages are free for the new tokens, it loses those that it has, and waits until its prompt is complete.
        """
        state = self._states.get(number)
        if state is None or state.phase is ENDED:
            return
        before, due = state.to_feed, state.due
        self._prefill_queue.extend(state, ids, complete)
        if state.holding is not None and not self._running.grown(state, before):
            self._builder.drop(state)
            self._running.preempt(state, now, counted=False)
        if state.due != due:
            self._expiries.add(number, state.request, state.due)

    def outlook(self, number: int, now: float) -> tuple[int, float]:
        """What a waiting request can expect.

        Returns:
            The number of waiting requests before it, and predicted seconds. These count its own prompt work and that
            of all requests before it, waiting or admitted, but not the time of decodes.
        """
        state = self._states[number]
        if not state.queued:
            return self.stats.waiting - 1, 0.0
        position, seconds = self._prefill_queue.before(state, now)
        return position, seconds + state.remaining

    def cancel(self, number: int) -> None:
        """End a request, whether its output is complete or unwanted. One that has ended is ignored.

        Its slot and pages come back at once, or when its chunks in flight have left.
        """
        state = self._states.get(number)
        if state is None or state.phase is ENDED:
            return
        self._builder.drop(state)
        self._prefill_queue.remove(state)
        self._expiries.forget(number)
        state.end()
        if not state.in_flight:
            self._forget(state)
        self._lead(state)

    def use(self, grid: ShapeGrid) -> None:
        """Plan with the shapes of another grid from the next plan on. It has all shapes of the one before.

        What reads no row sizes, such as `RunningRequests`, keeps what it knows.
        """
        self._shapes = self._shapes.on(grid)
        self._prefill_queue.use(self._shapes)
        self._builder.use(self._shapes)

    def plan(self, now: float) -> Planned:
        """The next tick's plan. Each of its chunks is in flight until `chunk_left` is called for it.

        1. Every TABLE_TICKS ticks, predict the prompts' work again if the time model has changed.
        2. Drop late requests that ask for it.
        3. Choose the chunks (`PlanBuilder.build`): decodes first, then prompts by policy. This may admit and preempt.
        """
        self._tick += 1
        if self._tick % TABLE_TICKS == 0:
            self._prefill_queue.renew()
        return self._builder.build(self._tick, now, self._expire(now))

    def chunk_left(self, state: RequestState, chunk: Chunk, token: int, now: float, good: bool = True) -> bool:
        """Note that a planned chunk has left the last stage; the chunks of a request leave in order.

        `token` was sampled after the chunk, and is ignored unless the chunk is `last`. If the chunk is not `good`,
        because it failed or was not finite, the prefix cache gets no page of its request from now on.

        Returns:
            Whether the request still wants the result: false if it has ended in the meantime.
        """
        state.chunk_left(chunk.end, token if chunk.last else None, good)
        if state.phase is ENDED:
            if not state.in_flight:
                self._forget(state)
            return False
        if chunk.end <= state.to_feed:
            self._running.publish(state)
        if self._followers and state.computed >= len(state.request.prompt):
            self._lead(state)
        if state.phase is LEAVING and not state.in_flight:
            self._running.requeue(state, now)
        return True

    def lose(self, now: float) -> None:
        """Requeue all admitted requests, with their tokens: the devices have lost all KV and every plan in flight."""
        for state in self._running.holders:
            state.lose_chunks()
            if state.phase is ENDED:
                self._forget(state)
            elif state.phase is LEAVING:
                self._running.requeue(state, now)
            else:
                self._running.preempt(state, now)
        self._running.forget()
        self._builder.clear()

    def _forget(self, state: RequestState) -> None:
        """Forget an ended request with nothing in flight, and free its pages."""
        if state.holding is not None:
            self._running.release(state)
        self._prefill_queue.classes.leave(state)
        del self._states[state.number]
        self._families[state.family] -= 1
        if not self._families[state.family]:
            del self._families[state.family]

    def _lead(self, state: RequestState) -> None:
        """Let the outputs run that waited for this one, because it has computed their prompt or has ended."""
        for follower in self._followers.pop(state.number, ()):
            if follower.phase is not ENDED:
                self._prefill_queue.follow(follower, state)

    def _expire(self, now: float) -> list[RequestState]:
        """Drop the requests with `on_deadline="drop"` that are late (`expired_at`)."""
        expired = []
        for number in self._expiries.passed(now):
            state = self._states.get(number)
            if state is not None and expired_at(state, now):
                self.cancel(number)
                expired.append(state)
        return expired


class QueueFullError(RuntimeError):
    """The queue is full; the caller should try again later."""


def check_queue(config: SchedulerConfig, waiting: int, tokens: int, prompt: int, *, own: int) -> None:
    """Check that a request with `prompt` tokens may join `waiting` requests with `tokens` tokens.

    `own` tokens of these are of its tenant.

    Raises:
        QueueFullError: it may not; the message states the limit.
    """
    if waiting >= config.max_waiting:
        raise QueueFullError(f"{waiting} requests wait; allowed are {config.max_waiting}")
    most = config.max_waiting_tokens
    if most is not None and waiting and tokens + prompt > most:
        raise QueueFullError(
            f"requests with {tokens} tokens wait and this one has {prompt}; allowed are {most} together"
        )
    most = config.max_tenant_waiting_tokens
    if most is not None and own and own + prompt > most:
        raise QueueFullError(
            f"your requests with {own} tokens wait and this one has {prompt}; each tenant is allowed {most}"
        )
