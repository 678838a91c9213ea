from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from medha_jax.models import ParameterSpec, parameter_specs
from medha_jax.models.decoder import rms_norm
from medha_jax.specs.model import Architecture
from tests.small import CONFIG


def test_one_declaration_gives_shape_dtype_and_axes() -> None:
    specs = parameter_specs(Architecture.from_config(CONFIG), "bfloat16")
    assert specs["layers.attention.query.kernel"] == ParameterSpec(
        (2, 64, 4, 16), jnp.dtype("bfloat16"), ("layers", "embed", "heads", "head_dim")
    )
    assert specs["head"].axes == ("vocab", "embed")
    assert specs["head"].nbytes == 256 * 64 * 2
    assert "layers.attention.query.bias" not in specs


def test_a_size_beyond_32_bits_is_counted() -> None:
    assert ParameterSpec((2**20, 2**13), jnp.dtype("float32"), ("vocab", "embed")).nbytes == 2**35


def test_norm_by_hand() -> None:
    x = jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(rms_norm(x, jnp.array([1.0, 2.0]), 0.0), [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)
