"""The stream of plans without JAX's part: who is let in, and what protects it."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest

from medha_jax.net import TlsFiles
from medha_jax.plan import Admission, Chunk, Slice, StepPlan
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster import ClusterConfig, ClusterError, ClusterSettingError, tls_files
from medha_jax.runtime.cluster.follower import Follower
from medha_jax.runtime.cluster.secret import MeshSecret
from medha_jax.runtime.cluster.transport import open_stream, read_tls
from medha_jax.runtime.cluster.wire import encode_masks, encode_slice
from medha_jax.runtime.tick_results import SliceHandle
from medha_jax.specs.buckets import NO_ROWS, Bucket
from tests.runtime.cluster.streams import HELLO, end, join, lead, link
from tests.server.processes import wait_until

pytestmark = pytest.mark.timeout(60)


def make_tls(directory: Path, authority: Path, name: str) -> TlsFiles:
    """A certificate for 127.0.0.1 of an authority, which is made if it is not there."""

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca, ca_key = authority / "ca.pem", authority / "ca.key"
    if not ca.exists():
        openssl("req", "-x509", *key, "-subj", "/CN=authority", "-days", 2, "-keyout", ca_key, "-out", ca)
    cert, own, request, names = (directory / f"{name}.{kind}" for kind in ("pem", "key", "csr", "ext"))
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("req", *key, "-subj", f"/CN={name}", "-keyout", own, "-out", request)
    signed = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", 2, "-extfile", names)
    openssl("x509", "-req", "-in", request, *signed, "-out", cert)
    return TlsFiles(cert, own, ca)


class Recorder:
    """Stands for the mesh executor of a follower."""

    def __init__(self) -> None:
        self.admitted: list[int] = []
        self.adopted: list[tuple[int, int, tuple[int, ...]]] = []
        self.slices: list[Slice] = []
        self.masked: list[tuple[tuple[int, ...], list[list[int]]]] = []

    def admit(self, admission: Admission) -> None:
        self.admitted.append(admission.slot)

    def adopt(self, slot: int, group: int, pages: tuple[int, ...]) -> None:
        self.adopted.append((slot, group, pages))

    def set_masks(self, slots: tuple[int, ...], masks: np.ndarray) -> None:
        self.masked.append((slots, masks.tolist()))

    def submit_slice(self, work: Slice) -> SliceHandle:
        self.slices.append(work)
        return SliceHandle(StepPlan(()), Bucket(NO_ROWS), Broken() if work.past == 4 else np.zeros(1))


class Broken:
    """A result that never comes."""

    def block_until_ready(self) -> None:
        raise RuntimeError("it broke")


def test_plans_of_a_round_travel_once_and_an_error_ends_the_follower() -> None:
    ended: list[str] = []
    leader, recorder = lead(), Recorder()
    follower = join(leader, end=ended.append)
    threading.Thread(target=lambda: follower.run(lambda: recorder), daemon=True).start()
    leader.wait_ready(5)
    chunk = Chunk(0, 0, 2, (5, 6), False, 0, (3,))
    first, second = (StepPlan((chunk,)), StepPlan(())), (StepPlan(()), StepPlan((chunk,)))
    sent = [Slice(first, 0, 1), Slice(first, 1, 3), Slice(second, 0, 2), Slice(second, 2, 4)]
    before: tuple[StepPlan, ...] = ()
    for work in sent:
        message = encode_slice(work, before)
        assert bool(message.stages) == (work.first == 0)
        leader.broadcast(pb.Command(slice=message))
        before = work.stages
    wait_until(lambda: ended)
    assert recorder.slices == sent
    assert ended == ["process 1 failed: it broke"]
    leader.stop("done", failed=False)


def run_through(tls: TlsFiles | None) -> None:
    """Join, a few commands, a clean end."""
    leader, recorder = lead(tls=tls), Recorder()
    follower, reasons = join(leader, tls), []
    thread = threading.Thread(target=lambda: reasons.append(follower.run(lambda: recorder)))
    thread.start()
    leader.wait_joined(5)
    leader.wait_ready(5)
    for slot in (4, 2, 3):
        leader.broadcast(pb.Command(admit=pb.Admit(slot=slot, sampling=sampling())))
        leader.broadcast(pb.Command(adopt=pb.Adopt(slot=slot, group=1, pages=[slot, 9])))
    leader.broadcast(pb.Command(masks=encode_masks([2, 4], np.array([[1, 2**32 - 1], [0, 7]], np.uint32))))
    leader.stop("done", failed=False)
    thread.join(10)
    assert recorder.masked == [((2, 4), [[1, 2**32 - 1], [0, 7]])]
    assert recorder.adopted == [(slot, 1, (slot, 9)) for slot in (4, 2, 3)]
    assert (reasons, recorder.admitted) == (["done"], [4, 2, 3])


def sampling() -> pb.Sampling:
    return pb.Sampling(top_p=1, repetition_penalty=1)


def test_commands_run_in_order_until_the_clean_end() -> None:
    run_through(None)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with the openssl command")
def test_mutual_tls(tmp_path: Path) -> None:
    own, strangers = tmp_path / "own", tmp_path / "strangers"
    own.mkdir()
    strangers.mkdir()
    leaders, followers = make_tls(own, own, "leader"), make_tls(own, own, "follower")
    stranger = make_tls(strangers, strangers, "stranger")
    run_through(leaders)
    ended: list[str] = []
    leader = lead(ended, leaders)
    with pytest.raises(ClusterError, match="does not answer within 1 s"):
        join(leader, None, 1)  # in the open
    with pytest.raises(ClusterError, match="does not answer within 1 s"):
        join(leader, TlsFiles(stranger.cert, stranger.key, leaders.ca), 1)
    join(leader, followers)
    leader.wait_joined(1)
    leader.stop("done", failed=False)
    assert ended == []


def test_a_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("makes certificates with the openssl command")
    tls = make_tls(tmp_path, tmp_path, "leader")
    leader = lead(tls=tls)
    channel = grpc.secure_channel(f"127.0.0.1:{leader.port}", grpc.ssl_channel_credentials(tls.ca.read_bytes()))
    stream = open_stream(channel, iter([pb.FollowerMessage(hello=pb.Hello(process=1, **HELLO))]))
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(ClusterError, match="process 1 did not connect"):
        leader.wait_joined(0.1)
    channel.close()
    leader.stop("done", failed=False)


def test_a_follower_that_is_asked_to_end_asks_process_0() -> None:
    leaving: list[int] = []
    parted: list[str] = []
    leader = lead(leaving=leaving.append)
    follower = join(leader, part=parted.append)
    follower.leave()
    wait_until(lambda: leaving)
    leader.stop("all were asked to end", failed=False)  # before it was ready: it may wait for the others for ever
    wait_until(lambda: parted)
    assert (leaving, parted) == ([1], ["all were asked to end"])
    Follower(pb.Hello(process=1), link(leader.port), end, parted.append).leave()
    assert parted[1:] == ["stopped before process 0 let it in"]


def test_a_start_that_is_given_up_ends_followers_that_are_ready() -> None:
    parted: list[str] = []
    leader = lead()
    follower = join(leader, part=parted.append)
    threading.Thread(target=lambda: follower.run(Recorder), daemon=True).start()
    leader.wait_ready(5)
    leader.stop("process 0 was stopped before it was ready", failed=False, at_once=True)
    assert parted == ["process 0 was stopped before it was ready"]


def test_a_lost_process_is_told_before_this_one_ends() -> None:
    told: list[str] = []
    leader = lead(end=lambda text: told.append(f"end: {text}"), lost=lambda text: told.append(f"lost: {text}"))
    join(leader)._channel.close()
    wait_until(lambda: len(told) == 2)
    assert [line.partition("lost process 1")[0] for line in told] == ["lost: ", "end: "]


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    both = dict(processes=2, process=0)
    for settings, message in [
        (dict(coordinator="host", **both), "--coordinator is 'host'; give HOST:PORT"),
        (dict(coordinator="127.0.0.1:80"), "--processes and --process-id must be given, too"),
        (dict(coordinator="127.0.0.1:80", processes=2, process=2), "--process-id is 2; allowed are 0 to 1"),
        (dict(coordinator="127.0.0.1:80", processes=1, process=0), "--processes is 1; it must be at least 2"),
        (dict(), "give --plans HOST:PORT of process 0"),
        (dict(coordinator="10.0.0.1:80", **both), "10.0.0.1:80 is not on loopback.* Give --trusted-network"),
        (dict(coordinator="127.0.0.1:80", plans="0.0.0.0:81", **both), "0.0.0.0:81 is not on loopback"),
        (dict(plans="127.0.0.1:81"), "a coordinator that is detected listens on every interface"),
        (dict(coordinator="10.0.0.1:80", trusted=True, **both), "plans at 10.0.0.1:81; give --plans-token-file, or a"),
        (dict(coordinator="127.0.0.1:80", heartbeat=0, **both), "heartbeat is 0 s"),
    ]:
        with pytest.raises(ClusterSettingError, match=message):
            ClusterConfig(**settings)
    ClusterConfig(coordinator="10.0.0.1:80", trusted=True, token_file=tmp_path, **both)
    tls = TlsFiles(tmp_path, tmp_path, tmp_path)
    assert ClusterConfig(coordinator="10.0.0.1:80", trusted=True, tls=tls, **both).secret == MeshSecret()
    assert ClusterConfig(coordinator="[::1]:80", **both).plans_address == "[::1]:81"
    with pytest.raises(ClusterSettingError, match="missing: --tls-key, --tls-ca"):
        tls_files(tmp_path, None, None)
    with pytest.raises(ClusterSettingError, match="cannot read .*nowhere: No such file"):
        read_tls(TlsFiles(tmp_path / "nowhere", tmp_path, tmp_path))
