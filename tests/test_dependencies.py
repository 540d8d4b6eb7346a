"""The dependencies in pyproject.toml match the imports of the package."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_INSTALLED = {"mamba_ssm": "mamba-ssm", "triton": "triton", "umap": "umap-learn"}
"""Distributions of modules that are optional for the tests."""

INSTALLED = packages_distributions()
LOADED_LATE = {"brainmarks_dataset", "brainmarks_model", "scan_triton_kernels", "server"}
"""Modules of the package that need an extra to be imported."""


def distributions_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


NEEDED = distributions_of(PROJECT["dependencies"])
OPTIONAL = {
    name: distributions_of(wanted) for name, wanted in PROJECT["optional-dependencies"].items() if name != "dev"
}


def imports_of(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Return the top-level modules that a file imports; optionally only imports outside functions."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
        if not (at_import_time and isinstance(node, ast.FunctionDef)):
            todo.extend(ast.iter_child_nodes(node))
    return {name for name in found if name not in sys.stdlib_module_names and name != "bids_app"}


def candidates(module: str) -> set[str]:
    """Return the distributions that provide a module."""
    installed = INSTALLED.get(module, [])
    return {canonicalize_name(name) for name in [*installed, NOT_INSTALLED.get(module, module)]}


FILES = sorted((ROOT / "bids_app").rglob("*.py"))
IMPORTED: dict[str, set[Path]] = {}
for file in FILES:
    for name in imports_of(file):
        IMPORTED.setdefault(name, set()).add(file)


@pytest.mark.parametrize("distribution", sorted(NEEDED))
def test_every_dependency_is_imported(distribution: str) -> None:
    assert any(distribution in candidates(module) for module in IMPORTED), f"nothing imports {distribution}"


@pytest.mark.parametrize("module", sorted(IMPORTED))
def test_every_import_is_a_dependency(module: str) -> None:
    optional = set().union(*OPTIONAL.values())
    assert candidates(module) & (NEEDED | optional), f"{module} is not in pyproject.toml"


def test_extras_are_imported_only_when_used() -> None:
    for module, paths in IMPORTED.items():
        if not candidates(module) & NEEDED:
            eager = {path.stem for path in paths if module in imports_of(path, at_import_time=True)}
            assert eager <= LOADED_LATE, f"{eager} import the extra {module} at import time"


def test_modules_that_need_an_extra_are_imported_only_when_used() -> None:
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                assert not LOADED_LATE & set(str(node.module).split(".")), f"{path} imports {node.module}"
