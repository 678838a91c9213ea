"""Fixtures that several parts share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import settings

from medha_jax.collector import exempt_live_objects
from medha_jax.config import Buckets
from medha_jax.mesh import request_cpu_devices
from medha_jax.runtime import MeshExecutor
from medha_jax.runtime.executables import use_compilation_cache
from medha_jax.runtime.programs import Programs
from medha_jax.text import Tokenizer
from tests.compiling import AS_USERS, AT_ONCE, FOR_MANY_TICKS, xla_flags
from tests.forking import Forker
from tests.small import small_executor

# a shell that starts the tests in the background makes them, and the commands they start, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)

# an example may take as long as it takes: the machine may be busy
settings.register_profile("untimed", settings(settings.default, deadline=None))
settings.load_profile("untimed")

# workers that run beside each other take a core each: XLA's threads are slow where they wait for one another's
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER is not None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})

# Tests that ask their own servers without the package's client need no proxy either. Without a proxy nothing is set,
# because processes of a mesh say so on standard error.
if any(name.lower().endswith("_proxy") for name in os.environ):
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"

DEVICES = 8
request_cpu_devices(DEVICES)

os.environ["XLA_FLAGS"] = xla_flags(os.environ["XLA_FLAGS"], AT_ONCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the comparisons with transformers: twenty long ones at the end would keep one worker busy."""
    items.sort(key=lambda item: "reference" not in item.path.parts)


def pytest_collection_finish() -> None:
    """What was imported stays; looking through it for garbage was 8 % of making a runtime."""
    exempt_live_objects()


@pytest.fixture(scope="session", autouse=True)
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache directory of commands that tests start: of this run, for all tests and workers.

    The backend starts with all devices, whichever test comes first: a command that is run in a test asks for as many
    as it needs.
    """
    assert jax.device_count() == DEVICES
    use_compilation_cache(request.config.cache.mkdir("programs"))
    base = tmp_path_factory.getbasetemp()
    return (base if WORKER is None else base.parent) / "programs"


@pytest.fixture(autouse=True)
def own_programs(request: pytest.FixtureRequest) -> None:
    """Each test begins with the cache that the next run finds again; the test before may have used another one."""
    use_compilation_cache(request.config.cache.mkdir("programs"))


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Starts processes that need not import JAX again."""
    forker = Forker()
    yield forker
    forker.close()


@pytest.fixture
def as_users_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks with everything that XLA does where nobody states options."""
    monkeypatch.setattr(Programs, "compiler_options", AS_USERS)


@pytest.fixture
def for_many_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks that take longer to compile and less to run."""
    monkeypatch.setattr(Programs, "compiler_options", FOR_MANY_TICKS)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of 256 entries, one a byte, for models whose tokens mean nothing."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Fast(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    directory: Path = tmp_path_factory.mktemp("bytes")
    fast.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({}))
    return Tokenizer.from_directory(directory)


@pytest.fixture(scope="session")
def executor() -> MeshExecutor:
    """A runtime of three shapes for a small random model; tests leave no request behind in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "compiler_options", FOR_MANY_TICKS)
        return small_executor(buckets=Buckets(decode=(8,), prefill=(32, 128), chunks=4, slices=()))
