"""Prints a digest of a product by the kernel, in a process of its own: `python -m tests.native.product_bits FOLDER`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from medha_jax.models import column_product
from medha_jax.runtime.executables import use_compilation_cache

use_compilation_cache(Path(sys.argv[1]))
draw = np.random.default_rng(0)
matrix, x = (draw.normal(size=shape).astype(np.float32) for shape in ((50, 70), (70, 40)))
product = np.asarray(column_product()([jnp.asarray(matrix)], jnp.int32(0), jnp.asarray(x)))
np.testing.assert_allclose(product, matrix @ x, atol=1e-4)
print(hashlib.sha256(product.tobytes()).hexdigest())
