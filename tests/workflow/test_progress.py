"""A group of steps has ended when each of them ended, or needs one that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.workflow.graph import Graph
from bids_app.workflow.progress import Groups


def nothing(out_dir: Path, **_: object) -> None:
    """Stand for a step."""


@pytest.fixture
def graph() -> Graph:
    """Two runs that share a step; each has a branch that does not need the other."""
    made = Graph()
    shared = made.step("shared", nothing)
    for run in ("one", "two"):
        first = made.step(f"{run}_first", nothing, shared=shared)
        made.step(f"{run}_tables", nothing, first=first)
        made.step(f"{run}_figures", nothing, first=first)
    return made


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def groups(graph: Graph, ended: list[str]) -> Groups:
    last = {run: (graph.steps[f"{run}_tables"], graph.steps[f"{run}_figures"]) for run in ("one", "two")}
    return Groups(graph, last, ended.append)


def test_a_group_ends_with_its_last_step(groups: Groups, ended: list[str]) -> None:
    for name in ("shared", "one_first", "one_tables", "two_first"):
        groups(name, True)
        assert ended == []
    groups("one_figures", True)
    assert ended == ["one"]


def test_a_branch_that_does_not_need_the_failed_step_is_waited_for(groups: Groups, ended: list[str]) -> None:
    groups("shared", True)
    groups("one_first", True)
    groups("one_tables", False)
    assert ended == []
    groups("one_figures", True)
    assert ended == ["one"]


def test_what_needs_a_failed_step_is_not_waited_for(groups: Groups, ended: list[str]) -> None:
    groups("shared", True)
    groups("two_first", False)
    assert ended == ["two"]


def test_a_failure_that_all_groups_need_ends_all(groups: Groups, ended: list[str]) -> None:
    groups("shared", False)
    assert ended == ["one", "two"]


def test_a_group_ends_once(groups: Groups, ended: list[str]) -> None:
    for name in ("shared", "one_first", "one_tables", "one_figures", "one_figures"):
        groups(name, True)
    assert ended == ["one"]
