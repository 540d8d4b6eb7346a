"""Structure of the package: layers, no circular imports, and a command line without heavy imports."""

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

AT_THE_ROOT = {"__init__", "errors", "files", "settings", "terminal", "data"}
"""Entries at the root of the package besides the packages of `LAYERS`."""

LAYERS = [
    {"errors", "files", "settings", "terminal"},
    {"bids", "clips", "model", "catalog", "phantom"},
    {"preprocess", "adapters", "reports", "outputs"},
    {"workflow", "group", "training", "review", "cluster"},
    {"cli"},
]
"""From bottom to top: a package imports from the layers below its own."""

ALLOWED_WITHIN_LAYER = {
    ("files", "errors"),
    ("settings", "errors"),
    ("settings", "files"),
    ("model", "catalog.models"),
    ("catalog", "bids.writer"),
    ("phantom", "bids.writer"),
    ("phantom", "catalog.templates"),
    ("phantom", "clips"),
    ("outputs", "adapters"),
    ("outputs", "preprocess"),
    ("outputs", "reports"),
    ("reports", "outputs.schema"),
    ("group", "workflow.preflight"),
    ("training", "group"),
    ("training", "workflow.locks"),
    ("cluster", "workflow.locks"),
    ("workflow", "training.data.facts"),
    ("workflow", "training.data.entries"),
}
"""Imports allowed within a layer: (package, imported package or module)."""

FORBIDDEN = {
    "bids": {"torch", "ants"},
    "reports": {"torch", "bids_app.model", "bids_app.clips", "bids_app.adapters"},
    "model": {"nibabel", "bids", "bids_app.bids", "ants"},
}
"""Modules that a package must not import."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def names_in(node: ast.AST) -> Iterator[str]:
    """Yield the modules in an import statement; ``from package import module`` gives both."""
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
    """Return everything that a module imports, including imports in functions and under TYPE_CHECKING."""
    return frozenset(name for node in ast.walk(tree_of(module)) for name in names_in(node))


@cache
def modules_imported_by(module: str) -> frozenset[str]:
    """Return the modules of the package that a module's imports execute, except the packages that contain it."""
    found = {name for name in imports_of(module) if name in MODULES}
    for name in tuple(found):
        parts = name.split(".")
        packages = (".".join(parts[:n]) for n in range(2, len(parts)))
        found.update(package for package in packages if not module.startswith(f"{package}."))
    return frozenset(found & MODULES.keys() - {"bids_app", module})


def package_of(module: str) -> str:
    return module.split(".")[1]


def layer_of(package: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if package in layer)


def imports_not_from_below() -> Iterator[tuple[str, str, str]]:
    """Yield imports that are not from a layer below: (importing module, its package, imported module)."""
    for module in MODULES:
        if module != "bids_app" and package_of(module) != "data":
            package = package_of(module)
            names = imports_of(module) & MODULES.keys() - {"bids_app"}
            innermost = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
            for name in sorted(innermost):
                if package_of(name) != package and layer_of(package_of(name)) >= layer_of(package):
                    yield module, package, name


def matches_pair(allowed: tuple[str, str], package: str, imported: str) -> bool:
    return allowed[0] == package and f"{imported}.".startswith(f"bids_app.{allowed[1]}.")


def find_cycle(graph: dict[str, frozenset[str]]) -> list[str]:
    """Return a cycle in a graph, with its first node repeated at the end, or an empty list."""
    finished: set[str] = set()
    path: list[str] = []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        path.append(node)
        for after in sorted(graph[node]):
            if cycle := visit(after):
                return cycle
        finished.add(path.pop())
        return []

    return next((cycle for node in graph if (cycle := visit(node))), [])


def test_root_of_the_package_contains_only_the_known_entries() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == AT_THE_ROOT | set().union(*LAYERS)


def test_packages_import_only_from_layers_below_or_allowed_pairs() -> None:
    others = [
        f"{module} imports {name}"
        for module, package, name in imports_not_from_below()
        if layer_of(package_of(name)) > layer_of(package)
        or not any(matches_pair(pair, package, name) for pair in ALLOWED_WITHIN_LAYER)
    ]
    assert not others, "\n".join(others)


@pytest.mark.parametrize("pair", sorted(ALLOWED_WITHIN_LAYER), ids=" imports ".join)
def test_allowed_pairs_are_used(pair: tuple[str, str]) -> None:
    assert any(matches_pair(pair, package, name) for _, package, name in imports_not_from_below())


def test_no_circular_imports() -> None:
    cycle = find_cycle({module: modules_imported_by(module) for module in MODULES})
    assert not cycle, " imports ".join(cycle)


def test_cycle_is_found_wherever_it_starts() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}
    assert find_cycle({node: frozenset(after) for node, after in graph.items()}) == ["b", "d", "b"]
    assert find_cycle({"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}) == []


@pytest.mark.parametrize("module", [m for m in MODULES if "TYPE_CHECKING" in MODULES[m].read_text()])
def test_no_module_of_the_package_is_imported_only_for_type_checking(module: str) -> None:
    """Such an import would hide a circular import; heavy third-party packages may be imported this way."""
    guarded = [
        name
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for name in names_in(statement)
    ]
    assert not [name for name in guarded if name.startswith("bids_app")]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_do_not_import_forbidden_modules(package: str) -> None:
    for module in MODULES:
        if f"{module}.".startswith(f"bids_app.{package}."):
            for name in imports_of(module):
                forbidden = [other for other in FORBIDDEN[package] if f"{name}.".startswith(f"{other}.")]
                assert not forbidden, f"{module} imports {name}"


@pytest.mark.parametrize("path", sorted({p.parent for p in PACKAGE.rglob("*.py")}), ids=name_of)
def test_each_package_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse((path / "__init__.py").read_text()))


def test_command_line_has_no_heavy_imports() -> None:
    code = (
        "import sys, bids_app.cli.neurostorm as cli; cli.build_parser();"
        "heavy = {'torch', 'numpy', 'nibabel', 'nipype', 'bids', 'pandas', 'ants', 'yaml'} & set(sys.modules);"
        "print(sorted(heavy)); sys.exit(bool(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
