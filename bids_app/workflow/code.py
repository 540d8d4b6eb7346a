"""A hash of the code that a step's result depends on, so that a step runs again exactly when that code changed.

What a function uses is read off its source: the names in its definition, what these are in this package, and what
those use in turn. A file that a definition names and that lies beside its module (``templates.yml``) is part of it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = "bids_app"
LIBRARIES = ("antspyx", "nibabel", "nilearn", "numpy", "scipy", "torch")
"""Packages whose version is part of each hash."""
BESIDE = {f"{PACKAGE}.model.native": "csrc"}
"""Folders beside a module that are part of it: the kernels' sources and headers."""
REST = ""
"""Stands for the statements of a module that define no name; they take effect when it is imported."""

Symbol = tuple[str, str]
"""A module, and a name in it (`REST`: its other statements)."""


def code_hash(function: Callable[..., Any]) -> str:
    """Hash of a function's own source, of all in this package that it uses, and of the versions of `LIBRARIES`."""
    return hash_of_definition(function.__module__, function.__qualname__)


@cache
def hash_of_definition(module: str, name: str) -> str:
    """`code_hash` of a function by its module and name; the module is not imported."""
    digest = hashlib.sha256(repr(library_versions()).encode())
    for symbol in sorted(reached_from((module, name.partition(".")[0]))):
        digest.update(repr((symbol, symbol_hash(symbol))).encode())
    return digest.hexdigest()


@cache
def library_versions() -> tuple[str, ...]:
    """Installed versions of `LIBRARIES`."""
    return tuple(importlib.metadata.version(name) for name in LIBRARIES)


def reached_from(start: Symbol) -> set[Symbol]:
    """A definition, and all definitions that it uses."""
    found: set[Symbol] = set()
    waiting = [start]
    while waiting:
        symbol = waiting.pop()
        if symbol not in found:
            found.add(symbol)
            waiting += uses_of(symbol)
    return found


@dataclass(frozen=True)
class Source:
    """A module's source, taken apart.

    Attributes
    ----------
    path : pathlib.Path
    lines : tuple of str
    definitions : dict
        Statements at its top level by the names that they define; under `REST` those that define none.
    imports : dict
        What names are that are imported at its top level; see `imports_in`.
    """

    path: Path
    lines: tuple[str, ...]
    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, Symbol]


@cache
def read_source(module: str) -> Source | None:
    """Take a module's source apart; None for one that has no source on disk."""
    path = path_of(module)
    if path is None:
        return None
    text = path.read_text(encoding="utf-8")
    definitions: dict[str, list[ast.stmt]] = {REST: []}
    imports: dict[str, Symbol] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports |= dict(imports_in(statement))
            continue
        for name in names_defined_by(statement) or [REST]:
            definitions.setdefault(name, []).append(statement)
    return Source(path, tuple(text.splitlines()), definitions, imports)


def names_defined_by(statement: ast.stmt) -> list[str]:
    """Names that a statement binds: those of a function, a class or an assignment."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def imports_in(tree: ast.AST) -> Iterator[tuple[str, Symbol]]:
    """Names that imports from this package bind anywhere in a tree, and what they are: a module's name, or a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == PACKAGE and alias.asname:
                    yield alias.asname, (alias.name, "*")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                is_module = path_of(submodule) is not None
                yield alias.asname or alias.name, (submodule, "*") if is_module else (str(node.module), alias.name)


def uses_of(symbol: Symbol) -> list[Symbol]:
    """What a definition uses of this package."""
    module, name = symbol
    source = read_source(module)
    if source is None:
        return []
    if name in source.imports:  # handed on from another module
        return [source.imports[name]]
    if name not in source.definitions:  # all of a module, or a name that it makes on request
        everything = [tree for trees in source.definitions.values() for tree in trees]
        return [(module, name) for name in source.definitions] + _used_in(module, source, everything)
    return [(module, REST), *_used_in(module, source, source.definitions[name])]


def _used_in(module: str, source: Source, trees: list[ast.stmt]) -> list[Symbol]:
    found: list[Symbol] = []
    for tree in trees:
        known = source.imports | dict(imports_in(tree))
        through = {id(node.value): node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name):
                continue
            if node.id in known:
                target, name = known[node.id]
                found.append((target, through.get(id(node), name) if name == "*" else name))
            elif node.id in source.definitions:
                found.append((module, node.id))
    return found


@cache
def symbol_hash(symbol: Symbol) -> str:
    """Hash of a definition's source, and of the files beside its module that belong to it."""
    module, name = symbol
    source = read_source(module)
    if source is None or name not in source.definitions:
        return ""
    digest = hashlib.sha256()
    for statement in source.definitions[name]:
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
        digest.update("\n".join(source.lines[first - 1 : statement.end_lineno]).encode())
        for file in files_named_in(statement, source.path):
            digest.update(file.name.encode() + file.read_bytes())
    if module in BESIDE and name == REST:
        for file in sorted(source.path.with_name(BESIDE[module]).iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def files_named_in(tree: ast.AST, path: Path) -> list[Path]:
    """Files beside a module that a definition names in a string of its own."""
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = {text for text in strings if text.isprintable() and "/" not in text and Path(text).suffix}
    return sorted(file for file in (path.with_name(name) for name in names) if file.is_file() and file != path)


@cache
def path_of(module: str) -> Path | None:
    """A module's file; None for what is not a module, or has no source on disk."""
    found: str | None
    if module.partition(".")[0] == PACKAGE:
        root = Path(str(sys.modules[PACKAGE].__file__)).parent.joinpath(*module.split(".")[1:])
        return next((place for place in (root.with_suffix(".py"), root / "__init__.py") if place.is_file()), None)
    if module in sys.modules:
        found = getattr(sys.modules[module], "__file__", None)
    else:
        try:
            spec = find_spec(module)
        except (ImportError, ValueError):
            return None
        found = spec.origin if spec else None
    return Path(found) if found and found.endswith(".py") else None
