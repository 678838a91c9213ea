"""`medha-jax serve` and `generate --server` as users run them."""

import dataclasses
import importlib
import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from medha_jax.cli import run
from medha_jax.client import Client, Connection, Finished, ServerError
from medha_jax.config import SchedulerConfig
from tests.cli.command import COMMAND, refused
from tests.server.processes import SERVE, ServerProcess, refusal, wait_until

serving = importlib.import_module("medha_jax.cli.serve")  # the package has a function of this name
MESH = "page_size: 16\nbuckets: {decode: [4], prefill: [64], chunks: 2}\n"
TOKEN, OTHER = "a-secret-of-some-length", "a-secret-of-another-one"


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A certificate authority, a certificate of a server and one of a client, a token, a small layout."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "mesh.yaml").write_text(MESH)
    (folder / "token").write_text(f"first {TOKEN}\nsecond {OTHER}\n")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", 2)
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", 2, "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder


@pytest.fixture(scope="session")
def served(model, files, environment):
    """A server with mutual TLS, a token, metrics, a trace and a JSON log, configured by a file and flags."""
    (files / "serve.yaml").write_text(
        f"model: {model}\nport: 1\nmesh: {files / 'mesh.yaml'}\nslots: 3\npool-tokens: 1024\naccess-log: json\n"
        f"tls-cert: {files / 'server.pem'}\ntls-key: {files / 'server.key'}\ntls_ca: {files / 'ca.pem'}\n"
        f"auth-token-file: {files / 'token'}\nmetrics-port: 0\nmax-output: 40\n"
    )
    flags = ["--port", 0, "--trace", files / "trace.json"]
    with ServerProcess(*SERVE, "--config", files / "serve.yaml", *flags, environment=environment) as started:
        yield started


@pytest.fixture
def connection(served, files):
    return Connection(
        served.address, ca=files / "ca.pem", cert=files / "client.pem", key=files / "client.key", token=TOKEN
    )


def test_flags_win_over_the_file_and_the_ready_line_says_where(served, model):
    assert served.line.startswith(f"serving {model.name} on 127.0.0.1:") and not served.address.endswith(":1")


def test_its_log_says_when_every_shape_is_compiled(served):
    wait_until(lambda: "shapes are compiled" in served.errors, 60)
    lines = [line for line in served.errors.splitlines() if "compil" in line]
    total = len(lines) - 2
    assert lines[0].startswith(f"compiling {total} shapes (decodes+prompt tokens): 3+0, 3+64, slice 0+")
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"compiled {n + 1}/{total}" for n in range(total)]
    assert lines[-1] == f"all {total} shapes are compiled"


def test_it_serves_over_mutual_tls_to_who_has_the_token(served, connection, files):
    with Client(connection) as client:
        *_, last = client.generate("the quick", max_tokens=5, ignore_eos=True)
        assert isinstance(last, Finished) and last.usage.output_tokens == 5
        assert client.model().max_output_tokens == 40
        assert client.tokenize("the") == client.tokenize("the") != ()
    for token in (None, TOKEN + "x", TOKEN[:-1], ""):
        with Client(dataclasses.replace(connection, token=token)) as client:
            with pytest.raises(ServerError, match="UNAUTHENTICATED") as raised:
                client.model()
            assert TOKEN not in str(raised.value)
    for other in (dict(cert=None, key=None), dict(ca=None, tls=False, cert=None, key=None)):
        with (
            Client(dataclasses.replace(connection, **other)) as client,
            pytest.raises(ServerError, match="UNAVAILABLE"),
        ):
            client.model(timeout=5)


def test_without_a_seed_every_answer_is_another_and_its_seed_gives_it_again(connection):
    def answer(**stated):
        events = list(client.generate("fox", max_tokens=12, temperature=1, ignore_eos=True, **stated))
        return events[0].seed, tuple(token for delta in events[1:-1] for token in delta.token_ids)

    with Client(connection) as client:
        drawn = [answer() for _ in range(3)]
        assert len({tokens for _, tokens in drawn}) == 3
        assert [answer(seed=seed) for seed, _ in drawn] == drawn


def test_health_needs_no_token_and_reflection_does(served, connection):
    with connection.channel() as channel:
        for service in ("", "medha.v1.Inference"):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="other"))
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([listing]), metadata=connection.metadata)
        assert "medha.v1.Inference" in [service.name for service in answer.list_services_response.service]
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.ServerReflectionInfo(iter([listing])))
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_log_has_a_line_a_call_and_no_prompt(served, connection):
    with Client(connection) as client:
        list(client.generate("xyzzy plugh", max_tokens=3, ignore_eos=True, request_id="logged"))
        refusal(client.generate("xyzzy plugh", top_p=2.0, request_id="refused"))
    records, until = {}, time.monotonic() + 10
    while not {"logged", "refused"} <= set(records):  # a line follows its answer
        assert time.monotonic() < until, served.errors
        for line in served.errors.splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                record = json.loads(line)
                records[record.get("request_id")] = record
    assert records["logged"]["code"] == "OK" and records["logged"]["output_tokens"] == 3
    assert records["logged"]["reason"] == "length" and records["logged"]["ttft_ms"] > 0
    assert records["refused"]["code"] == "INVALID_ARGUMENT" and "top_p" in records["refused"]["message"]
    assert "xyzzy" not in served.errors and TOKEN not in served.errors


def test_no_tenant_finds_pages_that_another_one_filled(connection):
    ids = [5 + number % 150 for number in range(200)]
    cached = []
    with Client(connection) as first, Client(dataclasses.replace(connection, token=OTHER)) as second:
        for client in (first, first, second, second):
            for salt in (None, "a tenant's own"):
                *_, last = client.generate(ids, max_tokens=1, ignore_eos=True, cache_salt=salt)
                cached.append(last.usage.cached_tokens)
    assert cached == [0, 0, 192, 192] * 2


def test_generate_sends_to_a_server(medha, simulated):
    done = medha("generate", "--server", simulated.address, "--prompt", "hello", "--max-tokens", 6, "--ignore-eos")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 6 and "6 tokens" in done.stderr
    done = medha("generate", "--server", simulated.address, "--prompt-ids", "5,6", "--max-tokens", 3, "--json")
    reported = json.loads(done.stdout)
    assert len(reported["token_ids"]) == 3 and reported["prompt_tokens"] == 2
    done = medha("generate", "--server", simulated.address, "--prompt-ids", "5,99999")
    assert done.returncode == 2
    assert "INVALID_ARGUMENT: token id 99999 is outside the vocabulary; allowed are 0 to 2047" in done.stderr
    assert "--mesh beside --server" in refused(
        medha("generate", "--server", simulated.address, "--prompt", "a", "--mesh", "tp=2")
    )
    assert "--timeout without --server" in refused(medha("generate", "--prompt", "a", "--timeout", 3))


@pytest.fixture(scope="session")
def simulated():
    with ServerProcess("-m", "benchmarks.simulated_server", "--tick-ms", 2) as started:
        yield started


def test_what_cannot_work_is_refused_before_any_load(medha, model, files, tmp_path):
    """One line, a non-zero exit, and no line of a load."""
    (tmp_path / "garbage.pem").write_text("garbage")
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "named").write_text(f"first {TOKEN}\n\nsecond one {OTHER}\n")
    (tmp_path / "unknown.yaml").write_text("prot: 1\n")
    (tmp_path / "wrong.yaml").write_text("slots: many\n")
    (tmp_path / "list.yaml").write_text("[1, 2]\n")
    pair = ("--tls-cert", files / "server.pem", "--tls-key", files / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            (("--model", tmp_path / "none"), "does not exist"),
            (("--model", tmp_path), "no tokenizer.json"),
            (("--port", port), f"cannot listen on 127.0.0.1:{port}"),
            (("--port", 0, "--metrics-port", port), f"127.0.0.1:{port} for metrics"),
            (("--host", "192.0.2.1", "--insecure", "--port", 0), "cannot listen on 192.0.2.1:0"),
            (("--host", "0.0.0.0"), "--insecure in a network that you trust"),
            (("--tls-cert", files / "server.pem"), "TLS needs a certificate and its key"),
            (("--tls-cert", tmp_path / "garbage.pem", "--tls-key", files / "server.key"), "not a certificate"),
            (("--tls-cert", files / "client.pem", "--tls-key", files / "server.key"), "not a certificate and its key"),
            (("--tls-cert", tmp_path / "none.pem", "--tls-key", files / "server.key"), "cannot read"),
            ((*pair, "--tls-ca", tmp_path / "garbage.pem"), "no certificate of an authority"),
            (("--auth-token-file", tmp_path / "none"), "cannot read"),
            (("--auth-token-file", tmp_path / "short"), "at least 16"),
            (("--auth-token-file", tmp_path / "empty"), "no token"),
            (("--auth-token-file", tmp_path / "named"), f"{tmp_path / 'named'}, line 3: holds 3 words"),
            (("--trace", tmp_path / "none" / "trace.json"), "trace.json"),
            (("--config", tmp_path / "unknown.yaml"), "unknown options prot; allowed are "),
            (("--config", tmp_path / "wrong.yaml"), "Invalid value for '--slots'"),
            (("--config", tmp_path / "list.yaml"), "must be a mapping"),
            (("--max-context", 10**9), "more than the model's context"),
            (("--access-log", "loud"), "text, json, off"),
        ]
        defaults = {"--model": model, "--port": 0}
        for arguments, message in cases:
            given = [value for name, stated in defaults.items() if name not in arguments for value in (name, stated)]
            done = medha("serve", *given, *arguments)
            assert done.returncode in (1, 2) and done.stdout == "", (arguments, done.stderr)
            lines = [line for line in done.stderr.splitlines() if not line.startswith("metrics on")]
            assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], (arguments, done.stderr)


def test_options_of_the_scheduler_reach_it(monkeypatch):
    seen = []
    monkeypatch.setattr(serving, "_serve", lambda settings, runtime, scheduling, *rest: seen.append(scheduling))
    monkeypatch.setattr(serving.signal, "signal", lambda *given: None)
    assert run(["serve", "--policy", "fcfs", "--no-chunk-preemption", "--tpot-target-ms", "20"]) == 0
    assert run(["serve"]) == 0
    assert [(config.policy, config.chunk_preemption, config.tpot_target_s) for config in seen] == [
        ("fcfs", False, 0.02),
        ("red", True, 0.05),
    ]


@pytest.mark.parametrize(
    ("lines", "log", "caching", "insecure"),
    [
        ("access-log: off", "off", True, False),
        ("access-log: 'off'\nprefix-cache: off\ninsecure: on", "off", False, True),
        ("access-log: text\nprefix-cache: no\ninsecure: yes", "text", False, True),
        ("prefix-cache: false\ninsecure: true", "text", False, True),
        ("access-log:\nprefix-cache: ~\ninsecure: null", "text", True, False),
    ],
)
def test_words_of_the_file_mean_what_they_mean_as_flags(monkeypatch, tmp_path, lines, log, caching, insecure):
    seen = []
    monkeypatch.setattr(
        serving, "_serve", lambda settings, runtime, scheduling, *rest: seen.append((settings, scheduling))
    )
    monkeypatch.setattr(serving.signal, "signal", lambda *given: None)
    (tmp_path / "serve.yaml").write_text(lines + "\n")
    assert run(["serve", "--config", str(tmp_path / "serve.yaml")]) == 0
    ((settings, scheduling),) = seen
    assert (settings.access_log, scheduling.prefix_cache, settings.insecure) == (log, caching, insecure)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("slots: off", "'--slots'"),
        ("slots: yes", "'--slots'"),
        ("port: 15:36", "'--port'"),
        ("access-log: on", "access_log is 'on'; allowed are text, json, off"),
        ("insecure: 2026-11-29", "'--insecure'"),
        ("policy: no", "'--policy'"),
    ],
)
def test_words_of_the_file_that_an_option_does_not_take(monkeypatch, tmp_path, capsys, lines, message):
    monkeypatch.setattr(serving, "_serve", lambda *given: None)
    monkeypatch.setattr(serving.signal, "signal", lambda *given: None)
    (tmp_path / "serve.yaml").write_text(lines + "\n")
    assert run(["serve", "--config", str(tmp_path / "serve.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_it_can_compile_every_shape_before_it_serves(monkeypatch):
    seen = []
    monkeypatch.setattr(serving, "_serve", lambda settings, *rest: seen.append(settings.compile_all_first))
    monkeypatch.setattr(serving.signal, "signal", lambda *given: None)
    assert run(["serve", "--compile-all-first"]) == 0 and run(["serve"]) == 0
    assert seen == [True, False]


def test_limits_of_unread_output_are_options(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(serving, "_serve", lambda settings, *rest: seen.append(settings.limits))
    monkeypatch.setattr(serving.signal, "signal", lambda *given: None)
    flags = ["--unread-bytes", "70000", "--unread-total-bytes", "80000", "--write-seconds", "2.5"]
    assert run(["serve", *flags]) == 0 and run(["serve"]) == 0
    found = [(limits.unread_bytes, limits.unread_total_bytes, limits.write_seconds) for limits in seen]
    assert found == [(70000, 80000, 2.5), (8 * 2**20, 256 * 2**20, 60.0)]
    for name, value in (("--unread-bytes", "65535"), ("--unread-total-bytes", "0"), ("--write-seconds", "0")):
        assert run(["serve", name, value]) != 0
        assert name.strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")
    assert len(seen) == 2


def test_every_setting_of_the_scheduler_is_a_flag_and_a_line_of_the_file(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(serving, "_serve", lambda settings, runtime, scheduling, *rest: seen.append(scheduling))
    monkeypatch.setattr(serving.signal, "signal", lambda *given: None)
    stated = {
        "policy": "lars",
        "chunk-preemption": False,
        "tpot-target-ms": 40.0,
        "prefix-cache": False,
        "max-queue": 7,
        "max-queue-tokens": 8000,
        "tenant-queue-tokens": 4000,
        "deadline-margin": 0.5,
        "relegated-share": 0.25,
        "relegated-tokens": 4096,
        "rho-max": 0.125,
        "ttft-multiple": 2.0,
        "ttft-floor-s": 0.75,
        "tpot-floor-ms": 5.0,
        "idle-tick-s": 0.1,
        "slice-ms": 20.0,
        "long-tokens": 1000,
        "ageing-ticks": 9,
        "preemption": False,
        "max-preemptions": 0,
        "growth-pages": 3,
        "reserve-output": True,
        "bypass-s": 3.0,
        "priority-share": 0.2,
    }
    flags = []
    for name, value in stated.items():
        flags.append(f"--no-{name}" if value is False else f"--{name}")
        flags += [] if isinstance(value, bool) else [str(value)]
    (tmp_path / "serve.yaml").write_text(json.dumps(stated))
    assert run(["serve", *flags]) == 0 and run(["serve", "--config", str(tmp_path / "serve.yaml")]) == 0
    assert run(["serve", "--config", str(tmp_path / "serve.yaml"), "--long-tokens", "2000"]) == 0
    first, second, third = seen
    assert first == second and third == dataclasses.replace(first, long_tokens=2000)
    default = SchedulerConfig()
    changed = [field.name for field in dataclasses.fields(first)]
    assert len(changed) == len(stated)
    assert all(getattr(first, name) != getattr(default, name) for name in changed)
    assert (first.tpot_target_s, first.tpot_floor_s, first.max_waiting) == (0.04, 0.005, 7)


def test_sigterm_before_it_is_ready_ends_it_at_once(model, environment):
    with subprocess.Popen(
        [*COMMAND, "serve", "--model", model, "--port", "0"],
        env=environment | {"MEDHA_JAX_CACHE": "/nonexistent"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if line.startswith("compiling"):
                break
        process.send_signal(signal.SIGHUP)  # which ends nothing
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0 and time.monotonic() - began < 10
        assert process.stdout.read() == ""


def test_the_end_of_a_server_leaves_a_trace_and_the_time_of_its_ticks(served, files, environment, connection):
    """Last in this module: it ends the server."""
    assert served.stop() == 0
    trace = json.loads((files / "trace.json").read_text())
    assert trace["traceEvents"] if isinstance(trace, dict) else trace
    assert list((Path(environment["MEDHA_JAX_CACHE"]) / "time_models").glob("*.json"))
    with Client(connection) as client, pytest.raises(ServerError, match="UNAVAILABLE"):
        client.model(timeout=5)
