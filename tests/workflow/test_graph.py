"""Steps as plain data; the stamp of a step covers everything that its result depends on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bids_app.workflow import graph as graph_module
from bids_app.workflow.graph import Graph, file_stamp


def count(number: int, out_dir: Path, threads: int = 1) -> int:
    (out_dir / "number.txt").write_text(f"{number}")
    return number


def add(one: int, other: int, out_dir: Path) -> int:
    return one + other


def sum_of(number: int, threads: int = 1, invocation: str = "", always: bool = False) -> Graph:
    graph = Graph(invocation)
    one = graph.step("one", count, number=number, threads=threads, does="Count")
    other = graph.step("other", count, number=2)
    graph.step("sum", add, one=one, other=other, always=always)
    graph.step("unrelated", count, number=9)
    return graph


def stamps(graph: Graph) -> dict[str, str]:
    return {name: step.stamp for name, step in graph.steps.items()}


def test_a_changed_input_changes_only_the_stamps_of_dependent_steps() -> None:
    before, after = stamps(sum_of(1)), stamps(sum_of(5))
    assert {name for name in before if before[name] != after[name]} == {"one", "sum"}


def test_threads_do_not_change_the_stamp() -> None:
    assert stamps(sum_of(1, threads=1)) == stamps(sum_of(1, threads=8))


def test_the_stamp_of_a_step_that_always_runs_depends_on_the_invocation() -> None:
    before, after = (stamps(sum_of(1, invocation=name, always=True)) for name in ("first", "second"))
    assert {name for name in before if before[name] != after[name]} == {"sum"}


def test_two_steps_with_the_same_name_are_refused() -> None:
    graph = sum_of(1)
    with pytest.raises(ValueError, match="one"):
        graph.step("one", count, number=3)


def test_new_content_of_the_same_size_and_time_changes_the_stamp(tmp_path: Path) -> None:
    path = tmp_path / "bold.nii.gz"
    path.write_bytes(b"one")
    before, times = file_stamp(path), path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert file_stamp(path) != before


def test_a_graph_of_texts_only_reads_no_code(monkeypatch) -> None:
    monkeypatch.setattr(graph_module, "code_hash", None)
    step = Graph(stamped=False).step("first", print, does="BOLD: something")
    assert (step.stamp, step.does) == ("", "BOLD: something")
