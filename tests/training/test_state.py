"""State of a training run: signs of divergence, and the last good state."""

from __future__ import annotations

import pytest

from bids_app.training.state import FACTOR, WINDOW, Checkpoints, LossGuard, export_good, read_state, write_state


def guard_after(*losses: float) -> LossGuard:
    guard = LossGuard()
    for loss in losses:
        guard.add(loss)
    return guard


@pytest.mark.parametrize(
    ("later", "has_diverged"),
    [
        (0.9, False),  # no better than at first
        (0.45, False),  # worse than at best, but better than at first
        (1.9, True),  # above the first, and much worse than at best
    ],
)
def test_a_run_that_has_lost_what_it_learned_has_diverged(later, has_diverged):
    guard = guard_after(*[1.0] * WINDOW, *[0.3] * WINDOW, *[later] * WINDOW)
    assert guard.has_diverged == has_diverged


def test_a_run_that_never_learned_has_diverged_only_far_above_its_first_loss():
    assert not guard_after(*[1.0] * WINDOW, *[1.9] * WINDOW).has_diverged
    assert guard_after(*[1.0] * WINDOW, *[1.0 + FACTOR] * WINDOW).has_diverged


def test_single_outliers_and_short_runs_are_no_divergence():
    assert not guard_after(*[1.0] * WINDOW, *[0.9, 50.0] * (WINDOW // 4)).has_diverged
    assert not guard_after(1.0, *[100.0] * (WINDOW - 2)).has_diverged


def test_a_state_is_good_only_if_the_last_step_is():
    assert not LossGuard().is_good
    assert guard_after(1.0, 0.9).is_good
    assert not guard_after(1.0, 0.9, 40.0).is_good


def test_the_last_good_state_stays_and_its_weights_are_exported(tmp_path):
    content = {"rows": [{"loss": 1.0}], "losses": [0.5, 0.4], "steps": 10}
    write_state(tmp_path, {"model": {"w": 1}, **content}, is_good=True)
    write_state(tmp_path, {"model": {"w": 2}, **content}, is_good=False)
    assert read_state(tmp_path / "state.pt")["model"] == {"w": 2}
    exported = []
    message = export_good(tmp_path, Checkpoints(lambda path, weights: exported.append((path, weights))))
    assert exported == [(tmp_path / "checkpoints" / "good.safetensors", {"w": 1})]
    assert "step 12" in message
    assert "--start-from" in message
    assert export_good(tmp_path / "other", Checkpoints(exported.append)) == ""
