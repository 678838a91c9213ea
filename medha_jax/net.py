"""Addresses and TLS files of the server and of the processes of a mesh. No gRPC, no JAX."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one side of TLS.

    Args:
        cert: this side's certificate.
        key: the certificate's key.
        ca: authority that signs the other side's certificates; None if the other side needs none.
    """

    cert: Path
    key: Path
    ca: Path | None = None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_protected(host: str, tls: TlsFiles | None, insecure: bool) -> bool:
    """Whether data may travel to a host: encrypted, on this machine only, or `insecure` on purpose."""
    return tls is not None or insecure or is_loopback(host)


def named_host(target: str) -> str:
    """The host in an address as gRPC takes it: `HOST:PORT`, `HOST`, or either behind `dns:///`, `ipv4:` or `ipv6:`."""
    bare = target.rpartition("/")[2]
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        bare = bare.removeprefix(scheme)
    if bare.startswith("["):
        return bare[1:].partition("]")[0]
    return bare if bare.count(":") > 1 else bare.partition(":")[0]


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on a host's first address; "" and "::" are every address of this machine.

    Of "::" IPv4 is a part, as gRPC has it, where the system can do that. Port 0 takes a free one.

    Raises:
        OSError, UnicodeError: the address is in use, not this machine's, or no address.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    both = address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address[:2], family=family, dualstack_ipv6=both)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of `HOST:PORT` (IPv6 in brackets); None for any other form."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)
