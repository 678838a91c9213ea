from medha_jax.bench.load_generator import Tally
from medha_jax.cli.bench_live import LiveDisplay, describe


def tally():
    found = Tally(500)
    found.sent = 120
    found.ended |= {"ok": 100, "failed": 2}
    found.first_token(0.2)
    found.first_token(0.4)
    return found


def test_a_run_in_words():
    assert describe(Tally(5)) == "0 of 5 sent, 0 running, 0 done"
    assert describe(tally()) == "120 of 500 sent, 18 running, 100 done, 2 failed, median TTFT 0.3 s"


def test_elsewhere_than_on_a_terminal_there_is_a_line_every_few_seconds(capsys):
    display = LiveDisplay(terminal=False)
    for seconds in range(0, 120):
        display.show("load", tally(), seconds / 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"load: {describe(tally())}, {seconds} s" for seconds in (10, 15, 20, 25, 32, 40, 50)]
    display.close()
    display.show("load 2/2", tally(), 5)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_line_is_drawn_and_taken_away(capsys):
    display = LiveDisplay(terminal=True)
    display.show("load", tally(), 0.5)
    display.show("load", tally(), 1.0)
    assert "120 of 500 sent" in capsys.readouterr().err
    display.close()
    display.close()
    assert capsys.readouterr().err.endswith("\x1b[1A\x1b[2K")  # a line up, and erased
