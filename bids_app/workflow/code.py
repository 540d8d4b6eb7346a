"""Hash of the code that the result of a step depends on, so that a step runs again only when its code changed.

Dependencies are found in the source: the names in a definition that belong to this package, and their dependencies in
turn. Files in the folder of the module that a definition names (``templates.yml``) belong to the definition, as do the
imports from other libraries that it uses, with the versions of these libraries.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = "bids_app"
KERNELS = tuple(f"csrc/{name}.h" for name in ("block", "conv", "gemm", "linear", "merge", "patch", "scan"))
"""Headers of the kernels of the encoder."""
SOURCE_FILES = {
    f"{PACKAGE}.model.native": ("csrc/kernels.h", "csrc/lanes.h", "csrc/kernels.cpp", "csrc/dispatch.cpp"),
    f"{PACKAGE}.preprocess.spline": ("../model/csrc/spline.h",),
    **{f"{PACKAGE}.model.{name}": KERNELS for name in ("fused", "linear", "scan_native")},
}
"""Files that belong to a module beside its own: sources of the kernels, relative to its folder."""
OTHER_STATEMENTS = ""
"""Key of the module-level statements that define no name; they run on import."""

MAX_NAME = 255
"""Longest name of a file, bytes; longer strings are texts."""

Symbol = tuple[str, str]
"""A module and a name in it."""


def code_hash(function: Callable[..., Any]) -> str:
    """Hash the source of a function, all its dependencies in this package, and the versions of the libraries used."""
    return hash_of_definition(function.__module__, function.__qualname__)


@cache
def hash_of_definition(module: str, name: str) -> str:
    """Return the `code_hash` of a function by module and name, without importing the module."""
    digest = hashlib.sha256()
    for symbol in sorted(all_dependencies((module, name.partition(".")[0]))):
        digest.update(repr((symbol, symbol_hash(symbol))).encode())
    return digest.hexdigest()


@cache
def library_version(module: str) -> str:
    """Return the versions of the distributions that contain a top-level module; empty for the standard library."""
    if module in sys.stdlib_module_names:
        return ""
    names = sorted(set(distributions().get(module, ())))
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


@cache
def distributions() -> dict[str, list[str]]:
    """Return the names of the installed distributions by top-level module."""
    return dict(importlib.metadata.packages_distributions())


def all_dependencies(start: Symbol) -> set[Symbol]:
    """Return a definition and all its direct and indirect dependencies."""
    found: set[Symbol] = set()
    waiting = [start]
    while waiting:
        symbol = waiting.pop()
        if symbol not in found:
            found.add(symbol)
            waiting += direct_dependencies(symbol)
    return found


@dataclass(frozen=True)
class Source:
    """Parsed source of a module.

    Attributes
    ----------
    path : pathlib.Path
    lines : tuple of str
    definitions : dict
        Module-level statements by the names that they define, or under `OTHER_STATEMENTS`.
    imports : dict
        Names imported at module level; see `imports_in`.
    """

    path: Path
    lines: tuple[str, ...]
    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, Symbol]


@dataclass(frozen=True)
class Uses:
    """What a statement refers to.

    Attributes
    ----------
    names : frozenset of (str, str)
        Names, each with the attribute that is read from it; empty: none.
    imports : dict
        Names imported within the statement; see `imports_in`.
    libraries : frozenset of str
        Top-level modules outside this package that it imports.
    strings : frozenset of str
    """

    names: frozenset[tuple[str, str]]
    imports: dict[str, Symbol]
    libraries: frozenset[str]
    strings: frozenset[str]


@cache
def uses_of(statement: ast.stmt) -> Uses:
    """Return what a statement refers to, from a single walk through its tree, which takes most of the time here."""
    names: set[tuple[str, str]] = set()
    strings: set[str] = set()
    imports: list[ast.Import | ast.ImportFrom] = []
    waiting: list[Any] = [statement]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add((node.value.id, node.attr))
            continue
        if isinstance(node, ast.Name):
            names.add((node.id, ""))
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                strings.add(node.value)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        else:
            for field in node._fields:
                child = getattr(node, field, None)
                if isinstance(child, list):
                    waiting += [each for each in child if isinstance(each, ast.AST)]
                elif isinstance(child, ast.AST):
                    waiting.append(child)
    found = {symbol for node in imports for symbol in imports_in(node)}
    libraries = {name for node in imports for name in libraries_in(node)}
    return Uses(frozenset(names), dict(found), frozenset(libraries), frozenset(strings))


@cache
def read_source(module: str) -> Source | None:
    """Parse the source of a module; None if it has no source file."""
    path = source_path(module)
    if path is None:
        return None
    text = path.read_text(encoding="utf-8")
    definitions: dict[str, list[ast.stmt]] = {OTHER_STATEMENTS: []}
    imports: dict[str, Symbol] = {}
    for statement in ast.parse(text).body:
        ours = dict(imports_in(statement)) if isinstance(statement, ast.Import | ast.ImportFrom) else {}
        imports |= ours
        if ours or is_docstring(statement):
            continue
        for name in names_defined_by(statement) or [OTHER_STATEMENTS]:
            definitions.setdefault(name, []).append(statement)
    return Source(path, tuple(text.splitlines()), definitions, imports)


def names_defined_by(statement: ast.stmt) -> list[str]:
    """Return the names that a statement defines; none if it has another effect, such as ``os.environ[...] = ...``."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in statement.names]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        nodes = [node for target in targets for node in ast.walk(target)]
        if not any(isinstance(node, ast.Subscript | ast.Attribute) for node in nodes):
            return [node.id for node in nodes if isinstance(node, ast.Name)]
    return []


def is_docstring(statement: ast.stmt) -> bool:
    """Return whether a statement is a string without effect."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def imports_in(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Symbol]]:
    """Iterate over the names that a statement imports from this package, with the symbols that they refer to."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] == PACKAGE and alias.asname:
                yield alias.asname, (alias.name, "*")
    elif (node.module or "").partition(".")[0] == PACKAGE:
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            is_module = source_path(submodule) is not None
            yield alias.asname or alias.name, (submodule, "*") if is_module else (str(node.module), alias.name)


@cache
def direct_dependencies(symbol: Symbol) -> list[Symbol]:
    """Return the direct dependencies of a definition in this package."""
    module, name = symbol
    source = read_source(module)
    if source is None:
        return []
    if name in source.imports:  # re-exported from another module
        return [source.imports[name]]
    if name not in source.definitions:  # a whole module, or a name from its __getattr__
        everything = [tree for trees in source.definitions.values() for tree in trees]
        return [(module, name) for name in source.definitions] + _names_used_in(module, source, everything)
    parts = module.split(".")
    packages = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]  # each runs when the module is imported
    on_import = [(package, OTHER_STATEMENTS) for package in packages]
    return on_import + _names_used_in(module, source, source.definitions[name])


def _names_used_in(module: str, source: Source, statements: list[ast.stmt]) -> list[Symbol]:
    found: list[Symbol] = []
    for uses in map(uses_of, statements):
        known = source.imports | uses.imports
        for name, attribute in uses.names:
            if name in known:
                target, symbol = known[name]
                found.append((target, (attribute or "*") if symbol == "*" else symbol))
            elif name in source.definitions:
                found.append((module, name))
    return found


@cache
def symbol_hash(symbol: Symbol) -> str:
    """Hash the source of a definition and the files that belong to it."""
    module, name = symbol
    source = read_source(module)
    if source is None or name not in source.definitions:
        return ""
    digest = hashlib.sha256()
    for statement in source.definitions[name]:
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
        digest.update("\n".join(source.lines[first - 1 : statement.end_lineno]).encode())
        uses = uses_of(statement)
        for file in files_named_in(uses.strings, source.path):
            digest.update(file.name.encode() + file.read_bytes())
        digest.update("".join(map(library_version, sorted(uses.libraries))).encode())
    if name == OTHER_STATEMENTS:
        for relative in SOURCE_FILES.get(module, ()):
            digest.update(relative.encode() + (source.path.parent / relative).read_bytes())
    return digest.hexdigest()


def libraries_in(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return the top-level modules outside this package that a statement imports."""
    found = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {str(node.module)}
    return {name.partition(".")[0] for name in found} - {PACKAGE}


def files_named_in(strings: Iterable[str], path: Path) -> list[Path]:
    """Return the files in the folder of a module that the strings of a definition name."""
    short = {text for text in strings if text.isprintable() and len(text.encode()) <= MAX_NAME}
    names = {text for text in short if "/" not in text and Path(text).suffix}
    return sorted(file for file in (path.with_name(name) for name in names) if file.is_file() and file != path)


@cache
def source_path(module: str) -> Path | None:
    """Return the source file of a module; None if there is none."""
    found: str | None
    if module.partition(".")[0] == PACKAGE:
        root = Path(str(sys.modules[PACKAGE].__file__)).parent.joinpath(*module.split(".")[1:])
        return next((path for path in (root.with_suffix(".py"), root / "__init__.py") if path.is_file()), None)
    if module in sys.modules:
        found = getattr(sys.modules[module], "__file__", None)
    else:
        try:
            spec = find_spec(module)
        except (ImportError, ValueError):
            return None
        found = spec.origin if spec else None
    return Path(found) if found and found.endswith(".py") else None
