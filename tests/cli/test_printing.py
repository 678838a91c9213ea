"""Tables and lines print text as it is."""

from __future__ import annotations

import pytest

from medha_jax.cli.printing import print_line, print_table
from medha_jax.results import Table


def test_brackets_of_other_servers_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    words = "HTTP 404: no such path [/v1/foo] [bold]"
    print_table(Table(words, ("[a]", "b"), ((words, "1"),), words=1, note=words))
    print_line(words)
    printed = capsys.readouterr().out
    assert printed.count("[/v1/foo] [bold]") == 4 and "[a]" in printed
