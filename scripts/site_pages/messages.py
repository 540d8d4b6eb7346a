"""Exit codes, classes of errors, and all error messages of the package with what to do.

The messages are read from the source code: each place that makes an error of ``bids_app/errors.py`` gives its message
and its hint. Values are shown as ``{name}``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path

import bids_app
from bids_app import errors
from bids_app.errors import EXIT_CODES, NeurostormError
from site_pages.markdown import anchor, code, escape, table

PACKAGE = Path(bids_app.__file__).parent
TOPICS = {
    "cli": "Command line", "settings": "Command line", "bids": "Dataset and output folder", "files": "Reading files",
    "preprocess": "Preprocessing and derivatives", "clips": "Model grid and clips", "model": "Models",
    "catalog": "Models and templates", "adapters": "Adapters", "outputs": "Outputs", "group": "Group level",
    "review": "Review", "reports": "Reports", "workflow": "Participant level", "cluster": "Array jobs",
    "training": "Training", "phantom": "Simulation", "terminal": "Command line",
}  # fmt: skip
"""Headings of the packages."""


@dataclass(frozen=True)
class Message:
    """An error message of the package, with ``{name}`` for values.

    Attributes
    ----------
    kind : type
        Class of the error.
    text, hint : str
        What happened, and what to do.
    topic : str
        Part of the program.
    """

    kind: type[NeurostormError]
    text: str
    hint: str
    topic: str


def exit_codes() -> str:
    """List the exit codes with their meaning and the classes of errors."""
    kinds = classes()
    rows = []
    for number, meaning in EXIT_CODES.items():
        own = [
            f"[{code(kind.__name__)}](errors.md#{anchor(kind.__name__)})" for kind in kinds if kind.exit_code == number
        ]
        rows.append([str(number), escape(meaning), ", ".join(own)])
    return table(["exit code", "meaning", "errors"], rows)


def classes() -> list[type[NeurostormError]]:
    """Return the classes of errors, those of ``bids_app/errors.py`` in their order."""
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, NeurostormError)]
    return [kind for kind in found if kind is not NeurostormError]


def error_classes() -> str:
    """List the classes with exit code, cause and remedy."""
    rows = [
        [
            f"[{code(kind.__name__)}](#{anchor(kind.__name__)})",
            str(kind.exit_code),
            escape(kind.cause),
            escape(kind.remedy),
        ]
        for kind in classes()
    ]
    return table(["class", "exit code", "cause", "remedy"], rows)


def error_messages() -> str:
    """List all messages by class and part of the program."""
    parts = []
    for kind in classes():
        own = [message for message in messages() if message.kind is kind]
        parts += [f"### {kind.__name__} {{ #{anchor(kind.__name__)} }}"]
        parts += [f"Exit code {kind.exit_code}: {escape(EXIT_CODES[kind.exit_code])}. {escape(kind.cause)}"]
        for topic in dict.fromkeys(message.topic for message in own):
            rows = [[escape(m.text), escape(m.hint) or "see the message"] for m in own if m.topic == topic]
            parts += [f"#### {topic} {{ #{anchor(kind.__name__, topic)} }}", table(["message", "what to do"], rows)]
    return "\n\n".join(parts)


@cache
def messages() -> tuple[Message, ...]:
    """Read all messages of the package, in alphabetical order within a topic."""
    names = {kind.__name__: kind for kind in classes()}
    found: dict[tuple[str, str, str], Message] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        source = path.read_text(encoding="utf-8")
        if top not in TOPICS or not any(f"{name}(" in source for name in names):
            continue
        for node, scope in _calls(_tree(path), names):
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "hint")]
            if not given:
                continue
            kind = names[ast.unparse(node.func)]
            for text in _texts(given[0], scope):
                for hint in _texts(given[1], scope) if len(given) > 1 else [""]:
                    if any(letter.isalpha() for letter in _without_values(text)):
                        found.setdefault((kind.__name__, text, hint), Message(kind, text, hint, TOPICS[top]))
    return tuple(sorted(found.values(), key=lambda each: (each.topic, each.text.strip("{").casefold())))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


Scope = dict[str, list[ast.expr]]
"""Expressions that are assigned to a name."""


def _calls(tree: ast.Module, names: Collection[str]) -> Iterator[tuple[ast.Call, Scope]]:
    """Yield the calls of these names with the assignments of the module and of the functions around each call."""
    constants = _assigned(tree.body)

    def visit(node: ast.AST, functions: tuple[ast.FunctionDef, ...]) -> Iterator[tuple[ast.Call, Scope]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in names:
                yield child, reduce(or_, map(local, functions), constants)
            inner = (*functions, child) if isinstance(child, ast.FunctionDef) else functions
            yield from visit(child, inner)

    @cache
    def local(function: ast.FunctionDef) -> Scope:
        return _assigned([part for part in ast.walk(function) if isinstance(part, ast.stmt)])

    yield from visit(tree, ())


def _assigned(statements: list[ast.stmt]) -> Scope:
    found: Scope = {}
    for statement in statements:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(statement.value)
                elif isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                    for name, value in zip(target.elts, statement.value.elts, strict=False):
                        if isinstance(name, ast.Name):
                            found.setdefault(name.id, []).append(value)
        elif isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("bids_app"):
            for alias in statement.names:
                imported = _imported(statement.module or "", alias.name) if alias.name.isupper() else None
                if imported is not None:
                    found.setdefault(alias.asname or alias.name, []).append(imported)
    return found


def _imported(module: str, name: str) -> ast.expr | None:
    """Return the text that a constant of another module has."""
    return _constants(module).get(name)


@cache
def _constants(module: str) -> dict[str, ast.expr]:
    """Return the assignments of a module, by name."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    if not file.is_file():
        return {}
    found: dict[str, ast.expr] = {}
    for statement in _tree(file).body:
        if isinstance(statement, ast.Assign):
            found.setdefault(ast.unparse(statement.targets[0]), statement.value)
    return found


def _texts(node: ast.expr, scope: Scope, depth: int = 0) -> list[str]:
    """Return the texts that an expression may have; ``{name}`` stands for values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, scope, depth), *_texts(node.orelse, scope, depth)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in _texts(node.left, scope, depth) for b in _texts(node.right, scope, depth)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(_texts(part, scope, depth)[0] for part in node.values)]
    if isinstance(node, ast.FormattedValue):
        return [_value(node.value, scope)]
    if isinstance(node, ast.Name) and depth < 3:
        found = [text for value in scope.get(node.id, ()) for text in _texts(value, scope, depth + 1)]
        return found or [_value(node, scope)]
    return [_value(node, scope)]


def _value(node: ast.expr, scope: Scope) -> str:
    """Return ``{name}`` for a value, or the text of a constant of the module."""
    if isinstance(node, ast.Name):
        for value in scope.get(node.id, ()):
            if node.id.isupper() and isinstance(value, ast.Constant):
                return str(value.value)
        return f"{{{node.id}}}"
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        return f"{{{owner if node.attr == 'name' and owner not in ('', 'self') else node.attr}}}"
    return "{…}"


def _without_values(text: str) -> str:
    """Return the words of a message that are always the same."""
    return re.sub(r"\{[^}]*\}", "", text)
