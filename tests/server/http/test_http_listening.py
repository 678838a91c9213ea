"""What is no good HTTP, on real sockets: a status, an error in OpenAI's form, and no traceback in the log."""

import gzip
import json
import socket
import struct

import pytest

from medha_jax.server.settings import Limits, ServerSettings
from tests.server.embedded import running
from tests.server.http.raw import SECONDS, connection, exchanged, post
from tests.server.processes import ServerProcess, wait_until

PLAIN = {"prompt": "a", "max_tokens": 2}


def url_of(lines):
    (line,) = (line for line in lines if line.startswith("OpenAI API on "))
    return line.split()[-1].removesuffix("/v1")


def completed(url):
    answer = exchanged(url, post(PLAIN))
    return answer.status == 200 and answer.json["usage"]["completion_tokens"] == 2


BODIES = {
    "nothing": (b"", "", "the body is not JSON"),
    "half": (b'{"prompt": "a"', "", "the body is not JSON"),
    "not a number": (b'{"prompt": "a", "temperature": NaN}', "", "NaN is no number of JSON"),
    "infinite": (b'{"prompt": "a", "temperature": 1e999}', "temperature", "temperature is inf; allowed is a number"),
    "huge": (b'{"prompt": "a", "temperature": 1' + b"0" * 400 + b"}", "temperature", "allowed is a number"),
    "digits": (b'{"n": ' + b"1" * 5000 + b"}", "", "the body is not JSON: Exceeds the limit"),
    "deep": (b"[" * 20_000, "", "nests too deeply"),
    "deep and closed": (b'{"prompt":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "", "nests too deeply"),
    "no UTF-8": (b'{"prompt": "\xff\xfe"}', "", "the body is not JSON: 'utf-8' codec"),
    "UTF-16": (b'\xff\xfe{\x00"', "", "the body is not JSON"),
    "no object": (b"[1]", "", "the body is a list; allowed is an object"),
    "null": (b"null", "", "the body is missing; allowed is an object"),
    "no prompt": ({}, "prompt", "prompt is missing; allowed is a text"),
    "empty prompt": ({"prompt": ""}, None, "the text is empty; give at least one character"),
    "lone surrogates": (b'{"prompt": "\\ud800"}', "prompt", "prompt is not valid Unicode (lone surrogates)"),
    "surrogate name": (b'{"prompt": "a", "\\ud800": 1}', "\ud800", "unknown fields: \\ud800"),
    "many prompts": ({"prompt": ["a"] * 257}, "prompt", "the request has 257 prompts; allowed are 256"),
    "id beyond": ({"prompt": [2048]}, None, "token id 2048 is outside the vocabulary; allowed are 0 to 2047"),
    "absurd n": (PLAIN | {"n": 2**31 - 1}, None, "n is 2147483647; allowed are 1 to 4 outputs"),
    "absurd n of a stream": (PLAIN | {"n": 2**31 - 1, "stream": True}, None, "allowed are 1 to 4 outputs"),
    "no output": (PLAIN | {"max_tokens": 0}, None, "max_tokens is 0; allowed is [1, inf)"),
    "too hot": (PLAIN | {"temperature": 101}, None, "temperature is 101.0; allowed is [0, 100]"),
    "bias": (PLAIN | {"logit_bias": {"5": 101}}, None, "logit_bias of token id 5 is 101.0; allowed is [-100"),
    "switch": (PLAIN | {"stream": "yes"}, "stream", "stream is 'yes'; allowed is true or false"),
    "unknown": (PLAIN | {"tools": []}, "tools", "unknown fields: tools"),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_body_is_answered_with_what_is_allowed(simulated, case):
    body, param, said = BODIES[case]
    answer = exchanged(simulated.url, post(body))
    assert answer.status == 400 and answer.headers["x-should-retry"] == "false"
    error = answer.error
    assert said in error["message"] and error["type"] == "invalid_request_error"
    assert error["param"] == (param or None)


@pytest.mark.parametrize("path, field", [("/tokenize", "prompt"), ("/detokenize", "tokens")])
def test_the_small_paths_name_the_field(simulated, path, field):
    good = {"prompt": "a"} if field == "prompt" else {"tokens": [5]}
    for body, param in (({}, field), ({field: {}}, field), (good | {"x": 1}, "x"), (good | {"model": "b"}, "model")):
        answer = exchanged(simulated.url, post(body, path))
        assert answer.status == (404 if param == "model" else 400) and answer.error["param"] == param
    answer = exchanged(simulated.url, post({"tokens": [2048]}, "/detokenize"))
    assert answer.status == 400 and "ids of the vocabulary, 0 to 2047" in answer.error["message"]
    assert exchanged(simulated.url, post({"prompt": "\ud800"}, "/tokenize")).error["param"] == "prompt"


HEADERS = {
    "deadline": ("x-request-timeout-ms: soon", "x-request-timeout-ms is 'soon'; allowed are milliseconds above 0"),
    "deadline of the past": ("x-request-timeout-ms: 0", "allowed are milliseconds above 0"),
    "target": ("x-slo-ttft-ms: -1", "x-slo-ttft-ms is '-1'; allowed are milliseconds above 0"),
    "id": ("x-request-id: a b", "allowed are 1 to 128 of visible ASCII"),
    "long id": ("x-request-id: " + "a" * 129, "request_id has 129 characters; allowed are 1 to 128"),
    "id in bytes": ("x-request-id: \udcff", "request_id"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_bad_header_is_answered_with_what_is_allowed(simulated, case):
    header, said = HEADERS[case]
    answer = exchanged(simulated.url, post(PLAIN, headers=[header]))
    assert answer.status == 400 and said in answer.error["message"]


GARBAGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "words": b"hello there\r\n\r\n",
    "header without a colon": b"GET /health HTTP/1.1\r\nHost x\r\n\r\n",
    "header with a zero byte": b"GET /health HTTP/1.1\r\nHost: x\r\na: b\x00c\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "no length": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: two\r\n\r\n{}",
    "negative length": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
    "length and chunks": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a long line": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": b"GET /health HTTP/1.1\r\nHost: x\r\na: " + b"a" * 20_000 + b"\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
    "an unknown encoding": post(PLAIN, headers=["Content-Encoding: brot"]).replace(b"brot", b"br"),
    "no gzip": post(b"no gzip at all", headers=["Content-Encoding: gzip"]),
    "no chunk": post(b"zz\r\n{}\r\n", headers=["Transfer-Encoding: chunked"], length=False),
    "an absurd chunk": post(b"f" * 40 + b"\r\n{}", headers=["Transfer-Encoding: chunked"], length=False),
    "an unknown expectation": post(PLAIN, headers=["Expect: 200-ok"]),
    "an expectation in bytes": post(PLAIN, headers=["Expect: \udcff"]),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_http_is_answered_in_openais_form(simulated, case):
    answer = exchanged(simulated.url, GARBAGE[case])
    assert 400 <= answer.status < 500, (answer.status, answer.body)
    assert answer.error["type"] and len(answer.error["message"]) < 400
    assert completed(simulated.url)
    assert "Traceback" not in simulated.errors and "Error handling" not in simulated.errors


def test_bodies_that_are_compressed_or_in_chunks(simulated):
    data = json.dumps(PLAIN).encode()
    packed = gzip.compress(data)
    assert exchanged(simulated.url, post(packed, headers=["Content-Encoding: gzip"])).status == 200
    chunked = b"".join(b"1\r\n" + bytes([one]) + b"\r\n" for one in data) + b"0\r\n\r\n"
    headers = ["Transfer-Encoding: chunked"]
    assert exchanged(simulated.url, post(chunked, headers=headers, length=False)).status == 200


def test_a_large_body_is_told_its_limit_however_it_comes(simulated):
    most = 65536 + 8 * 8192  # of the simulated server's context
    for path in ("/v1/completions", "/tokenize"):
        answer = exchanged(simulated.url, post({"prompt": "a" * most}, path))
        assert answer.status == 413 and f"more than {most:,} bytes" in answer.error["message"]
    bomb = gzip.compress(b" " * (64 * 2**20))
    assert len(bomb) < most
    before = simulated.resident_bytes
    answer = exchanged(simulated.url, post(bomb, headers=["Content-Encoding: gzip"]))
    assert answer.status == 413 and answer.error["code"] == "context_length_exceeded"
    assert simulated.resident_bytes - before < 32 * 2**20, "it was not unpacked"
    assert completed(simulated.url)


def test_requests_that_follow_each_other_at_once_are_answered_in_turn(simulated):
    with connection(simulated.url) as wire:
        texts = [f"{number} " * 3 for number in range(20)]
        wire.send(b"".join(post({"prompt": text}, "/tokenize") for text in texts))
        counts = [wire.answer().json["tokens"] for _ in texts]
    assert counts == [exchanged(simulated.url, post({"prompt": text}, "/tokenize")).json["tokens"] for text in texts]


def test_who_asks_first_is_told_to_go_on(simulated):
    with connection(simulated.url) as wire:
        request = post(PLAIN, headers=["Expect: 100-continue"])
        head, body = request[: request.index(b"\r\n\r\n") + 4], request[request.index(b"\r\n\r\n") + 4 :]
        wire.send(head)
        assert wire.answer().status == 100
        wire.send(body)
        assert wire.answer().status == 200


def test_a_body_that_breaks_off_leaves_nothing(simulated):
    for data in (
        post(PLAIN, length=1000),
        post(b"5\r\n{", headers=["Transfer-Encoding: chunked"], length=False),
        post(PLAIN)[:40],
    ):
        with connection(simulated.url) as wire:
            wire.send(data)
    assert completed(simulated.url)
    assert "Traceback" not in simulated.errors


@pytest.fixture(scope="module")
def hasty():
    """A server that waits for nobody, and whose output nobody may leave."""
    limits = Limits(part_seconds=0.3, write_seconds=0.5, max_streams=3)
    with running(ServerSettings(port=0, http_port=0, handshake_seconds=0.3, limits=limits)) as (lines, _):
        yield lines


def test_who_sends_no_request_is_closed(hasty):
    for said in (b"", b"POST /v1/compl", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"):
        with connection(url_of(hasty)) as wire:
            wire.send(said)
            assert wire.closed() == b""


def test_a_body_that_does_not_come_has_a_status(hasty):
    with connection(url_of(hasty)) as wire:
        wire.send(post(PLAIN, length=1000))
        answer = wire.answer()
    assert answer.status == 504 and "no message came within 0.3 s" in answer.error["message"]
    assert completed(url_of(hasty))


def test_a_connection_stays_open_between_requests(hasty):
    with connection(url_of(hasty)) as wire:
        for _ in range(3):
            wire.send(post({"prompt": "a"}, "/tokenize"))
            assert wire.answer().status == 200
        wire.socket.settimeout(1.0)
        with pytest.raises(TimeoutError):  # longer than a new one may be silent
            wire.file.read(1)


def test_a_taken_port_is_one_line(simulated, serve_options):
    port = simulated.url.rpartition(":")[2]
    options, environment = serve_options
    with ServerProcess(*options, "--http-port", port, environment=environment, ready=False) as server:
        assert server.process.wait(60) not in (0, None)
        *_, line = server.errors.splitlines()
        assert f"cannot listen on 127.0.0.1:{port} for HTTP: Address already in use" in line
        assert "Traceback" not in server.errors


def test_many_connections_that_come_and_go_leave_nothing(simulated):
    for _ in range(200):
        with connection(simulated.url):
            pass
    wait_until(lambda: completed(simulated.url), SECONDS)


def test_who_leaves_before_being_told_to_go_on_is_no_error(simulated):
    """A reset that comes with the head, while others keep the event loop from looking at once."""
    asking = post(PLAIN, headers=("Expect: 100-continue",)).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    for _ in range(300):
        with connection(simulated.url) as wire:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.send(asking)
    assert completed(simulated.url)
    assert "Traceback" not in simulated.errors
