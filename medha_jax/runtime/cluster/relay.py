"""Hides a lost coordinator from this process's JAX runtime, so that the watchdog can report it first.

The JAX runtime polls the coordinator in process 0. When that connection closes, it aborts the process with a stack
trace, and no public setting changes that. So a follower connects through this relay. The relay keeps its side of the
connection open when the coordinator's side closes.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

BLOCK = 2**16  # bytes


class Relay:
    """Passes bytes between a loopback port and the target `host` and `port`, in daemon threads."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """HOST:PORT of the relay."""
        host, port = self._listening.getsockname()
        return f"{host}:{port}"

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()  # the target is not up yet; JAX will retry
                continue
            threading.Thread(target=self._outward, args=(near, far), daemon=True).start()
            threading.Thread(target=self._inward, args=(far, near), daemon=True).start()

    @staticmethod
    def _inward(far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(BLOCK):
                near.sendall(data)

    @staticmethod
    def _outward(near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while data := near.recv(BLOCK):
                with suppress(OSError):  # drop data if the target is gone
                    far.sendall(data)
        for end in (near, far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
