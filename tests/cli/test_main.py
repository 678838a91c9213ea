import subprocess
import sys

import pytest

import medha_jax
from medha_jax import cli
from medha_jax.plan import InvalidRequestError


def test_help_is_quick_because_it_imports_nothing_heavy(environment):
    script = (
        "import sys\nfrom medha_jax.cli import run\nrun(['generate', '--help'])\n"
        "sys.exit(', '.join({'jax', 'grpc', 'google.protobuf'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--prompt-file" in done.stdout


def test_version_and_help(medha):
    assert medha("--version").stdout == f"medha-jax {medha_jax.__version__}\n"
    done = medha()
    assert done.returncode == 0
    assert "generate" in done.stdout and "convert" in done.stdout


def raising(error):
    def command(**given):
        raise error

    return command


@pytest.mark.parametrize(
    "error, code, message",
    [
        (InvalidRequestError("first\n  - second"), 2, "error: first - second"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (RuntimeError("RESOURCE_EXHAUSTED: 8 GB"), 1, "error: out of memory: RESOURCE_EXHAUSTED: 8 GB; give a "),
        (MemoryError("8 GB"), 1, "error: out of memory: 8 GB; give a smaller --max-context"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_one_line(monkeypatch, capsys, error, code, message):
    monkeypatch.setattr(cli, "app", raising(error))
    assert cli.run(["generate"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and err.count("\n") == bool(message)


@pytest.mark.parametrize("error", [ValueError("broadcast"), RuntimeError("INTERNAL"), KeyError("x")])
def test_defects_keep_their_traceback(monkeypatch, error):
    monkeypatch.setattr(cli, "app", raising(error))
    with pytest.raises(type(error)):
        cli.run(["generate"])
