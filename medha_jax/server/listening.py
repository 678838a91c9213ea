"""The gRPC server: its address, its options, its methods."""

from __future__ import annotations

import socket
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio

from medha_jax.server.inference import Inference
from medha_jax.server.security import TokenCheck
from medha_jax.server.settings import ServerSettings

PING_SECONDS = 1  # between pings of a client that are welcome on every connection, idle ones included
OTHER_CALLS = 256  # concurrent calls beside streams: health, load, tokenize


class ListenError(RuntimeError):
    """The server cannot listen on an address."""


def grpc_server(
    settings: ServerSettings, size: int, credentials: grpc.ServerCredentials | None, tokens: tuple[bytes, ...]
) -> tuple[aio.Server, int]:
    """A server that is not started yet, and its port.

    It takes messages of at most `size` bytes. Without credentials it uses no TLS. If there are tokens, every call needs
    one of them.

    Raises:
        ListenError: the server cannot listen on the address.
    """
    options = [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", -1),  # no limit: streams.MOST_JOINED bounds the messages
        ("grpc.max_metadata_size", 16384),
        ("grpc.so_reuseport", 0),  # otherwise a second server could share the port
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # gateways ping idle connections, and ones whose prompt is computed in silence; gRPC would call that abuse
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000 * PING_SECONDS),
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
    except (OSError, RuntimeError, UnicodeError) as error:  # UnicodeError: of a name that DNS cannot have
        reason = error.strerror if isinstance(error, OSError) else error
        raise ListenError(f"cannot listen on {settings.address}: {reason}; give another --host or --port") from None
    return server, port


def _check_address(host: str, port: int) -> None:
    """Listen for a moment, because gRPC's own error prints lines and does not state the cause.

    Raises:
        OSError: the port is taken, or the host is not this machine's.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    socket.create_server(address[:2], family=family).close()


def handlers(inference: Inference) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """The service's methods by name."""

    def unary(method: Any) -> grpc.RpcMethodHandler[Any, Any]:
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


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
