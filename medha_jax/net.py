"""Addresses and TLS files of the server and of the processes of a mesh. No gRPC, no JAX."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # of an address that this machine lacks


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


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on all addresses of a host; "" and "::" are every address of this machine.

    Of "::" IPv4 is a part, as gRPC has it, where the system can do that. Port 0 takes one that is free on the first.
    An address that this machine lacks is left out if it has another: `localhost` is often both, with IPv6 switched off.

    Raises:
        OSError, UnicodeError: an address is in use, none is this machine's, or there is none.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    opened, lacking = list[socket.socket](), list[OSError]()
    try:
        for family, address in dict.fromkeys((one[0], str(one[4][0])) for one in found):
            both = bool(host) and address == "::" and socket.has_dualstack_ipv6()
            at = address, opened[0].getsockname()[1] if opened else port
            try:
                opened.append(socket.create_server(at, family=family, dualstack_ipv6=both))
            except OSError as error:
                if error.errno not in NOT_OURS:
                    raise
                lacking.append(error)
        if not opened:
            raise lacking[0]
    except OSError:
        for one in opened:
            one.close()
        raise
    return opened


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of `HOST:PORT` (IPv6 in brackets); None for any other form."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)
