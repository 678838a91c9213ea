"""`generate` or `serve`, and `worker`, as the two processes of one mesh."""

import contextlib
import json
import signal
import subprocess
import threading
import time

import grpc
import pytest

from medha_jax.cli.exit_codes import ENGINE_ENDED
from medha_jax.client import Client, Delta, ServerError
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.transport import PlansLink, connect, open_stream
from tests.cli.command import COMMAND, refused
from tests.runtime.cluster.conftest import free_ports
from tests.server.processes import SERVE, ServerProcess, wait_until

LAYOUT = """
kvp: {groups}
page_size: 16
tokens_per_group: {each}
buckets: {{decode: [2], prefill: [32], chunks: 1, mixed_only: true}}
shared_buckets: {{decode: [1], prefill: [32], chunks: 1, mixed_only: true}}
"""
IDS = [5 + number % 50 for number in range(100)]  # more than one group holds
SIZES = ["--slots", "4", "--pool-tokens", "256"]
STREAMS = 8


def processes(environment, model, mesh):
    """What starts process 0 of two with a command, and process 1."""
    cluster = ["--mesh", str(mesh), "--model", str(model), "--coordinator", f"127.0.0.1:{free_ports()}"]
    cluster += ["--processes", "2", "--process-id"]
    worker = [*COMMAND, "worker", *cluster, "1"]
    pipes = dict(env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [*cluster, "0"], lambda *flags: subprocess.Popen([*worker, *flags], **pipes)


def test_two_processes_print_and_serve_what_one_prints(environment, medha, model, tmp_path):
    mesh = tmp_path / "two.yaml"
    (tmp_path / "one.yaml").write_text(LAYOUT.format(groups=1, each="null"))
    mesh.write_text(LAYOUT.format(groups=2, each=64))
    prompt = ["--prompt-ids", ",".join(map(str, IDS)), "--temperature", "0", "--max-tokens", "20", "--ignore-eos"]
    alone = medha("generate", *prompt, "--json", "--model", model, "--mesh", tmp_path / "one.yaml")
    assert alone.returncode == 0, alone.stderr
    expected = json.loads(alone.stdout)["token_ids"]

    (tmp_path / "secret").write_text("known to both processes")
    secret = ["--plans-token-file", str(tmp_path / "secret")]
    first, start_worker = processes(environment, model, mesh)
    with start_worker(*secret) as following:
        leading = medha("generate", *prompt, "--json", *first, *secret)
        out, err = following.communicate(timeout=20)
    assert leading.returncode == 0, leading.stderr
    assert json.loads(leading.stdout)["token_ids"] == expected
    assert (following.returncode, out) == (0, ""), err
    assert err.endswith("process 0 is done\n")

    first, start_worker = processes(environment, model, mesh)
    served = ["--port", 0, "--drain-seconds", 60]
    with contextlib.ExitStack() as ending:
        server = ServerProcess(*SERVE, *first, *SIZES, *served, environment=environment, ready=False)
        ending.enter_context(server)
        with uninvited(plans_of(first)):
            following = ending.enter_context(start_worker(*SIZES))
            ending.callback(following.kill)  # else its end would be waited for
            server.wait_ready()
        assert server.errors.count("process 1 was refused: it does not know the secret of this mesh") == 1
        with Client(server.address) as client:
            for process in (following, server.process):
                process.send_signal(signal.SIGHUP)  # which ends neither
            events = list(client.generate(IDS, temperature=0, max_tokens=20, ignore_eos=True))
            assert [token for event in events if isinstance(event, Delta) for token in event.token_ids] == expected
            assert [pool.total_pages for pool in client.load().pools] == [16, 16]
            streams = Streams(client, tokens=50)
            following.send_signal(signal.SIGTERM)
            assert [len(tokens) for tokens in streams.ends()] == [50] * STREAMS
        assert (server.process.wait(30), following.wait(30)) == (0, 0), server.errors
        assert "process 1 was asked to end, so all processes do\nstopping: 8 streams have" in server.errors
        assert following.stderr.read().endswith("process 0 is done\n")


def plans_of(arguments):
    """Where a process 0 with these arguments serves plans."""
    host, port = arguments[arguments.index("--coordinator") + 1].split(":")
    return PlansLink(f"{host}:{int(port) + 1}", 2**20, 10)


@contextlib.contextmanager
def uninvited(link):
    """Whom process 0 does not wait for: a process 1 that knows no secret, and streams that say nothing."""
    over = threading.Event()

    def nothing():
        over.wait(60)
        yield from ()

    with connect(link) as channel:
        grpc.channel_ready_future(channel).result(60)
        with pytest.raises(grpc.RpcError, match="it does not know the secret"):
            next(open_stream(channel, iter([pb.FollowerMessage(hello=pb.Hello(process=1, digest="x"))])))
        silent = [open_stream(channel, nothing()) for _ in range(5)]
        try:
            yield
            for stream in silent:
                with pytest.raises(grpc.RpcError, match="no hello came within 5 s"):
                    next(stream)
        finally:
            over.set()


class Streams:
    """Requests that run beside each other, in threads of their own; made when the first ones have tokens."""

    def __init__(self, client, tokens):
        self._client, self._tokens = client, tokens
        self._ends, self._got = {}, 0
        self._threads = [threading.Thread(target=self._read, args=(number,)) for number in range(STREAMS)]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self._got >= 2, 30)

    def ends(self):
        """Of each stream its tokens, or the error that ended it."""
        for thread in self._threads:
            thread.join(60)
        return [self._ends[number] for number in range(STREAMS)]

    def _read(self, number):
        tokens = []
        try:
            for event in self._client.generate([5 + number] * 5, max_tokens=self._tokens, ignore_eos=True):
                if isinstance(event, Delta):
                    self._got += not tokens
                    tokens += event.token_ids
            self._ends[number] = tokens
        except ServerError as error:
            self._ends[number] = error


def test_a_worker_that_is_killed_ends_every_stream_with_a_sentence(environment, model, tmp_path):
    mesh, trace = tmp_path / "two.yaml", tmp_path / "trace.json"
    mesh.write_text(LAYOUT.format(groups=2, each=64))
    first, start_worker = processes(environment, model, mesh)
    served = ["--port", 0, "--trace", trace, "--access-log", "json"]
    with (
        start_worker(*SIZES) as following,
        ServerProcess(*SERVE, *first, *SIZES, *served, environment=environment) as server,
    ):
        with Client(server.address) as client:
            streams = Streams(client, tokens=120)
            following.kill()
            began, ends = time.monotonic(), streams.ends()
            assert time.monotonic() - began < 5
        assert server.process.wait(20) == ENGINE_ENDED
        assert time.monotonic() - began < 10
        said = "lost process 1: its connection broke, or it was silent for 10 s"
        for end in ends:
            assert isinstance(end, ServerError) and end.code == "UNAVAILABLE", end
            assert end.message.startswith(said), end.message
        errors = server.errors
        assert f"error: {said}" in errors and "Traceback" not in errors
        calls = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
        ended = [call for call in calls if call["method"].endswith("Generate")]
        assert [(call["code"], call["message"].startswith(said)) for call in ended] == [("UNAVAILABLE", True)] * STREAMS
        assert json.loads(trace.read_text())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--coordinator"),
        (["--coordinator", "127.0.0.1:1"], "--processes and --process-id must be given, too"),
        (["--coordinator", "auto"], "give --plans HOST:PORT of process 0 where --coordinator is detected"),
        (["--coordinator", "127.0.0.1:1", "--processes", "2", "--process-id", "2"], "--process-id is 2; allowed are 0"),
        (["--coordinator", "10.1.1.1:1", "--processes", "2", "--process-id", "1"], "Give --trusted-network"),
        (["--coordinator", "127.0.0.1:1", "--tls-cert", "a.pem"], "missing: --tls-key, --tls-ca"),
    ],
)
def test_options_that_cannot_work_are_refused(medha, model, arguments, message):
    assert message in refused(medha("worker", "--model", model, *arguments))


def test_options_of_a_cluster_need_a_coordinator(generate):
    done = generate("--prompt", "a", "--process-id", "1")
    assert "--process-id given without --coordinator; give it, or none of them" in refused(done)
