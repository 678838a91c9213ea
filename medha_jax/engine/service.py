"""The thread of an engine: other threads send commands, and one listener gets the events."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from itertools import count

from medha_jax.engine.events import GenerationRequest
from medha_jax.engine.loop import Engine, Events
from medha_jax.engine.recovery import internal_error
from medha_jax.engine.request_ledger import RequestLedger
from medha_jax.engine.tick_report import Load
from medha_jax.plan import InvalidRequestError
from medha_jax.scheduler.request import SchedulerRequest
from medha_jax.scheduler.scheduler import check_queue
from medha_jax.token_ids import IdArray, kept

Listener = Callable[[Events], None]


def log_error(error: Exception) -> None:
    """Log an error with its traceback; for an engine's `on_error`."""
    logging.getLogger(__name__).error("the engine: %s", error, exc_info=error)


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
    """End a request early."""

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
    in the order of the calls.

    Args:
        engine: used by nothing else from `start` on. One without `on_error` ends with its first error.
        listener: called in the engine's thread, at most once per tick, with all events of the tick in order. It must
            not wait.
    """

    def __init__(self, engine: Engine, listener: Listener, clock: Callable[[], float]) -> None:
        self._engine, self._listener, self._clock = engine, listener, clock
        self._numbers = count(engine.scheduler.next_number)
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        # everything below is read and changed under this lock
        self._changed = threading.Condition()
        self._inbox: list[_Command] = []
        self._coming = self._coming_tokens = 0
        self._ledger = RequestLedger()
        self._prompts: dict[int, _Prompt] = {}
        self._load = engine.load
        self._draining = self._stopping = False

    @property
    def healthy(self) -> bool:
        """Whether requests can run; False for good after an error that made the runtime unusable."""
        with self._changed:
            return self._load.healthy

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its output together."""
        return self._engine.context

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: GenerationRequest, arrival_s: float | None = None) -> int:
        """Queue a request that came at `arrival_s` (default: now); returns the number that its events carry.

        Raises:
            InvalidRequestError: it cannot run.
            QueueFullError: too many requests wait.
            NotServingError: no new requests are taken.
        """
        wanted = self._engine.prepare(request, self._clock() if arrival_s is None else arrival_s)
        with self._changed:
            if self._draining or self._stopping or not self._load.healthy:
                raise NotServingError("no new requests are taken")
            load = self._load
            waiting, tokens = load.waiting + self._coming, load.waiting_tokens + self._coming_tokens
            check_queue(self._engine.scheduler.config, waiting, tokens, wanted.prompt_tokens)
            number = next(self._numbers)
            self._ledger.accept(number)
            if request.prompt_bound is not None:
                self._prompts[number] = _Prompt(len(request.prompt_ids), request.prompt_bound)
            self._coming += 1
            self._coming_tokens += wanted.prompt_tokens
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
        """End a request, without further events. One that has ended is ignored.

        It counts as cancelled at once. What it holds comes back between two ticks.
        """
        with self._changed:
            if self._ledger.cancel(number):
                self._prompts.pop(number, None)
                self._ask(_Cancel(number))

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
                waiting_tokens=self._load.waiting_tokens + self._coming_tokens,
                draining=self._draining,
            )

    def drain(self, seconds: float) -> bool:
        """Take no new requests; returns whether all running ones ended within `seconds`."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not len(self._ledger), seconds)

    def stop(self) -> None:
        """End every request as `Failed("stopped")`, and the thread after its tick. Further calls do nothing."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _main(self) -> None:
        try:
            while self._wait():
                events = self._take()
                events += self._engine.step()
                self._tell(events)
            self._tell(self._take() + self._engine.end_all("stopped", "the engine was stopped"))
        except Exception as error:  # from the listener, for example: later events would be lost
            log_error(error)
            with self._changed:
                self._load = dataclasses.replace(self._load, healthy=False)
                self._ledger.fail_all("internal")
                self._changed.notify_all()

    def _wait(self) -> bool:
        """Sleep until there is something to do; returns whether to go on."""
        rest = self._engine.rest_s
        with self._changed:
            if rest > 0:
                timeout = None if rest > threading.TIMEOUT_MAX else rest
                self._changed.wait_for(lambda: self._inbox or self._stopping, timeout)
            return not self._stopping

    def _take(self) -> Events:
        """Carry out all commands; returns their events."""
        with self._changed:
            inbox, self._inbox = self._inbox, []
            coming, tokens = self._coming, self._coming_tokens
        events = [event for command in inbox for event in self._do(command)]
        with self._changed:
            self._coming, self._coming_tokens = self._coming - coming, self._coming_tokens - tokens
            self._load = self._engine.load
        return events

    def _tell(self, events: Events) -> None:
        with self._changed:
            self._load = self._engine.load
            told = [(number, event) for number, event in events if number in self._ledger]  # others were cancelled
            for number, event in told:
                self._ledger.note(number, event)
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
        number = command.number
        try:
            match command:
                case _Begin():
                    return [(number, self._engine.begin(number, command.request, command.wanted))]
                case _Extend():
                    self._engine.extend(number, command.ids, command.done)
                case _Cancel():
                    self._engine.cancel(number)
        except Exception as error:
            log_error(error)
            self._engine.cancel(number)
            return [(number, internal_error(error))]
        return []
