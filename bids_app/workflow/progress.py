"""Callbacks of a run: a line per step, or a bar on a terminal, with the time left; and the end of groups of steps."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bids_app.terminal import VERBOSE, printable, raw_stderr
from bids_app.workflow.graph import Graph, Step
from bids_app.workflow.time_left import TimeLeft, as_text

LOGGER = logging.getLogger(__name__)
DEFAULT_WIDTH = 80
"""Columns of a terminal that has no size."""


class Groups:
    """Detect the end of groups of steps: each step of the group has ended, or depends on a failed step.

    Parameters
    ----------
    graph : Graph
    groups : mapping
        Last steps of each group, by the name of the group.
    on_end : callable
        Called once per group, with its name.
    """

    def __init__(self, graph: Graph, groups: Mapping[str, tuple[Step, ...]], on_end: Callable[[str], None]) -> None:
        self._open = {
            name: {step.name: step for last in steps for step in graph.ancestors(last)}
            for name, steps in groups.items()
        }
        self._groups_of: dict[str, list[str]] = {}
        for group, members in self._open.items():
            for name in members:
                self._groups_of.setdefault(name, []).append(group)
        self._ended: dict[str, bool] = {}
        self._on_end = on_end

    def __call__(self, step: str, ended_well: bool) -> None:
        """Record the end of a step."""
        self._ended[step] = ended_well
        for group in self._groups_of.get(step, ()):
            members = self._open.get(group)
            if members is not None and self._is_settled(members):
                del self._open[group]
                self._on_end(group)

    def _is_settled(self, members: Mapping[str, Step]) -> bool:
        failed: set[str] = set()
        for name, step in members.items():  # each comes after those that it needs
            needs_failed = any(parent.name in failed for parent in step.upstream.values())
            if needs_failed or self._ended.get(name) is False:
                failed.add(name)
            elif name not in self._ended:
                return False
        return True


class Progress:
    """Status callback of the nipype plugins: a line per step and the time left, or a bar; use as a context manager.

    Parameters
    ----------
    steps : iterable of str
        Names of the steps that are not reused from the scratch folder.
    groups : Groups, optional
        Called with each step that ends, and at first with those that are reused.
    reused : iterable of str
        Names of the steps that are reused.
    """

    def __init__(self, steps: Iterable[str], groups: Groups | None = None, reused: Iterable[str] = ()) -> None:
        self._steps = {name: run_and_kind(name) for name in steps}
        self._time_left = TimeLeft(self._steps.values())
        self._n_ended = 0
        self._groups = groups
        self._reused = tuple(reused)
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._groups is not None:
            for name in self._reused:
                self._groups(name, True)
        if raw_stderr().isatty() and self._steps:
            from tqdm import tqdm

            self._bar = tqdm(
                total=len(self._steps),
                leave=False,
                file=raw_stderr(),
                ncols=width(),
                nrows=20,  # as if the terminal had rows: with none, nothing would be shown
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, node: Any, status: str) -> None:
        """Update the lines or the bar, and the groups, when a step starts or ends."""
        if node.name in self._steps:
            if status == "start":
                self._start(*self._steps[node.name])
            else:
                self._end(*self._steps[node.name], ended_well=status == "end")
        if self._groups is not None and status != "start":
            self._groups(node.name, status == "end")

    def _start(self, run: str, kind: str) -> None:
        self._time_left.start(run, kind)
        LOGGER.log(VERBOSE, "%s: %s started", run, kind, extra={"run": run})
        self._show(f"{run} {kind}")

    def _end(self, run: str, kind: str, ended_well: bool) -> None:
        seconds = self._time_left.end(run, kind, measured=ended_well)
        self._n_ended += 1
        left = as_text(self._time_left.seconds()) if self._n_ended < len(self._steps) else "last step"
        LOGGER.log(
            VERBOSE if self._bar is not None else logging.INFO,
            "%d/%d %s: %s %s%s; %s",
            self._n_ended,
            len(self._steps),
            run,
            kind,
            "done" if ended_well else "failed",
            "" if seconds is None else f" in {seconds:.1f} s",
            left,
            extra={"run": run},
        )
        if self._bar is not None:
            self._bar.update()
        self._show(f"{run} {kind}")

    def _show(self, step: str) -> None:
        """Show a step and the time left at the end of the bar."""
        if self._bar is not None:
            self._bar.ncols = width()
            self._bar.set_postfix_str(f"{as_text(self._time_left.seconds())}, {printable(step)}")


def run_and_kind(name: str) -> tuple[str, str]:
    """Split the name of a step into its run, as in file names, and the kind of step.

    In names of steps, the hyphens of BIDS names are underscores: ``sub_01_task_rest_hmc`` is step ``hmc`` of
    ``sub-01_task-rest``.
    """
    match = re.fullmatch(r"(?:(.*?)_)?(publish_model|[^_]+)", name)
    if match is None:
        return "", name
    words = (match[1] or "").split("_")
    pairs = ["-".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    return "_".join(pairs), match[2]


def width() -> int:
    """Return the width of the terminal in columns; 80 if it does not say."""
    try:
        return os.get_terminal_size(raw_stderr().fileno()).columns or DEFAULT_WIDTH
    except (OSError, ValueError):
        return DEFAULT_WIDTH
