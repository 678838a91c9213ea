"""Keeps a lost coordinator from this process's JAX runtime until the watchdog has spoken.

The JAX runtime polls the coordinator in process 0 and, the moment that connection closes, aborts the process with a
stack trace; no public setting changes that. A follower therefore reaches it through this relay, which leaves its
side of the connection open when the other one closes.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

BLOCK = 2**16  # bytes


class Relay:
    """Passes bytes between a loopback port and an address, in daemon threads.

    Args:
        host: to connect to.
        port: to connect to.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """HOST:PORT that stands for the target."""
        host, port = self._listening.getsockname()
        return f"{host}:{port}"

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()  # the target is not up yet; who asked will ask again
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
                with suppress(OSError):  # to a target that is gone: dropped
                    far.sendall(data)
        for end in (near, far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
