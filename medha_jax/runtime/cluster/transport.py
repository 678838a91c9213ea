"""gRPC for `medha.v1.Plans`: addresses, TLS, channel options, and both ends of the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from medha_jax.net import TlsFiles, is_protected, split_address
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.errors import ClusterError, ClusterSettingError

SERVICE, METHOD = "medha.v1.Plans", "Follow"
ACCEPTED = ("follower", "accepted")  # initial metadata of a stream
SPARE_STREAMS = 4  # for refused followers
Follow = Callable[[Iterator[pb.FollowerMessage], grpc.ServicerContext], Iterator[pb.Command]]
Stream = Any  # both an iterator of commands and a grpc.Call


def tls_files(cert: Path | None, key: Path | None, ca: Path | None) -> TlsFiles | None:
    """The three files of mutual TLS, or None if all are None. Raises ClusterSettingError if only some are given."""
    if cert and key and ca:
        return TlsFiles(cert, key, ca)
    if cert or key or ca:
        given = dict(zip(("--tls-cert", "--tls-key", "--tls-ca"), (cert, key, ca), strict=True))
        missing = ", ".join(name for name, value in given.items() if not value)
        raise ClusterSettingError(f"TLS needs certificate, key and authority on both sides; missing: {missing}")
    return None


def host_and_port(address: str, what: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`. Raises ClusterSettingError for another form; `what` names the address."""
    split = split_address(address)
    if split is None:
        raise ClusterSettingError(f"{what} is {address!r}; give HOST:PORT with a port from 1 to 65535")
    return split


def check_protected(address: str, tls: TlsFiles | None, insecure: bool) -> None:
    """Raise ClusterSettingError if the address is not loopback and there is neither TLS nor `insecure`."""
    host, _ = host_and_port(address, "the address of the plans")
    if not is_protected(host, tls, insecure):
        raise ClusterSettingError(
            f"plans would travel unprotected through {address}; give --tls-cert, --tls-key and --tls-ca, "
            "a loopback address, or --insecure in a network that you trust"
        )


def read_tls(files: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """Certificate, key and authority, in PEM.

    Raises:
        ClusterSettingError: a file cannot be read, or the authority is missing.
    """
    if files.ca is None:
        raise ClusterSettingError("TLS needs certificate, key and authority on both sides; missing: --tls-ca")
    try:
        return files.cert.read_bytes(), files.key.read_bytes(), files.ca.read_bytes()
    except OSError as error:
        raise ClusterSettingError(f"cannot read {error.filename}: {error.strerror}; give a PEM file") from None


def options(limit: int, heartbeat: float) -> list[tuple[str, int]]:
    """Channel options of both sides.

    `limit` is in bytes per message. A silent partner counts as lost after `heartbeat` seconds: a ping is sent after
    half of them, and the other half is the time to answer.
    """
    half = max(1, round(heartbeat * 500))
    return [
        ("grpc.max_send_message_length", limit),
        ("grpc.max_receive_message_length", limit),
        ("grpc.keepalive_time_ms", half),
        ("grpc.keepalive_timeout_ms", half),
        ("grpc.http2.ping_timeout_ms", half),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", min(half, 1000)),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]


def serve(
    follow: Follow, address: str, streams: int, settings: list[tuple[str, int]], tls: TlsFiles | None
) -> tuple[grpc.Server, int]:
    """Serve `medha.v1.Plans`; returns the running server and its port.

    Args:
        follow: handles one stream.
        address: HOST:PORT to listen on.
        streams: most streams open at once.
        tls: if None, plans are not encrypted and every client is accepted.

    Raises:
        ClusterError: the server cannot listen on the address.
    """
    handler = grpc.stream_stream_rpc_method_handler(
        follow,
        request_deserializer=pb.FollowerMessage.FromString,
        response_serializer=pb.Command.SerializeToString,
    )
    streams += SPARE_STREAMS
    server = grpc.server(
        ThreadPoolExecutor(streams, "plans"),
        [grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})],
        options=settings,
        maximum_concurrent_rpcs=streams,
    )
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            cert, key, ca = read_tls(tls)
            # A client without a certificate of this authority is refused before it can send a message.
            port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, cert)], ca, True))
    except RuntimeError as error:
        raise ClusterError(f"cannot listen on {address} for followers ({error}); give another --plans") from None
    server.start()
    return server, port


def connect(address: str, settings: list[tuple[str, int]], tls: TlsFiles | None) -> grpc.Channel:
    """A channel to process 0; sends nothing yet."""
    if tls is None:
        return grpc.insecure_channel(address, settings)
    cert, key, ca = read_tls(tls)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), settings)


def open_stream(channel: grpc.Channel, messages: Iterator[pb.FollowerMessage]) -> Stream:
    """Call `Follow`."""
    call = channel.stream_stream(
        f"/{SERVICE}/{METHOD}",
        request_serializer=pb.FollowerMessage.SerializeToString,
        response_deserializer=pb.Command.FromString,
    )
    return call(messages)
