"""The gRPC server: its address, its options, its methods."""

from __future__ import annotations

import os
import socket
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio

from medha_jax.net import listening_sockets
from medha_jax.server.connections import Connections
from medha_jax.server.inference import Inference
from medha_jax.server.security import Secrets, TokenCheck, server_credentials
from medha_jax.server.settings import ServerSettings

PING_SECONDS = 1  # between pings of a client that are welcome on every connection, idle ones included
MOST_PENDING = 2**14  # calls that the event loop has not seen yet


class ListenError(RuntimeError):
    """The server cannot listen on an address."""


def grpc_server(
    settings: ServerSettings, size: int, secrets: Secrets, most: int | None, connections: Connections, service: str
) -> tuple[aio.Server, int]:
    """A server that is not started yet, and its port.

    It takes messages of at most `size` bytes. Without a certificate it uses no TLS. If there are tokens, every call
    needs one of them. Methods of `service` are told the tenant of a call. At most `most` connections are open; None is
    no limit. `connections` watches them.

    Raises:
        ListenError: the server cannot listen on the address.
    """
    options = [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", -1),  # no limit: streams.MOST_JOINED bounds the messages
        ("grpc.max_metadata_size", 16384),
        ("grpc.max_concurrent_streams", settings.limits.connection_streams),
        # that come in one moment; gRPC's own limit, 1000, would cut honest calls at random beside a crowd
        ("grpc.server.max_pending_requests", MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MOST_PENDING),
        ("grpc.so_reuseport", 0),  # otherwise a second server could share the port
        ("grpc.server_handshake_timeout_ms", round(1000 * settings.handshake_seconds)),
        ("grpc.max_connection_idle_ms", round(1000 * settings.idle_seconds)),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # gateways ping idle connections, and ones whose prompt is computed in silence; gRPC would call that abuse
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000 * PING_SECONDS),
    ]
    if most is not None:
        options.append(("grpc.max_allowed_incoming_connections", most))
    if settings.connection_seconds is not None:
        options.append(("grpc.max_connection_age_ms", round(1000 * settings.connection_seconds)))
    server = aio.server(interceptors=[TokenCheck(secrets.tokens, connections, service)], options=options)
    try:
        # for a moment: gRPC's own error prints lines and does not state the cause
        for listener in listening_sockets(settings.host, settings.port):
            listener.close()
        if secrets.certificates is None:
            port = server.add_insecure_port(settings.address)
        else:
            port = server.add_secure_port(settings.address, server_credentials(secrets.certificates))
    except (OSError, RuntimeError, UnicodeError) as error:  # UnicodeError: of a name that DNS cannot have
        reason = plain_reason(error)
        raise ListenError(f"cannot listen on {settings.address}: {reason}; give another --host or --port") from None
    connections.serve_on(port)
    return server, port


def plain_reason(error: Exception) -> str:
    """Why an address cannot be used, without the address, which Python repeats in some errors."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno is None or isinstance(error, socket.gaierror):  # its numbers are others
        return error.strerror or str(error)
    return os.strerror(error.errno)


def handlers(inference: Inference) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """The service's methods by name, with the tenant of their call as third argument.

    All take their messages as a stream, which is the same for clients: gRPC would wait without limit for the message of
    a unary call.
    """

    def one_answer(method: Any) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.stream_unary_rpc_method_handler(method, response_serializer=_serialized)

    def events(method: Any) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.stream_stream_rpc_method_handler(method, response_serializer=_serialized)

    return {
        "Generate": events(inference.generate),
        "GenerateStream": events(inference.generate_stream),
        "Tokenize": one_answer(inference.tokenize),
        "GetModelInfo": one_answer(inference.get_model_info),
        "GetLoad": one_answer(inference.get_load),
        "Abort": one_answer(inference.abort),
    }


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
