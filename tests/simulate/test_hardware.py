from __future__ import annotations

import copy
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from medha_jax.config import MESH_CONFIGS, load_mesh
from medha_jax.simulate.hardware import COEFFICIENTS, SpecError, hardware_from, hardware_names, load_hardware
from medha_jax.simulate.named_models import load_model


def stated(name: str = "h100") -> dict[str, Any]:
    text = resources.files("medha_jax.simulate").joinpath("hardware", f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


@pytest.mark.parametrize("name", hardware_names())
def test_every_device_says_where_its_coefficients_come_from(name: str) -> None:
    device = load_hardware(name)
    assert device.name == name
    assert set(device.sources) == {"price", *COEFFICIENTS}
    assert all(source for source in device.sources.values())
    assert "price" in device.assumed


def test_layouts_name_devices_that_there_are() -> None:
    for path in sorted(MESH_CONFIGS.glob("*.yaml")):
        load_hardware(load_mesh(str(path)).hardware)


def test_published_rates_are_those_of_the_data_sheets() -> None:
    rates = {name: (load_hardware(name).peak["bfloat16"], load_hardware(name).bandwidth) for name in hardware_names()}
    assert rates["a100-80"] == (312e12, 2.039e12)
    assert rates["h100"] == (989e12, 3.35e12)
    assert rates["h200"] == (989e12, 4.8e12)
    assert rates["b200"] == (2.25e15, 8e12)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("memory",), None, "hardware lacks memory"),
        (("bandwidth",), "8e10", "bandwidth is '8e10'; allowed is"),
        (("bandwidth",), float("nan"), "bandwidth is nan"),
        (("bandwidth",), float("inf"), "bandwidth is inf"),
        (("bandwidth",), 10**400, "bandwidth is 1000"),
        (("colour",), 1, "hardware has unknown colour"),
        (("peak",), {}, "peak must give"),
        (("links", "node"), None, "links lacks node"),
        (("links", "network", "latency"), -1.0, r"network latency is -1.0; allowed is \[0, 10\]"),
        (("coefficients", "matmul", "value"), 1.5, r"matmul is 1.5; allowed is \(0, 1\]"),
        (("coefficients", "kv", "value"), 0.0, r"kv is 0.0; allowed is \(0, 1\]"),
        (("coefficients", "kv", "source"), None, "kv lacks source"),
        (("coefficients", "speed"), {"value": 1, "source": "x"}, "coefficients has unknown speed"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(path: tuple[str, ...], value: Any, message: str) -> None:
    changed = copy.deepcopy(stated())
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(SpecError, match=message):
        hardware_from(changed)


def test_devices_and_models_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({**stated(), "name": "own"}), encoding="utf-8")
    assert load_hardware(str(own)).name == "own"
    own.write_text("- 1", encoding="utf-8")
    with pytest.raises(SpecError, match="must be a mapping"):
        load_hardware(str(own))
    with pytest.raises(SpecError, match="there is no hardware 'x'; give a YAML file, or one of: a100-80"):
        load_hardware("x")
    with pytest.raises(SpecError, match=r"cannot read model .*; give a config.json, its directory, or one of: llama3"):
        load_model(str(tmp_path / "nothing"))
    other = tmp_path / "config.json"
    other.write_text('{"architectures": ["OtherForCausalLM"]}', encoding="utf-8")
    with pytest.raises(SpecError, match="not supported: OtherForCausalLM; supported are LlamaForCausalLM"):
        load_model(str(tmp_path))
    other.write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    with pytest.raises(SpecError, match="config.json lacks 'num_attention_heads'"):
        load_model(str(other))
    with pytest.raises(SpecError, match="no peak rate for float8"):
        load_hardware("h100").peak_of("float8")
