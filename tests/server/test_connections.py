import asyncio
import os
import socket
from contextlib import ExitStack, suppress

import pytest

from medha_jax.server.connections import MOST_FRUITLESS, SOON_SECONDS, WINDOW_SECONDS, Connections, address_of

PEER = "ipv4:10.0.0.1:4000"


class Watched(Connections):
    """With a clock that is set, and without sockets."""

    def __init__(self):
        self.now, self.closed_ones = 0.0, []
        super().__init__(lambda line: None, lambda: self.now)

    def close(self, peer, why):
        self.closed_ones.append(peer)
        return True


class Context:
    def __init__(self, peer=PEER, remaining=None):
        self._peer, self._remaining = peer, remaining

    def peer(self):
        return self._peer

    def time_remaining(self):
        return self._remaining


def give_up(connections, calls, taken=False, after=0.0, **context):
    for _ in range(calls):
        with suppress(asyncio.CancelledError), connections.call(Context(**context), lambda: taken):
            connections.now += after
            raise asyncio.CancelledError


def answer(connections, calls):
    for _ in range(calls):
        with connections.call(Context()):
            pass


def test_a_connection_is_closed_whose_calls_come_to_nothing():
    connections = Watched()
    give_up(connections, MOST_FRUITLESS - 1)
    give_up(connections, 100, peer="ipv4:10.0.0.1:4001")
    assert not connections.closed_ones
    give_up(connections, 1)
    assert connections.closed_ones == [PEER]
    with pytest.raises(asyncio.CancelledError), connections.call(Context()):
        raise AssertionError("nobody waits for this call")
    give_up(connections, 2 * MOST_FRUITLESS)
    assert connections.closed_ones == [PEER]


def test_calls_without_a_token_come_to_nothing():
    connections = Watched()
    for _ in range(MOST_FRUITLESS):
        connections.without_token(PEER)
    assert connections.closed_ones == [PEER]


@pytest.mark.parametrize(
    "why",
    [
        dict(taken=True),
        dict(after=1.01 * SOON_SECONDS),
        dict(remaining=0.0),
        dict(after=1.01 * WINDOW_SECONDS / MOST_FRUITLESS),
    ],
    ids=["taken", "later", "at a deadline", "seldom"],
)
def test_calls_that_are_given_up_for_good_reasons_close_nothing(why):
    connections = Watched()
    give_up(connections, 3 * MOST_FRUITLESS, **why)
    assert not connections.closed_ones


def test_a_connection_with_as_many_good_calls_stays():
    connections = Watched()
    for _ in range(10):
        answer(connections, MOST_FRUITLESS)
        give_up(connections, MOST_FRUITLESS - 1)
    assert not connections.closed_ones


def test_a_connection_that_carries_a_request_stays_until_that_has_ended():
    connections = Watched()
    with connections.call(Context(), lambda: True):
        connections.now += 1.01 * SOON_SECONDS
        give_up(connections, 2 * MOST_FRUITLESS)
        assert not connections.closed_ones
    give_up(connections, 1)
    assert connections.closed_ones == [PEER]


def test_what_is_remembered_is_bounded():
    connections = Watched()
    for port in range(20_000):
        connections.without_token(f"ipv4:10.0.0.1:{port}")
    assert len(connections._known) < 5000


def test_connections_that_are_over_are_forgotten():
    connections = Watched()
    with connections.call(Context(), lambda: True):
        for port in range(1000):
            give_up(connections, 1, peer=f"ipv4:10.0.0.2:{port}")
        assert len(connections._known) == 1001
        connections.now += 1.01 * WINDOW_SECONDS
        give_up(connections, 1, peer="ipv4:10.0.0.2:0")
        assert set(connections._known) == {PEER, "ipv4:10.0.0.2:0"}  # the one with a call stays
    connections.now += 1.01 * WINDOW_SECONDS
    give_up(connections, 1, peer="ipv4:10.0.0.2:1")
    assert set(connections._known) == {"ipv4:10.0.0.2:1"}


def test_another_connection_can_have_the_port_of_one_that_was_closed():
    connections = Watched()
    give_up(connections, MOST_FRUITLESS)
    assert connections.closed_ones == [PEER]
    connections.now += 1.01 * WINDOW_SECONDS
    answer(connections, 1)
    give_up(connections, MOST_FRUITLESS)
    assert connections.closed_ones == [PEER, PEER]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_only_the_connection_that_is_meant_is_closed(host):
    """Beside sockets of other kinds and ports; `::` takes IPv4, too, whose clients gRPC tells as such."""
    told = []
    with ExitStack() as opened:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = opened.enter_context(socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::"))
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = listener.getsockname()[1]
        for other in socket.socketpair():
            opened.enter_context(other)
        target = "127.0.0.1" if host == "::" else host
        clients = [opened.enter_context(socket.create_connection((target, port), 5)) for _ in range(3)]
        accepted = [opened.enter_context(listener.accept()[0]) for _ in clients]
        peers = ["{}:{}".format("ipv4" if "." in target else "ipv6", _form(*c.getsockname()[:2])) for c in clients]
        files = sorted(os.listdir("/dev/fd"))
        connections = Connections(told.append)
        connections.serve_on(port + 1)
        assert not connections.close(peers[1], "a test")
        connections.serve_on(port)
        assert not connections.close("unix:/tmp/socket", "a test") and not connections.close(
            "ipv4:10.0.0.1:1", "a test"
        )
        assert connections.close(peers[1], "a test") and told == [f"closed the connection of {peers[1]}: a test"]
        clients[1].settimeout(5)
        assert clients[1].recv(1) == b"" and accepted[1].recv(1) == b""
        for client, server in zip(clients[::2], accepted[::2], strict=True):
            server.sendall(b"x")
            assert client.recv(1) == b"x"
        assert sorted(os.listdir("/dev/fd")) == files


def _form(host, port):
    return f"%5B{host}%5D:{port}" if ":" in host else f"{host}:{port}"


def test_addresses_are_read_as_grpc_writes_them():
    assert address_of("ipv4:127.0.0.1:80") == ("127.0.0.1", 80)
    assert address_of("ipv6:%5B::1%5D:80") == address_of("ipv6:[::1]:80") == ("::1", 80)
    assert address_of("ipv6:%5B::ffff:10.0.0.1%5D:80") == ("10.0.0.1", 80)
    assert address_of("ipv6:%5Bfe80::1%25eth0%5D:80") == ("fe80::1", 80)
    assert address_of("unix:") is None and address_of("ipv4:127.0.0.1") is None
