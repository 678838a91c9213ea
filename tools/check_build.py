"""Compare imports.bzl, the list of allowed imports between parts of medha_jax, with the imports in the source.

BUILD makes its targets from the same list. A part is a module or folder directly under medha_jax.
"""

import ast
import sys
from pathlib import Path

import grimp

PACKAGE = "medha_jax"
ROOT = Path(__file__).resolve().parent.parent


def declared_imports(file: Path) -> dict[str, list[str]]:
    """Read `part -> parts that it may import` from imports.bzl, whose syntax is Python's.

    Raises:
        ValueError: the file assigns no dictionary to IMPORTS.
    """
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="IMPORTS")], value=value):
                imports: dict[str, list[str]] = ast.literal_eval(value)
                return imports
    raise ValueError(f"{file.name} assigns no IMPORTS")


def real_imports(package: str) -> dict[str, dict[str, str]]:
    """Find `part -> {imported part: a place that imports it}` in a package's source."""
    graph = grimp.build_graph(package, cache_dir=None)
    parts: dict[str, dict[str, str]] = {child.split(".")[1]: {} for child in graph.find_children(package)}
    for importer in sorted(graph.modules - {package}):
        part = importer.split(".")[1]
        for imported in sorted(graph.find_modules_directly_imported_by(importer) - {package}):
            other = imported.split(".")[1]
            if other != part:
                line = graph.get_import_details(importer=importer, imported=imported)[0]["line_number"]
                parts[part].setdefault(other, f"{importer}, line {line}")
    return parts


def problems(declared: dict[str, list[str]], real: dict[str, dict[str, str]]) -> list[str]:
    """Compare the list with the source.

    Args:
        declared: what each part may import, in the order of the list.
        real: what each part imports, and where.

    Returns:
        One sentence per disagreement; empty when both agree.
    """
    found = [f"{part}: imports.bzl has no line for this part; add one" for part in sorted(real.keys() - declared)]
    above: set[str] = set()
    for part, allowed in declared.items():
        if part not in real:
            found.append(f"{part}: stands in imports.bzl, but {PACKAGE}/ has no such part")
        imported = real.get(part, {})
        for other in sorted(imported.keys() - set(allowed)):
            found.append(f"{part} -> {other}: imported by {imported[other]}, but not allowed by imports.bzl")
        for other in sorted(set(allowed) - imported.keys()):
            found.append(f"{part} -> {other}: allowed by imports.bzl, but no file imports it; take it out")
        for other in sorted(set(allowed) - above):
            found.append(f"{part} -> {other}: imports.bzl lists {other} below {part}; imports point upwards there")
        if allowed != sorted(set(allowed)):
            found.append(f"{part}: its imports in imports.bzl are not sorted, or name a part twice")
        above.add(part)
    return found


def main() -> int:
    """Print every disagreement; return the process's exit status."""
    sys.path.insert(0, str(ROOT))
    found = problems(declared_imports(ROOT / "imports.bzl"), real_imports(PACKAGE))
    print("\n".join(found) if found else "imports.bzl and the imports in the source agree.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
