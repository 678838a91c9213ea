from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medha_jax.results import (
    Outputs,
    Repeat,
    RequestRecord,
    ResultsError,
    Run,
    read_run,
    read_runs,
    write_run,
    write_runs,
)
from tests.results.recorded import STARTED, convoy, recorded, run

MICROSECONDS = st.integers(0, 10**9).map(lambda n: n / 1e6)
OPTIONAL = st.none() | st.floats(1e-6, 1e6)
RECORDS = st.builds(
    RequestRecord,
    index=st.integers(0, 10**6),
    kind=st.text(),
    prompt_tokens=st.integers(0, 10**7),
    output_tokens=st.integers(0, 10**6),
    due=MICROSECONDS,
    sent=MICROSECONDS,
    outputs=st.lists(st.tuples(MICROSECONDS, st.integers(0, 9)), max_size=4).map(tuple),
    ended=MICROSECONDS,
    status=st.sampled_from(["ok", "cancelled", "failed", "unfinished"]),
    error=st.none() | st.text(),
    deadline_s=OPTIONAL,
    tpot_slo_s=OPTIONAL,
    alone_s=OPTIONAL,
    cached_tokens=st.none() | st.integers(0, 100),
    preemptions=st.none() | st.integers(0, 100),
    queue_s=OPTIONAL,
    counted=st.sampled_from(["ids", "usage", "chunks"]),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(RECORDS, max_size=3), min_size=1, max_size=3))
def test_what_is_written_is_read_back(tmp_path: Path, repeats: list[list[RequestRecord]]) -> None:
    measured = tuple(Repeat(tuple(records)) for records in repeats)
    written = Run("näme", measured, {"a": {"b": [1]}}, {"c": None}, 2.5, "s")
    write_run(tmp_path, written)
    assert read_run(tmp_path) == written
    texts = [(tmp_path / "summary.json").read_text(), *(tmp_path / "requests.jsonl").read_text().splitlines()]
    for text in texts:
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_a_summary_has_vllms_keys_and_the_formulas(tmp_path: Path) -> None:
    write_run(tmp_path / "deep" / "er", run("lars", Repeat(tuple(recorded()), (0.0, 10.0)), rate=2.0))
    found = json.loads((tmp_path / "deep" / "er" / "summary.json").read_text())
    assert found["request_throughput"] == pytest.approx(0.3)
    assert found["median_ttft_ms"] == pytest.approx(500)
    assert found["by_kind"]["long"]["mean_e2el_ms"] == pytest.approx(4500)
    assert found["by_length"]["256 - 1K"]["completed"] == 1
    assert found["formulas"]["TPOT"].startswith("(E2EL - TTFT) / (output tokens - 1)")
    assert found["config"] == {"workload": {"source": "medha-5pct", "rate": 2.0, "seed": 0}, "policy": "lars"}
    assert found["stamp"]["started"] == STARTED.isoformat()
    assert (found["client_lagged"], found["errors"], found["windows"]) == (False, [{"boom <b>": 1}], [[0.0, 10.0]])
    assert found["repeats"][0]["p99_itl_ms"] == found["p99_itl_ms"]
    assert found["intervals_95"] is None
    first, *_ = (json.loads(line) for line in (tmp_path / "deep" / "er" / "requests.jsonl").read_text().splitlines())
    assert (first["ttft_s"], first["tpot_s"], first["e2el_s"], first["output_counts"]) == (0.5, 0.2, 1.1, [1, 1, 2])


def test_repeats_have_intervals(tmp_path: Path) -> None:
    write_run(tmp_path, run("lars", convoy(0.4), convoy(0.5), convoy(0.6)))
    found = json.loads((tmp_path / "summary.json").read_text())
    low, high = found["intervals_95"]["longest_wait_s"]
    assert low == high == found["longest_wait_s"] == 60
    low, high = found["intervals_95"]["median_ttft_ms"]
    assert low < found["median_ttft_ms"] < high
    assert len(found["repeats"]) == 3


def test_figures_that_no_repeat_has_are_null(tmp_path: Path) -> None:
    write_run(tmp_path, run("x", Repeat(())))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["median_ttft_ms"] is None
    assert found["request_goodput"] is None
    assert found["completed"] == 0


def test_infinite_settings_are_written_as_words(tmp_path: Path) -> None:
    write_run(tmp_path, Run("x", (convoy(1),), {"rate": math.inf, "list": (1, math.nan)}, {}))
    assert read_run(tmp_path).config == {"rate": "inf", "list": [1, "nan"]}


def test_times_are_kept_to_the_microsecond(tmp_path: Path) -> None:
    record = replace(recorded()[0], sent=1.00000049, outputs=Outputs([1.23456789], [1]))
    write_run(tmp_path, run("x", Repeat((record,))))
    (back,) = read_run(tmp_path).repeats[0].records
    assert (back.sent, back.outputs) == (1.0, ((1.234568, 1),))


def edited(tmp_path: Path, **changes: Any) -> Path:
    """Results with changes in their first request."""
    write_run(tmp_path, run("x", Repeat(tuple(recorded()))))
    path = tmp_path / "requests.jsonl"
    first, *rest = path.read_text().splitlines()
    line = json.loads(first) | changes
    path.write_text("\n".join([json.dumps({k: v for k, v in line.items() if v != "missing"}), *rest]))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "status is 'fine'; allowed are ok, cancelled, failed, unfinished"),
        ({"sent": "now"}, "sent is 'now'"),
        ({"sent": None}, "sent is None"),
        ({"index": 1.5}, "index is 1.5"),
        ({"kind": "missing"}, "'kind'"),
        ({"output_times": "missing"}, "'output_times'"),
        ({"output_counts": [1]}, "3 times and 1 counts"),
        ({"output_counts": [1, 2, -3]}, "can't convert negative"),
        ({"output_times": [1, 2, "x"]}, "must be real number"),
        ({"repeat": 3}, "repeat is 3 of 1"),
        ({"repeat": -1}, "repeat is -1 of 1"),
        ({"sent": math.nan}, "NaN is no number of JSON"),
        ({"output_times": [1, 2, math.inf]}, "Infinity is no number of JSON"),
    ],
)
def test_bad_requests_are_refused_with_their_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultsError) as caught:
        read_run(edited(tmp_path, **changes))
    assert "requests.jsonl, line 1 is no request: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*summary.json: No such file or directory; give a directory of results"),
        ("{", "summary.json is not a summary of results"),
        ("[]", "summary.json is not a summary of results"),
        ("{}", "summary.json is not a summary of results: 'format'"),
        ('{"format": 99}', "summary.json is of format 99; this version reads 1"),
        ('{"format": 1, "windows": []}', "not a summary of results|has no repeats"),
        ('{"format": 1, "windows": 5}', "not a summary of results"),
    ],
)
def test_bad_summaries_are_refused_in_a_line(tmp_path: Path, text: str | None, message: str) -> None:
    write_run(tmp_path, run("x", convoy(1)))
    (tmp_path / "requests.jsonl").write_text("")
    if text is None:
        (tmp_path / "summary.json").unlink()
    else:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ResultsError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "names", [("a b", "a/b", "a-b"), ("Lars", "lars"), ("x", "x"), (".", ".."), ("y" * 300, "y" * 301)]
)
def test_no_run_takes_the_folder_of_another(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_runs(tmp_path, [run(name, convoy(1)) for name in names])
    assert sorted(one.name.split(" (")[0] for one in read_runs([tmp_path])) == sorted(names)
    folders = {summary.parent.name.casefold() for summary in tmp_path.glob("*/summary.json")}
    assert len(folders) == len(names)


@pytest.mark.parametrize("rate", [math.inf, 2.0, 3, None])
def test_a_rate_is_read_back_as_the_number_it_was(tmp_path: Path, rate: float | None) -> None:
    write_run(tmp_path, run("x", convoy(1), rate=rate))
    assert read_run(tmp_path).rate == rate


def test_requests_that_are_missing_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, run("x", Repeat(tuple(recorded())), convoy(1)))
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ResultsError, match=r"requests.jsonl has \[6, 5\] requests, and its summary counts \[6, 6\]"):
        read_run(tmp_path)


def test_a_writer_that_fails_leaves_the_results_that_were_there(tmp_path: Path) -> None:
    write_run(tmp_path, run("first", convoy(1)))
    before = read_run(tmp_path)
    unwritable = replace(run("second", Repeat(tuple(recorded()))), config={"a": object()})
    with pytest.raises(TypeError):
        write_run(tmp_path, unwritable)
    assert read_run(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "value"), [("name", 5), ("config", None), ("stamp", []), ("rate", "fast"), ("series", 1), ("windows", [5])]
)
def test_a_summary_of_other_kinds_is_refused_in_a_line(tmp_path: Path, name: str, value: Any) -> None:
    write_run(tmp_path, run("x", convoy(1)))
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ResultsError, match="is not a summary of results"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "requests.jsonl"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000])
def test_damaged_files_are_refused_in_a_line(tmp_path: Path, name: str, content: bytes) -> None:
    write_run(tmp_path, run("x", convoy(1)))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultsError):
        read_run(tmp_path)
