"""Only who knows the secret of a mesh sends and takes plans."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster import ClusterConfig, ClusterError, ClusterSettingError
from medha_jax.runtime.cluster.follower import Follower
from medha_jax.runtime.cluster.leader import Leader, LeaderEvents
from medha_jax.runtime.cluster.secret import MeshSecret
from medha_jax.runtime.cluster.transport import CHALLENGE, listen
from tests.runtime.cluster.conftest import free_ports
from tests.runtime.cluster.streams import HELLO, end, join, lead, link

pytestmark = pytest.mark.timeout(60)


def test_who_does_not_know_the_secret_is_refused_on_both_sides(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("a secret of the mesh\n")
    wrong.write_text("another secret of it\n")
    leader = lead(secret=MeshSecret(right))
    for secret in (MeshSecret(wrong), MeshSecret()):
        with pytest.raises(ClusterError, match="it does not know the secret of this mesh"):
            join(leader, secret=secret)
    join(leader, secret=MeshSecret(right))
    leader.stop("done", failed=False)
    with fake_leader() as port, pytest.raises(ClusterError, match="does not know the secret of this mesh"):
        Follower(pb.Hello(process=1, **HELLO), link(port, secret=MeshSecret(right)), end, end).join(5)


@contextlib.contextmanager
def fake_leader() -> Iterator[int]:
    """Somebody who listens in place of process 0 and lets everybody in; gives the port."""

    def follow(incoming: Iterator[pb.FollowerMessage], context: grpc.ServicerContext) -> Iterator[pb.Command]:
        context.send_initial_metadata(((CHALLENGE, bytes(32)),))
        assert b"a secret of the mesh" not in next(incoming).SerializeToString()
        yield pb.Command(welcome=pb.Welcome(proof=bytes(32)))

    server, port = listen(follow, link(free_ports()), 1)
    server.start()
    yield port
    server.stop(0).wait()


def test_process_0_makes_a_secret_for_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    port = free_ports()
    both = dict(processes=2, process=0, coordinator=f"127.0.0.1:{port - 1}")
    secret = ClusterConfig(**both).secret
    assert secret == MeshSecret.of_port(port) and secret.file is not None
    with pytest.raises(ClusterError, match=f"is not in {secret.file}: No such file"):
        secret.read()
    leader = lead(secret=secret)
    assert (secret.file.stat().st_mode & 0o777, secret.file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with pytest.raises(ClusterError, match="cannot listen"):  # one that finds the port taken leaves the secret alone
        Leader(pb.Hello(process=0, **HELLO), 2, link(leader.port, secret=secret), LeaderEvents(end=end))
    join(leader, secret=secret)
    before = secret.read()
    leader.stop("done", failed=False)
    assert not secret.file.exists()
    secret.make()
    assert secret.read() != before
    secret.file.parent.chmod(0o755)
    for use in (secret.make, secret.read):
        with pytest.raises(ClusterError, match="is not a directory of this user alone"):
            use()


@pytest.mark.parametrize(
    ("content", "message"), [(b"short\n", "holds 5 bytes; a secret has at least 16"), (None, "cannot read .*: No such")]
)
def test_a_stated_secret_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ClusterSettingError, match=message):
        MeshSecret(file).read()
