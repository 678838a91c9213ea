"""The loads that both servers get, through either backend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from benchmarks.peers.busy import between, look
from benchmarks.peers.figures import SECONDS, TOKENS_PER_SECOND, Figure
from medha_jax.bench.backend import BackendError
from medha_jax.bench.load_generator import LoadSettings
from medha_jax.bench.session import Session
from medha_jax.results import Group, Repeat, RequestRecord, Spread
from medha_jax.results.metrics import tpot, ttft
from medha_jax.workload import ConvoyConfig, Workload, WorkloadConfig, build, build_convoy

ROWS = ("ttft", "tpot", "rate", "convoy")
SHORT, STREAM_OUTPUT, RATE_OUTPUT, CONVOY_OUTPUT = 128, 64, 128, 16  # tokens
LENGTHS = {SHORT: 5, 1024: 5, 8192: 2}  # tokens of a prompt alone, and how often; the longest one once
STREAMS = 3  # single streams whose TPOT is measured
AT_ONCE = {1: 4, 8: 32, 32: 128}  # requests in flight, and requests in all
WARM = 2  # requests that are not measured, before each row
# a first token that is the last one has no text of its own in some servers' last message
TTFT_OUTPUT = 2
PATIENCE_S = 3600.0
CONVOY_INTERVAL_S = 1.0  # until the first short one, and between them
CONVOY_SEED = 2**32  # from here on; seeds of the rates are below


@dataclass(frozen=True)
class Asked:
    """Which requests are sent. Equal values give equal requests, and each row has the same whichever others run.

    Args:
        rows: some of ROWS.
        long_tokens: of the longest prompt, alone and in the convoy.
        seed: of the prompts' ids, 0 to 999,999.
        vocabulary: ids are drawn below it.
    """

    rows: tuple[str, ...]
    long_tokens: int
    seed: int
    vocabulary: int

    @property
    def lengths(self) -> dict[int, int]:
        """Tokens of each prompt that is measured alone, and how often."""
        return {length: times for length, times in LENGTHS.items() if length < self.long_tokens} | {self.long_tokens: 1}


class PeerLoads:
    """Sends the loads to one server, one after the other; no two prompts begin alike. Owns what was found.

    Args:
        session: with the server.
        asked: which requests.
        tell: called with a line before each step.
    """

    def __init__(self, session: Session, asked: Asked, tell: Callable[[str], None]) -> None:
        self.figures: list[Figure] = []
        self.others: dict[str, Mapping[str, float]] = {}
        self.problems: list[str] = []
        self._session, self._asked, self._tell = session, asked, tell
        self._numbers = itertools.count()  # of prompts alone

    async def run(self) -> None:
        """Measure all rows. A row that fails is noted, and the next one begins."""
        measures: dict[str, Callable[[], Awaitable[None]]] = {
            "ttft": self._ttft,
            "tpot": self._tpot,
            "rate": self._rate,
            "convoy": self._convoy,
        }
        for name in self._asked.rows:
            self._numbers = itertools.count(1000 * self._asked.seed + 100 * ROWS.index(name))  # equal whatever rows run
            before = look()
            try:
                for _ in range(WARM):
                    await self._alone(SHORT, CONVOY_OUTPUT)
                await measures[name]()
            except BackendError as error:
                self.problems.append(f"{name}: {error}")
                self._tell(f"{name} failed: {error}")
            after = look()
            if before is not None and after is not None:
                self.others[name] = vars(between(before, after))

    async def _ttft(self) -> None:
        for length, times in self._asked.lengths.items():
            self._tell(f"TTFT of {length:,} tokens alone, {_times(times)}")
            found = [ttft(await self._alone(length, TTFT_OUTPUT)) for _ in range(times)]
            self._add(f"TTFT, {length:,} tokens alone", SECONDS, found)

    async def _tpot(self) -> None:
        self._tell(f"TPOT of one stream, {SHORT} in, {STREAM_OUTPUT} out, {_times(STREAMS)}")
        found = [tpot(await self._alone(SHORT, STREAM_OUTPUT)) for _ in range(STREAMS)]
        self._add("TPOT, one stream alone", SECONDS, found)

    async def _rate(self) -> None:
        for at_once, count in AT_ONCE.items():
            self._tell(f"{count} requests, {at_once} at a time, {SHORT} in, {RATE_OUTPUT} out")
            config = WorkloadConfig(
                source="random",
                prompt_range=(SHORT, SHORT),
                output_range=(RATE_OUTPUT, RATE_OUTPUT),
                rate=math.inf,
                num_requests=count,
                seed=1000 * self._asked.seed + at_once,
                vocabulary=self._asked.vocabulary,
                warmup=at_once,
            )
            workload, where = build(config), f"{at_once} at a time"
            await self._session.warm_up(workload)
            summary = (await self._send(where, workload, at_once)).summary
            if not summary.finished:
                continue
            self._add(f"output tokens/s, {where}", TOKENS_PER_SECOND, [summary.output_tokens / summary.duration])
            self._spread(f"… TTFT, {where}", summary.total.ttft, "P50")
            self._spread(f"… TPOT, {where}", summary.total.tpot, "P50")

    async def _convoy(self) -> None:
        config = ConvoyConfig(
            long_prompt=self._asked.long_tokens,
            long_output=CONVOY_OUTPUT,
            short_prompt=SHORT,
            short_output=CONVOY_OUTPUT,
            first=CONVOY_INTERVAL_S,
            interval=CONVOY_INTERVAL_S,
            seed=CONVOY_SEED + self._asked.seed,
            vocabulary=self._asked.vocabulary,
        )
        self._tell(
            f"convoy: one prompt of {config.long_prompt:,} tokens, {config.shorts} of {config.short_prompt} behind it"
        )
        kinds = (await self._send("convoy", build_convoy(config))).summary.kinds
        short, long = (kinds.get(kind) for kind in ("short", "long"))
        if short is not None:
            self._spread("convoy, short TTFT", short.ttft, "P50", "P99", "most")
            self._spread("convoy, short TPOT", short.tpot, "P50", "P99")
        if long is not None:
            self._spread("convoy, long TTFT", long.ttft, "")

    async def _alone(self, prompt: int, output: int) -> RequestRecord:
        """One request on the idle server, with ids of its own."""
        record = await self._session.alone(prompt, output, next(self._numbers))
        assert record is not None  # nobody stops the session
        return record

    async def _send(self, what: str, workload: Workload, at_once: int | None = None) -> Repeat:
        settings = LoadSettings(tell_slos=False, max_concurrency=at_once, timeout_s=PATIENCE_S)
        repeat = Repeat(await self._session.send(what, workload, workload.requests, settings))
        total: Group = repeat.summary.total
        if total.completed < total.requests:
            errors = "; ".join(repeat.summary.errors)
            self.problems.append(f"{what}: {total.completed} of {total.requests} requests finished: {errors}")
        return repeat

    def _spread(self, name: str, of: Spread | None, *parts: str) -> None:
        for part in parts if of is not None else ():
            value = {"": of.median, "P50": of.median, "P99": of.p99, "most": of.most}[part] if of else None
            self._add(f"{name} {part}".strip(), SECONDS, [value])

    def _add(self, name: str, unit: str, values: list[float] | list[float | None]) -> None:
        known = tuple(value for value in values if value is not None)
        if known:
            self.figures.append(Figure(name, unit, known))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
