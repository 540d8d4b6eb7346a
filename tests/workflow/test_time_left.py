"""The estimate of the time left, over simulated schedules whose true duration is known."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import pytest

from bids_app.workflow.time_left import TYPICAL_SECONDS, TimeLeft, as_text, typical
from tests.helpers.paths import ROOT

T1W = ("prepare", "normalise", "outputs")
BOLD = ("examine", "hmc", "mask", "align", "confounds", "collect", "grid", "encode", "judge", "tables", "figures")
FAIR, SMOOTH = 2.5, 1.5
"""Maximum ratio of the estimated and the true duration, and of two successive estimates."""


@dataclass
class Estimate:
    """Estimate after a step: time since the start, time left, and fraction of the steps that ended (s, s, 1)."""

    now: float
    left: float | None
    steps: float


def simulate(n_runs: int, processors: int, seed: int, t1w: bool = True) -> tuple[list[Estimate], float]:
    """Run the steps of each run one after another, several runs at once; return the estimates and the true duration.

    The kinds of steps take other times than typical here, up to threefold, and vary between runs.
    """
    rng = np.random.default_rng(seed)
    kinds = (*(T1W if t1w else ()), *BOLD)
    scale = rng.uniform(0.3, 10)
    here = {kind: typical(kind) * scale * np.exp(rng.normal(0, 0.4)) for kind in kinds}
    clock = [0.0]
    time_left = TimeLeft([(f"sub-{run:03}", kind) for run in range(n_runs) for kind in kinds], clock=lambda: clock[0])
    waiting, events, found, ended = list(range(n_runs)), [], [], 0

    def start(run: int, position: int) -> None:
        time_left.start(f"sub-{run:03}", kinds[position])
        heapq.heappush(events, (clock[0] + here[kinds[position]] * rng.uniform(0.7, 1.3), run, position))

    for _ in range(min(processors, n_runs)):
        start(waiting.pop(0), 0)
    while events:
        clock[0], run, position = heapq.heappop(events)
        time_left.end(f"sub-{run:03}", kinds[position])
        ended += 1
        if position + 1 < len(kinds):
            start(run, position + 1)
        elif waiting:
            start(waiting.pop(0), 0)
        found.append(Estimate(clock[0], time_left.seconds(), ended / (n_runs * len(kinds))))
    return found, clock[0]


@pytest.mark.parametrize(("n_runs", "processors"), [(1, 1), (2, 2), (12, 2), (24, 4)])
@pytest.mark.parametrize("t1w", [True, False])
def test_the_estimate_is_fair_and_does_not_jump(n_runs: int, processors: int, t1w: bool) -> None:
    for seed in range(5):
        estimates, duration = simulate(n_runs, processors, seed, t1w)
        known = [e for e in estimates if e.left is not None]
        assert known[0].now < 1.2 * duration / max(1, n_runs / processors)  # before the first run has ended
        totals = np.log([(e.now + e.left) / duration for e in known])
        assert np.abs(totals).max() < np.log(FAIR)
        assert np.abs(np.diff(totals)).max() < np.log(SMOOTH)


def test_counting_steps_would_jump() -> None:
    """The simulation is not too easy: an estimate from the number of steps fails it."""
    estimates, duration = simulate(2, 2, seed=0)
    totals = np.log([e.now / e.steps / duration for e in estimates])
    assert np.abs(totals).max() > np.log(FAIR)
    assert np.abs(np.diff(totals)).max() > np.log(SMOOTH)


def test_there_is_no_estimate_before_anything_of_weight_was_measured() -> None:
    time_left = TimeLeft([("sub-01", kind) for kind in (*T1W, *BOLD)], clock=iter(range(100)).__next__)
    assert time_left.seconds() is None
    time_left.start("sub-01", "examine")
    time_left.end("sub-01", "examine")
    assert time_left.seconds() is None
    assert as_text(None) == "time left: not known yet"


def test_a_failed_step_is_not_measured_but_no_longer_waited_for() -> None:
    clock = [0.0]
    time_left = TimeLeft([(run, kind) for run in ("a", "b") for kind in ("hmc", "encode")], clock=lambda: clock[0])
    for run in ("a", "b"):
        time_left.start(run, "hmc")
        clock[0] += 8
        time_left.end(run, "hmc", measured=run == "b")
    assert time_left.seconds() == pytest.approx(16, rel=0.2)  # two of `encode`, as long as `hmc` here
    time_left.end("a", "encode", measured=False)  # not started, since a step before it failed
    assert time_left.seconds() == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "about 5 s"), (22, "about 20 s"), (59, "about 1 min"), (365, "about 6 min"), (9000, "about 2.5 h")],
)
def test_the_time_left_is_printed_coarsely(seconds: float, text: str) -> None:
    assert as_text(seconds) == f"{text} left"


def test_typical_times_are_of_steps_that_exist() -> None:
    text = (ROOT / "bids_app" / "workflow" / "method.py").read_text()
    assert [kind for kind in TYPICAL_SECONDS if f"}}_{kind}" not in text] == []
