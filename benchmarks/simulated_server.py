"""A server with a simulated mesh: ticks take a given time, and all tokens are equal.

    python -m benchmarks.simulated_server --tick-ms 5

It is the whole server except the device. It shows the cost of serving, and it can be overloaded easily.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from medha_jax.config import BUNDLED_MODEL, POLICIES, Buckets, MeshConfig, RuntimeConfig, SchedulerConfig
from medha_jax.engine import (
    Engine,
    EngineService,
    ErrorLog,
    Listener,
    OnTick,
    scheduler_for,
    text_outputs,
)
from medha_jax.net import TlsFiles
from medha_jax.plan import SamplingParams
from medha_jax.scheduler.time_model import LinearTimeModel
from medha_jax.server.request_parser import ServedModel
from medha_jax.server.server import serve
from medha_jax.server.server_process import dying, run_server, server_log
from medha_jax.server.settings import Limits, ServerSettings
from medha_jax.simulate.executor import SimulatedExecutor
from medha_jax.simulate.times import SummedTimes
from medha_jax.text import Tokenizer

VOCAB = 2048
PAGE = 64


class RealClock:
    """The machine's clock, with the interface of a virtual clock."""

    def __call__(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def advance_to(self, seconds: float) -> None:
        """Wait."""
        left = seconds - time.perf_counter()
        if left > 0:
            time.sleep(left)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options; None reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--http-port", type=int)
    parser.add_argument("--metrics-port", type=int)
    parser.add_argument("--tick-ms", type=float, default=5.0, help="of a tick, whatever is in it")
    parser.add_argument("--token-us", type=float, default=0.0, help="more for every row of it")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--context", "--max-context", type=int, default=8192)
    parser.add_argument("--pool-tokens", type=int, default=2**20)
    parser.add_argument("--max-queue", type=int, default=1024)
    parser.add_argument("--max-queue-tokens", type=int)
    parser.add_argument("--max-streams", type=int, default=Limits.max_streams)
    parser.add_argument("--tenant-streams", type=int)
    parser.add_argument("--tenant-queue-tokens", type=int)
    parser.add_argument("--max-output", type=int)
    parser.add_argument("--connection-streams", type=int, default=Limits.connection_streams)
    parser.add_argument("--part-seconds", type=float, default=60.0)
    parser.add_argument("--part-rate", type=float, default=100.0)
    for name in ("--tls-cert", "--tls-key", "--auth-token-file"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--drain-seconds", type=float, default=30.0)
    for name in ("handshake_seconds", "idle_seconds", "connection_seconds"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=getattr(ServerSettings, name))
    parser.add_argument("--tick-seconds", type=float, default=ServerSettings.tick_seconds)
    parser.add_argument("--access-log", default="off")
    parser.add_argument("--load-seconds", type=float, default=0.0, help="until it is ready")
    parser.add_argument("--policy", choices=POLICIES, default=SchedulerConfig.policy)
    parser.add_argument("--no-chunk-preemption", action="store_true")
    parser.add_argument("--tpot-target-ms", type=float, default=50.0)
    for name in ("--model", "--mesh"):
        parser.add_argument(name, help="ignored: so it can stand in for `medha-jax serve`")
    parser.add_argument("--no-prefix-cache", dest="prefix_cache", action="store_false", help="as it is by default")
    parser.add_argument("--prefix-cache", action="store_true", help="pages without content")
    return parser.parse_args(arguments)


def main(loader_of: Callable[..., SimulatedLoader] | None = None) -> None:
    """Serve until SIGTERM, with `SimulatedLoader` or another one of the same arguments."""
    given = parsed()
    limits = Limits(
        max_output=given.max_output,
        max_streams=given.max_streams,
        tenant_streams=given.tenant_streams,
        part_seconds=given.part_seconds,
        connection_streams=given.connection_streams,
        part_rate=given.part_rate,
    )
    settings = ServerSettings(
        port=given.port,
        http_port=given.http_port,
        metrics_port=given.metrics_port,
        tls=None if given.tls_cert is None else TlsFiles(given.tls_cert, given.tls_key),
        token_file=given.auth_token_file,
        drain_seconds=given.drain_seconds,
        tick_seconds=given.tick_seconds,
        handshake_seconds=given.handshake_seconds,
        idle_seconds=given.idle_seconds,
        connection_seconds=given.connection_seconds,
        access_log=given.access_log,
        limits=limits,
    )
    clock = RealClock()
    tokenizer = Tokenizer.from_directory(BUNDLED_MODEL)
    model = ServedModel("simulated", tokenizer, VOCAB, given.context, SamplingParams(temperature=0))

    loader = (loader_of or SimulatedLoader)(given, tokenizer, clock)
    with server_log() as log:
        announce, last = functools.partial(print, flush=True), functools.partial(dying, log)
        serving = serve(
            settings,
            model,
            loader,
            clock=clock,
            announce=announce,
            tell=log.write,
            dying=last,
            dropped=lambda: log.dropped,
        )
        run_server(serving, log)


class SimulatedLoader:
    """Loads an engine on a simulated mesh.

    Args:
        given: options, as `parsed` gives them.
        tokenizer: of the text that it generates.
        clock: of the engine.
    """

    def __init__(self, given: argparse.Namespace, tokenizer: Tokenizer, clock: RealClock) -> None:
        self._given, self._tokenizer, self._clock = given, tokenizer, clock

    def load(self, listener: Listener, on_tick: OnTick | None, ask_to_stop: Callable[[str], None]) -> EngineService:
        """Start the engine after `--load-seconds`."""
        given, clock, tokenizer = self._given, self._clock, self._tokenizer
        time.sleep(given.load_seconds)
        decode = tuple(size for size in (1, 8, 32, 128, 512, 2048) if size < given.slots)
        buckets = Buckets(decode=(*decode, given.slots), prefill=(64, 256, 1024), chunks=16, slices=())
        mesh = MeshConfig(page_size=PAGE, buckets=buckets)
        config = RuntimeConfig(mesh=mesh, slots=given.slots, pool_tokens=given.pool_tokens, compilation_cache=None)
        model = LinearTimeModel(fixed=given.tick_ms / 1000, tokens=given.token_us / 1e6)
        token = next(number for number in range(VOCAB) if tokenizer.decode([number]).isalpha())  # one that has text
        executor = SimulatedExecutor(config, given.context, SummedTimes(model), clock, vocab=VOCAB, token=token)

        scheduling = SchedulerConfig(
            policy=given.policy,
            chunk_preemption=not given.no_chunk_preemption,
            tpot_target_s=given.tpot_target_ms / 1000,
            max_waiting=given.max_queue,
            max_waiting_tokens=given.max_queue_tokens,
            max_tenant_waiting_tokens=given.tenant_queue_tokens,
            prefix_cache=given.prefix_cache,
        )
        scheduler = scheduler_for(executor, scheduling, model)
        outputs, on_error = text_outputs(tokenizer), ErrorLog(clock)
        engine = Engine(executor, scheduler, model, clock, outputs, on_tick=on_tick, on_error=on_error)
        service = EngineService(engine, listener, clock)
        service.start()
        return service

    def close(self) -> None:
        """Nothing to give back."""


if __name__ == "__main__":
    main()
