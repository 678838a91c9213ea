"""Names of the package say one thing each, and the folders beside it import each other in one direction."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parsed(folder: str) -> dict[str, ast.Module]:
    """Every Python file of a folder that is not generated, by its path in the repository."""
    files = (file for file in (ROOT / folder).rglob("*.py") if not file.name.endswith(("_pb2.py", "_pb2_grpc.py")))
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


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
