"""Estimate of the time left: from the run times of the kinds of steps measured so far, and their typical proportions.

Counting steps would mislead, since the run times of steps differ a thousandfold.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

TYPICAL_SECONDS = {
    "prepare": 12.0,
    "normalise": 20.0,
    "examine": 1.0,
    "hmc": 6.0,
    "sdc": 15.0,
    "mask": 4.0,
    "search": 5.0,
    "align": 7.0,
    "confounds": 5.0,
    "ingest": 6.0,
    "grid": 7.0,
    "encode": 6.0,
    "attribute": 60.0,
    "figures": 5.0,
}
"""Run times of the kinds of steps (s) for a run of some five minutes; only their proportions matter."""
TYPICAL_OF_OTHERS = 0.5
"""Run time of a kind that is not listed (s)."""
MIN_MEASURED = 0.4
"""Fraction of the typical time of all kinds of steps whose kinds have to be measured before there is an estimate.

Below this, the proportions of this dataset are unknown, and the estimate would jump when the first long step ends.
"""


class TimeLeft:
    """Estimate of the time left.

    Parameters
    ----------
    steps : iterable of (str, str)
        Run and kind of each step that is still to do.
    clock : callable
        Time, s.
    """

    def __init__(self, steps: Iterable[tuple[str, str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pending: dict[str, Counter[str]] = {}
        for run, kind in steps:
            self._pending.setdefault(run, Counter())[kind] += 1
        self._all_pending = sum(self._pending.values(), Counter())
        self._started: dict[tuple[str, str], float] = {}
        self._begun: set[str] = set()
        self._measured: dict[str, list[float]] = {}
        self._first: float | None = None
        self._needed = MIN_MEASURED * sum(map(typical, self._all_pending))

    def start(self, run: str, kind: str) -> None:
        """Record the start of a step."""
        now = self._clock()
        self._first = now if self._first is None else self._first
        self._started[run, kind] = now
        self._begun.add(run)

    def end(self, run: str, kind: str, *, measured: bool = True) -> float | None:
        """Record the end of a step, and return its run time (s).

        Parameters
        ----------
        measured : bool
            False for failed steps, whose run times do not count.
        """
        started = self._started.pop((run, kind), None)
        kinds = self._pending.get(run, Counter())
        if kinds[kind] > 0:
            self._all_pending[kind] -= 1
            kinds[kind] -= 1
            if not +kinds:
                del self._pending[run]
                self._begun.discard(run)
        if started is None:
            return None
        seconds = self._clock() - started
        if measured:
            self._measured.setdefault(kind, []).append(seconds)
        return seconds

    def seconds(self) -> float | None:
        """Return the time left (s); None while too little was measured."""
        known = sum(len(values) * typical(kind) for kind, values in self._measured.items())
        if self._first is None or not known or sum(map(typical, self._measured)) < self._needed:
            return None
        done = sum(map(sum, self._measured.values()))
        expected = {kind: self._expected(kind, done / known) for kind in self._all_pending}
        now = self._clock()
        running = {step: now - started for step, started in self._started.items()}
        work = sum(n * expected[kind] for kind, n in self._all_pending.items())
        work -= sum(min(elapsed, 0.9 * expected[kind]) for (_, kind), elapsed in running.items())
        parallel = max(1.0, (done + sum(running.values())) / max(now - self._first, 1e-6))
        return max(work / parallel, self._longest_run(expected, running))

    def _expected(self, kind: str, scale: float) -> float:
        """Return the mean of the measured run times and of one that is typical of this machine and dataset."""
        values = self._measured.get(kind, [])
        return (typical(kind) * scale + sum(values)) / (1 + len(values))

    def _longest_run(self, expected: dict[str, float], running: dict[tuple[str, str], float]) -> float:
        """Return the maximum time left of a single run (s): its steps mostly follow each other."""
        waiting = next((run for run in self._pending if run not in self._begun), None)
        longest = 0.0
        for run in filter(None, (*self._begun, waiting)):
            left = sum(n * expected[kind] for kind, n in self._pending[run].items())
            left -= sum(min(t, 0.9 * expected[kind]) for (of, kind), t in running.items() if of == run)
            longest = max(longest, left)
        return longest


def typical(kind: str) -> float:
    """Return the typical run time of a kind of step (s)."""
    return TYPICAL_SECONDS.get(kind, TYPICAL_OF_OTHERS)


def as_text(seconds: float | None) -> str:
    """Format the time left in words, coarsely: it is an estimate."""
    if seconds is None:
        return "time left: not known yet"
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s left"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {max(1, minutes)} min left"
    return f"about {seconds / 3600:.1f} h left"
