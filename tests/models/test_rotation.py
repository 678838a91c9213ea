from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from medha_jax.models import rotary_angles
from medha_jax.specs.config_values import ConfigValues
from medha_jax.specs.rope import RopeScaling, rotary_constants
from medha_jax.specs.rope_config import read_rope

HEAD_DIM = 8


def angles(rope: RopeScaling, position: int, length: int) -> np.ndarray:
    cos, sin = rotary_angles(rotary_constants(rope, HEAD_DIM), jnp.array([position]), jnp.array([length]))
    return np.arctan2(np.asarray(sin[0]), np.asarray(cos[0]))


def test_yarn_scales_cos_and_sin_by_its_temperature() -> None:
    config = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024}
    rope, _ = read_rope(ConfigValues({"max_position_embeddings": 1024, "rope_scaling": config}))
    assert rope.attention_factor == pytest.approx(0.1 * math.log(8) + 1)
    cos, sin = rotary_angles(rotary_constants(rope, HEAD_DIM), jnp.array([5]), jnp.array([6]))
    np.testing.assert_allclose(cos**2 + sin**2, rope.attention_factor**2, rtol=1e-5)


def test_dynamic_changes_with_the_length_and_only_beyond_the_original_one() -> None:
    rope = RopeScaling("dynamic", factor=2.0, original_context=100)
    plain = angles(RopeScaling(), 50, 51)
    np.testing.assert_allclose(angles(rope, 50, 100), plain, atol=1e-6)
    stretched = angles(rope, 50, 400)
    assert (stretched[2:] < plain[2:]).all()  # faster pairs turn more than once
    theta = 10000.0 * (2.0 * 400 / 100 - 1) ** (HEAD_DIM / (HEAD_DIM - 2))
    np.testing.assert_allclose(stretched[3], 50 * theta ** (-6 / 8), rtol=1e-4)
