"""`generate` and `worker` as the two processes of one mesh."""

import subprocess

import pytest

from tests.cli.command import COMMAND, refused
from tests.runtime.cluster.conftest import free_ports

LAYOUT = "tp: {tp}\nbuckets: {{decode: [1], prefill: [32], chunks: 1}}\nshared_buckets: null\n"
PROMPT = ["--prompt-ids", "5,6,7,8", "--temperature", "0", "--max-tokens", "6", "--ignore-eos"]


def test_two_processes_print_what_one_prints(environment, model, tmp_path):
    for tp in (1, 2):
        (tmp_path / f"{tp}.yaml").write_text(LAYOUT.format(tp=tp))
    generate = [*COMMAND, "generate", "--model", str(model), *PROMPT, "--mesh"]
    common = dict(env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    alone = subprocess.run([*generate, str(tmp_path / "1.yaml")], **common, timeout=100)
    assert alone.returncode == 0, alone.stderr
    cluster = ["--coordinator", f"127.0.0.1:{free_ports()}", "--processes", "2", "--process-id"]
    worker = [*COMMAND, "worker", "--model", str(model), "--mesh", str(tmp_path / "2.yaml"), *cluster, "1"]
    with subprocess.Popen(worker, **common) as following:
        try:
            leading = subprocess.run([*generate, str(tmp_path / "2.yaml"), *cluster, "0"], **common, timeout=100)
            out, err = following.communicate(timeout=20)
        finally:
            following.kill()
    assert (leading.returncode, leading.stdout) == (0, alone.stdout), leading.stderr
    assert (following.returncode, out) == (0, ""), err
    assert err.endswith("process 0 is done\n")


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
def test_options_that_cannot_work_are_refused(environment, model, arguments, message):
    command = [*COMMAND, "worker", "--model", str(model), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert message in refused(done)


def test_options_of_a_cluster_need_a_coordinator(environment, model):
    command = [*COMMAND, "generate", "--model", str(model), "--prompt", "a", "--process-id", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "--process-id given without --coordinator; give it, or none of them" in refused(done)
