from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest

from medha_jax.config import Buckets, MeshConfig, RuntimeConfig
from medha_jax.mesh import build_mesh
from medha_jax.models import parameter_specs
from medha_jax.runtime.memory import check_memory, default_pool_tokens, plan_memory
from medha_jax.runtime.programs import Programs
from medha_jax.specs.layout import Layout, LayoutError
from medha_jax.specs.model import Architecture
from tests.small import CONFIG


def programs(layout: Layout, **settings: Any) -> Programs:
    mesh = MeshConfig(
        tp=layout.tp,
        spp=layout.spp,
        kvp=layout.kvp,
        page_size=16,
        tokens_per_group=512,
        buckets=Buckets((2,), (16,), 1, slices=()),
    )
    config = RuntimeConfig(slots=4, mesh=mesh, **settings)
    return Programs(config, Architecture.from_config(CONFIG), jnp.dtype("float32"), build_mesh(layout))


def test_bytes_of_one_device_by_hand() -> None:
    plan = plan_memory(programs(Layout(), pool_tokens=1024), limit=None)
    specs = parameter_specs(Architecture.from_config(CONFIG), "float32")
    assert plan.weights == sum(spec.nbytes for spec in specs.values())
    # 2 layers, keys and values, 64 pages of 16 tokens, 2 KV heads of 16 fp32 elements
    assert plan.pool == 2 * 2 * 64 * 16 * 2 * 16 * 4
    assert plan.pool_per_page == plan.pool // 64
    assert plan.longest_context is None
    assert "unknown" in " ".join(plan.lines())


def test_axes_divide_what_they_should() -> None:
    one, eight = (plan_memory(programs(layout, pool_tokens=1024), None) for layout in (Layout(), Layout(2, 2, 2)))
    # two stages, two tensor positions; every group has a pool of its own
    assert eight.pool == one.pool // 4
    assert one.weights / 4 < eight.weights < one.weights / 2
    rows = 2 + 16 + 4 + 128  # own and shared shapes
    assert eight.register == rows * 64 * 4
    assert (one.held, eight.held) == (64 * 4, 256 * 64 * 4), "slices of shared chunks alone"


def test_hidden_states_of_two_programs_are_kept_where_prompts_are_scored() -> None:
    off, on = (plan_memory(programs(Layout(2, 2, 2), pool_tokens=1024, prompt_logprobs=on), None) for on in (0, 1))
    rows = max(2 + 16 + 4 + 128, 256)  # of ticks, and of slices of shared chunks
    assert (off.hidden, on.hidden, on.total - off.total) == (0, 2 * rows * 64 * 4, on.hidden)
    assert "hidden states 0.1 MiB" in on.lines()[0] and "hidden states" not in off.lines()[0]


def test_the_longest_context_is_what_the_rest_of_the_memory_holds() -> None:
    at = programs(Layout(kvp=2), pool_tokens=1024)
    plan = plan_memory(at, limit=10 * 2**20)
    longest = plan.longest_context
    assert longest is not None
    pages = longest // plan.groups // plan.page_size
    kept = plan.total - plan.pool
    assert kept + pages * plan.pool_per_page <= plan.limit < kept + (pages + 1) * plan.pool_per_page


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    at = programs(Layout(), pool_tokens=4096)
    plan = plan_memory(at, limit=None)
    check_memory(plan, at, devices=1)
    tight = dataclasses.replace(plan, limit=plan.total * 2 // 3)
    with pytest.raises(
        LayoutError, match=r"needs .* MiB a device .* usable are .* or more devices: .*tp=2,spp=1,kvp=1"
    ):
        check_memory(tight, at, devices=2)
    check_memory(dataclasses.replace(plan, limit=plan.total), at, devices=1)


def test_a_pool_takes_what_is_left_and_no_more_than_all_slots_can_use() -> None:
    at = programs(Layout())  # four slots of 2,048 tokens, 128 pages
    plan = plan_memory(at, limit=None)
    assert default_pool_tokens(plan, 4, on_cpu=True) == 2048, "one request, if nothing is known"
    kept = plan.total - plan.pool
    for pages, on_cpu, tokens in ((1000, False, 4 * 2048), (100, False, 1600), (100, True, 25 * 16), (0, False, 16)):
        room = dataclasses.replace(plan, limit=kept + pages * plan.pool_per_page)
        assert default_pool_tokens(room, 4, on_cpu) == tokens
