from __future__ import annotations

from dataclasses import replace

from medha_jax.results import Repeat, Table, run_tables
from tests.results.recorded import convoy, recorded, run


def by_title(tables: list[Table]) -> dict[str, Table]:
    return {table.title: table for table in tables}


def test_an_overview_has_a_column_for_each_run() -> None:
    tables = by_title(run_tables([run("one", Repeat(tuple(recorded()))), run("two", convoy(0.4))]))
    overview = tables["Overview"]
    assert overview.columns == ("", "one", "two")
    rows = {row[0]: row[1:] for row in overview.rows}
    assert rows["requests"] == ("6", "6")
    assert rows["failed"] == ("1", "0")
    assert rows["requests/s"] == ("0.652", "0.100")
    assert rows["goodput, requests/s"] == ("0.217", "0.100")
    assert rows["attainment"] == ("25.0 %", "100.0 %")
    assert rows["TTFT P50"] == ("500 ms", "419 ms")
    assert rows["lateness of the client, P99"] == ("9.50 ms", "1.00 ms")
    assert rows["… allowed"] == ("35.0 ms", "50.0 ms")
    assert "TPOT: (E2EL - TTFT) / (output tokens - 1)" in overview.note
    assert all(len(row) == len(table.columns) for table in tables.values() for row in table.rows)


def test_times_are_by_kind_and_run() -> None:
    table = by_title(run_tables([run("one", Repeat(tuple(recorded()))), run("two", convoy(0.4))]))["Times by kind"]
    assert table.words == 2
    rows = {row[:2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == [("short", "one"), ("short", "two"), ("long", "one"), ("long", "two")]
    assert rows["long", "one"]["/ alone"] == "2.00"
    assert rows["long", "two"]["/ alone"] == "–"
    assert rows["long", "two"]["TTFT P50"] == "60.0 s"
    assert rows["short", "one"]["on time"] == "33.3 %"


def test_a_lone_run_needs_no_column_for_its_name() -> None:
    tables = by_title(run_tables([run("one", Repeat(tuple(recorded())))]))
    assert tables["Times by kind"].columns[:2] == ("", "done")
    assert "Short requests beside long ones" not in tables
    assert [row[0] for row in tables["Times by tokens of the prompt"].rows] == ["< 256", "256 - 1K", "4K - 16K"]


def test_lengths_that_only_repeat_the_kinds_are_left_out() -> None:
    assert "Times by tokens of the prompt" not in by_title(run_tables([run("one", convoy(1))]))


def test_a_convoys_ratios_are_to_the_first_run() -> None:
    tables = run_tables([run("fcfs", convoy(60)), run("lars", convoy(0.4)), run("lars", convoy(0.5))])
    table = tables[0]
    assert table.title == "Short requests beside long ones"
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["fcfs", "lars", "lars (2)"]
    assert rows["fcfs"]["ratio"] == "1.00x"
    assert rows["lars"]["short TTFT P50"] == "399 ms"
    assert rows["lars"]["ratio"] == "150x"  # 59.999 s / 0.399 s
    assert rows["lars"]["short TPOT P50"] == "50.0 ms"
    assert rows["lars"]["long TTFT"] == "60.0 s"


def test_repeats_show_their_intervals() -> None:
    overview = by_title(run_tables([run("lars", convoy(0.4), convoy(0.5), convoy(0.6))]))["Overview"]
    rows = {row[0]: row[1] for row in overview.rows}
    assert rows["TTFT P50"] == "524 ± 261 ms"  # medians of 419, 524 and 629 ms, t(2) = 4.303
    assert "95 % confidence interval" in overview.note


def test_failures_are_counted_by_their_message() -> None:
    records = recorded()
    again = replace(records[3], index=9)
    table = by_title(run_tables([run("x", Repeat((*records, again)), Repeat(tuple(records)))]))["Failures"]
    assert table.rows == (("x", "boom <b>", "3"),)


def test_long_requests_of_convoys_are_compared_with_their_best() -> None:
    """60.2 s, where nobody else makes it 43 s; of the other run that is not known."""
    known = run("known", convoy(0.4))
    known = replace(known, config={**known.config, "alone": {"long_s": 50.0, "best_s": 43.0}})
    table = by_title(run_tables([known, run("unknown", convoy(1))]))["Short requests beside long ones"]
    assert [row[table.columns.index("x best")] for row in table.rows] == ["1.40", "–"]
