import re
from pathlib import Path

from medha_jax.cli import exit_codes

DOCS = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_docs_name_every_exit_code() -> None:
    named = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCS.read_text(), re.MULTILINE)}
    declared = {value for name, value in vars(exit_codes).items() if name.isupper()}
    assert named == declared | {0}
