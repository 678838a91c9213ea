"""Lateness of the load generator against a server with a simulated mesh.

    python -m benchmarks.client --requests 10000 --rate 200

Lateness of a request = time of sending - due time. The server's ticks have a fixed length. Client and server share this
machine's cores. `--backend openai` runs against `benchmarks.completions_server` instead, over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
from collections import Counter

import numpy as np

from benchmarks.server import cpu_seconds, serving
from medha_jax.bench.backend import Backend
from medha_jax.bench.load_generator import LoadGenerator, LoadSettings
from medha_jax.client import Connection
from medha_jax.results import RequestRecord
from medha_jax.workload import WorkloadConfig, build


def main() -> None:
    """Start a server, send the load, print the client's lateness and resources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=16)
    parser.add_argument("--tick-ms", type=float, default=10.0)
    parser.add_argument("--backend", choices=("grpc", "openai"), default="grpc")
    given = parser.parse_args()
    module = {"grpc": "benchmarks.simulated_server", "openai": "benchmarks.completions_server"}[given.backend]
    config = WorkloadConfig(
        source="random",
        prompt_range=(given.prompt, given.prompt),
        output_range=(given.output, given.output),
        rate=given.rate,
        num_requests=given.requests,
        vocabulary=2048,
    )
    with serving(module, "--tick-ms", str(given.tick_ms)) as (address, pid):
        began, used = time.perf_counter(), time.process_time()
        records = asyncio.run(send(given.backend, address, config))
        seconds = time.perf_counter() - began
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(report(records), flush=True)
        print(
            f"{seconds:.1f} s; the client used {time.process_time() - used:.1f} s of CPU and at most {most:.0f} MB, "
            f"the server {cpu_seconds(pid):.1f} s"
        )


async def send(backend_name: str, address: str, config: WorkloadConfig) -> tuple[RequestRecord, ...]:
    """Run a workload against a server."""
    backend: Backend
    if backend_name == "grpc":
        from medha_jax.bench.over_grpc import GrpcBackend

        backend = GrpcBackend(Connection(address))
    else:
        from medha_jax.bench.over_http import OpenAiBackend

        backend = OpenAiBackend(f"http://{address}")
    try:
        await backend.facts()
        workload = build(config)
        return await LoadGenerator(workload, workload.requests, backend, LoadSettings(), time.perf_counter).run()
    finally:
        await backend.close()


def report(records: tuple[RequestRecord, ...]) -> str:
    """How late requests were sent, and how they ended."""
    late = np.array([record.sent - record.due for record in records])
    p50, p90, p99 = 1000 * np.percentile(late, (50, 90, 99))
    ended = Counter(record.status for record in records)
    errors = Counter(record.error for record in records if record.error).most_common(3)
    messages = sum(len(record.outputs) for record in records)
    return (
        f"{len(records):,} requests: {', '.join(f'{count:,} {name}' for name, count in ended.items())}; sent late by "
        f"P50 {p50:.2f}, P90 {p90:.2f}, P99 {p99:.2f}, most {1000 * late.max():.1f} ms; "
        f"{100 * np.mean(late <= 0.005):.2f} % within 5 ms; {messages:,} messages" + "".join(f"; {e}" for e in errors)
    )


if __name__ == "__main__":
    main()
