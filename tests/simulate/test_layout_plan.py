"""Every layout is estimated or refused, and the Pareto front comes first."""

from __future__ import annotations

from medha_jax.simulate.estimate import Targets, mark_front
from medha_jax.simulate.hardware import load_hardware
from medha_jax.simulate.layout_plan import plan_layouts
from medha_jax.simulate.layouts import candidates
from medha_jax.simulate.named_models import load_model


def test_every_layout_is_estimated_or_refused_and_the_front_comes_first() -> None:
    h100, seen = load_hardware("h100"), list[int]()
    every = list(candidates(8, 2**17, h100))
    planned = plan_layouts(
        every,
        load_model("llama3-8b"),
        h100,
        2**17,
        dtype="bfloat16",
        slots=128,
        workload="5",
        targets=Targets(tpot_s=0.05),
        on_progress=seen.append,
    )
    looked_at = [one.candidate for one in planned.found] + [one.candidate for one in planned.refused]
    assert len(looked_at) == len(every) and all(one in every for one in looked_at)
    assert seen == list(range(1, len(every) + 1))
    assert [one.front for one in planned.found] == mark_front(planned.found)
    fronts = [one.front for one in planned.found]
    assert fronts == sorted(fronts, reverse=True) and fronts[0]
    for front in (True, False):
        goodputs = [one.goodput_per_s for one in planned.found if one.front == front]
        assert goodputs == sorted(goodputs, reverse=True)
