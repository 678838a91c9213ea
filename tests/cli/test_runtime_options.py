"""`--mesh` and the settings that override it."""

import json

import pytest

from medha_jax.cli.runtime_options import LayoutOptions, RuntimeOptions, mesh_config
from medha_jax.config import ConfigError
from tests.cli.command import refused

PROMPT = ("--prompt", "x" * 40, "--max-tokens", "30", "--ignore-eos", "--json")


def test_single_settings_override_the_layout():
    config = mesh_config("tp=2,kvp=2", page_size=16, tokens_per_group=32)
    assert (config.tp, config.kvp, config.page_size, config.tokens_per_group) == (2, 2, 16, 32)
    assert mesh_config("cpu-8", page_size=None).page_size == 64
    assert LayoutOptions("tp=2", overlap_rows=512).config.overlap_rows == 512
    assert LayoutOptions("tp=2").config.overlap_rows is None
    with pytest.raises(ConfigError, match="multiple of the page size"):
        mesh_config("kvp=2", tokens_per_group=100)


def test_a_request_spread_over_every_axis_gets_the_same_tokens(generate, tmp_path):
    shape = "{decode: [1], prefill: [16], chunks: 1, mixed_only: true}"
    layout = tmp_path / "spread.yaml"
    layout.write_text(f"tp: 2\nspp: 2\nkvp: 2\nbuckets: {shape}\nshared_buckets: {shape}\n")
    plain = json.loads(generate(*PROMPT).stdout)
    spread = generate(*PROMPT, "--mesh", layout, "--page-size", "8", "--tokens-per-group", "48")
    got = json.loads(spread.stdout)
    assert got["token_ids"] == plain["token_ids"]
    assert "mesh tp=2,spp=2,kvp=2 on 8 x cpu" in spread.stderr
    assert "pages of 8 tokens in each of 2 groups" in spread.stderr


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("tp=3", "heads 4 is not divisible by tp=3"),
        ("spp=4", "spp=4 is more than 2 layers. What fits: "),
        ("nowhere", "cannot read layout 'nowhere'"),
        ("tp=0", "tp is 0; it must be at least 1"),
    ],
)
def test_layouts_that_do_not_fit(generate, mesh, message):
    assert message in refused(generate(*PROMPT, "--mesh", mesh))


@pytest.mark.parametrize(("mesh", "slots"), [("tp=1", 32), ("h200-1", 128), ("cpu-small", 32)])
def test_as_many_slots_as_the_layout_has_decode_rows(mesh, slots):
    options = RuntimeOptions(layout=LayoutOptions(mesh=mesh), settings={"slots": None})
    assert options.config.slots == slots
    assert options.config.mesh.buckets == mesh_config(mesh).buckets


@pytest.mark.parametrize("mesh", ["cpu-small", "h200-1", "dgx-h100-64"])
@pytest.mark.parametrize("slots", [1, 4, 33])
def test_any_number_of_slots_works_with_any_layout(mesh, slots):
    config = RuntimeOptions(layout=LayoutOptions(mesh=mesh), settings={"slots": slots}).config
    whole = mesh_config(mesh).buckets.decode
    assert config.slots == slots and config.mesh.buckets.decode[-1] == min(slots, whole[-1])
    assert {*config.mesh.buckets.decode} - {slots} <= {*whole}
