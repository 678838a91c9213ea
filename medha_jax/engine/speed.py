"""The speed of an engine without a network: ticks of chosen shapes, timed one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medha_jax.config import ConfigError
from medha_jax.engine.events import GenerationRequest
from medha_jax.engine.executor import Executor
from medha_jax.engine.loop import Engine
from medha_jax.engine.offline import OFFLINE
from medha_jax.engine.output import text_outputs
from medha_jax.engine.scheduling import scheduler_for
from medha_jax.engine.tick_report import TickReport
from medha_jax.plan import SamplingParams
from medha_jax.scheduler.time_model import REFIT_TICKS, FittedTimeModel, LinearTimeModel, TickWork
from medha_jax.text import Tokenizer

Clock = Callable[[], float]
UNTIMED = 1  # first ticks of every kind that are not timed: they run with cold memory


@dataclass(frozen=True)
class Speed:
    """The measured speed of one kind of tick.

    Args:
        rows: prompt tokens of a tick's chunk, or decodes in it.
        context: tokens before the chunk, or of each decoding request, at the first tick.
        ticks: number of timed ticks.
        seconds: median of one tick.
        turn: ticks between two chunks of one request: the pipeline's stages for decodes, 1 for prompts.
    """

    rows: int
    context: int
    ticks: int
    seconds: float
    turn: int = 1

    @property
    def tokens_per_second(self) -> float:
        """Prompt tokens computed, or tokens generated, per second."""
        return self.rows / (self.seconds * self.turn)


@dataclass(frozen=True)
class HostTime:
    """Host time of a tick, as medians over `ticks` ticks in seconds.

    Args:
        schedule: planning and delivery of results.
        submit: layout and dispatch of the plan; a device that is the host itself may compute meanwhile.
        wait: for the results.
    """

    ticks: int
    schedule: float
    submit: float
    wait: float


@dataclass(frozen=True)
class Prediction:
    """Errors `|predicted - measured| / measured` of a time model that was fitted to the other half of the ticks.

    `ticks` is the number of predicted ticks; `coefficients` are those of the fitted model.
    """

    ticks: int
    median: float
    p90: float
    coefficients: LinearTimeModel


class StartWatch:
    """Times the start of a runtime by its progress lines, and passes them on to `tell`."""

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
    """Output tokens for each of `batch` requests, so that all decode together for `ticks` ticks.

    The first request decodes while the other prompts, of `context` tokens each, are computed. A tick holds `largest`
    prompt tokens.
    """
    return batch * (-(-context // largest) + 1) + ticks + UNTIMED + 1


class _Watched:
    """An executor that times `submit` and `collect`; everything else is the wrapped executor's."""

    def __init__(self, executor: Executor, clock: Clock) -> None:
        self._executor, self._clock = executor, clock
        self.submit_s = self.collect_s = 0.0
        self.config, self.sizes, self.vocab = executor.config, executor.sizes, executor.vocab
        self.prefix_cacheable, self.ahead = executor.prefix_cacheable, executor.ahead
        self.usable, self.renew, self.slice_lengths = executor.usable, executor.renew, executor.slice_lengths
        self.grid, self.grow = executor.grid, executor.grow
        self.admit, self.adopt, self.set_masks = executor.admit, executor.adopt, executor.set_masks
        self.host, self.copy_pages, self.score = executor.host, executor.copy_pages, executor.score

    def submit(self, plan: Any) -> Any:
        return self._submitted(self._executor.submit, plan)

    def submit_slice(self, work: Any) -> Any:
        return self._submitted(self._executor.submit_slice, work)

    def _submitted(self, submit: Callable[[Any], Any], work: Any) -> Any:
        began = self._clock()
        handle = submit(work)
        self.submit_s += self._clock() - began
        return handle

    def collect(self, handle: Any) -> Any:
        began = self._clock()
        results = self._executor.collect(handle)
        self.collect_s += self._clock() - began
        return results


class _Notebook:
    """A time model that predicts free ticks, so chunks have the requested sizes. It records the measured ones.

    Chunks of requested sizes never run in slices.
    """

    def __init__(self) -> None:
        self.ticks: list[tuple[TickWork, float]] = []
        self.slices = LinearTimeModel()

    def seconds(self, work: TickWork) -> float:
        """Zero."""
        return 0.0

    def many(self, tokens: np.ndarray, attention: np.ndarray, context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Zeros."""
        return np.zeros(tokens.shape)

    def observe(self, work: TickWork, seconds: float) -> None:
        """Record a tick."""
        self.ticks.append((work, seconds))


class EngineSpeed:
    """Runs an engine in this thread and times its ticks; owns the engine. Nothing else may use the executor.

    `on_tick` is called after every tick with a description of what runs, for progress and Ctrl-C.
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

        scheduler = scheduler_for(self._watched, OFFLINE, self._model, ahead=0)
        self._note: Callable[[TickReport], bool] = lambda report: True
        self._wants_more = True
        self._engine = Engine(
            self._watched, scheduler, self._model, clock, text_outputs(tokenizer), on_tick=self._noted
        )
        self._draw = np.random.default_rng(0)
        self._host: list[tuple[float, float, float]] = []

    def prefill(self, chunk: int, context: int, ticks: int) -> Speed:
        """Time `ticks` consecutive chunks of `chunk` tokens, after `context` tokens in the largest chunks.

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
        """Time `ticks` ticks that generate one token for each of `batch` requests with `context` prompt tokens.

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
        """Host time of all ticks so far; None before the first."""
        if not self._host:
            return None
        schedule, submit, wait = (statistics.median(column) for column in zip(*self._host, strict=True))
        return HostTime(len(self._host), schedule, submit, wait)

    def prediction(self) -> Prediction | None:
        """Fit a time model to half of the ticks and predict the others; None with too few ticks."""
        ticks = list(self._model.ticks)
        self._draw.shuffle(ticks)
        known, others = ticks[::2], ticks[1::2]
        if len(known) < REFIT_TICKS // 4:
            return None
        model = FittedTimeModel({})
        while model.ticks < REFIT_TICKS or model.ticks % REFIT_TICKS:  # the last tick triggers a fit to all of them
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
        """Run requests given as (prompt tokens, output tokens, chunk sizes), until `note` of a tick returns False."""
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
