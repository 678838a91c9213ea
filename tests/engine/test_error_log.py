from __future__ import annotations

import pytest

from medha_jax.engine import ErrorLog


def raised(error: BaseException, depth: int = 0) -> BaseException:
    try:
        if depth:
            raised(error, depth - 1)
        raise error
    except BaseException as caught:
        return caught


def test_errors_that_repeat_are_logged_once_a_minute_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = ErrorLog(lambda: now[0])
    for _ in range(20_000):
        log(raised(KeyError("a defect in plan()")))
    log(raised(ValueError("another kind")))
    assert [record.getMessage() for record in caplog.records] == [
        "the engine: 'a defect in plan()'",
        "the engine: another kind",
    ]
    assert caplog.text.count("Traceback") == 2
    now[0] = 60.0
    log(raised(KeyError("a defect in plan()")))
    assert caplog.records[-1].getMessage().endswith("(19999 more of this kind since the last one)")
    now[0] = 120.0
    log(raised(KeyError("a defect in plan()")))
    assert "more of this kind" not in caplog.records[-1].getMessage()


def test_an_error_without_a_text_or_a_traceback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    log = ErrorLog(lambda: 0.0, "metrics or trace")
    log(ZeroDivisionError())
    assert caplog.records[0].getMessage() == "metrics or trace: ZeroDivisionError"
