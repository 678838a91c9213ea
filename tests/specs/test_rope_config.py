from __future__ import annotations

from typing import Any

import pytest

from medha_jax.specs.model import Architecture, UnsupportedModelError
from medha_jax.specs.rope import RopeScaling
from tests.small import CONFIG

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
BASE = {"rope_type": "default", "rope_theta": 5e5}


def read(**changes: Any) -> Architecture:
    return Architecture.from_config({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope"}}, "RoPE type 'longrope' is not supported; supported are default"),
        ({"rope_scaling": {"rope_type": "linear"}}, "RoPE type 'linear' needs `factor`"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE type 'llama3' needs `high_freq_factor`"),
        (
            {"rope_parameters": {"full_attention": BASE}, "layer_types": ["full_attention"] * 2},
            "rope_parameters.full_attention is an object; one RoPE rule for all layers is supported",
        ),
        ({"rope_parameters": {**BASE, "new": {"factor": 2}}}, "rope_parameters.new is an object"),
        ({"rope_scaling": [4.0]}, "rope_scaling is [4.0]; it must be an object"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_scaling.rope_type is 3; it must be a text"),
        ({"rope_scaling": {**YARN, "factor": "4"}}, "rope_scaling.factor is '4'; it must be a number"),
        ({"rope_scaling": {**YARN, "factor": 0}}, "rope_scaling.factor is 0; it must be from"),
        ({"rope_scaling": {**YARN, "truncate": "no"}}, "rope_scaling.truncate is 'no'; it must be true or false"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 0}}, "it must be at least 1"),
        ({"rope_scaling": {**YARN, "factor": 1e12}}, "positions usable; supported are 2147483647"),
        ({"rope_theta": 0.5}, "rope_theta is 0.5; it must be above 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported; whole heads are rotated"),
        ({"rope_parameters": {**BASE, "partial_rotary_factor": 0.25}}, "rope_parameters.partial_rotary_factor is not"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}}
            | {"original_max_position_embeddings": 1024},
            "low_freq_factor is 4; it must be below high_freq_factor, 4",
        ),
        ({"rope_parameters": BASE, "rope_scaling": YARN}, "rope_parameters, whose rope_theta would be lost"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {**YARN, "rope_theta": 5e5}},
        {"rope_scaling": YARN, "rope_theta": 5e5},
    ],
)
def test_rope_scaling_replaces_rope_parameters_with_a_note(changes: dict[str, Any]) -> None:
    arch = read(rope_parameters=BASE, **changes)
    assert (arch.rope.kind, arch.rope.theta, arch.context) == ("yarn", 5e5, 8192)
    assert arch.notes == ("config.json: rope_scaling replaces rope_parameters",)


def test_both_forms_of_the_same_rule_and_empty_ones_need_no_note() -> None:
    for changes in ({"rope_scaling": BASE}, {"rope_scaling": None}, {"rope_scaling": {}}):
        arch = read(rope_parameters=BASE, **changes)
        assert arch.rope == RopeScaling(theta=5e5, original_context=2048) and arch.notes == ()


def test_null_is_the_same_as_absent() -> None:
    nulls = dict.fromkeys(("rope_theta", "beta_fast", "mscale", "attention_factor", "truncate", "rope_type"))
    assert read(rope_theta=5e5, rope_scaling={"type": "yarn"} | {**YARN, **nulls}) == read(
        rope_theta=5e5, rope_scaling=YARN
    )


def test_a_length_beside_the_block_comes_first_as_in_transformers() -> None:
    assert read(rope_scaling=YARN, original_max_position_embeddings=512).rope.original_context == 512


def test_keys_that_a_rule_does_not_read_are_named() -> None:
    arch = read(rope_scaling={"rope_type": "default", "factor": 4.0, "mrope_section": [1, 2]})
    assert arch.notes == (
        "config.json: RoPE type 'default' does not read rope_scaling.factor, rope_scaling.mrope_section",
    )
    assert read(rope_scaling=YARN).notes == ()
