from __future__ import annotations

import numpy as np
import pytest

from medha_jax.specs.rope import RopeScaling, inverse_frequencies

HEAD_DIM = 8


def test_base_frequencies_by_hand() -> None:
    np.testing.assert_allclose(inverse_frequencies(RopeScaling(theta=10000.0), 8), [1, 0.1, 0.01, 0.001], rtol=1e-6)
    linear = RopeScaling("linear", theta=10000.0, factor=4.0)
    np.testing.assert_allclose(inverse_frequencies(linear, 8), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-6)


def test_llama3_keeps_fast_pairs_and_slows_slow_ones() -> None:
    rope = RopeScaling("llama3", 10000.0, 8.0, 1024, 1.0, 4.0)
    plain = inverse_frequencies(RopeScaling(), HEAD_DIM)
    ratio = inverse_frequencies(rope, HEAD_DIM) / plain
    # wavelengths 6.3, 63, 628, 6283 against borders 256 and 1024
    assert ratio[0] == ratio[1] == 1
    assert 1 / 8 < ratio[2] < 1
    assert ratio[3] == pytest.approx(1 / 8)
