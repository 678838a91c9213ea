"""Who watches health; over real sockets in `test_crowds.py`."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from medha_jax.server.vitals import one_too_many

PEERS = st.builds("ipv4:10.0.0.{}:{}".format, st.integers(1, 4), st.integers(1, 4))


def host(peer):
    return peer.rpartition(":")[0]


def test_another_host_gets_a_place_and_so_does_another_connection():
    crowd = [f"ipv4:10.0.0.1:{port}" for port in range(64)]
    assert one_too_many("ipv4:10.0.0.2:1", crowd) in crowd
    assert one_too_many("ipv4:10.0.0.1:99", crowd) is None, "each of the crowd has one as well"
    assert one_too_many("ipv4:10.0.0.1:99", ["ipv4:10.0.0.1:1"] * 64) == "ipv4:10.0.0.1:1"
    assert one_too_many("ipv4:10.0.0.1:1", ["ipv4:10.0.0.1:1"] * 64) is None


@given(st.lists(PEERS, min_size=1, max_size=40), PEERS)
def test_a_place_comes_from_who_has_more_than_the_new_one_then_has(watching, peer):
    given_up = one_too_many(peer, watching)
    hosts, peers = Counter(map(host, watching)), Counter(watching)
    if given_up is None:
        assert max(hosts.values()) <= hosts[host(peer)] + 1
        assert all(count <= peers[peer] + 1 for other, count in peers.items() if host(other) == host(peer))
    else:
        assert given_up in watching
        more = hosts[host(given_up)] > hosts[host(peer)] + 1
        assert more or (host(given_up) == host(peer) and peers[given_up] > peers[peer] + 1)


@given(st.lists(PEERS, min_size=1, max_size=200))
def test_coming_again_gains_nothing(coming):
    """Whoever comes, places change hands only towards even shares, so never for ever."""
    most, watching = 8, []
    for peer in coming:
        if len(watching) >= most:
            if (other := one_too_many(peer, watching)) is None:
                continue
            before = sum(count**2 for count in Counter(map(host, watching)).values())
            watching.remove(other)
            watching.append(peer)
            assert sum(count**2 for count in Counter(map(host, watching)).values()) <= before
        else:
            watching.append(peer)
    assert len(watching) <= most
