"""Check that BUILD, import-linter's contracts and the source agree on who imports whom.

Bazel does not look inside Python files, and import-linter does not know BUILD, so either could drift alone.
A part is a module or folder directly under medha_jax; an arrow says that one part may import another.
"""

import ast
import sys
import tomllib
from pathlib import Path

PACKAGE = "medha_jax"
Arrows = dict[str, set[str]]


def build_arrows(build: Path) -> Arrows:
    """Read `name -> deps` of every py_library in a BUILD file, whose syntax is Python's."""
    arrows: Arrows = {}
    for node in ast.walk(ast.parse(build.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "py_library":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            deps = ast.literal_eval(given["deps"]) if "deps" in given else []
            arrows[ast.literal_eval(given["name"])] = {dep.removeprefix(":") for dep in deps}
    return arrows


def contract_arrows(pyproject: Path) -> Arrows:
    """Read `importer -> parts it may import` out of import-linter's "protected" contracts."""
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    arrows: Arrows = {}
    for contract in contracts:
        if contract["type"] != "protected":
            continue
        for module in contract["protected_modules"]:
            arrows.setdefault(part_of(module), set())
            for importer in contract["allowed_importers"]:
                arrows.setdefault(part_of(importer), set()).add(part_of(module))
    return arrows


def part_of(module: str) -> str:
    """Name the part that a dotted module of the package belongs to: `medha_jax.kv.allocator` -> `kv`."""
    return module.split(".")[1]


def source_parts(package: Path) -> dict[str, list[Path]]:
    """Map every part to its Python files; folders that hold only data are not parts."""
    parts: dict[str, list[Path]] = {}
    for entry in sorted(package.iterdir()):
        files = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry] * (entry.suffix == ".py")
        if files and not entry.name.startswith("__"):
            parts[entry.stem] = files
    return parts


def imported_modules(file: Path, root: Path) -> list[tuple[int, str]]:
    """List `(line, dotted module)` of every import in a file, relative ones resolved."""
    folder = list(file.relative_to(root).parent.parts)
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            # `from medha_jax import kv` names the part in the alias, not in the module.
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def problems(root: Path) -> list[str]:
    """Compare the three accounts of the arrows under a repository root.

    Args:
        root: folder that holds BUILD, pyproject.toml and medha_jax/.

    Returns:
        One plain sentence per disagreement; empty when all agree.
    """
    build, contract = build_arrows(root / "BUILD"), contract_arrows(root / "pyproject.toml")
    parts = source_parts(root / PACKAGE)
    found: list[str] = []
    for part in sorted(parts.keys() | build.keys() | contract.keys()):
        if part not in parts:
            found.append(f"{part}: named in BUILD or pyproject.toml, but {PACKAGE}/ has no such part")
        if part not in build:
            found.append(f"{part}: BUILD has no py_library for it; add one")
        if part not in contract:
            found.append(f'{part}: no "Who may import" contract in pyproject.toml names it; add it there')
        allowed, listed = contract.get(part, set()), build.get(part, set())
        found += [f"{part} -> {to}: missing in BUILD, allowed by pyproject.toml" for to in sorted(allowed - listed)]
        found += [
            f"{part} -> {to}: superfluous in BUILD, not allowed by pyproject.toml" for to in sorted(listed - allowed)
        ]
        for file in parts.get(part, []):
            for line, module in imported_modules(file, root):
                to = part_of(module) if module.startswith(f"{PACKAGE}.") else part
                if to in parts and to != part and to not in listed:
                    place = f"{file.relative_to(root)}:{line}"
                    found.append(f"{part} -> {to}: {place} imports it, missing in BUILD")
    return found


def main() -> int:
    """Print every disagreement; return the process's exit status."""
    found = problems(Path(__file__).resolve().parent.parent)
    print("\n".join(found) if found else "BUILD, import contracts and source agree.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
