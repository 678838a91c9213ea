import os
import signal
import subprocess
import sys

import pytest

from medha_jax.cli.interrupt import noted_interrupts


def test_an_interrupt_waits_for_the_check():
    before = signal.getsignal(signal.SIGINT)
    with noted_interrupts() as check:
        check()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noted_interrupts() as check:
            os.kill(os.getpid(), signal.SIGINT)
            check()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "setup",
    ["leave_on_interrupt()", "block = noted_interrupts(); block.__enter__(); os.kill(os.getpid(), 2)"],
)
def test_the_process_leaves_at_once(setup):
    """At the first interrupt where nothing is to be tidied up, at the second where something is."""
    script = f"""
import os
from medha_jax.cli.interrupt import leave_on_interrupt, noted_interrupts
{setup}
os.kill(os.getpid(), 2)
print("still here")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 1), (signal.SIGINT, 130)])
def test_a_second_request_to_stop_ends_the_process_at_once(number, code):
    script = "asked = asked_to_stop(); print(flush=True); print(asked.wait(), flush=True); import time; time.sleep(60)"
    command = [sys.executable, "-c", f"from medha_jax.cli.interrupt import asked_to_stop; {script}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for said in ("\n", "True\n"):
            assert process.stdout.readline() == said
            process.send_signal(number)
        assert process.wait(10) == code
