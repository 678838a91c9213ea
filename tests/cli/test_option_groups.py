from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer

from medha_jax.cli.option_groups import Shown, option_names, takes_groups
from medha_jax.config import ConfigError, check_settings, setting

CLICK_ERROR = typer.BadParameter.__mro__[2]


@dataclass(frozen=True)
class Colours:
    front: str = setting("red", "In front.")
    back: int | None = setting(None, "Behind.", option="behind", at_least=1)
    bright: bool = setting(True, "More.")

    def __post_init__(self):
        if self.front == "none":
            raise typer.BadParameter("--front is none")


@dataclass(frozen=True)
class Sizes:
    width: float = setting(1.5, "Of the brush.")


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


@dataclass(frozen=True)
class Brush:
    hair: str = setting("soft", "Of the brush.", choices=("soft", "hard"))
    dry_s: float = setting(0.5, "Until it is dry.", above=0, option="dry_ms", per=1000)
    marks: tuple[int, ...] = setting((), "Where; repeatable.", at_least=0, option="mark")
    new: bool = setting(False, "Never used.", switch=True)
    tints: tuple[tuple[int, float], ...] = setting((), "How much of which.", option="tint", metavar="ID=PART")
    only: tuple[int, ...] | None = setting(None, "None but these.", at_least=0)
    made: str = "by hand"  # no setting, so no option

    def __post_init__(self):
        check_settings(self)


@dataclass(frozen=True)
class Box:
    sizes: Sizes = field(default_factory=Sizes)
    brush: Brush = field(default_factory=Brush)


def given(arguments, annotation):
    """What a command gets that takes one group."""
    seen = []

    def paint(group) -> None:
        seen.append(group)

    paint.__annotations__ = {"group": annotation}
    app = typer.Typer(add_completion=False)
    app.command()(takes_groups(paint))
    app(arguments, standalone_mode=False)
    return seen[0]


def test_settings_have_units_choices_lists_and_switches():
    assert given([], Brush) == Brush()
    stated = ["--hair", "hard", "--dry-ms", "20", "--mark", "3", "--mark", "4", "--new"]
    assert given(stated, Brush) == Brush("hard", 0.02, (3, 4), True)
    pairs = ["--tint", "3=0.5", "--tint", "4=-1e1", "--only", "7", "--only", "5"]
    assert given(pairs, Brush) == Brush(tints=((3, 0.5), (4, -10.0)), only=(7, 5))
    assert option_names(Brush) == ["hair", "dry_ms", "mark", "new", "tint", "only"]
    wrong_pairs = (["--tint", text] for text in ("3", "3=", "=1", "3=x", "x=1", "3=1=2", "1.5=2"))
    for wrong in (["--hair", "none"], ["--mark", "-1"], ["--no-new"], ["--made", "x"], ["--only", "-1"], *wrong_pairs):
        with pytest.raises(CLICK_ERROR):
            given(wrong, Brush)
    with pytest.raises(ConfigError, match="dry_s is 0.0; it must be above 0"):
        given(["--dry-ms", "0"], Brush)


def test_groups_may_hold_groups():
    assert given(["--width", "3", "--hair", "hard"], Box) == Box(Sizes(3.0), Brush("hard"))


def test_a_command_may_show_a_group_its_own_way():
    shown = Shown(without={"marks"}, defaults={"hair": "hard", "marks": (7,)}, options={"dry_s": "drying_ms"})
    assert given(["--drying-ms", "1"], Annotated[Brush, shown]) == Brush("hard", 0.001, (7,))
    assert given(["--width", "2"], Annotated[Box, Shown(defaults={"hair": "hard"})]) == Box(Sizes(2.0), Brush("hard"))


def test_values_may_come_as_a_mapping_of_what_was_stated():
    unset = {"hair": None, "dry_s": None, "marks": (), "new": False, "tints": (), "only": None}
    wanted = Annotated[dict[str, Any], Shown(of=Brush, unset=True)]
    assert given([], wanted) == unset
    assert given(["--dry-ms", "0"], wanted) == unset | {"dry_s": 0.0}  # whoever makes a brush of it refuses it


def test_groups_share_an_option_of_one_name():
    @dataclass(frozen=True)
    class Roller:
        size: float = setting(9.0, "Of the roller.", option="width")

    seen = []

    @takes_groups
    def paint(sizes: Sizes, roller: Annotated[Any, Shown(of=Roller)]) -> None:
        seen.append((sizes, roller))

    app = typer.Typer(add_completion=False)
    app.command()(paint)
    app(["--width", "4"], standalone_mode=False)
    app([], standalone_mode=False)
    assert seen == [(Sizes(4.0), {"size": 4.0}), (Sizes(1.5), {"size": 1.5})]
