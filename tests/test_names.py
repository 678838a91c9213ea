"""Names of the package say one thing each, and the folders beside it import each other in one direction."""

from __future__ import annotations

import ast
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def parsed(folder: str) -> dict[str, ast.Module]:
    """Every Python file of a folder that is not generated, by its path in the repository."""
    files = (file for file in (ROOT / folder).rglob("*.py") if not file.name.endswith(("_pb2.py", "_pb2_grpc.py")))
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def test_no_two_classes_of_the_package_share_a_name() -> None:
    places = defaultdict(list)
    for path, tree in parsed("medha_jax").items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_files_of_one_name_mean_the_same() -> None:
    """Those in the list do: each is the errors, the start, the executor of its part, or a command and what it runs."""
    same = {"__init__.py", "convert.py", "errors.py", "executor.py", "plan.py", "start.py"}
    places = defaultdict(list)
    for path in parsed("medha_jax"):
        places[Path(path).name].append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1 and name not in same} == {}


def test_benchmarks_import_nothing_of_the_tools() -> None:
    imports = [
        (path, name)
        for path, tree in parsed("benchmarks").items()
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    assert [(path, name) for path, name in imports if name.split(".")[0] == "tools"] == []


def test_modules_whose_shapes_are_checked_exist(pytestconfig: pytest.Config) -> None:
    *modules, _ = pytestconfig.getoption("jaxtyping_packages").split(",")
    assert modules
    assert [module for module in modules if find_spec(module) is None] == []
