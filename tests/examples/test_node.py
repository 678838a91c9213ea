"""The Node client against a server; needs Node and the packages of examples/node (`npm install` there)."""

import shutil
import subprocess

import pytest

from medha_jax.client import Client, Delta
from tests.server.processes import ROOT, SIMULATED, ServerProcess

EXAMPLE = ROOT / "examples" / "node"


def has_packages():
    """Whether Node finds the packages, beside the example or in NODE_PATH."""
    found = ["node", "-e", "require('@grpc/grpc-js'); require('@grpc/proto-loader')"]
    return shutil.which("node") and subprocess.run(found, cwd=EXAMPLE, capture_output=True, check=False).returncode == 0


def node(*arguments):
    command = ["node", "generate.js", *map(str, arguments)]
    return subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not has_packages(), reason="Node or the packages of examples/node are not installed")
def test_the_node_example_streams_the_same_text():
    with ServerProcess(*SIMULATED) as server:
        with Client(server.address) as client:
            events = client.generate("import unittest", max_tokens=9, temperature=0)
            text = "".join(event.text for event in events if isinstance(event, Delta))
        done = node(server.address, "import unittest", 9)
        assert (done.returncode, done.stdout) == (0, text), done.stderr
        assert "9 tokens" in done.stderr and "FINISH_REASON_LENGTH" in done.stderr
        done = node(server.address, "import unittest", 9000)
        assert done.returncode == 1 and "INVALID_ARGUMENT: max_tokens is 9000; allowed is [1, 8191]" in done.stderr
