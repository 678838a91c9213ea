from __future__ import annotations

import time
from pathlib import Path

import pytest

from medha_jax.workload import WorkloadError
from medha_jax.workload.request_files import Sample, in_time, read

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "file.x"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_prompts_are_texts_or_token_ids(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"prompt": "Grüße", "max_tokens": 3, "more": [1]}\n\n'
        '{"prompt_token_ids": [5, 0]}\n{"prompt": "x", "output_tokens": 2}',
    )
    assert read("prompts", path, 10) == [
        Sample(None, 3, text="Grüße"),
        Sample(2, None, ids=(5, 0)),
        Sample(None, 2, text="x"),
    ]
    assert len(read("prompts", path, 2)) == 2


def test_mooncake_traces_have_milliseconds_and_blocks(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"timestamp": 1500, "input_length": 600, "output_length": 7, "hash_ids": [3, 4]}\n'
        '{"timestamp": 0.5, "input_length": 1, "output_length": 1}\n',
    )
    samples = read("mooncake", path, 10)
    assert samples == [Sample(600, 7, 1.5, blocks=(3, 4)), Sample(1, 1, 0.0005)]
    assert [sample.at for sample in in_time(path, samples)] == [0.0, pytest.approx(1.4995)]


def test_azure_traces_have_dates_of_any_precision(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "\ufeffTIMESTAMP,Else,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:17:03.9799600,x,4808,10\r\n2023-11-16 18:17:04.0319600,x,3180,8\r\n",
    )
    first, second = in_time(path, read("azure", path, 10))
    assert (first.prompt_tokens, first.output_tokens, first.at) == (4808, 10, 0.0)
    assert second.at == pytest.approx(0.052, abs=1e-6)
    zoned = written(tmp_path, AZURE + "2024-05-10 00:00:00.009930+00:00,5,6\n2024-05-10 00:00:01+00:00,5,6\n")
    assert in_time(zoned, read("azure", zoned, 10))[1].at == pytest.approx(0.99007)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("prompts", "", "holds no requests"),
        ("prompts", "\n \n", "holds no requests"),
        ("azure", AZURE, "holds no requests"),
        ("prompts", '{"prompt": "x"}\n{"prompt": ', "line 2 is not JSON"),
        ("prompts", "[1]", "line 1 is a JSON list; each line must be one object"),
        ("prompts", "[" * 100_000, "line 1 is not JSON"),
        ("prompts", "{}", "line 1 must have either prompt (a text) or prompt_token_ids (whole numbers)"),
        ("prompts", '{"prompt": "x", "prompt_token_ids": [1]}', "must have either"),
        ("prompts", '{"prompt": ""}', "prompt must be a text that is not empty"),
        ("prompts", '{"prompt": 5}', "prompt must be a text"),
        ("prompts", '{"prompt_token_ids": []}', "prompt_token_ids must be a list of 1 to 16,777,216 whole numbers"),
        ("prompts", '{"prompt_token_ids": [1.5]}', "prompt_token_ids must be whole numbers from 0"),
        ("prompts", '{"prompt_token_ids": [true]}', "prompt_token_ids must be whole numbers from 0"),
        ("prompts", '{"prompt_token_ids": [-1]}', "prompt_token_ids must be whole numbers from 0"),
        ("prompts", '{"prompt": "x", "max_tokens": 0}', "max_tokens must be a whole number from 1 to 1,048,576"),
        ("prompts", '{"prompt": "x", "output_tokens": 1e3}', "output_tokens must be a whole number"),
        (
            "mooncake",
            '{"timestamp": 0, "input_length": 5}',
            "line 1 has no output_length; a Mooncake trace has timestamp",
        ),
        ("mooncake", '{"timestamp": -1, "input_length": 5, "output_length": 5}', "timestamp must be milliseconds"),
        ("mooncake", '{"timestamp": NaN, "input_length": 5, "output_length": 5}', "timestamp must be milliseconds"),
        ("mooncake", '{"timestamp": "0", "input_length": 5, "output_length": 5}', "timestamp must be milliseconds"),
        ("mooncake", '{"timestamp": 0, "input_length": 0, "output_length": 5}', "input_length must be a whole number"),
        (
            "mooncake",
            '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": 1}',
            "hash_ids must be a list",
        ),
        ("azure", "a,b\n1,2\n", "line 1 must name the columns TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("azure", AZURE + "yesterday,1,2\n", "line 2: TIMESTAMP must be like 2023-11-16 18:17:03.9799600"),
        ("azure", AZURE + "2023-11-16 18:17:03,0,2\n", "line 2: ContextTokens must be a whole number from 1"),
        ("azure", AZURE + "2023-11-16 18:17:03,5\n", "line 2: GeneratedTokens must be a whole number"),
        ("azure", AZURE + "2023-11-16 18:17:03,5,²\n", "line 2: GeneratedTokens must be a whole number"),
        ("azure", AZURE + f"{'x' * 200_000},5,5\n", "line 2 is not CSV: field larger"),
    ],
)
def test_bad_files_are_refused_with_the_line_and_what_is_allowed(
    tmp_path: Path, kind: str, text: str, message: str
) -> None:
    with pytest.raises(WorkloadError) as caught:
        read(kind, written(tmp_path, text), 10)
    assert message in str(caught.value)
    assert "file.x" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medha_jax.workload.request_files.MAX_LINE", 30)
    for kind, text in (("prompts", '{"prompt": "x"}\n{"prompt": "' + 30 * "x"), ("azure", "a\n" + 40 * "x")):
        with pytest.raises(WorkloadError, match="line (1|2) (is longer than 30 characters|must name the columns)"):
            read(kind, written(tmp_path, text), 10)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot read .*nothing: No such file"):
        read("azure", tmp_path / "nothing", 10)
    with pytest.raises(WorkloadError, match="cannot read .*: Is a directory"):
        read("azure", tmp_path, 10)
    with pytest.raises(WorkloadError, match="is not UTF-8 text"):
        read("prompts", written(tmp_path, b'{"prompt": "\xff"}'), 10)
    with pytest.raises(WorkloadError, match="has no times"):
        in_time(tmp_path, [Sample(1, 1)])


def test_times_without_a_zone_do_not_depend_on_the_machines_zone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In New York clocks went back by an hour at 2023-11-05 02:00."""
    path = tmp_path / "azure.csv"
    path.write_text(AZURE + "2023-11-05 00:30:00,5,5\n2023-11-05 03:30:00,5,5\n")
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert [one.at for one in in_time(path, read("azure", path, 10))] == [0, 3 * 3600]
    finally:
        monkeypatch.undo()
        time.tzset()
