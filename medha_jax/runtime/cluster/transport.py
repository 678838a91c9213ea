"""gRPC for `medha.v1.Plans`: addresses, TLS, channel options, and both ends of the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from medha_jax.net import TlsFiles, split_address
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.errors import ClusterError, ClusterSettingError
from medha_jax.runtime.cluster.secret import MeshSecret

SERVICE, METHOD = "medha.v1.Plans", "Follow"
CHALLENGE = "medha-challenge-bin"  # in the initial metadata of a stream
SPARE_STREAMS = 64  # for streams that are silent or refused
HANDSHAKE_SECONDS = 5  # of a connection
Follow = Callable[[Iterator[pb.FollowerMessage], grpc.ServicerContext], Iterator[pb.Command]]
Stream = Any  # both an iterator of commands and a grpc.Call


@dataclass(frozen=True)
class PlansLink:
    """How both sides of the stream of plans reach and know each other.

    Args:
        address: HOST:PORT where process 0 listens.
        limit: bytes of a message.
        heartbeat: seconds of silence after which the other side counts as lost.
        tls: if None, nothing is encrypted.
        secret: both sides must know it.
    """

    address: str
    limit: int
    heartbeat: float
    tls: TlsFiles | None = None
    secret: MeshSecret = field(default_factory=MeshSecret)

    @property
    def options(self) -> list[tuple[str, int]]:
        """Channel options of both sides.

        A ping is sent after half of `heartbeat`, and the other half is the time to answer.
        """
        half = max(1, round(self.heartbeat * 500))
        return [
            ("grpc.max_send_message_length", self.limit),
            ("grpc.max_receive_message_length", self.limit),
            ("grpc.keepalive_time_ms", half),
            ("grpc.keepalive_timeout_ms", half),
            ("grpc.http2.ping_timeout_ms", half),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", min(half, 1000)),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_SECONDS),
            ("grpc.so_reuseport", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
        ]


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


def listen(follow: Follow, link: PlansLink, followers: int) -> tuple[grpc.Server, int]:
    """Listen for `medha.v1.Plans`; returns the server, which its caller starts, and its port.

    Args:
        follow: handles one stream.
        link: where to listen, and how.
        followers: how many there will be.

    Raises:
        ClusterError: the server cannot listen on the address.
    """
    handler = grpc.stream_stream_rpc_method_handler(
        follow,
        request_deserializer=pb.FollowerMessage.FromString,
        response_serializer=pb.Command.SerializeToString,
    )
    streams = followers + SPARE_STREAMS
    server = grpc.server(
        ThreadPoolExecutor(streams, "plans"),
        [grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})],
        options=link.options,
        maximum_concurrent_rpcs=streams,
    )
    try:
        if link.tls is None:
            port = server.add_insecure_port(link.address)
        else:
            cert, key, ca = read_tls(link.tls)
            # A client without a certificate of this authority is refused before it can send a message.
            port = server.add_secure_port(link.address, grpc.ssl_server_credentials([(key, cert)], ca, True))
    except RuntimeError as error:
        raise ClusterError(f"cannot listen on {link.address} for followers ({error}); give another --plans") from None
    return server, port


def connect(link: PlansLink) -> grpc.Channel:
    """A channel to process 0; sends nothing yet."""
    if link.tls is None:
        return grpc.insecure_channel(link.address, link.options)
    cert, key, ca = read_tls(link.tls)
    return grpc.secure_channel(link.address, grpc.ssl_channel_credentials(ca, key, cert), link.options)


def open_stream(channel: grpc.Channel, messages: Iterator[pb.FollowerMessage]) -> Stream:
    """Call `Follow`."""
    call = channel.stream_stream(
        f"/{SERVICE}/{METHOD}",
        request_serializer=pb.FollowerMessage.SerializeToString,
        response_deserializer=pb.Command.FromString,
    )
    return call(messages)
