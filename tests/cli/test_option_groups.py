from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from medha_jax.cli.option_groups import takes_groups

CLICK_ERROR = typer.BadParameter.__mro__[2]


@dataclass(frozen=True)
class Colours:
    front: Annotated[str, typer.Option(help="In front.")] = "red"
    back: Annotated[int | None, typer.Option("--behind", min=1)] = None
    bright: Annotated[bool, typer.Option(help="More.")] = True

    def __post_init__(self):
        if self.front == "none":
            raise typer.BadParameter("--front is none")


@dataclass(frozen=True)
class Sizes:
    width: Annotated[float, typer.Option()] = 1.5


def command(seen):
    @takes_groups
    def paint(context: typer.Context, colours: Colours, sizes: Sizes, times: Annotated[int, typer.Option()] = 1) -> int:
        """Paint something."""
        seen.append((context.params["front"], colours, sizes, times))
        return 7

    app = typer.Typer(add_completion=False)
    app.command()(paint)
    return app


def test_groups_become_options_and_come_back_as_instances(capsys):
    seen = []
    app = command(seen)
    given = ["--front", "blue", "--behind", "3", "--no-bright", "--width", "2", "--times", "4"]
    assert app(given, standalone_mode=False) == 7
    app([], standalone_mode=False)
    assert seen == [("blue", Colours("blue", 3, False), Sizes(2.0), 4), ("red", Colours(), Sizes(), 1)]
    app(["--help"], standalone_mode=False)
    out = capsys.readouterr().out
    assert "Paint something." in out and "--behind" in out and "In front." in out and "--no-bright" in out


@pytest.mark.parametrize("wrong", [["--front", "none"], ["--behind", "0"], ["--width", "wide"], ["--back", "1"]])
def test_what_a_group_refuses_is_bad_input(wrong):
    seen = []
    with pytest.raises(CLICK_ERROR):
        command(seen)(wrong, standalone_mode=False)
    assert seen == []
