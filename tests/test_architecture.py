"""Structure of the package: layered imports without circles, and a fast start of the command."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bids_app"

AT_THE_ROOT = {"__init__", "errors", "settings", "data"}
"""Entries at the root of the package besides the packages of `FLOORS`."""

FLOORS = [
    {"errors", "settings"},
    {"bids", "clips", "model", "catalog", "phantom"},
    {"preprocess", "adapters", "reports", "outputs"},
    {"workflow", "group", "training"},
    {"cli"},
]
"""Layers from bottom to top: a package imports from lower layers only."""

NEIGHBOURS = {
    ("settings", "errors"),
    ("model", "catalog.models"),
    ("phantom", "bids.writer"),
    ("phantom", "catalog.templates"),
    ("phantom", "clips"),
    ("outputs", "adapters"),
    ("outputs", "preprocess"),
    ("outputs", "reports"),
    ("reports", "outputs.schema"),
    ("group", "workflow.preflight"),
}
"""Allowed imports within a layer: (package, package or module)."""

UNKNOWN = {
    "bids": {"torch", "ants"},
    "reports": {"torch", "bids_app.model", "bids_app.clips", "bids_app.adapters"},
    "model": {"nibabel", "bids", "bids_app.bids", "ants"},
}
"""Forbidden imports of a package."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def names_in(node: ast.AST) -> Iterator[str]:
    """Modules that an import statement names; ``from package import module`` names both."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        assert node.module
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@cache
def imports_of(module: str) -> frozenset[str]:
    """All imports of a module, including those in functions and under TYPE_CHECKING."""
    return frozenset(name for node in ast.walk(tree_of(module)) for name in names_in(node))


@cache
def modules_imported_by(module: str) -> frozenset[str]:
    """Own modules that the imports of a module execute, without its parent packages."""
    found = {name for name in imports_of(module) if name in MODULES}
    for name in tuple(found):
        parts = name.split(".")
        packages = (".".join(parts[:n]) for n in range(2, len(parts)))
        found.update(package for package in packages if not module.startswith(f"{package}."))
    return frozenset(found & MODULES.keys() - {"bids_app", module})


def package_of(module: str) -> str:
    return module.split(".")[1]


def floor_of(package: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if package in floor)


def imports_from_neighbours() -> Iterator[tuple[str, str, str]]:
    """Imports not from a lower layer: (importing module, its package, imported module)."""
    for module in MODULES:
        if module != "bids_app" and package_of(module) != "data":
            package = package_of(module)
            names = imports_of(module) & MODULES.keys() - {"bids_app"}
            innermost = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
            for name in sorted(innermost):
                if package_of(name) != package and floor_of(package_of(name)) >= floor_of(package):
                    yield module, package, name


def names_pair(allowed: tuple[str, str], package: str, imported: str) -> bool:
    return allowed[0] == package and f"{imported}.".startswith(f"bids_app.{allowed[1]}.")


def find_circle(graph: dict[str, frozenset[str]]) -> list[str]:
    """Find a circle in a graph, with the first node repeated at the end; empty if there is none."""
    finished: set[str] = set()
    path: list[str] = []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        path.append(node)
        for after in sorted(graph[node]):
            if circle := visit(after):
                return circle
        finished.add(path.pop())
        return []

    return next((circle for node in graph if (circle := visit(node))), [])


def test_only_known_modules_are_at_the_package_root() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == AT_THE_ROOT | set().union(*FLOORS)


def test_packages_import_from_lower_layers_or_listed_neighbours() -> None:
    others = [
        f"{module} imports {name}"
        for module, package, name in imports_from_neighbours()
        if floor_of(package_of(name)) > floor_of(package)
        or not any(names_pair(pair, package, name) for pair in NEIGHBOURS)
    ]
    assert not others, "\n".join(others)


@pytest.mark.parametrize("pair", sorted(NEIGHBOURS), ids=" imports ".join)
def test_listed_neighbours_are_imported(pair: tuple[str, str]) -> None:
    assert any(names_pair(pair, package, name) for _, package, name in imports_from_neighbours())


def test_there_are_no_circular_imports() -> None:
    circle = find_circle({module: modules_imported_by(module) for module in MODULES})
    assert not circle, " imports ".join(circle)


def test_a_circular_import_is_found_from_any_start() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}
    assert find_circle({node: frozenset(after) for node, after in graph.items()}) == ["b", "d", "b"]
    assert find_circle({"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}) == []


@pytest.mark.parametrize("module", [m for m in MODULES if "TYPE_CHECKING" in MODULES[m].read_text()])
def test_own_modules_are_not_imported_for_type_checking_only(module: str) -> None:
    """Such an import indicates a circle; only heavy external packages may be imported like this."""
    guarded = [
        name
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for name in names_in(statement)
    ]
    assert not [name for name in guarded if name.startswith("bids_app")]


@pytest.mark.parametrize("package", UNKNOWN)
def test_packages_do_not_import_forbidden_packages(package: str) -> None:
    for module in MODULES:
        if f"{module}.".startswith(f"bids_app.{package}."):
            for name in imports_of(module):
                unknown = [other for other in UNKNOWN[package] if f"{name}.".startswith(f"{other}.")]
                assert not unknown, f"{module} imports {name}"


@pytest.mark.parametrize("path", sorted({p.parent for p in PACKAGE.rglob("*.py")}), ids=name_of)
def test_each_package_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse((path / "__init__.py").read_text()))


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, bids_app.cli.neurostorm as cli; cli.build_parser();"
        "heavy = {'torch', 'numpy', 'nibabel', 'nipype', 'bids', 'pandas', 'ants', 'yaml'} & set(sys.modules);"
        "print(sorted(heavy)); sys.exit(bool(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
