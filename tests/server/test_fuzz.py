"""Malformed messages, broken HTTP/2 and malformed HTTP leave the server healthy and its memory flat.

`python -m benchmarks.fuzz --messages 100000` is the long form.
"""

from benchmarks.fuzz import attack
from benchmarks.fuzz_frames import attack_frames
from benchmarks.fuzz_http import attack_http
from tests.server.processes import idle, wait_until

MESSAGES, CONNECTIONS, REQUESTS = 3000, 150, 600
EXPECTED = {
    "OK",
    "INVALID_ARGUMENT",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",  # too large
    "ALREADY_EXISTS",
    "CANCELLED",  # by another one's Abort
    "DEADLINE_EXCEEDED",  # dropped at its deadline
    "ENDED_EARLY",
}


def test_malformed_messages_leave_no_trace(server, client):
    wait_until(lambda: "shapes are compiled" in server.errors, 120.0)  # what compiles beside serving takes memory, too
    attack(server.address, 1000, seed=1)  # pools and caches fill
    before = server.resident_bytes
    codes = attack(server.address, MESSAGES, seed=2)
    assert attack_frames(server.address, CONNECTIONS, seed=2) > CONNECTIONS * 100
    wait_until(lambda: idle(client))
    assert server.resident_bytes - before < 16 * 2**20
    assert "Traceback" not in server.errors
    assert set(codes) <= EXPECTED, codes
    assert codes["INVALID_ARGUMENT"] > MESSAGES / 4
    *_, last = client.generate("still here", max_tokens=3, ignore_eos=True)
    assert last.usage.output_tokens == 3


def test_malformed_http_leaves_no_trace(server, client):
    wait_until(lambda: "shapes are compiled" in server.errors, 120.0)
    attack_http(server.url, 300, seed=1)
    before = server.resident_bytes
    outcomes = attack_http(server.url, REQUESTS, seed=2)
    wait_until(lambda: idle(client))
    assert server.resident_bytes - before < 16 * 2**20
    assert "Traceback" not in server.errors
    assert sum(outcomes.values()) == REQUESTS and outcomes["200"] > REQUESTS / 40
    assert outcomes["400"] > REQUESTS / 4
    allowed = {"200", "400", "401", "404", "405", "409", "413", "417", "429", "504"}
    assert set(outcomes) <= {*allowed, "silent"}, outcomes
    *_, last = client.generate("still here", max_tokens=3, ignore_eos=True)
    assert last.usage.output_tokens == 3
