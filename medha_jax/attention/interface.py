"""What the runtime knows of attention, whatever computes it.

A third implementation is a class with these methods, in this folder, and a case in `implementations.choose`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax import Array

from medha_jax.attention.pool import Pool
from medha_jax.specs.buckets import Bucket

Fields = Mapping[str, Array]  # of a plan on the device, by name
FieldViews = Mapping[str, np.ndarray]  # of a plan on the host, to write into


@dataclass(frozen=True)
class PlanField:
    """One field of a plan, int32.

    Args:
        name: of the field.
        shape: e.g. one number for each row of the tick; `()` is a single number.
        meaning: in a sentence.
    """

    name: str
    shape: tuple[int, ...]
    meaning: str


class RowRun(NamedTuple):
    """Consecutive rows of one request in a tick, as one group sees them.

    Positions are local: counted from the first token of the request that this group holds. A tuple, because every tick
    makes one for each request.

    Args:
        row: the first row in the tick.
        length: rows.
        slot: of the request.
        start: local position of the first row; beyond `limit` on a group that holds an earlier part of the request.
        limit: tokens of the request that the group holds once this tick's are stored; 0 where it holds none.
        owner: whether the group stores the rows' keys and values.
        shared: whether the rows are present on every group.
    """

    row: int
    length: int
    slot: int
    start: int
    limit: int
    owner: bool
    shared: bool


class WorkLayout(Protocol):
    """What the attention of one compiled shape takes from a plan."""

    @property
    def fields(self) -> Sequence[PlanField]:
        """Fields of a plan that the attention needs beside those of every tick (`runtime.plan_layout`)."""

    def write(self, view: FieldViews, runs: Sequence[RowRun]) -> None:
        """Fill in these fields, which are 0, for the runs of a tick on one group: decodes first, each one row."""

    def work(self, fields: Fields) -> Any:
        """The fields as `Attention.store` and `Attention.attend` take them; traced."""


class Attention(Protocol):
    """What stores keys and values in the paged pool and attends to them, on one mesh."""

    @property
    def name(self) -> str:
        """For people, e.g. `xla`."""

    @property
    def why(self) -> str:
        """Why the mesh has this one, for people."""

    @property
    def lowers_alone(self) -> bool:
        """Whether only one program at a time can be lowered."""

    def layout(self, bucket: Bucket) -> WorkLayout:
        """What it takes from the plans of one compiled shape."""

    def store(self, pool: Pool, layer: Array, table: Array, keys: Array, values: Array, work: Any) -> Pool:
        """Store the tick's keys and values `[rows, kv_heads, head_dim]` of one layer.

        Args:
            pool: of all layers; changed in place where it is donated.
            layer: a scalar.
            table: pages of every slot `[slots, pages_per_slot]`.
            keys: of all rows; padding rows are stored nowhere.
            values: as `keys`.
            work: of the layout of the tick's shape.
        """

    def attend(self, queries: Array, pool: Pool, layer: Array, table: Array, work: Any) -> tuple[Array, Array]:
        """Attend from every row to the tokens of its request that this pool holds, up to its own position.

        Args:
            queries: `[rows, heads, head_dim]`.
            pool: of all layers, with the keys and values of this tick.
            layer: a scalar.
            table: as for `store`.
            work: as for `store`.

        Returns:
            Output `[rows, heads, head_dim]` in the queries' dtype, and the fp32 natural log-sum-exp `[rows, heads]` of
            the scaled scores. Rows that see nothing here are 0 with a log-sum-exp of -inf.
        """
