"""A server's life: listen, load, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from medha_jax.engine import Event
from medha_jax.protos import inference_pb2 as pb
from medha_jax.server.access_log import AccessLog
from medha_jax.server.calls import Calls
from medha_jax.server.inference import Backend, Inference
from medha_jax.server.refusal import unavailable
from medha_jax.server.security import TokenCheck
from medha_jax.server.settings import ServerSettings, join_address
from medha_jax.server.streams import Streams

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name
REFLECTION = reflection.SERVICE_NAME
OTHER_CALLS = 256  # beside streams: health, load, tokenize
WORKERS = 2  # threads for long texts and prompts
HEALTH_SECONDS = 0.25  # between looks at the engine
LAST_WORDS_SECONDS = 1.0  # that ended streams have to be told so
T = TypeVar("T")
Listener = Callable[[list[tuple[int, Event]]], None]


class ListenError(RuntimeError):
    """The address cannot be listened on."""


@dataclass(frozen=True)
class Surroundings:
    """What a server is given from outside.

    Args:
        load: makes the backend, in a thread, around the listener that it is given.
        announce: takes the line that says where the server is.
        tell: takes other lines for people.
        write_log: takes the lines of the access log.
        on_refused: told the status of every call that does not end with OK.
        clock: the engine's, in seconds.
    """

    load: Callable[[Listener], Backend]
    announce: Callable[[str], None]
    tell: Callable[[str], None]
    write_log: Callable[[str], None]
    on_refused: Callable[[str], None]
    clock: Callable[[], float]


async def serve(
    settings: ServerSettings,
    context: int,
    credentials: grpc.ServerCredentials | None,
    tokens: tuple[bytes, ...],
    around: Surroundings,
) -> None:
    """Serve until SIGTERM or SIGINT; then let running streams finish. A second signal ends them at once.

    Args:
        settings: of the server.
        context: of the model in tokens, from which the size of messages follows.
        credentials: of TLS.
        tokens: one of which every call needs, if there are any.
        around: what it works with.

    Raises:
        ListenError: the address cannot be listened on; nothing was loaded.
    """
    stopping, hurry = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (hurry if stopping.is_set() else stopping).set()

    _on_signals(stop)
    streams = Streams(settings.limits.max_streams)
    size = settings.limits.message_bytes(context)
    workers = ThreadPoolExecutor(WORKERS, "prompts")
    calls = Calls(AccessLog(settings.access_log, around.write_log, time.time), around.clock, workers, around.on_refused)
    inference = Inference(calls, streams, settings.limits, size)
    server, port = _listening(settings, size, credentials, tokens)
    readiness = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(readiness, server)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers(inference)),))
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, REFLECTION), server)
    await _tell_health(readiness, False)
    await server.start()
    loading = _in_thread(lambda: around.load(streams.listen))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((loading, waiting), return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            around.tell("stopped before it was ready")
            return
        backend = await loading
        _on_signals(stop)  # again: what the load started may have taken them over
        inference.open(backend)
        await _tell_health(readiness, True)
        around.announce(f"serving {backend.model.name} on {join_address(settings.host, port)}")
        watching = asyncio.create_task(_watch(backend, readiness))
        await waiting
        watching.cancel()
        await readiness.enter_graceful_shutdown()
        inference.close("the server is about to end")
        await _drain(streams, settings.drain_seconds, hurry, around.tell)
        await asyncio.to_thread(backend.service.stop)
    finally:
        await server.stop(LAST_WORDS_SECONDS / 2)
        workers.shutdown(wait=False, cancel_futures=True)


def _on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run work in a thread that is left alone when nobody waits for it any more: a load cannot be interrupted."""
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
    """Wait for the streams that are open; end those that take too long."""
    tell(f"stopping: {len(streams)} streams have up to {seconds:g} s")
    if await _first(streams.closed(), hurry.wait(), seconds):
        return
    streams.end_all(unavailable("the server ended before the output did"))
    await _first(streams.closed(), asyncio.sleep(LAST_WORDS_SECONDS), LAST_WORDS_SECONDS)


async def _first(wanted: Any, other: Any, seconds: float) -> bool:
    """Wait for either of two, but no longer than so; returns whether the first one came."""
    first, second = asyncio.ensure_future(wanted), asyncio.ensure_future(other)
    await asyncio.wait((first, second), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    done = first.done()
    for task in (first, second):
        task.cancel()
    return done


async def _watch(backend: Backend, readiness: health.aio.HealthServicer) -> None:
    """Say NOT_SERVING when the engine cannot go on."""
    while backend.service.healthy:
        await asyncio.sleep(HEALTH_SECONDS)
    await _tell_health(readiness, False)


async def _tell_health(readiness: health.aio.HealthServicer, serving: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", SERVICE):
        await readiness.set(name, status)


def _listening(
    settings: ServerSettings, size: int, credentials: grpc.ServerCredentials | None, tokens: tuple[bytes, ...]
) -> tuple[aio.Server, int]:
    """A server with its port.

    Raises:
        ListenError: the address cannot be listened on.
    """
    options = [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", -1),  # bounded by the deltas that are joined
        ("grpc.max_metadata_size", 16384),
        ("grpc.so_reuseport", 0),  # or a second server would share the port
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
    server = aio.server(
        interceptors=[TokenCheck(tokens)] if tokens else [],
        options=options,
        maximum_concurrent_rpcs=settings.limits.max_streams + OTHER_CALLS,
    )
    try:
        _check_address(settings.host, settings.port)
        if credentials is None:
            port = server.add_insecure_port(settings.address)
        else:
            port = server.add_secure_port(settings.address, credentials)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ListenError(f"cannot listen on {settings.address}: {reason}; give another --host or --port") from None
    return server, port


def _check_address(host: str, port: int) -> None:
    """Listen for a moment: gRPC would write lines of its own, and does not say what is wrong.

    Raises:
        OSError: the port is taken, or the host is not this machine's.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    socket.create_server(address[:2], family=family).close()


def _handlers(inference: Inference) -> dict[str, grpc.RpcMethodHandler]:
    """The service's methods by name."""

    def unary(method: Any) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(method, response_serializer=_serialized)

    return {
        "Generate": grpc.unary_stream_rpc_method_handler(inference.generate, response_serializer=_serialized),
        "GenerateStream": grpc.stream_stream_rpc_method_handler(
            inference.generate_stream, response_serializer=_serialized
        ),
        "Tokenize": unary(inference.tokenize),
        "GetModelInfo": unary(inference.get_model_info),
        "GetLoad": unary(inference.get_load),
        "Abort": unary(inference.abort),
    }


def _serialized(message: Any) -> bytes:
    return message.SerializeToString()
