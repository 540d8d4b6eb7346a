"""Lines and bar of a run; a group of steps has ended when each of them ended, or needs one that failed."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bids_app.terminal import terminal_log
from bids_app.workflow.graph import Graph
from bids_app.workflow.progress import Groups, Progress, run_and_kind
from tests.helpers.scripts import ENVIRONMENT


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


STEPS = ("sub_01_task_rest_examine", "sub_01_task_rest_hmc", "sub_01_task_rest_publish_model")


def show(*statuses: str, steps: tuple[str, ...] = STEPS) -> None:
    """Start and end steps, with the given status at the end of each."""
    with Progress(steps) as progress:
        for name, status in zip(steps, statuses, strict=True):
            progress(SimpleNamespace(name=name), "start")
            progress(SimpleNamespace(name=name), status)


def test_a_line_per_step_names_the_run_the_step_and_the_time_left(capsys) -> None:
    with terminal_log(verbosity=0):
        show("end", "exception", "end")
    lines = capsys.readouterr().err.splitlines()
    when = r"\d\d:\d\d:\d\d"
    assert re.fullmatch(f"{when} 1/3 sub-01_task-rest: examine done in 0.0 s; time left: not known yet", lines[0])
    assert re.fullmatch(f"{when} 2/3 sub-01_task-rest: hmc failed in 0.0 s; time left: not known yet", lines[1])
    assert re.fullmatch(f"{when} 3/3 sub-01_task-rest: publish_model done in 0.0 s; last step", lines[2])


def test_with_v_the_start_of_steps_is_shown_too(capsys) -> None:
    with terminal_log(verbosity=1):
        show("end", "end", "end")
    assert capsys.readouterr().err.count(" started\n") == 3


def test_reused_steps_have_no_line_and_are_not_counted(capsys) -> None:
    with terminal_log(verbosity=1), Progress(STEPS[:1]) as progress:
        progress(SimpleNamespace(name=STEPS[1]), "end")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "run", "kind"),
    [
        ("sub_01_T1w_normalise", "sub-01_T1w", "normalise"),
        ("sub_01_ses_a_task_rest_run_2_publish_model", "sub-01_ses-a_task-rest_run-2", "publish_model"),
        ("write", "", "write"),
    ],
)
def test_names_of_steps_are_those_of_runs_again(name: str, run: str, kind: str) -> None:
    assert run_and_kind(name) == (run, kind)


ON_A_TERMINAL = """
import sys
from tests.workflow.test_progress import show
show("end", "end", steps=("sub_01_x1b_hmc", "sub_02_x_hmc"))
"""


@pytest.mark.parametrize("columns", [None, "0"])
def test_a_terminal_without_a_size_shows_progress(columns: str | None) -> None:
    """A new pseudo-terminal has no rows and columns, as those of some schedulers and containers."""
    main, side = pty.openpty()
    environment = {key: value for key, value in ENVIRONMENT.items() if key not in ("COLUMNS", "LINES")}
    environment |= {"COLUMNS": columns} if columns else {}
    subprocess.run([sys.executable, "-c", ON_A_TERMINAL], stderr=side, env=environment, check=True)
    os.set_blocking(main, False)
    shown = os.read(main, 65536)
    os.close(side)
    os.close(main)
    assert "0/2" in shown.decode()
    assert "sub-02_x hmc" in shown.decode()
