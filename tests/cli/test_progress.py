import pytest

from medha_jax.cli.progress import PrefillEstimate, PrefillProgress, Progress, duration


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds, words):
    assert duration(seconds) == words


def attention_seconds(start, end, per_token, per_pair):
    return per_token * (end - start) + per_pair * (end**2 - start**2) / 2


@pytest.mark.parametrize("per_token, per_pair", [(1e-4, 0.0), (0.0, 1e-9), (1e-4, 1e-9)])
def test_the_estimate_knows_that_later_tokens_cost_more(per_token, per_pair):
    estimate, total = PrefillEstimate(), 1_000_000
    for start in range(0, 100_000, 1000):
        estimate.add(start + 1000, attention_seconds(start, start + 1000, per_token, per_pair))
    left = attention_seconds(100_000, total, per_token, per_pair)
    assert estimate.seconds_left(total) == pytest.approx(left, rel=1e-3)


def test_the_estimate_starts_with_plain_speed():
    estimate = PrefillEstimate()
    assert estimate.seconds_left(1000) == 0
    estimate.add(100, 1.0)
    assert estimate.seconds_left(1000) == pytest.approx(9.0)
    assert estimate.seconds_left(100) == 0


@pytest.mark.parametrize("times", [[1.0, 0.5, 0.2], [0.1, 5.0, 0.1], [0.0, 0.0, 0.0]])
def test_the_estimate_is_never_negative(times):
    estimate = PrefillEstimate()
    for chunk, seconds in enumerate(times, start=1):
        estimate.add(100 * chunk, seconds)
        assert estimate.seconds_left(1000) >= 0


class Clock:
    """Every reading is what the test set last."""

    now = 0.0

    def __call__(self):
        return self.now


def lines(capsys, seconds_per_chunk, chunks=10):
    clock = Clock()
    with PrefillProgress(chunks * 1000, clock, terminal=False) as progress:
        for chunk in range(1, chunks + 1):
            clock.now += seconds_per_chunk
            progress.update(chunk * 1000)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_short_prefill_prints_nothing(capsys):
    assert lines(capsys, 0.9) == []


def test_a_long_prefill_prints_a_line_every_few_seconds(capsys):
    shown = lines(capsys, 4.0)
    assert shown[0] == "prefill: 3,000 of 10,000 tokens (30 %), 250 tokens/s, 28 s left"
    assert len(shown) == 4  # after 12, 20, 28 and 36 s


def test_a_terminal_gets_a_bar_that_goes_away(capsys):
    clock = Clock()
    with PrefillProgress(2000, clock, terminal=True) as progress:
        clock.now = 0.2
        progress.update(1)
        assert progress.shown  # 400 s are left
        clock.now = 5.0
        progress.update(2000)
    assert not progress.shown
    out, err = capsys.readouterr()
    assert out == ""
    assert "2000/2000" in err


def test_a_terminal_gets_no_bar_for_a_moment(capsys):
    clock = Clock()
    with PrefillProgress(2000, clock, terminal=True) as progress:
        clock.now = 0.1
        progress.update(1000)
        assert not progress.shown


def test_progress_comes_in_lines_where_there_is_no_terminal(capsys):
    clock = Clock()
    with Progress("layouts", 40, clock, terminal=False) as progress:
        for done in range(1, 41):
            progress.show(done, f"plan: {done:,} of 40 layouts")
            clock.now += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["plan: 21 of 40 layouts", "plan: 31 of 40 layouts"]
    with Progress("layouts", 40, clock, terminal=True) as progress:
        clock.now += 5
        progress.show(1, "plan: 1 of 40 layouts")
    assert "layouts" in capsys.readouterr().err
