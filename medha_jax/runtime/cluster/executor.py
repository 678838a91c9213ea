"""The mesh executor of process 0 where the mesh spans several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from medha_jax.config import RuntimeConfig
from medha_jax.plan import SamplingParams, StepPlan
from medha_jax.protos import plans_pb2 as pb
from medha_jax.runtime.cluster.errors import ClusterError
from medha_jax.runtime.cluster.leader import Leader
from medha_jax.runtime.cluster.wire import Admission, decode_results, encode_admission, encode_plan
from medha_jax.runtime.executor import MeshExecutor, TickHandle, TokenResult
from medha_jax.specs.buckets import Bucket
from medha_jax.specs.layout import Layout
from medha_jax.specs.model import Architecture
from medha_jax.specs.sizes import Sizes

T = TypeVar("T")


@dataclass(frozen=True)
class ClusterHandle:
    """A tick that every process was told to run."""

    sequence: int
    own: TickHandle

    @property
    def leaving(self) -> StepPlan:
        """The plan that leaves the last stage in it."""
        return self.own.leaving

    @property
    def bucket(self) -> Bucket:
        """The shape that it runs in."""
        return self.own.bucket


class ClusterExecutor:
    """Runs plans on the devices of all processes; looks like the `MeshExecutor` of a single one.

    Every command goes to the followers before process 0 runs it itself. To be used as a context: leaving it stops
    the followers, with an error if one is on its way.

    Args:
        executor: of this process.
        leader: whose followers are ready.
    """

    def __init__(self, executor: MeshExecutor, leader: Leader) -> None:
        self._executor = executor
        self._leader = leader
        self.config: RuntimeConfig = executor.config
        self.arch: Architecture = executor.arch
        self.layout: Layout = executor.layout
        self.sizes: Sizes = executor.sizes
        self._closed = self._failed = False

    @property
    def context(self) -> int:
        """Most tokens of one request, prompt and output."""
        return self._executor.context

    @property
    def pages(self) -> int:
        """Pages in each group's pool."""
        return self._executor.pages

    @property
    def per_group(self) -> int:
        """Tokens of one request that a group holds; without bound where there is one group only."""
        return self._executor.per_group

    @property
    def prefix_cacheable(self) -> bool:
        """Whether the KV of a prefix is the same whatever follows it."""
        return self._executor.prefix_cacheable

    @property
    def ahead(self) -> int:
        """Ticks that are dispatched before the results of those before them are read."""
        return self._executor.ahead

    def usable(self) -> bool:
        """Whether all processes are in the same state: not after an error on this one alone."""
        return not self._failed and self._executor.usable()

    def renew(self) -> None:
        """Not done over processes.

        Raises:
            ClusterError: always; what the followers hold is not known, and starting all of them again is what helps.
        """
        raise ClusterError("an error took the state of one process; all processes have to be started again")

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The shapes that were compiled."""
        return self._executor.buckets

    @property
    def pool_shape(self) -> tuple[int, ...]:
        """Shape of the KV pool on all devices."""
        return self._executor.pool_shape

    @property
    def pool_bytes(self) -> int:
        """Bytes of the KV pool on all devices."""
        return self._executor.pool_bytes

    @property
    def in_flight(self) -> bool:
        """Whether a plan is in the pipeline and has not left it."""
        return self._executor.in_flight

    def admit(
        self,
        slot: int,
        sampling: SamplingParams,
        prompt: int,
        end_tokens: Sequence[int],
        prompted: Sequence[int] = (),
        generated: Sequence[int] = (),
    ) -> None:
        """Give `slot` to a request on every group; see `MeshExecutor.admit`."""
        admission = Admission(slot, sampling, prompt, tuple(end_tokens), tuple(prompted), tuple(generated))
        self._leader.broadcast(pb.Command(admit=encode_admission(admission)))
        self._run(lambda: self._executor.admit(slot, sampling, prompt, end_tokens, prompted, generated))

    def adopt(self, slot: int, group: int, pages: Sequence[int]) -> None:
        """Give filled pages to an admitted request; see `MeshExecutor.adopt`."""
        self._leader.broadcast(pb.Command(adopt=pb.Adopt(slot=slot, group=group, pages=pages)))
        self._run(lambda: self._executor.adopt(slot, group, pages))

    def submit(self, plan: StepPlan) -> ClusterHandle:
        """Dispatch one tick on every process.

        Raises:
            UnknownShapeError: the plans in flight are larger than every compiled shape; nothing was dispatched.
        """
        self._executor.bucket(plan)
        sequence = self._leader.broadcast(pb.Command(tick=encode_plan(plan)))
        return ClusterHandle(sequence, self._run(lambda: self._executor.submit(plan)))

    def collect(self, handle: ClusterHandle) -> list[TokenResult]:
        """Wait for a tick; one result a chunk of its leaving plan, in order.

        Raises:
            ClusterError: a follower's results are not those of the plan.
        """
        results = self._run(lambda: self._executor.results(handle.own))
        answering = self._executor.answering(handle.own)
        missing = {number: process for number, process in answering.items() if number not in results}
        for process in sorted(set(missing.values())):
            wanted = {number for number, of in missing.items() if of == process}
            try:
                theirs = decode_results(self._leader.results(handle.sequence, process))
            except ValueError as error:
                raise ClusterError(f"process {process} sent results that cannot be read: {error}") from None
            if set(theirs) != wanted:
                raise ClusterError(
                    f"process {process} sent results of chunks {sorted(theirs)}; expected were {sorted(wanted)}"
                )
            results.update(theirs)
        return [results[number] for number in range(len(handle.leaving.chunks))]

    def close(self, reason: str = "process 0 is done", failed: bool = False) -> None:
        """Stop the followers; further calls do nothing."""
        if not self._closed:
            self._closed = True
            self._leader.stop(reason, failed)

    def __enter__(self) -> ClusterExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.close(f"process 0 failed: {str(error) or type(error).__name__}", failed=True)

    def _run(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:
            self._failed = True
            if not isinstance(error, RuntimeError):
                raise
            self._leader.await_cause()  # a collective fails where a partner is gone
            raise
