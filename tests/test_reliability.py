"""Every promise in docs/reliability.md names existing tests with the right markers."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`( [*†])?")
PROMISES = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]


@cache
def marks_of(path: Path) -> dict[str, str]:
    """Decorators and module-wide markers of each test of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    everywhere = "".join(ast.unparse(node) for node in assigned if ast.unparse(node.targets[0]) == "pytestmark")
    tests = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {node.name: everywhere + "".join(map(ast.unparse, node.decorator_list)) for node in tests}


def test_every_promise_names_a_test() -> None:
    assert len(PROMISES) > 30
    assert [line for line in PROMISES if not NAMED.search(line)] == []


def test_every_named_test_exists_and_is_marked_as_the_page_says() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 40
    for file, test, mark in named:
        assert (TESTS / file).is_file(), file
        assert test in marks_of(TESTS / file), f"{file}::{test}"
        marks = marks_of(TESTS / file)[test]
        assert ("mark.slow" in marks) == (mark == " *"), f"{file}::{test} {mark}"
        assert ("mark.container" in marks) == (mark == " †"), f"{file}::{test} {mark}"
