"""State of a training run: signs of divergence, and the last good state."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from bids_app.errors import BadDataError, InputOutputError
from bids_app.training.state import (
    FACTOR,
    PARTS,
    STATE,
    WINDOW,
    Checkpoints,
    LossGuard,
    export_good,
    read_state,
    write_state,
)


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
def test_a_loss_above_the_first_and_much_above_the_lowest_has_diverged(later, has_diverged):
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
    content = dict.fromkeys(PARTS) | {"rows": [{"loss": 1.0}], "losses": [0.5, 0.4], "steps": 10}
    write_state(tmp_path, {**content, "model": {"w": 1}}, is_good=True)
    write_state(tmp_path, {**content, "model": {"w": 2}}, is_good=False)
    assert read_state(tmp_path / "state.pt")["model"] == {"w": 2}
    exported = []
    message = export_good(tmp_path, Checkpoints(lambda path, weights: exported.append((path, weights))))
    assert exported == [(tmp_path / "checkpoints" / "good.safetensors", {"w": 1})]
    assert "step 12" in message
    assert "--start-from" in message
    assert export_good(tmp_path / "other", Checkpoints(exported.append)) == ""


@contextmanager
def files_limited_to(n_bytes: int) -> Iterator[None]:
    """Refuse larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_becomes_full_keeps_the_state_that_was_saved_before(tmp_path):
    content = dict.fromkeys(PARTS)
    write_state(tmp_path, {**content, "steps": 1}, is_good=True)
    large = {**content, "model": {"w": torch.zeros(100_000)}}
    with files_limited_to(50_000), pytest.raises(InputOutputError, match=r"state\.pt: writing failed") as caught:
        write_state(tmp_path, large, is_good=True)
    assert caught.value.exit_code == 74
    assert read_state(tmp_path / STATE)["steps"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.pt", "state.pt"]


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.zeros(3)])
def test_a_file_that_is_no_state_is_named(tmp_path, content):
    torch.save(content, tmp_path / STATE)
    with pytest.raises(BadDataError, match=r"state\.pt: not a state of a training run"):
        read_state(tmp_path / STATE)
