from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from medha_jax.attention.rotate import rotate
from medha_jax.models import rotary_angles
from medha_jax.specs.rope import RopeScaling, rotary_constants

HEAD_DIM = 8


def test_rotation_keeps_scores_dependent_on_distance_only() -> None:
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 1, HEAD_DIM)).astype(np.float32)
    plain = rotary_constants(RopeScaling(), HEAD_DIM)

    def score(at: int, seen: int) -> float:
        turned = [
            rotate(jnp.asarray(x), *rotary_angles(plain, jnp.array([p]), jnp.array([p + 1])))
            for x, p in ((query, at), (key, seen))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 5), abs=1e-3)
