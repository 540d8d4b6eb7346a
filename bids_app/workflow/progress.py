"""Callbacks of a run: progress bar on a terminal, and the end of groups of steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from bids_app.workflow.graph import Graph, Step


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
    """Status callback of the nipype plugins; use as a context manager.

    Parameters
    ----------
    n_steps : int
        Total number of steps.
    groups : Groups, optional
        Called with each step that ends.
    """

    def __init__(self, n_steps: int, groups: Groups | None = None) -> None:
        self._n_steps = n_steps
        self._groups = groups
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._n_steps, unit="step", leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, node: Any, status: str) -> None:
        """Update the bar and the groups when a step starts or ends."""
        if self._bar is not None and status == "start":
            self._bar.set_postfix_str(node.name)
        elif self._bar is not None:
            self._bar.update()
        if self._groups is not None and status != "start":
            self._groups(node.name, status == "end")
