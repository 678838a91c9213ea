"""The thread of an engine: other threads send commands, and one listener gets the events."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence

from medha_jax.engine.error_log import ErrorLog
from medha_jax.engine.events import Failed, GenerationRequest
from medha_jax.engine.loop import Engine, Events
from medha_jax.engine.recovery import internal_error
from medha_jax.engine.request_ledger import RequestLedger
from medha_jax.engine.tick_report import Load, TenantLoad
from medha_jax.engine.turn_watch import TurnWatch
from medha_jax.plan import InvalidRequestError
from medha_jax.scheduler.request import SchedulerRequest
from medha_jax.scheduler.scheduler import check_queue
from medha_jax.tenants import TenantCounts
from medha_jax.token_ids import IdArray, kept

TAKING_S = 0.005  # that commands may take between two ticks, so that many at once delay nobody for long
TAKING_SHARE = 0.1  # of the last tick, if that is longer: a tick that takes long waits for more of them
Listener = Callable[[Events], None]
STOP_SECONDS = 3.0  # that a tick may still take when the engine is stopped


class NotServingError(RuntimeError):
    """No new requests are taken: the engine is draining, stopped, or unusable after an error."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Begin:
    """Begin a checked request."""

    number: int
    request: GenerationRequest
    wanted: SchedulerRequest


@dataclasses.dataclass(frozen=True, slots=True)
class _Extend:
    """Add tokens to a prompt; `done` with the last ones."""

    number: int
    ids: IdArray | range
    done: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Cancel:
    """End one output of a request early."""

    number: int


_Command = _Begin | _Extend | _Cancel


@dataclasses.dataclass(slots=True)
class _Prompt:
    """A prompt that comes in parts: its tokens so far, and the most that it may have."""

    tokens: int
    bound: int


class EngineService:
    """Runs an engine in its own thread, the only one that uses the engine and runs programs.

    Any thread may call any method, and only `drain` and `stop` wait for a tick. Commands take effect between two ticks,
    in the order of the calls; those that would delay the tick for long take effect after it.

    It is the one owner of the fact that the engine cannot go on: whatever ended it, `fault` says so, all open requests
    have ended, and no new ones are taken. A tick that does not end is noticed only by who calls `watch`.

    Args:
        engine: used by nothing else from `start` on. One without `on_error` ends with its first error.
        listener: called in the engine's thread, at most twice per tick: with what came of the commands, before the tick
            runs, and with all events of the tick in order. It must not wait.
    """

    def __init__(self, engine: Engine, listener: Listener, clock: Callable[[], float]) -> None:
        self._engine, self._listener, self._clock = engine, listener, clock
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._log, self._turn = ErrorLog(clock), TurnWatch()
        self._started = False
        # everything below is read and changed under this lock
        self._changed = threading.Condition()
        self._number = engine.scheduler.next_number
        self._inbox: deque[_Command] = deque()
        self._coming, self._coming_tokens = 0, TenantCounts()
        self._ledger = RequestLedger()
        self._prompts: dict[int, _Prompt] = {}
        self._load = engine.load
        self._draining = self._stopping = False
        self._fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why no request can run any more, as a sentence; None as long as they can, and after `stop`."""
        with self._changed:
            if self._fault is None and self._started and not self._stopping and not self._thread.is_alive():
                self._give_up("the engine's thread has ended")
            return self._fault

    @property
    def healthy(self) -> bool:
        """Whether requests can run; False for good once there is a `fault`."""
        return self.fault is None

    def watch(self, tick_seconds: float) -> str | None:
        """Look for a tick that does not end; returns the `fault`. One thread calls it, several times a second.

        A tick may take `tick_seconds`, or 20 times what was predicted for it, if that is more. One that takes longer
        ends all requests. The listener does not hear of that, because the engine's thread cannot tell it.
        """
        limit = self._turn.overdue(self._clock(), tick_seconds, self._engine.predicted_s)
        if limit is not None:
            self._give_up(f"a tick of the engine did not end within {limit:.3g} s")
        return self.fault

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its output together."""
        return self._engine.context

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._started = True

    def submit(self, request: GenerationRequest, arrival_s: float | None = None) -> int:
        """Queue a request that came at `arrival_s` (default: now); returns the number that its events carry.

        If it has several outputs, the events of output i carry `number + i`. If one of them fails, all end.

        Raises:
            InvalidRequestError: it cannot run.
            QueueFullError: too many requests wait.
            NotServingError: no new requests are taken.
        """
        wanted = self._engine.prepare(request, self._clock() if arrival_s is None else arrival_s)
        with self._changed:
            if self._draining or self._stopping or self._fault is not None:
                raise NotServingError(self._fault or "no new requests are taken")
            load = self._load
            waiting, tokens = load.waiting + self._coming, load.waiting_tokens + self._coming_tokens.total
            own = load.waiting_tokens_of.get(request.tenant, 0) + self._coming_tokens[request.tenant]
            check_queue(self._engine.scheduler.config, waiting, tokens, wanted.prompt_tokens, own=own)
            number = self._number
            self._number += request.n
            self._ledger.accept(number, request.n, request.tenant)
            if request.prompt_bound is not None:
                self._prompts[number] = _Prompt(len(request.prompt_ids), request.prompt_bound)
            self._coming += 1
            self._coming_tokens.add(request.tenant, wanted.prompt_tokens)
            self._ask(_Begin(number, request, wanted))
        return number

    def extend(self, number: int, prompt_ids: Sequence[int], done: bool) -> None:
        """Add the next tokens, perhaps none, of a prompt that has a `prompt_bound`; `done` with the last part.

        A complete prompt, or a request that has ended, is left as it is.

        Raises:
            InvalidRequestError: ids outside the vocabulary, or more tokens than the bound; the request still waits.
        """
        ids = kept(prompt_ids)
        self._engine.check_ids(ids)
        with self._changed:
            prompt = self._prompts.get(number)
            if prompt is None:
                return
            if prompt.tokens + len(ids) > prompt.bound:
                raise InvalidRequestError(
                    f"the prompt has {prompt.tokens + len(ids)} tokens; allowed are {prompt.bound}, as stated"
                )
            prompt.tokens += len(ids)
            if done:
                del self._prompts[number]
            self._ask(_Extend(number, ids, done))

    def cancel(self, number: int) -> None:
        """End a request with all its outputs, without further events. One that has ended is ignored.

        It counts as cancelled at once. What it holds comes back between two ticks.
        """
        with self._changed:
            for output in self._ledger.cancel(number):
                self._prompts.pop(output, None)
                self._ask(_Cancel(output))

    def load(self) -> Load:
        """The engine's load after the last tick, with the requests that have come and were cancelled since.

        `counts.accepted` is the sum of all completed, failed, running and waiting ones.
        """
        with self._changed:
            running = min(self._load.running, len(self._ledger))
            return dataclasses.replace(
                self._load,
                counts=self._ledger.counts,
                running=running,
                waiting=len(self._ledger) - running,
                waiting_tokens=self._load.waiting_tokens + self._coming_tokens.total,
                draining=self._draining,
                healthy=self._fault is None,
                by_tenant={tenant: self._load_of(tenant, count) for tenant, count in self._ledger.by_tenant.items()},
            )

    def _load_of(self, tenant: str, count: int) -> TenantLoad:
        """The load of a tenant with `count` open requests."""
        running = min(self._load.running_of.get(tenant, 0), count)
        tokens = self._load.waiting_tokens_of.get(tenant, 0) + self._coming_tokens[tenant]
        return TenantLoad(running, count - running, tokens)

    def drain(self, seconds: float) -> bool:
        """Take no new requests; returns whether all running ones ended within `seconds`."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not len(self._ledger), seconds)

    def fail(self, fault: str) -> None:
        """The engine cannot go on, for a reason from outside, as a sentence. Ends all requests as `watch` does."""
        self._give_up(fault)

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """End every request as `Failed("stopped")`, and the thread after its tick. Further calls do nothing.

        Returns whether the thread has ended within `seconds`; one whose tick takes longer is left behind.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            bound = TAKING_S
            while self._wait():
                self._turn.begin()
                if taken := self._take(bound):
                    self._tell(taken)
                began = self._clock()
                self._tell(self._engine.step())
                bound = max(TAKING_S, TAKING_SHARE * (self._clock() - began))
                self._turn.end()
                if not self._engine.healthy:
                    self._give_up("an error made the engine unusable")
            if self._fault is None:
                self._tell(self._take(math.inf) + self._engine.end_all("stopped", "the engine was stopped"))
        except BaseException as error:  # whatever it is, nobody else would hear of it: panics of Rust are no Exception
            self._die(error)

    def _die(self, error: BaseException) -> None:
        """Log what ended the thread, and tell every open request, if the listener still listens."""
        self._log(error)
        fault = f"an error ended the engine ({type(error).__name__})"
        ended = self._give_up(fault)
        try:
            if ended:
                self._listener([(number, Failed("internal", fault)) for number in ended])
        except BaseException as later:
            self._log(later)

    def _give_up(self, fault: str) -> list[int]:
        """Note that no request can run any more, and why; the first reason counts. Returns the open requests."""
        with self._changed:
            self._fault = self._fault or fault
            self._prompts.clear()
            ended = self._ledger.fail_all("internal")
            self._changed.notify_all()
            return ended

    def _wait(self) -> bool:
        """Sleep until there is something to do; returns whether to go on."""
        rest = self._engine.rest_s
        with self._changed:
            if rest > 0:
                timeout = None if rest > threading.TIMEOUT_MAX else rest
                self._changed.wait_for(lambda: self._inbox or self._stopping or self._fault, timeout)
            return not self._stopping and self._fault is None

    def _take(self, seconds: float) -> Events:
        """Carry out commands for so many seconds, at least one; returns their events. The others stay in the inbox."""
        events: Events = []
        begun: list[_Begin] = []
        end = self._clock() + seconds
        while (command := self._next()) is not None:
            events += self._do(command)
            if isinstance(command, _Begin):
                begun.append(command)
            if self._clock() >= end:
                break
        with self._changed:
            self._coming -= len(begun)
            for one in begun:
                self._coming_tokens.add(one.request.tenant, -one.wanted.prompt_tokens)
            self._load = self._engine.load
        return events

    def _next(self) -> _Command | None:
        with self._changed:
            return self._inbox.popleft() if self._inbox else None

    def _tell(self, events: Events) -> None:
        with self._changed:
            self._load = self._engine.load
            told = []
            for number, event in events:
                if number in self._ledger:  # others were cancelled
                    told.append((number, event))
                    for other in self._ledger.note(number, event):
                        self._ask(_Cancel(other))
                if number not in self._ledger:
                    self._prompts.pop(number, None)
        if told:
            self._listener(told)
        with self._changed:
            self._changed.notify_all()

    def _ask(self, command: _Command) -> None:
        self._inbox.append(command)
        self._changed.notify_all()

    def _do(self, command: _Command) -> Events:
        """Carry out one command; an error ends only its request."""
        number, outputs = command.number, 1
        try:
            match command:
                case _Begin():
                    outputs = command.request.n
                    return self._engine.begin(number, command.request, command.wanted)
                case _Extend():
                    self._engine.extend(number, command.ids, command.done)
                case _Cancel():
                    self._engine.cancel(number)
        except Exception as error:
            self._log(error)
            for output in range(number, number + outputs):
                self._engine.cancel(output)
            return [(number, internal_error(error))]
        return []
