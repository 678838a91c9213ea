"""A server's life: listen, load, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from medha_jax.engine import EngineEvent, EngineService, Listener, OnTick, TickReport
from medha_jax.net import join_address
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.access_log import AccessLog
from medha_jax.server.calls import Calls
from medha_jax.server.inference import Inference
from medha_jax.server.listening import ListenError, grpc_server, handlers
from medha_jax.server.prometheus import Metrics
from medha_jax.server.refusal import unavailable
from medha_jax.server.request_parser import ServedModel
from medha_jax.server.security import read_tokens, server_credentials
from medha_jax.server.settings import ServerSettings
from medha_jax.server.streams import Streams
from medha_jax.server.trace import ScheduleTrace

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name
REFLECTION = reflection.SERVICE_NAME
WORKERS = 2  # threads for long texts and prompts
HEALTH_SECONDS = 0.25  # between checks of the engine
LAST_WRITE_SECONDS = 5.0  # that one write may take while the server ends
LAST_WORDS_SECONDS = 1.0  # for ended streams to send their status
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Loads the engine of a server, as `engine.EngineLoader` does."""

    def load(self, listener: Listener, on_tick: OnTick | None) -> EngineService:
        """Load the engine and start its thread; called once, in its own thread.

        `listener` gets the engine's events. `on_tick` gets every tick before the listener does; None if not needed.
        """

    def close(self) -> None:
        """Release what `load` took. Called once, when the engine has stopped."""


async def serve(
    settings: ServerSettings,
    model: ServedModel,
    loader: Loader,
    *,
    clock: Callable[[], float] = time.perf_counter,
    announce: Callable[[str], None] = logger.info,
    tell: Callable[[str], None] = logger.info,
    stopping: asyncio.Event | None = None,
) -> None:
    """Serve until stopped; then let running streams finish.

    Args:
        settings: address, limits and security.
        model: the served model, with its largest possible context.
        loader: loads the engine once the server listens.
        clock: the engine's, in seconds.
        announce: takes the line that the server is ready, with its address.
        tell: takes all other lines, those of the access log included.
        stopping: stops the server when it is set. Without it SIGTERM and SIGINT stop the server, and a second signal
            ends the running streams at once; the caller must then be the main thread.

    Raises:
        ConfigError: a file of TLS or of tokens is wrong; nothing was loaded.
        ListenError: the server cannot listen on an address; nothing was loaded.
        OSError: the trace cannot be written; nothing was loaded.
    """
    credentials = None if settings.tls is None else server_credentials(settings.tls)
    tokens = () if settings.token_file is None else read_tokens(settings.token_file)
    with contextlib.ExitStack() as closing:
        metrics = trace = None
        if settings.metrics_port is not None:
            metrics = closing.enter_context(contextlib.closing(Metrics()))
            tell(f"metrics on http://{_listen_for_metrics(metrics, settings.host, settings.metrics_port)}/metrics")
        if settings.trace is not None:
            trace = closing.enter_context(contextlib.closing(ScheduleTrace(settings.trace, clock)))
        stop = _Stop(stopping)
        stop.listen()
        streams = Streams(settings.limits)
        size = settings.limits.message_bytes(model.context)
        workers = ThreadPoolExecutor(WORKERS, "prompts")
        log = AccessLog(settings.access_log, tell, time.time)
        calls = Calls(log, clock, workers, (lambda code: None) if metrics is None else metrics.refused)
        inference = Inference(calls, streams, settings.limits, size)
        server, port = grpc_server(settings, size, credentials, tokens)
        readiness = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(readiness, server)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers(inference)),))
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, REFLECTION), server)
        await _tell_health(readiness, False)
        await server.start()
        loading = _in_thread(lambda: _load(loader, streams, metrics, trace))
        waiting = asyncio.create_task(stop.asked.wait())
        try:
            await asyncio.wait((loading, waiting), return_when=asyncio.FIRST_COMPLETED)
            if stop.asked.is_set():
                tell("stopped before it was ready")
            else:
                service = await loading
                stop.listen()  # again: the load may have replaced the signal handlers
                inference.open(service, replace(model, context=service.context))
                await _tell_health(readiness, True)
                announce(f"serving {model.name} on {join_address(settings.host, port)}")
                watching = asyncio.create_task(_watch(service, readiness))
                await waiting
                watching.cancel()
                await readiness.enter_graceful_shutdown()
                inference.close("the server is about to end")
                await _drain(streams, settings.drain_seconds, stop.hurry, tell)
                await asyncio.to_thread(service.stop)
        finally:
            await server.stop(LAST_WORDS_SECONDS / 2)
            workers.shutdown(wait=False, cancel_futures=True)
            stop.leave()
        loader.close()


class _Stop:
    """Stops a server by the caller's event or by signals. Belongs to the event loop.

    Attributes:
        asked: set when the server must stop.
        hurry: set when it must end running streams at once.
    """

    def __init__(self, asked: asyncio.Event | None) -> None:
        self.asked, self.hurry = asyncio.Event() if asked is None else asked, asyncio.Event()
        self._signals = (signal.SIGTERM, signal.SIGINT) if asked is None else ()

    def listen(self) -> None:
        """Install the signal handlers."""
        for number in self._signals:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def leave(self) -> None:
        """Remove the signal handlers."""
        for number in self._signals:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _on_signal(self) -> None:
        (self.hurry if self.asked.is_set() else self.asked).set()


def _listen_for_metrics(metrics: Metrics, host: str, port: int) -> str:
    """Open the endpoint of the metrics; returns its HOST:PORT."""
    try:
        return join_address(host, metrics.listen(host, port))
    except OSError as error:
        raise ListenError(f"cannot listen on {join_address(host, port)} for metrics: {error.strerror}") from None


def _load(loader: Loader, streams: Streams, metrics: Metrics | None, trace: ScheduleTrace | None) -> EngineService:
    """Load the engine. Metrics and trace get each tick and event in its thread, before the streams do."""
    told = [watcher for watcher in (metrics, trace) if watcher is not None]

    def on_tick(report: TickReport) -> None:
        for watcher in told:
            watcher.on_tick(report)

    def listen(events: list[tuple[int, EngineEvent]]) -> None:
        for watcher in told:
            watcher.on_events(events)
        streams.listen(events)

    service = loader.load(listen, on_tick if told else None)
    if metrics is not None:
        metrics.watch(service.load)
    return service


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run work in a thread. A load cannot be interrupted, so the thread goes on if its caller stops waiting."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future


async def _drain(streams: Streams, seconds: float, hurry: asyncio.Event, tell: Callable[[str], None]) -> None:
    """Wait for the open streams; end those that take longer than `seconds`."""
    tell(f"stopping: {len(streams)} streams have up to {seconds:g} s")
    streams.hasten(LAST_WRITE_SECONDS)
    if await _first(streams.closed(), hurry.wait(), seconds):
        return
    streams.end_all(unavailable("the server ended before the output did"))
    await _first(streams.closed(), asyncio.sleep(LAST_WORDS_SECONDS), LAST_WORDS_SECONDS)


async def _first(wanted: Awaitable[object], other: Awaitable[object], seconds: float) -> bool:
    """Wait until one of two is done, at most `seconds`; returns whether the first one is."""
    first, second = asyncio.ensure_future(wanted), asyncio.ensure_future(other)
    await asyncio.wait((first, second), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    done = first.done()
    for task in (first, second):
        task.cancel()
    return done


async def _watch(service: EngineService, readiness: health.aio.HealthServicer) -> None:
    """Report NOT_SERVING when the engine cannot go on."""
    while service.healthy:
        await asyncio.sleep(HEALTH_SECONDS)
    await _tell_health(readiness, False)


async def _tell_health(readiness: health.aio.HealthServicer, serving: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", SERVICE):
        await readiness.set(name, status)
