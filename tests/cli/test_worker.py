"""`generate` or `serve`, and `worker`, as the two processes of one mesh."""

import json
import signal
import subprocess

import pytest

from medha_jax.client import Client, Delta
from tests.cli.command import COMMAND, refused
from tests.runtime.cluster.conftest import free_ports
from tests.server.processes import SERVE, ServerProcess

LAYOUT = """
kvp: {groups}
page_size: 16
tokens_per_group: {each}
buckets: {{decode: [2], prefill: [32], chunks: 1, mixed_only: true}}
shared_buckets: {{decode: [1], prefill: [32], chunks: 1, mixed_only: true}}
"""
IDS = [5 + number % 50 for number in range(100)]  # more than one group holds
SIZES = ["--slots", "4", "--pool-tokens", "256"]


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

    first, start_worker = processes(environment, model, mesh)
    with start_worker() as following:
        leading = medha("generate", *prompt, "--json", *first)
        out, err = following.communicate(timeout=20)
    assert leading.returncode == 0, leading.stderr
    assert json.loads(leading.stdout)["token_ids"] == expected
    assert (following.returncode, out) == (0, ""), err
    assert err.endswith("process 0 is done\n")

    first, start_worker = processes(environment, model, mesh)
    with start_worker(*SIZES) as following:
        with ServerProcess(*SERVE, *first, *SIZES, "--port", 0, environment=environment) as server:
            with Client(server.address) as client:
                for process in (following, server.process):
                    process.send_signal(signal.SIGHUP)  # which ends neither
                events = list(client.generate(IDS, temperature=0, max_tokens=20, ignore_eos=True))
                assert [token for event in events if isinstance(event, Delta) for token in event.token_ids] == expected
                assert [pool.total_pages for pool in client.load().pools] == [16, 16]
            assert server.stop() == 0, server.errors
        assert following.wait(20) == 0, following.stderr.read()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--coordinator"),
        (["--coordinator", "127.0.0.1:1"], "--processes and --process-id must be given, too"),
        (["--coordinator", "auto"], "give --plans HOST:PORT of process 0 where --coordinator is detected"),
        (["--coordinator", "127.0.0.1:1", "--processes", "2", "--process-id", "2"], "--process-id is 2; allowed are 0"),
        (["--coordinator", "10.1.1.1:1", "--processes", "2", "--process-id", "1"], "or --insecure in a network"),
        (["--coordinator", "127.0.0.1:1", "--tls-cert", "a.pem"], "missing: --tls-key, --tls-ca"),
    ],
)
def test_options_that_cannot_work_are_refused(medha, model, arguments, message):
    assert message in refused(medha("worker", "--model", model, *arguments))


def test_options_of_a_cluster_need_a_coordinator(generate):
    done = generate("--prompt", "a", "--process-id", "1")
    assert "--process-id given without --coordinator; give it, or none of them" in refused(done)
