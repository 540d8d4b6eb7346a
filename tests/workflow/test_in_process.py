"""Graph without an engine: each step receives the results of earlier steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.workflow.graph import Graph
from bids_app.workflow.in_process import run_in_process


def count(number: int, out_dir: Path, threads: int = 1) -> int:
    (out_dir / "number.txt").write_text(f"{number}")
    return number


def add(one: int, other: int, out_dir: Path) -> int:
    return one + other


def fail(value: int, out_dir: Path) -> None:
    raise ValueError("no such volume")


def sum_of(number: int) -> Graph:
    graph = Graph()
    one, other = (graph.step(name, count, number=n) for name, n in (("one", number), ("other", 2)))
    graph.step("sum", add, one=one, other=other)
    graph.step("unrelated", count, number=9)
    return graph


def test_a_step_receives_the_results_of_earlier_steps(tmp_path: Path) -> None:
    graph = sum_of(40)
    assert run_in_process(graph, tmp_path, graph.steps["sum"]) == {"one": 40, "other": 2, "sum": 42}
    assert (tmp_path / "one" / "number.txt").read_text() == "40"
    assert not (tmp_path / "unrelated").exists()


def test_the_error_of_a_step_is_raised(tmp_path: Path) -> None:
    graph = sum_of(1)
    broken = graph.step("broken", fail, value=graph.steps["sum"])
    with pytest.raises(ValueError, match="no such volume"):
        run_in_process(graph, tmp_path, broken)


def test_a_step_with_a_known_result_does_not_run(tmp_path: Path) -> None:
    graph = sum_of(1)
    asked: list[str] = []

    def call(step, arguments):
        asked.append(step.name)
        return step.function(**arguments)

    found = run_in_process(graph, tmp_path, graph.steps["sum"], call, {"one": 5})
    assert found["sum"] == 7
    assert asked == ["other", "sum"]
