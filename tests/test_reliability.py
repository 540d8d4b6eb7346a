"""Every guarantee in docs/reliability.md names tests that exist and have the marks given on the page."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`( [*†])?")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| guarantee", "| ---"))]


@cache
def marks_of(path: Path) -> dict[str, str]:
    """Return the decorators of each test in a file, including the marks of the whole file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    everywhere = "".join(ast.unparse(node) for node in assigned if ast.unparse(node.targets[0]) == "pytestmark")
    tests = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {node.name: everywhere + "".join(map(ast.unparse, node.decorator_list)) for node in tests}


def test_every_guarantee_names_a_test() -> None:
    assert len(ROWS) > 30
    assert [line for line in ROWS if not NAMED.search(line)] == []


def test_every_named_test_exists_and_has_the_marks_given_on_the_page() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 40
    for file, test, mark in named:
        assert (TESTS / file).is_file(), file
        assert test in marks_of(TESTS / file), f"{file}::{test}"
        marks = marks_of(TESTS / file)[test]
        assert ("mark.slow" in marks) == (mark == " *"), f"{file}::{test} {mark}"
        assert ("mark.container" in marks) == (mark == " †"), f"{file}::{test} {mark}"
