"""The Python examples, run as their readers run them: in processes of their own, with the bundled model."""

import ast
import os
import re
import subprocess
import sys

import pytest

from medha_jax.client import Client, Delta
from tests.server.processes import ON_CPU, ROOT, SEARCHED, SERVE, ServerProcess, idle, wait_until

EXAMPLES = ROOT / "examples" / "python"
SERVER = [*SERVE, "--model", "tiny", "--mesh", "cpu-small", "--max-context", "1024", "--port", "0"]


def example(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = os.environ | ON_CPU | {"PYTHONPATH": SEARCHED}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def server():
    with ServerProcess(*SERVER) as process:
        yield process


def test_the_client_streams_keeps_a_target_cancels_and_asks_for_several_at_once(server):
    with Client(server.address) as client:
        events = client.generate("import unittest", max_tokens=40, temperature=0)
        text = "".join(event.text for event in events if isinstance(event, Delta))
        done = example("client.py", server.address, "import unittest")
        assert done.returncode == 0, done.stderr
        assert text in done.stdout
        assert re.search("^length: 40 tokens, the first after [0-9]+ ms$", done.stdout, re.MULTILINE)
        assert re.search("^first token in time: (True|False)$", done.stdout, re.MULTILINE)
        assert "cancelled after " in done.stdout
        together = [line for line in done.stdout.splitlines() if line.startswith(("'", '"'))]
        assert len(together) == 3
        assert text.startswith(ast.literal_eval(together[0]))  # a request's tokens do not depend on its neighbours
        wait_until(lambda: idle(client))


def test_the_client_says_what_the_server_refuses(server):
    done = example("client.py", server.address, "")
    assert done.returncode == 1
    assert done.stderr.startswith("error: INVALID_ARGUMENT: ")


def test_an_embedded_server_answers_as_a_served_one_and_ends(server):
    with Client(server.address) as client:
        events = client.generate("import unittest", max_tokens=20, temperature=0)
        text = "".join(event.text for event in events if isinstance(event, Delta))
    done = example("embedding.py", "import unittest")
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    assert first.startswith("serving tiny on 127.0.0.1:")
    assert rest == text + "\n"
