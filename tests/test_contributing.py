"""CONTRIBUTING.md is up to date: its paths exist, and it lists every package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOP = "bids_app/"


def paths_in(text: str) -> set[str]:
    """Repository paths in backticks; text after a space, as in a command, is ignored."""
    return set(re.findall(r"`((?:bids_app|tests|benchmarks|docs|scripts)/[^`\s]*)`", text))


def tree_in(text: str) -> set[str]:
    """Paths of the tree: one entry per line, two spaces per level, description after two more."""
    block = re.search(rf"^```\n{TOP}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None, "no tree"
    found, parents = set(), [TOP]
    for line in block[1].splitlines():
        indent, name = re.match(r"( +)(\S+)", line).groups()
        del parents[len(indent) // 2 :]
        parents.append(name)
        found.add("".join(parents))
    return found


def packages() -> set[str]:
    """Folders of the package with modules, at any depth, with a trailing slash."""
    return {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in (ROOT / TOP).rglob("*.py")} - {TOP}


@pytest.mark.parametrize("path", sorted(paths_in(TEXT) | tree_in(TEXT)))
def test_a_named_path_exists(path: str) -> None:
    assert any(ROOT.glob(path)), f"CONTRIBUTING.md names {path}, which does not exist"
    assert (ROOT / path).is_dir() == path.endswith("/")


def test_the_tree_shows_every_package() -> None:
    assert packages() <= tree_in(TEXT)


def test_the_table_of_changes_names_paths() -> None:
    table = TEXT.partition("| to change | go to |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (?!---)(.+?) \| (.+?) \|$", table, re.MULTILINE)
    assert rows
    assert not [change for change, where in rows if not paths_in(where)]


def test_paths_are_read_from_text_and_tree() -> None:
    assert paths_in("`bids_app/a.py`, then `make x` and `tests/b/`; bids_app/c.py") == {"bids_app/a.py", "tests/b/"}
    tree = "```\nbids_app/\n  a/        one\n    b/      two\n    c.py    three\n  d.py      four\n```\n"
    assert tree_in(tree) == {"bids_app/a/", "bids_app/a/b/", "bids_app/a/c.py", "bids_app/d.py"}
