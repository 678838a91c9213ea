from __future__ import annotations

import pytest
from jax.sharding import PartitionSpec

from medha_jax.mesh import parameter_spec
from medha_jax.models import parameter_specs
from medha_jax.specs.model import Architecture
from tests.small import CONFIG


def test_every_parameter_of_a_model_has_a_rule() -> None:
    arch = Architecture.from_config({**CONFIG, "architectures": ["Qwen3ForCausalLM"], "attention_bias": True})
    specs = {name: parameter_spec(spec.axes) for name, spec in parameter_specs(arch, "float32").items()}
    assert specs["layers.attention.query.kernel"] == PartitionSpec("spp", None, "tp", None)
    assert specs["layers.mlp.down.kernel"] == PartitionSpec("spp", "tp", None)
    assert specs["embedding"] == PartitionSpec("tp", None)


def test_an_axis_without_a_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match="experts"):
        parameter_spec(("layers", "experts"))
