"""Prometheus metrics by tenant, for servers whose token file names its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from threading import Lock

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from medha_jax.engine import TenantLoad
from medha_jax.server.access_log import Record

_NOTHING = TenantLoad(0, 0, 0)


class _TenantCounts:
    """What became of one tenant's requests."""

    def __init__(self) -> None:
        self.accepted = self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.refused: Counter[str] = Counter()


class TenantMetrics(Collector):
    """Counts each tenant's requests, and reads what it has open at every request for the metrics.

    The series of a tenant begin and end with its name in the token file, so there are no more of them than names. Any
    thread may call any method.

    Args:
        names: the tenants that have series now; none where no token has a name.
    """

    def __init__(self, names: Callable[[], Set[str]]) -> None:
        self._names = names
        self._lock = Lock()
        self._counts: dict[str, _TenantCounts] = {}
        self._loads: Callable[[], Mapping[str, TenantLoad]] = dict

    def watch(self, loads: Callable[[], Mapping[str, TenantLoad]]) -> None:
        """Read from an engine what tenants have open."""
        self._loads = loads

    def accepted(self, tenant: str) -> None:
        """Count a request that the engine took."""
        with self._lock:
            if (counts := self._of(tenant)) is not None:
                counts.accepted += 1

    def refused(self, reason: str, tenant: str) -> None:
        """Count a request that was never accepted."""
        with self._lock:
            if (counts := self._of(tenant)) is not None:
                counts.refused[reason] += 1

    def ended(self, record: Record) -> None:
        """Count the tokens of an accepted request whose call is over."""
        with self._lock:
            if record.accepted and (counts := self._of(record.tenant)) is not None:
                counts.prompt_tokens += record.prompt_tokens
                counts.cached_tokens += record.cached_tokens
                counts.output_tokens += record.output_tokens

    def describe(self) -> list[Metric]:
        """Nothing, so that registration does not read an engine that has not started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All series as they are now."""
        accepted = _counter("requests_accepted", "Requests of a tenant that were accepted.")
        refused = _counter("requests_refused", "Requests of a tenant that were never accepted.", "reason")
        of_ended = "of a tenant's requests whose calls are over."
        prompt = _counter("prompt_tokens", f"Prompt tokens {of_ended}")
        cached = _counter("cached_prompt_tokens", f"Prompt tokens found in the prefix cache, {of_ended}")
        output = _counter("generation_tokens", f"Generated tokens {of_ended}")
        running = _gauge("num_requests_running", "Requests of a tenant that hold pages.")
        waiting = _gauge("num_requests_waiting", "Requests of a tenant that do not.")
        tokens = _gauge("num_tokens_waiting", "Prompt tokens of a tenant's requests that wait.")
        loads = self._loads()
        with self._lock:
            for tenant in sorted(self._kept()):
                counts = self._counts.get(tenant) or _TenantCounts()
                label, load = [tenant], loads.get(tenant, _NOTHING)
                accepted.add_metric(label, counts.accepted)
                for reason, count in counts.refused.items():
                    refused.add_metric([tenant, reason], count)
                prompt.add_metric(label, counts.prompt_tokens)
                cached.add_metric(label, counts.cached_tokens)
                output.add_metric(label, counts.output_tokens)
                running.add_metric(label, load.running)
                waiting.add_metric(label, load.waiting)
                tokens.add_metric(label, load.waiting_tokens)
        yield from (accepted, refused, prompt, cached, output, running, waiting, tokens)

    def _of(self, tenant: str) -> _TenantCounts | None:
        """The counts of a tenant; None if it has no series."""
        return self._counts.setdefault(tenant, _TenantCounts()) if tenant in self._kept() else None

    def _kept(self) -> Set[str]:
        """The tenants that have series now; the counts of those that have left are dropped."""
        names = self._names()
        if not self._counts.keys() <= names:
            self._counts = {name: counts for name, counts in self._counts.items() if name in names}
        return names


def _counter(name: str, what: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"medha_tenant_{name}", what, labels=["tenant", *labels])


def _gauge(name: str, what: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"medha_tenant_{name}", what, labels=["tenant"])
