"""Every numeric flag of every command: what is no number of its range is one line, before anything is started."""

import inspect
from typing import get_args

import pytest

from medha_jax import cli
from medha_jax.config import Setting

# what else a command needs before it looks at its numbers; unlike most, these may not be left out
NEEDED = {"generate": ["--prompt", "a"], "simulate measure": ["--out", "/nowhere/ticks.json"]}
TAKE_INFINITY = {("bench serve", "--rate")}  # all requests at once


def numeric(app, path=()):
    """Path, flag and kind of every numeric option."""
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        for parameter in inspect.signature(command.callback).parameters.values():
            kinds = {part for arg in get_args(parameter.annotation) for part in (arg, *get_args(arg))}
            kinds |= {part for kind in kinds for part in get_args(kind)}
            if (kinds & {int, float}) and bool not in kinds:
                kind = float if float in kinds else int
                yield " ".join((*path, name)), f"--{parameter.name.replace('_', '-')}", kind
    for group in app.registered_groups:
        yield from numeric(group.typer_instance, (*path, group.name))


FLAGS = sorted(set(numeric(cli.app)), key=str)
FLOATS = [(path, flag) for path, flag, kind in FLAGS if kind is float]


def answer(capsys, path, *arguments):
    code = cli.run([*path.split(), *NEEDED.get(path, []), *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_there_are_many_flags_and_floats():
    assert len(FLAGS) > 100 and len(FLOATS) > 40
    assert ("serve", "--heartbeat-seconds") in FLOATS and ("simulate policies", "--load") in FLOATS


@pytest.mark.parametrize("value", ["nan", "-inf", "-1e400"])
def test_no_flag_takes_what_is_no_number(capsys, value):
    for path, flag in FLOATS:
        code, out, err = answer(capsys, path, f"{flag}={value}")
        assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, (path, flag, err)


def test_infinity_is_taken_only_where_it_means_something(capsys):
    for path, flag in FLOATS:
        if (path, flag) in TAKE_INFINITY:
            continue
        code, out, err = answer(capsys, path, f"{flag}=1e999")
        assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, (path, flag, err)


def test_text_is_no_number(capsys):
    for path, flag, kind in FLAGS:
        for value in ("", "many", "1e3x", "9" * 5000 + "x", "\udcff", *(["1.5"] if kind is int else [])):
            code, out, err = answer(capsys, path, f"{flag}={value}")
            assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, (path, flag, err)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "-1"])
@pytest.mark.parametrize("key", ["part-seconds", "write-seconds", "tpot-target-ms", "bypass-s", "heartbeat-seconds"])
def test_the_file_of_settings_is_refused_as_flags_are(capsys, tmp_path, key, value):
    (tmp_path / "serve.yaml").write_text(f"{key}: {value}\n")
    code, out, err = answer(capsys, "serve", "--config", str(tmp_path / "serve.yaml"))
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err == answer(capsys, "serve", f"--{key}={value.replace('.', '')}")[2]


@pytest.mark.parametrize("setting", [Setting("of no range"), Setting("above", above=0), Setting("least", at_least=0)])
def test_nan_is_in_no_range(setting):
    assert not setting.allows(float("nan")) and setting.allows(1.0) and setting.allows(2**70)
