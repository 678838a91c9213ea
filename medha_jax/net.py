"""Addresses and TLS files: the same rules for the server and for the processes of a mesh. No gRPC, no JAX."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one side of TLS.

    Args:
        cert: its certificate.
        key: the key of the certificate.
        ca: authority that signed the other side's certificates; None where the other side needs none.
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
    """Whether data may travel to a host: encrypted, on this machine only, or unprotected because that is wanted."""
    return tls is not None or insecure or is_loopback(host)


def join_address(host: str, port: int) -> str:
    """HOST:PORT; an IPv6 host stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of `HOST:PORT`, where an IPv6 host stands in brackets; None if it is not of that form."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)
