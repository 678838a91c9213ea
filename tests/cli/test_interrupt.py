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
