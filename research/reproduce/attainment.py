"""Preset `attainment`: shares of requests on time under fixed chunks, first come first served."""

from __future__ import annotations

import dataclasses

from medha_jax.config import SchedulerConfig
from medha_jax.simulate.simulation import simulate
from research.baselines.fixed import first_come
from research.reproduce.isolated import Calibrated, fitted, with_blocks
from research.reproduce.published import ATTAINMENT, KI, TPOT_2048
from research.reproduce.report import Comparison, PresetRun, Reproduction, on_time
from research.reproduce.requests import poisson

DURATION_S = 3600.0
CLIENTS = 100  # most requests that the load harness has under way: ten clients of ten


def attainment(run: PresetRun) -> Reproduction:
    """The preset."""
    system, duration = fitted(), run.duration or DURATION_S
    slow, kv = _slow_decodes(system)
    rows = []
    for chunk, mixes in ATTAINMENT.items():
        for mix, rates in mixes.items():
            for rate, published in rates.items():
                for about, calibrated in (("", system), (", slow decodes", slow)):
                    name = f"chunk {chunk:,}, {mix} % long, {rate:g}/s{about}"
                    share = _share(calibrated, chunk, mix, rate, duration, run, name)
                    rows.append(Comparison(name, share, published))
    return Reproduction(
        name="attainment",
        title="Shares of requests with their first token within max(1.5 x isolated, 0.5 s)",
        setting=(
            f"the system of preset isolated; Poisson arrivals for {duration:,.0f} s, lengths from quantiles of the "
            f"authors' trace, at most {CLIENTS} requests under way as in their harness; chunks of 512 with kernels "
            "that do not split the context"
        ),
        rows=tuple(rows),
        notes=(
            f"slow decodes: KV of decodes read at {100 * kv:.0f} % of the memory's rate, fitted to the published time "
            "of a token at 1M tokens, and to nothing of this table. Isolated TTFTs alone say nothing about decodes, "
            "which hold up every tick that they share with a prompt.",
            "one request is in the pipeline at a time here; the measured system can have others in its second stage.",
        ),
    )


def _slow_decodes(system: Calibrated) -> tuple[Calibrated, float]:
    """The system with KV read so slowly that a token at 1M takes its published time; and the share of the bandwidth."""
    cost = system.cost
    context = KI * KI
    read = TPOT_2048[context] - cost.shape_seconds(1) - cost.used.tick_s
    share = context * cost.sizes.kv_token_bytes / cost.hardware.bandwidth / read
    changed = dataclasses.replace(cost, coefficients=dataclasses.replace(cost.used, kv=share))
    return dataclasses.replace(system, cost=changed), share


def _share(system: Calibrated, chunk: int, mix: str, rate: float, duration: float, run: PresetRun, name: str) -> float:
    calibrated = system if chunk == 2048 else with_blocks(system)
    machine = calibrated.machine(chunk)
    arrivals = poisson(mix, rate, duration, run.seed)
    outcome = simulate(
        machine,
        first_come(SchedulerConfig(max_waiting=2**31)),
        arrivals,
        duration,
        lambda seconds, finished: run.tell(name, seconds, finished, len(arrivals)),
        isolated=lambda prompt: calibrated.constant + machine.isolated_prefill(prompt),
        most=CLIENTS,
    )
    return on_time(outcome.records) or 0.0
