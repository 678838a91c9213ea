"""The decoder of all families: pre-norm blocks of grouped-query attention and a gated MLP.

Modules compute with one device's slice of the weights. They read sizes from the arrays, and `reduce` adds up the
results of the tensor axis. Rows are tokens of any requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medha_jax.models.parameters import ParameterSpec, declare
from medha_jax.models.rotation import rotate
from medha_jax.specs.model import Architecture

Attend = Callable[[Any, Array, Array, Array], tuple[Array, Any]]
Reduce = Callable[[Array], Array]
Angles = tuple[Array, Array]

normal = nnx.initializers.normal(0.02)
ones, zeros = nnx.initializers.ones, nnx.initializers.zeros


def identity(x: Array) -> Array:
    """The `reduce` of a mesh without a tensor axis."""
    return x


def rms_norm(
    x: Float[Array, "*rows width"], scale: Float[Array, " width"], epsilon: float
) -> Float[Array, "*rows width"]:
    """RMS normalisation (arXiv 1910.07467), in fp32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return scale * wide.astype(x.dtype)


class Norm(nnx.Module):
    """`rms_norm` with its learned scale."""

    def __init__(self, epsilon: float, dtype: Any, rngs: nnx.Rngs, **axes: int) -> None:
        self.epsilon = epsilon
        self.scale = declare(rngs, ones, dtype, **axes)

    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        """Normalise each row."""
        return rms_norm(x, self.scale[...], self.epsilon)


class Projection(nnx.Module):
    """A matrix over named axes; `inputs` and `outputs` may each be several dimensions."""

    def __init__(self, inputs: dict[str, int], outputs: dict[str, int], bias: bool, dtype: Any, rngs: nnx.Rngs) -> None:
        self.contracted = len(inputs)
        self.kernel = declare(rngs, normal, dtype, **inputs, **outputs)
        self.bias = declare(rngs, zeros, dtype, **outputs) if bias else None

    def __call__(self, x: Array, reduce: Reduce = identity) -> Array:
        """Multiply rows by the matrix; `reduce` adds up the devices' partial products."""
        kernel = self.kernel[...]
        outputs = kernel.shape[self.contracted :]
        width = 1
        for size in kernel.shape[: self.contracted]:
            width *= size
        # one 2-D product, because XLA on CPU is several times slower for dots with more dimensions
        flat = reduce(x.reshape(-1, width) @ kernel.reshape(width, -1))
        y = flat.reshape(x.shape[: -self.contracted] + outputs)
        return y if self.bias is None else y + self.bias[...]


class SelfAttention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245); the `attend` argument handles the KV cache."""

    def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs) -> None:
        embed = {"embed": arch.embed}
        queries = {"heads": arch.heads, "head_dim": arch.head_dim}
        keys = {"kv_heads": arch.kv_heads, "head_dim": arch.head_dim}
        self.query = Projection(embed, queries, arch.qkv_bias, dtype, rngs)
        self.key = Projection(embed, keys, arch.qkv_bias, dtype, rngs)
        self.value = Projection(embed, keys, arch.qkv_bias, dtype, rngs)
        self.output = Projection(queries, embed, arch.output_bias, dtype, rngs)
        norm = partial(Norm, arch.norm_epsilon, dtype, rngs, head_dim=arch.head_dim)
        self.query_norm = norm() if arch.qk_norm else None
        self.key_norm = norm() if arch.qk_norm else None

    def __call__(
        self, x: Float[Array, "rows embed"], angles: Angles, cache: Any, attend: Attend, reduce: Reduce
    ) -> tuple[Float[Array, "rows embed"], Any]:
        """Project, rotate, attend and project back; returns the cache as well."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        attended, cache = attend(cache, rotate(query, *angles), rotate(key, *angles), value)
        return self.output(attended, reduce), cache


class MLP(nnx.Module):
    """SwiGLU feed-forward block (arXiv 2002.05202)."""

    def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs) -> None:
        embed, ffn = {"embed": arch.embed}, {"ffn": arch.ffn}
        self.gate = Projection(embed, ffn, arch.mlp_bias, dtype, rngs)
        self.up = Projection(embed, ffn, arch.mlp_bias, dtype, rngs)
        self.down = Projection(ffn, embed, arch.mlp_bias, dtype, rngs)

    def __call__(self, x: Float[Array, "rows embed"], reduce: Reduce) -> Float[Array, "rows embed"]:
        """Widen, gate and project back."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x), reduce)


class Layer(nnx.Module):
    """One decoder block."""

    def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs) -> None:
        norm = partial(Norm, arch.norm_epsilon, dtype, rngs, embed=arch.embed)
        self.attention_norm = norm()
        self.attention = SelfAttention(arch, dtype, rngs)
        self.mlp_norm = norm()
        self.mlp = MLP(arch, dtype, rngs)

    def __call__(
        self, x: Float[Array, "rows embed"], angles: Angles, cache: Any, attend: Attend, reduce: Reduce = identity
    ) -> tuple[Float[Array, "rows embed"], Any]:
        """Apply the block; returns hidden states and the cache.

        Args:
            angles: cos and sin of each row's rotation, fp32 `[rows, head_dim / 2]` each.
            cache: keys and values, for `attend`.
            attend: `(cache, query [rows, heads, head_dim], key, value [rows, kv_heads, head_dim]) -> ([rows, heads,
                head_dim], cache)`; stores keys and values, then attends to all tokens that the rows may see.
            reduce: sums partial results over the tensor axis.
        """
        attended, cache = self.attention(self.attention_norm(x), angles, cache, attend, reduce)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x), reduce), cache


class Decoder(nnx.Module):
    """Embedding, blocks and head. `layers` is one `Layer` whose arrays have a leading layer axis."""

    def __init__(self, arch: Architecture, dtype: Any, rngs: nnx.Rngs) -> None:
        self.embedding = declare(rngs, normal, dtype, vocab=arch.vocab, embed=arch.embed)

        @nnx.split_rngs(splits=arch.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(arch, dtype, rngs)

        self.layers = stack(rngs)
        self.norm = Norm(arch.norm_epsilon, dtype, rngs, embed=arch.embed)
        tied = arch.tied_embeddings
        self.head = None if tied else declare(rngs, normal, dtype, vocab=arch.vocab, embed=arch.embed)


@cache
def parameter_specs(arch: Architecture, dtype: Any) -> Mapping[str, ParameterSpec]:
    """Every parameter of the model by dotted path, e.g. `layers.attention.query.kernel`; allocates nothing.

    Stacked parameters have the logical axis `layers` first.
    """
    model = nnx.eval_shape(lambda: Decoder(arch, dtype, nnx.Rngs(0)))
    specs = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = variable.get_value()
        prefix = ("layers",) if path[0] == "layers" else ()
        axes = prefix + tuple(variable.get_metadata()["axes"])
        specs[".".join(map(str, path))] = ParameterSpec(tuple(value.shape), value.dtype, axes)
    return MappingProxyType(specs)


@cache
def layer_graph(arch: Architecture, dtype: Any) -> Callable[[dict[str, Array]], Layer]:
    """Return a function that makes a `Layer` of one layer's arrays, keyed by path below `layers.`.

    It merges only while tracing, so the compiled program has plain arrays.
    """
    layer = nnx.eval_shape(lambda: Layer(arch, dtype, nnx.Rngs(0)))
    graph, state = nnx.split(layer, nnx.Param)

    def merge(arrays: dict[str, Array]) -> Layer:
        flat = [(path, old.replace(arrays[".".join(map(str, path))])) for path, old in nnx.to_flat_state(state)]
        return nnx.merge(graph, nnx.from_flat_state(flat))

    return merge


def final_logits(
    x: Float[Array, "rows embed"], scale: Float[Array, " embed"], head: Float[Array, "vocab embed"], epsilon: float
) -> Float[Array, "rows vocab"]:
    """Logits in fp32 over the given part of the vocabulary, from the output of the last block."""
    x = rms_norm(x, scale, epsilon)

    def product(x: Array) -> Array:
        return jax.lax.dot_general(x, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)

    if x.shape[0] > 1:
        return product(x)

    # With a single row, XLA for GPUs would first write the whole head in fp32, in every tick.
    def padded(x: Array) -> Array:
        return product(jnp.pad(x, ((0, 7), (0, 0))))[:1]

    logits: Array = jax.lax.platform_dependent(x, default=product, cuda=padded)
    return logits
