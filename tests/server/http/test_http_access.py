"""Who may ask over HTTP: tokens, tenants and their limits, and TLS, on servers with simulated ticks."""

import json
import shutil
import signal
import subprocess

import openai
import pytest

from medha_jax.client import Client, Connection, ServerError
from medha_jax.net import TlsFiles
from medha_jax.server.settings import ServerSettings
from tests.server.embedded import running
from tests.server.http.raw import connection, exchanged, post, ssl_trusting
from tests.server.processes import SIMULATED, ServerProcess, idle, wait_until

ONE, TWO = (f"{name}-token-{'x' * 12}" for name in ("one", "two"))
STREAM = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}
MOST, OWN = 3, 2  # streams at once, of all and of a tenant


def bearer(token):
    return [f"Authorization: Bearer {token}"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(f"one {ONE}\ntwo {TWO}\n")
    options = ["--auth-token-file", file, "--tenant-streams", OWN, "--max-streams", MOST, "--access-log", "json"]
    with ServerProcess(*SIMULATED, *options, "--http-port", 0, "--metrics-port", 0, "--max-output", 4096) as server:
        yield server


def test_only_who_has_a_token_is_answered(guarded):
    url = guarded.url
    for headers in ([], bearer("wrong"), [f"Authorization: Basic {ONE}"], bearer(ONE) + bearer(ONE), bearer("\udcff")):
        for path in ("/v1/completions", "/tokenize", "/detokenize"):
            answer = exchanged(url, post({"prompt": "a"}, path, headers))
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.error["code"] == "invalid_api_key" and "Authorization: Bearer" in answer.error["message"]
        for path in ("/v1/models", "/v1/models/simulated", "/load", "/version"):
            assert exchanged(url, post(b"", path, headers, method="GET")).status == 401
        assert exchanged(url, post(b"", "/health", headers, method="GET")).status == 200
    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as asked:
        with pytest.raises(openai.AuthenticationError):
            asked.models.list()
        assert asked.with_options(api_key=ONE).models.list().data[0].id == "simulated"
    assert ONE not in guarded.errors and TWO not in guarded.errors


def test_a_tenant_has_its_own_limit_and_all_have_one(guarded):
    url = guarded.url
    with Client(Connection(guarded.address, token=TWO)) as of_two:
        with connection(url) as first, connection(url) as second:
            for name, wire in (("first", first), ("second", second)):
                wire.send(post(STREAM | {"request_id": name}, headers=bearer(ONE)))
                assert wire.head() == 200
            answer = exchanged(url, post({"prompt": "a"}, headers=bearer(ONE)))
            assert answer.status == 429 and f"each tenant is allowed {OWN}" in answer.error["message"]
            assert answer.error["type"] == "rate_limit_error" and answer.headers["x-should-retry"] == "true"
            assert int(answer.headers["retry-after"]) >= 1 and int(answer.headers["retry-after-ms"]) > 0
            asked = openai.OpenAI(base_url=f"{url}/v1", api_key=ONE, max_retries=0)
            with asked, pytest.raises(openai.RateLimitError):
                asked.completions.create(model="simulated", prompt="a")
            running_call = of_two.generate([5], max_tokens=4000, ignore_eos=True)
            next(running_call)
            answer = exchanged(url, post({"prompt": "a"}, headers=bearer(TWO)))
            assert answer.status == 429 and f"allowed are {MOST}" in answer.error["message"], "one over gRPC counts"
            with pytest.raises(ServerError, match=f"{MOST} streams are open; allowed are {MOST}"):
                list(of_two.generate([5], max_tokens=1))
            running_call.close()
        wait_until(lambda: idle(of_two), 60)

    def lines(**wanted):
        found = [json.loads(line) for line in guarded.errors.splitlines() if line.startswith("{") and line[-1] == "}"]
        return [line for line in found if wanted.items() <= line.items()]

    wait_until(lambda: lines(request_id="first", tenant="one", method="Completions", code="CANCELLED"))
    assert lines(tenant="one", method="Completions", code="RESOURCE_EXHAUSTED")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pairs `a` and `b`, each signed by itself, so each is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("makes certificates with the openssl command")
    folder = tmp_path_factory.mktemp("pairs")
    for name in "ab":
        out = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-subj", f"/CN={name}", "-days", "2")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        names = ("-addext", "subjectAltName=IP:127.0.0.1")
        subprocess.run(["openssl", "req", "-x509", *key, *out, *names], check=True, capture_output=True, timeout=30)
    return folder


def health(url, context):
    """The status of a new connection's request; None if it could not be made."""
    try:
        return exchanged(url, post(b"", "/health", method="GET"), context).status
    except OSError:
        return None


def test_certificates_are_renewed_for_new_connections(made, tmp_path):
    cert, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    for path, name in ((cert, "a.pem"), (key, "a.key")):
        shutil.copy(made / name, path)
    files = ["--tls-cert", cert, "--tls-key", key]
    with ServerProcess(*SIMULATED, *files, "--http-port", 0, "--max-output", 4096) as server:
        assert server.url.startswith("https://")
        of_a, of_b = (ssl_trusting(made / f"{name}.pem") for name in "ab")
        assert health(server.url, of_a) == 200 and health(server.url, of_b) is None
        with connection(server.url, of_a) as wire:
            wire.send(post(STREAM | {"max_tokens": 400}))
            assert wire.head() == 200
            for path, name in ((cert, "b.pem"), (key, "b.key")):
                shutil.copy(made / name, path)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: health(server.url, of_b) == 200, 30)
            assert health(server.url, of_a) is None
            assert b"".join(wire.chunks()).endswith(b"data: [DONE]\n\n"), "an open stream goes on"
        with connection(server.url) as wire:  # no TLS
            wire.send(post(b"", "/health", method="GET"))
            assert b"HTTP/1.1 200" not in wire.closed()
        assert server.stop() == 0 and "Traceback" not in server.errors


def test_mutual_tls_needs_a_certificate(made):
    tls = TlsFiles(made / "a.pem", made / "a.key", made / "b.pem")
    with running(ServerSettings(port=0, http_port=0, tls=tls)) as (lines, _):
        (line,) = (line for line in lines if line.startswith("OpenAI API on "))
        url = line.split()[-1].removesuffix("/v1")
        authority = made / "a.pem"
        assert health(url, ssl_trusting(authority)) is None
        assert health(url, ssl_trusting(authority, (made / "a.pem", made / "a.key"))) is None
        assert health(url, ssl_trusting(authority, (made / "b.pem", made / "b.key"))) == 200
