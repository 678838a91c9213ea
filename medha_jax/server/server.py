"""A server's life: listen, load, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from medha_jax.collector import exempt_live_objects
from medha_jax.engine import STOP_SECONDS, EngineEvent, EngineService, ErrorLog, Listener, OnTick
from medha_jax.net import join_address
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.access_log import AccessLog
from medha_jax.server.background import in_background
from medha_jax.server.calls import Calls, Workers
from medha_jax.server.connections import Connections
from medha_jax.server.descriptors import fitted
from medha_jax.server.inference import Inference
from medha_jax.server.listening import ListenError, grpc_server, handlers, plain_reason
from medha_jax.server.metrics_endpoint import MetricsEndpoint
from medha_jax.server.prometheus import Metrics
from medha_jax.server.receiving import Receiving
from medha_jax.server.reflected import add_reflection
from medha_jax.server.refusal import unavailable
from medha_jax.server.renewal import Renewal
from medha_jax.server.request_parser import ServedModel
from medha_jax.server.security import Secrets
from medha_jax.server.settings import ServerSettings
from medha_jax.server.stopping import Stopping
from medha_jax.server.streams import Streams
from medha_jax.server.trace import ScheduleTrace
from medha_jax.server.vitals import Vitals
from medha_jax.server.watchers import GuardedWatchers

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name
REFLECTION = reflection.SERVICE_NAME
WORKERS = 2  # threads for texts and prompts; as many more for long ones
WATCH_SECONDS = 0.25  # between looks at the engine
LAST_WRITE_SECONDS = 5.0  # that one write may take while the server ends
LAST_WORDS_SECONDS = 1.0  # for ended streams to send their status
CLOSE_SECONDS = 3.0  # to release what an engine has that cannot go on
logger = logging.getLogger(__name__)


class EngineEndedError(RuntimeError):
    """The engine cannot go on, so the server ended; a new process is needed."""


class Loader(Protocol):
    """Loads the engine of a server, as `engine.EngineLoader` does."""

    def load(self, listener: Listener, on_tick: OnTick | None, ask_to_stop: Callable[[str], None]) -> EngineService:
        """Load the engine and start its thread; called once, in its own thread.

        `listener` gets the engine's events. `on_tick` gets every tick before the listener does; None if not needed.
        `ask_to_stop` stops the server as SIGTERM does, and takes a line that says why; any thread may call it at any
        time.
        """

    def close(self) -> None:
        """Release what `load` took. Called once, when the engine has stopped, or while `load` runs and is given up."""


async def serve(
    settings: ServerSettings,
    model: ServedModel,
    loader: Loader,
    *,
    clock: Callable[[], float] = time.perf_counter,
    announce: Callable[[str], None] = logger.info,
    tell: Callable[[str], None] = logger.info,
    dying: Callable[[str], None] = logger.critical,
    dropped: Callable[[], int] = lambda: 0,
    stopping: asyncio.Event | None = None,
) -> None:
    """Serve until stopped; then let running streams finish. If the engine cannot go on, end all streams at once.

    Args:
        settings: address, limits and security.
        model: the served model, with its largest possible context.
        loader: loads the engine once the server listens.
        clock: the engine's, in seconds.
        announce: takes the line that the server is ready, with its address.
        tell: takes all other lines, those of the access log included. What it or another of these raises is logged.
        dying: takes the sentence why the engine cannot go on, before streams are ended. A few seconds later this
            function raises; who must be sure of that ends the process by itself.
        dropped: how many lines `tell` dropped so far, for the metrics.
        stopping: stops the server when it is set. Without it SIGTERM and SIGINT stop the server, a second signal ends
            the running streams at once, and SIGHUP reads the files of TLS and tokens again; the caller must then be the
            main thread. The files are also read when they change.

    Raises:
        ConfigError: a file of TLS or of tokens is wrong; nothing was loaded.
        EngineEndedError: the engine cannot go on.
        ListenError: the server cannot listen on an address; nothing was loaded.
        OSError: the trace cannot be written; nothing was loaded.
    """
    announce, tell, dying = (_harmless(take, ErrorLog(clock, "a line")) for take in (announce, tell, dying))
    secrets = Secrets(settings.tls, settings.token_file)
    limits, most = fitted(settings.limits, tell, 1 if settings.http_port is None else 2)
    async with contextlib.AsyncExitStack() as closing:
        metrics = trace = None
        if settings.metrics_port is not None:
            metrics = Metrics(secrets.named_tenants)
            metrics.watch_log(dropped)
            host, port = settings.metrics_host, settings.metrics_port
            endpoint = MetricsEndpoint(metrics.registry).listening(host, port)
            where = await _listened(closing, endpoint, host, port, "metrics")
            tell(f"metrics on http://{where}/metrics")
        if settings.trace is not None:
            trace = closing.enter_context(contextlib.closing(ScheduleTrace(settings.trace, clock)))
        watchers = GuardedWatchers([watcher for watcher in (metrics, trace) if watcher is not None], clock)
        renewal = Renewal(secrets.renewables, tell)
        stop = Stopping(stopping, renewal.ask)
        closing.callback(stop.leave)  # whatever happens; a server that ends does it earlier
        stop.listen()
        streams, connections = Streams(limits), Connections(tell)
        size = limits.message_bytes(model.context)
        workers = Workers(WORKERS)
        log = AccessLog(settings.access_log, tell, time.time)
        receiving, seconds = Receiving(limits.receiving(model.context)), limits.part_seconds
        calls = Calls(log, clock, workers, metrics, receiving, seconds, connections)
        inference = Inference(calls, streams, limits, size)
        if settings.http_port is not None:
            http = _http(inference, calls, settings, settings.http_port, secrets, size, most)
            where = await _listened(closing, http, settings.host, settings.http_port, "HTTP")
            tell(f"OpenAI API on {'http' if settings.tls is None else 'https'}://{where}/v1")
        # last, because nothing gives back the port of a gRPC server that was never started
        server, port = grpc_server(settings, size, secrets, most, connections, SERVICE)
        vitals = Vitals(SERVICE, limits.max_watches, size, connections)
        vitals.add_to(server)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers(inference)),))
        add_reflection(server, (SERVICE, health.SERVICE_NAME, REFLECTION), receiving, seconds, connections)
        vitals.tell(ready=False)
        await server.start()
        renewing = asyncio.create_task(renewal.run())
        loop = asyncio.get_running_loop()

        def ask_to_stop(why: str) -> None:
            tell(why)
            with contextlib.suppress(RuntimeError):  # the loop is closed, so the server has ended
                loop.call_soon_threadsafe(stop.asked.set)

        loading = in_background(lambda: _load(loader, streams, metrics, watchers, ask_to_stop), "load")
        waiting = asyncio.create_task(stop.asked.wait())
        fault: str | None = None
        ended = True
        try:
            await asyncio.wait((loading, waiting), return_when=asyncio.FIRST_COMPLETED)
            if stop.asked.is_set():
                tell("stopped before it was ready")
            else:
                service = await loading
                stop.listen()  # again: the load may have replaced the signal handlers
                inference.open(service, replace(model, context=service.context))
                vitals.tell(ready=True)
                announce(f"serving {model.name} on {join_address(settings.host, port)}")
                watching = asyncio.create_task(_watch(service, settings.tick_seconds))
                await asyncio.wait((waiting, watching), return_when=asyncio.FIRST_COMPLETED)
                if not watching.done():
                    vitals.tell(ready=False)
                    inference.close("the server is about to end")
                    await _drain(streams, settings.drain_seconds, stop.hurry, watching, tell)
                if watching.done():
                    fault = watching.result()
                    vitals.tell(ready=False, alive=False)
                    inference.close(fault)
                    dying(fault)
                    await _end_all(streams, f"{fault}; the server ends")
                patience = LAST_WORDS_SECONDS if fault or stop.hurry.is_set() else STOP_SECONDS
                ended = await asyncio.to_thread(service.stop, patience)
                watching.cancel()
                if not ended and fault is None:
                    tell(f"the engine's last tick did not end within {patience:g} s; it is left behind")
                    if not stop.hurry.is_set() and (fault := service.watch(patience)) is not None:
                        dying(fault)  # who only sees the exit code must hear that this was no good end
        finally:
            await server.stop(LAST_WORDS_SECONDS / 2)
            workers.close()
            inference.end()
            waiting.cancel()
            renewing.cancel()
            stop.leave()
        if fault is None and ended:
            loader.close()
        else:  # its thread may hold what `close` waits for
            await asyncio.wait((in_background(loader.close, "close"),), timeout=CLOSE_SECONDS)
    if fault is not None:
        raise EngineEndedError(fault)


def _harmless(take: Callable[[str], None], log: ErrorLog) -> Callable[[str], None]:
    """The same function without its errors: a line that cannot be written ends no stream."""

    def guarded(line: str) -> None:
        try:
            take(line)
        except Exception as error:
            log(error)

    return guarded


def _http(
    inference: Inference,
    calls: Calls,
    settings: ServerSettings,
    port: int,
    secrets: Secrets,
    size: int,
    most: int | None,
) -> contextlib.AbstractAsyncContextManager[int]:
    """What listens for HTTP; its library is loaded only where somebody wants that."""
    from medha_jax.server.http.api import OpenAiApi
    from medha_jax.server.http.http_listening import listening

    api = OpenAiApi(inference, calls, secrets.tokens, size, settings.web_origins)
    return listening(api.app(), settings, port, secrets, most)


async def _listened(
    closing: contextlib.AsyncExitStack,
    listening: contextlib.AbstractAsyncContextManager[int],
    host: str,
    port: int,
    what: str,
) -> str:
    """Enter what listens on an address, for `what`; returns its HOST:PORT."""
    try:
        return join_address(host, await closing.enter_async_context(listening))
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name that DNS cannot have
        where = join_address(host, port)
        raise ListenError(f"cannot listen on {where} for {what}: {plain_reason(error)}") from None


def _load(
    loader: Loader,
    streams: Streams,
    metrics: Metrics | None,
    watchers: GuardedWatchers,
    ask_to_stop: Callable[[str], None],
) -> EngineService:
    """Load the engine. Watchers get each tick and event in its thread, before the streams do."""

    def listen(events: list[tuple[int, EngineEvent]]) -> None:
        watchers.on_events(events)
        streams.listen(events)

    service = loader.load(listen, watchers.on_tick if watchers else None, ask_to_stop)
    if metrics is not None:
        metrics.watch(service.load)
    exempt_live_objects()
    return service


async def _drain(
    streams: Streams, seconds: float, hurry: asyncio.Event, fault: asyncio.Task[str], tell: Callable[[str], None]
) -> None:
    """Wait for the open streams; end those that take longer than `seconds`. A fault of the engine ends the wait."""
    tell(f"stopping: {len(streams)} streams have up to {seconds:g} s")
    streams.hasten(LAST_WRITE_SECONDS)
    hurried = asyncio.ensure_future(hurry.wait())
    cut_short = asyncio.wait((hurried, fault), return_when=asyncio.FIRST_COMPLETED)
    if not await _first(streams.closed(), cut_short, seconds) and not fault.done():
        tell(f"{len(streams)} streams ended before their output did")
        await _end_all(streams, "the server ended before the output did")
    hurried.cancel()


async def _end_all(streams: Streams, why: str) -> None:
    """End every stream with UNAVAILABLE, and give the statuses a moment to leave."""
    streams.end_all(unavailable(why))
    await _first(streams.closed(), asyncio.sleep(LAST_WORDS_SECONDS), LAST_WORDS_SECONDS)


async def _first(wanted: Awaitable[object], other: Awaitable[object], seconds: float) -> bool:
    """Wait until one of two is done, at most `seconds`; returns whether the first one is."""
    first, second = asyncio.ensure_future(wanted), asyncio.ensure_future(other)
    await asyncio.wait((first, second), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    done = first.done()
    for task in (first, second):
        task.cancel()
    return done


async def _watch(service: EngineService, tick_seconds: float) -> str:
    """Look at the engine until it cannot go on; returns why."""
    while (fault := service.watch(tick_seconds)) is None:
        await asyncio.sleep(WATCH_SECONDS)
    return fault
