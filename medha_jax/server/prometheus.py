"""Prometheus metrics of a server, in their own registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Set

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from medha_jax.config import PRIORITIES
from medha_jax.engine import (
    END_REASONS,
    FINISH_REASONS,
    Completed,
    EngineEvent,
    Failed,
    Load,
    NewTokens,
    Prefilled,
    RequestTotals,
    TickReport,
)
from medha_jax.server.access_log import Record
from medha_jax.server.tenant_metrics import TenantMetrics

# seconds; a long prompt's first token may take hours
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SLACK = (-10, -5, -2, -1, -0.5, -0.25, 0, 0.1, 0.25, 0.5, 0.75, 1, 2, 5, 10, 100)
RATIO = (0.1, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10)
SHARE = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


class Metrics:
    """All metrics of one server. Owns their registry.

    Only the engine's thread may call `on_tick` and `on_events`, in this order for each tick.

    Args:
        names: the tenants that have series of their own now (`TenantMetrics`).
    """

    def __init__(self, names: Callable[[], Set[str]] = frozenset) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._tenants = TenantMetrics(names)
        registry.register(self._tenants)

        def counter(name: str, what: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"medha_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...], labels: Iterable[str] = ()) -> Histogram:
            return Histogram(f"medha_{name}", what, labels, buckets=buckets, registry=registry)

        def by_priority(name: str, what: str) -> dict[int, Histogram]:
            parts = histogram(f"priority_{name}", f"{what}, by the request's priority.", LONG, ["priority"])
            return {priority: parts.labels(priority) for priority in PRIORITIES}

        self._prompt = counter("prompt_tokens", "Prompt tokens that were computed or found in the prefix cache.")
        self._cached = counter("cached_prompt_tokens", "Prompt tokens of finished requests found in the prefix cache.")
        self._generated = counter("generation_tokens", "Generated tokens.")
        self._preemptions = counter("num_preemptions", "Times that a request lost its pages.")
        self._lost = counter("preempted_tokens", "Tokens whose KV was lost with the pages of preempted requests.")
        self._refused = counter("requests_refused", "Requests that were never accepted.", ["reason"])
        self._deadline = counter("request_deadline", "Finished requests by whether their deadline was met.", ["met"])
        self._ttft = histogram("time_to_first_token_seconds", "Request to first token.", LONG)
        self._itl = histogram("inter_token_latency_seconds", "Between one output of a request and the next.", SHORT)
        self._e2e = histogram("e2e_request_latency_seconds", "Request to last token, of finished requests.", LONG)
        self._queue = histogram("request_queue_time_seconds", "Request to its first chunk.", LONG)
        self._ttft_by_priority = by_priority("time_to_first_token_seconds", "Request to first token")
        self._queue_by_priority = by_priority("request_queue_time_seconds", "Request to its first chunk")
        self._prefill = histogram("request_prefill_time_seconds", "First chunk to first token.", LONG)
        self._iteration = histogram("iteration_tokens_total", "Tokens that entered the first stage in a tick.", TOKENS)
        self._chunk = histogram("chunk_tokens", "Tokens of a prompt chunk.", TOKENS)
        self._slack = histogram(
            "first_schedule_relative_slack",
            "Relative slack of a request when its first chunk was planned: (due - now - remaining work) / work.",
            SLACK,
        )
        self._tick = histogram("tick_seconds", "Measured time of a tick.", SHORT)
        self._predicted = histogram("tick_predicted_seconds", "Predicted time of a tick that was measured.", SHORT)
        self._ratio = histogram("tick_measured_to_predicted", "Measured over predicted time of a tick.", RATIO)
        self._padding = histogram("tick_padding_share", "Share of a tick's rows without a token.", SHARE)
        self._slice = histogram(
            "slice_seconds", "Measured time of a slice: some layers of long prompts' chunks.", SHORT
        )
        self._slice_ratio = histogram("slice_measured_to_predicted", "Measured over predicted time of a slice.", RATIO)
        self._now = math.nan
        self._outputs: dict[int, float] = {}  # time of each request's last output, in seconds
        self._done: dict[int, int] = {}  # counted prompt tokens of each request

    def watch(self, load: Callable[[], Load]) -> None:
        """Read the gauges from an engine at every request for the metrics."""
        self.registry.register(_Gauges(load))
        self._tenants.watch(lambda: load().by_tenant)

    def watch_log(self, dropped: Callable[[], int]) -> None:
        """Read at every request for the metrics how many lines of the log were dropped."""
        self.registry.register(_DroppedLines(dropped))

    def on_tick(self, report: TickReport) -> None:
        """Count what a tick did."""
        self._now = report.ended
        entered = [chunk for chunk in report.chunks if not chunk.stage]
        if report.layers is not None and report.layers[0]:
            entered = []  # these entered with an earlier slice
        else:
            self._iteration.observe(sum(chunk.length for chunk in entered))
        for chunk in entered:
            if not chunk.decode:
                self._chunk.observe(chunk.length)
            if chunk.first:
                self._slack.observe(chunk.slack)
        self._padding.observe(report.padding)
        if report.timed:
            measured = report.ended - report.started
            ratio = measured / report.predicted if report.predicted > 0 else None
            if report.layers is None:
                self._tick.observe(measured)
                self._predicted.observe(report.predicted)
            else:
                self._slice.observe(measured)
            if ratio is not None:
                (self._ratio if report.layers is None else self._slice_ratio).observe(ratio)
        self._preemptions.inc(len(report.preempted))
        self._lost.inc(report.lost_tokens)
        for number in report.cancelled:
            self._forget(number)

    def on_events(self, events: Iterable[tuple[int, EngineEvent]]) -> None:
        """Count the events of requests."""
        for number, event in events:
            match event:
                case NewTokens():
                    self._generated.inc(len(event.token_ids))
                    if event.first is not None:
                        self._ttft.observe(event.first.ttft_s)
                        self._queue.observe(event.first.queue_s)
                        self._ttft_by_priority[event.first.priority].observe(event.first.ttft_s)
                        self._queue_by_priority[event.first.priority].observe(event.first.queue_s)
                        self._prefill.observe(event.first.prefill_s)
                    if number in self._outputs:
                        self._itl.observe(self._now - self._outputs[number])
                    self._outputs[number] = self._now
                case Prefilled():
                    self._prompt.inc(event.done - self._done.get(number, 0))
                    self._done[number] = event.done
                case Completed():
                    if event.request is not None:
                        self._finish(event.request, event.completion.timings.e2e_s)
                    self._forget(number)
                case Failed():
                    self._forget(number)

    def accepted(self, tenant: str) -> None:
        """Count a request that the engine took, for its tenant. Any thread may call this."""
        self._tenants.accepted(tenant)

    def refused(self, reason: str, tenant: str) -> None:
        """Count a request that was never accepted. Any thread may call this."""
        self._refused.labels(reason).inc()
        self._tenants.refused(reason, tenant)

    def ended(self, record: Record) -> None:
        """Count the tokens of a request whose call is over, for its tenant. Any thread may call this."""
        self._tenants.ended(record)

    def _finish(self, request: RequestTotals, e2e_s: float) -> None:
        self._deadline.labels(str(request.deadline_met).lower()).inc()
        self._cached.inc(request.cached_tokens)
        self._e2e.observe(e2e_s)

    def _forget(self, number: int) -> None:
        self._outputs.pop(number, None)
        self._done.pop(number, None)


class _Gauges(Collector):
    """Reads an engine's load on demand, so its figures are up to date between ticks, and belong together.

    At any moment accepted requests are the sum of successes, failures, running and waiting ones.
    """

    def __init__(self, load: Callable[[], Load]) -> None:
        self._load = load

    def describe(self) -> list[Metric]:
        """Nothing, so that registration does not read an engine that has not started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges as they are now."""
        load = self._load()
        yield from _counters(load)
        pages = GaugeMetricFamily("medha_kv_pages", "KV pages by state.", labels=["group", "state"])
        for group, (free, cached) in enumerate(zip(load.free_pages, load.cached_pages, strict=True)):
            states = {"free": free - cached, "cached": cached, "held": load.total_pages - free}
            for state, count in states.items():
                pages.add_metric([str(group), state], count)
        yield pages
        all_pages = load.total_pages * len(load.free_pages)
        values = {
            "num_requests_running": ("Requests that hold pages.", load.running),
            "num_requests_waiting": ("Requests that do not.", load.waiting),
            "num_tokens_waiting": ("Prompt tokens of requests that wait.", load.waiting_tokens),
            "num_slots": ("Outputs that can run at once.", load.slots),
            "num_slots_used": ("Outputs of running requests.", load.used_slots),
            "kv_cache_usage_perc": ("Share of KV pages that requests hold.", 1 - sum(load.free_pages) / all_pages),
            "kv_host_pages": ("KV pages in host memory.", load.host.used),
            "ready": ("Whether new requests are taken.", float(load.healthy and not load.draining)),
        }
        for name, (what, value) in values.items():
            yield GaugeMetricFamily(f"medha_{name}", what, value=value)
        yield CounterMetricFamily(
            "medha_kv_host_stored_pages", "KV pages copied to host memory.", value=load.host.stored
        )
        back = "KV pages copied back from host memory."
        yield CounterMetricFamily("medha_kv_host_restored_pages", back, value=load.host.restored)


class _DroppedLines(Collector):
    """Reads a count of lines on demand."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterator[Metric]:
        """The count as it is now."""
        what = "Lines of the log that nobody read in time, or that could not be written."
        yield CounterMetricFamily("medha_log_lines_dropped", what, value=self._dropped())


def _counters(load: Load) -> Iterator[Metric]:
    """What became of the requests."""
    counts = load.counts
    yield CounterMetricFamily("medha_requests_accepted", "Requests that were accepted.", value=counts.accepted)
    success = CounterMetricFamily(
        "medha_request_success", "Requests that ended with a completion.", labels=["finished_reason"]
    )
    for finished in FINISH_REASONS:
        success.add_metric([finished], counts.completed.get(finished, 0))
    failure = CounterMetricFamily("medha_request_failure", "Accepted requests that ended otherwise.", labels=["reason"])
    for reason in END_REASONS:
        failure.add_metric([reason], counts.failed.get(reason, 0))
    yield from (success, failure)
