"""How fast an engine is without a network: ticks of chosen shapes, timed one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medha_jax.config import ConfigError, SchedulerConfig
from medha_jax.engine.events import GenerationRequest
from medha_jax.engine.executor import Executor
from medha_jax.engine.loop import Engine
from medha_jax.engine.output import text_outputs
from medha_jax.engine.scheduling import scheduler_for
from medha_jax.engine.tick_report import TickReport
from medha_jax.plan import SamplingParams
from medha_jax.scheduler.time_model import REFIT_TICKS, FittedTimeModel, LinearTimeModel, TickWork
from medha_jax.text import Tokenizer

Clock = Callable[[], float]
ALL_AT_ONCE = SchedulerConfig(policy="fcfs", preemption=False, prefix_cache=False, max_waiting=2**31)
UNTIMED = 1  # ticks of every kind that are left out: the first touches memory that the others find warm


@dataclass(frozen=True)
class Speed:
    """Ticks of one kind.

    Args:
        rows: prompt tokens of a tick's chunk, or decodes in it.
        context: tokens before the chunk, or of each decoding request, at the first tick.
        ticks: that were timed.
        seconds: of one, the median.
        turn: ticks until it is a row's turn again: stages of the pipeline for decodes, 1 for prompts, which follow
            each other.
    """

    rows: int
    context: int
    ticks: int
    seconds: float
    turn: int = 1

    @property
    def tokens_per_second(self) -> float:
        """Prompt tokens computed, or tokens generated, a second."""
        return self.rows / (self.seconds * self.turn)


@dataclass(frozen=True)
class HostTime:
    """What a tick takes outside of the devices' work, medians in seconds.

    Args:
        ticks: that were timed.
        schedule: planning, and delivering results.
        submit: laying the plan out and dispatching it; a device that is the host itself may compute meanwhile.
        wait: for the results.
    """

    ticks: int
    schedule: float
    submit: float
    wait: float


@dataclass(frozen=True)
class Prediction:
    """How well a time model fitted to half of the ticks predicts the others: |predicted - measured| / measured.

    Args:
        ticks: that were predicted.
        median: of the errors.
        p90: likewise.
        coefficients: of the model: seconds per tick, row of the bucket, tokens² of attention, KV token, real row.
    """

    ticks: int
    median: float
    p90: float
    coefficients: LinearTimeModel


class StartWatch:
    """Times the start of a runtime by the lines that it tells. Owner of the moments.

    Args:
        tell: takes the lines.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._began = tell, time.perf_counter()
        self._compiling: float | None = None
        self.programs = self.from_cache = 0
        self.compile_s = self.start_s = 0.0

    def told(self, line: str) -> None:
        """Pass a line on."""
        self._tell(line)
        if line.startswith("compiling "):
            self._compiling = time.perf_counter()
        elif line.startswith("compiled ") and self._compiling is not None:
            self.compile_s = time.perf_counter() - self._compiling
            self.programs += 1
            self.from_cache += line.endswith("(from the cache)")

    def ready(self) -> None:
        """Note that the start is over."""
        self.start_s = time.perf_counter() - self._began


def decode_output(batch: int, context: int, ticks: int, largest: int) -> int:
    """Output tokens of requests that shall decode together for some ticks.

    The first to begin goes on while the prompts of the others are computed.

    Args:
        batch: requests.
        context: prompt tokens of each.
        ticks: in which all of them decode.
        largest: prompt tokens of a tick.
    """
    return batch * (-(-context // largest) + 1) + ticks + UNTIMED + 1


class _Watched:
    """An executor whose `submit` and `collect` are timed; all else is the other's. Owner of the two times."""

    def __init__(self, executor: Executor, clock: Clock) -> None:
        self._executor, self._clock = executor, clock
        self.submit_s = self.collect_s = 0.0
        self.config, self.sizes, self.vocab = executor.config, executor.sizes, executor.vocab
        self.prefix_cacheable, self.ahead = executor.prefix_cacheable, executor.ahead
        self.usable, self.renew = executor.usable, executor.renew
        self.admit, self.adopt = executor.admit, executor.adopt

    def submit(self, plan: Any) -> Any:
        began = self._clock()
        handle = self._executor.submit(plan)
        self.submit_s += self._clock() - began
        return handle

    def collect(self, handle: Any) -> Any:
        began = self._clock()
        results = self._executor.collect(handle)
        self.collect_s += self._clock() - began
        return results


class _Notebook:
    """Every tick free to the scheduler, so that chunks are those that were asked for; what they took is noted."""

    def __init__(self) -> None:
        self.ticks: list[tuple[TickWork, float]] = []

    def seconds(self, work: TickWork) -> float:
        """Nothing."""
        return 0.0

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Zeros."""
        return np.zeros(tokens.shape)

    def observe(self, work: TickWork, seconds: float) -> None:
        """Note a tick."""
        self.ticks.append((work, seconds))


class EngineSpeed:
    """Runs an engine in this thread and times its ticks. Owner of the engine.

    Args:
        executor: that it runs on; nobody else uses it.
        tokenizer: of the model.
        clock: seconds, monotonic.
        on_tick: called after every tick with what runs, so that Ctrl-C and progress have a place.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer,
        clock: Clock = time.perf_counter,
        on_tick: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._executor, self._clock, self._on_tick = executor, clock, on_tick
        self._watched, self._model = _Watched(executor, clock), _Notebook()

        scheduler = scheduler_for(self._watched, ALL_AT_ONCE, self._model, ahead=0)
        self._note: Callable[[TickReport], bool] = lambda report: True
        self._wants_more = True
        self._engine = Engine(
            self._watched, scheduler, self._model, clock, text_outputs(tokenizer), on_tick=self._noted
        )
        self._draw = np.random.default_rng(0)
        self._host: list[tuple[float, float, float]] = []

    def prefill(self, chunk: int, context: int, ticks: int) -> Speed:
        """Time chunks that begin at a context and follow each other.

        Args:
            chunk: tokens of each.
            context: tokens before the first, computed in the largest chunks.
            ticks: to time.

        Raises:
            ConfigError: no compiled shape holds the chunk, or the context has no room for it.
        """
        sizes = self._executor.config.mesh.buckets.prefill
        if not 2 <= chunk <= sizes[-1]:
            raise ConfigError(f"a chunk of {chunk} tokens; allowed are 2 to {sizes[-1]}, the largest compiled shape")
        room = (self._executor.sizes.context - context - 1) // chunk - UNTIMED
        if room < 1:
            raise ConfigError(
                f"chunks of {chunk:,} tokens at a context of {context:,}: the runtime's context is "
                f"{self._executor.sizes.context:,} tokens"
            )
        timed = min(ticks, room) + UNTIMED
        whole, rest = divmod(context, sizes[-1])
        before = (sizes[-1],) * whole + ((rest,) if rest else ())
        prompt = context + timed * chunk
        seconds: list[float] = []

        def note(report: TickReport) -> bool:
            if any(part.start >= context and part.length == chunk and not part.stage for part in report.chunks):
                seconds.append(report.ended - report.started)
            return True

        self._run([(prompt, 1, (*before, chunk))], f"prefill {chunk:,} at {context:,}", note)
        return Speed(chunk, context, timed - UNTIMED, statistics.median(seconds[UNTIMED:]))

    def decode(self, batch: int, context: int, ticks: int) -> Speed:
        """Time ticks that generate one token for each of some requests.

        Args:
            batch: requests.
            context: prompt tokens of each.
            ticks: to time.

        Raises:
            ConfigError: there are fewer slots or decode rows, or the pool has no room for their tokens.
        """
        config = self._executor.config
        most = min(config.slots, config.mesh.buckets.decode[-1])
        if not 1 <= batch <= most:
            raise ConfigError(f"{batch} decodes in a tick; allowed are 1 to {most}")
        output = decode_output(batch, context, ticks, config.mesh.buckets.prefill[-1])
        if context + output > self._executor.sizes.context:
            raise ConfigError(
                f"decodes at {context:,} tokens; the runtime's context is {self._executor.sizes.context:,} tokens"
            )
        page = config.mesh.page_size
        pages = -(-(context + output) // page) * batch
        if pages > self._executor.sizes.pages:
            raise ConfigError(
                f"{batch} requests of {context:,} tokens need {pages:,} pages of {page}; the pool has "
                f"{self._executor.sizes.pages:,} (--pool-tokens)"
            )
        seconds: list[float] = []

        def note(report: TickReport) -> bool:
            if len(report.chunks) == batch and all(part.decode for part in report.chunks):
                seconds.append(report.ended - report.started)
            return len(seconds) < ticks + UNTIMED

        self._run([(context, output, None)] * batch, f"decode {batch} at {context:,}", note)
        timed = seconds[UNTIMED:]
        return Speed(batch, context, len(timed), statistics.median(timed), config.mesh.spp)

    @property
    def host(self) -> HostTime | None:
        """Of all ticks so far; None before the first."""
        if not self._host:
            return None
        schedule, submit, wait = (statistics.median(column) for column in zip(*self._host, strict=True))
        return HostTime(len(self._host), schedule, submit, wait)

    def prediction(self) -> Prediction | None:
        """Fit a time model to every second tick, and predict the others; None with too few."""
        ticks = list(self._model.ticks)
        self._draw.shuffle(ticks)
        known, others = ticks[::2], ticks[1::2]
        if len(known) < REFIT_TICKS // 4:
            return None
        model = FittedTimeModel({})
        while model.ticks < REFIT_TICKS or model.ticks % REFIT_TICKS:  # so that the last fit has seen all of them
            model.observe(*known[model.ticks % len(known)])
        errors = [abs(model.seconds(work) - seconds) / seconds for work, seconds in others]
        median, p90 = np.percentile(errors, (50, 90)).tolist()
        return Prediction(len(errors), median, p90, model.coefficients)

    def _run(
        self,
        wanted: Sequence[tuple[int, int, tuple[int, ...] | None]],
        what: str,
        note: Callable[[TickReport], bool],
    ) -> None:
        """Run requests of some prompt tokens, output tokens and chunk sizes, while `note` says of a tick to go on."""
        vocab = self._executor.vocab
        numbers = []
        for prompt, output, chunks in wanted:
            ids = self._draw.integers(vocab, size=prompt).tolist()
            sampling = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
            numbers.append(self._engine.add(GenerationRequest(ids, sampling, chunks=chunks)))
        self._note, self._wants_more = note, True
        while self._engine.busy:
            before, began = (self._watched.submit_s, self._watched.collect_s), self._clock()
            self._engine.step()
            step = self._clock() - began
            submit, wait = self._watched.submit_s - before[0], self._watched.collect_s - before[1]
            self._host.append((step - submit - wait, submit, wait))
            self._on_tick(what)
            if not self._wants_more:
                for number in numbers:
                    self._engine.cancel(number)

    def _noted(self, report: TickReport) -> None:
        self._wants_more = self._note(report) and self._wants_more
