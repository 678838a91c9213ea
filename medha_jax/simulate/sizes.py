"""What one device of a layout keeps, computes and sends, counted from the sizes of model and mesh, without JAX.

The counts are those of `medha_jax.runtime.memory` and of the collectives that `medha-jax inspect` reads from compiled
programs; tests hold them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from medha_jax.config import GROUP, STAGE, TENSOR, Buckets, MeshConfig
from medha_jax.simulate.hardware import SpecError
from medha_jax.simulate.model import Model
from medha_jax.simulate.times import Shape
from medha_jax.specs.sizes import pages_for

ITEMSIZE = {"float32": 4, "bfloat16": 2}
TABLE_BLOCK = 256  # tokens; page tables are as wide as a whole number of attention's blocks
SLOT_COLUMNS = 6 + 6 + 24  # 4-byte settings of a slot
COUNTS = 4 + 1  # bytes a vocabulary entry: how often it was generated, whether it was in the prompt


def misfits(model: Model, mesh: MeshConfig) -> list[str]:
    """What of a model cannot be divided over a mesh, with the numbers; empty if all can."""
    found = [
        f"{name} {size} is not divisible by tp={mesh.tp}"
        for name, size in (("heads", model.heads), ("FFN width", model.ffn))
        if size % mesh.tp
    ]
    if max(model.kv_heads, mesh.tp) % min(model.kv_heads, mesh.tp):
        found.append(f"KV heads {model.kv_heads} and tp={mesh.tp} do not divide one another")
    if mesh.spp > model.layers:
        found.append(f"spp={mesh.spp} is more than {model.layers} layers")
    return found


def shapes_of(mesh: MeshConfig) -> tuple[Shape, ...]:
    """Every shape that a mesh compiles."""

    def sizes(buckets: Buckets) -> list[tuple[int, int]]:
        return [(decode, prefill) for decode in buckets.decode for prefill in buckets.prefill_sizes]

    shared = mesh.shared_buckets if mesh.kvp > 1 else None
    commons = [(0, 0), *(sizes(shared) if shared is not None else [])]
    return tuple(Shape(*own, *common) for common in commons for own in sizes(mesh.buckets))


@dataclass(frozen=True)
class Collective:
    """What devices say to each other: `count` times a tick, `nbytes` of the result on one device."""

    kind: str
    axis: str
    nbytes: int
    count: int


@dataclass(frozen=True)
class DeviceSizes:
    """One device's part of a model on a mesh.

    Args:
        model: its sizes.
        mesh: the layout.
        dtype: of weights, activations and KV.

    Raises:
        SpecError: the model cannot be divided over the mesh, or the dtype has no known size.
    """

    model: Model
    mesh: MeshConfig
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise SpecError(f"dtype is {self.dtype!r}; allowed are {', '.join(ITEMSIZE)}")
        if found := misfits(self.model, self.mesh):
            raise SpecError("; ".join(found))

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return ITEMSIZE[self.dtype]

    @property
    def layers(self) -> int:
        """Of a stage, filled up: 5 on 4 stages are 2."""
        return -(-self.model.layers // self.mesh.spp)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.model.heads // self.mesh.tp

    @property
    def kv_heads(self) -> int:
        """KV heads, repeated where there are fewer than devices."""
        return max(self.model.kv_heads, self.mesh.tp) // self.mesh.tp

    @cached_property
    def vocab(self) -> int:
        """Rows of the vocabulary on all devices that share it, filled up."""
        share = self.mesh.tp * self.mesh.spp
        return -(-self.model.vocab // share) * share

    @cached_property
    def layer_weights(self) -> int:
        """Elements of one layer's matrices."""
        model = self.model
        ffn = model.ffn // self.mesh.tp
        return model.embed * (2 * (self.heads + self.kv_heads) * model.head_dim + 3 * ffn)

    @cached_property
    def head_weights(self) -> int:
        """Elements of the head that the device computes with; stages share it."""
        return self.vocab // (self.mesh.tp * self.mesh.spp) * self.model.embed

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all parameters; embedding and head are divided over `tp` alone."""
        model = self.model
        queries, keys = self.heads * model.head_dim, self.kv_heads * model.head_dim
        vectors = 2 * model.embed + model.qk_norm * 2 * model.head_dim
        vectors += model.qkv_bias * (queries + 2 * keys) + model.output_bias * model.embed
        vectors += model.mlp_bias * (2 * model.ffn // self.mesh.tp + model.embed)
        ends = (1 if model.tied_embeddings else 2) * self.vocab // self.mesh.tp * model.embed + model.embed
        return (self.layers * (self.layer_weights + vectors) + ends) * self.itemsize

    @cached_property
    def kv_token_bytes(self) -> int:
        """Bytes of a token's KV, of all the device's layers and heads."""
        return 2 * self.layers * self.kv_heads * self.model.head_dim * self.itemsize

    @cached_property
    def attention_flops(self) -> int:
        """Of one row against one token of its context, all the device's layers and heads."""
        return 4 * self.layers * self.heads * self.model.head_dim

    @cached_property
    def register_bytes(self) -> int:
        """Bytes of the hidden states that the stage receives."""
        rows = max(shape.rows for shape in shapes_of(self.mesh)) if self.mesh.spp > 1 else 1
        return rows * self.model.embed * self.itemsize

    def slot_bytes(self, slots: int, context: int) -> int:
        """Bytes of page tables, sampling settings and token counts of all slots.

        Args:
            slots: requests at once.
            context: most tokens of one request.
        """
        held = min(context, self.mesh.tokens_per_group or context) if self.mesh.kvp > 1 else context
        block = max(1, TABLE_BLOCK // self.mesh.page_size)
        width = -(-pages_for(held, self.mesh.page_size) // block) * block
        return slots * (4 * width + 4 + 4 * SLOT_COLUMNS + COUNTS * self.model.vocab)

    def pool_bytes(self, tokens: int) -> int:
        """Bytes of a group's pool of so many tokens, in whole pages."""
        return pages_for(tokens, self.mesh.page_size) * self.mesh.page_size * self.kv_token_bytes

    def samples(self, shape: Shape) -> int:
        """Rows that a token is sampled for: every decode row and the last row of every chunk."""
        shared = self.mesh.shared_buckets or self.mesh.buckets
        chunks = self.mesh.buckets.chunks * bool(shape.own_prefill) + shared.chunks * bool(shape.shared_prefill)
        return shape.own_decode + shape.shared_decode + chunks

    def collectives(self, shape: Shape) -> tuple[Collective, ...]:
        """Everything that the device sends and receives in one tick of a shape."""
        mesh, model, size = self.mesh, self.model, self.itemsize
        hidden, samples = shape.rows * model.embed * size, self.samples(shape)
        found = []
        if mesh.tp > 1:
            # after attention and MLP of every layer, and after the embedding
            found.append(Collective("all-reduce", TENSOR, hidden, 2 * self.layers + 1))
            found.append(Collective("all-gather", TENSOR, samples * self.vocab * 4, 1))
        if mesh.spp > 1:
            found.append(Collective("collective-permute", STAGE, hidden, 1))
            found.append(Collective("all-reduce", STAGE, samples * model.embed * size, 1))
            found.append(Collective("all-gather", STAGE, samples * self.vocab // mesh.tp * 4, 1))
        if mesh.kvp > 1 and shape.shared_rows:
            # attention's output of every group, with its log-sum-exp in fp32
            row = self.heads * (model.head_dim * size + 4)
            found.append(Collective("all-gather", GROUP, mesh.kvp * shape.shared_rows * row, self.layers))
        return tuple(found)
