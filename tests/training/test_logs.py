"""Logs of a training run: tables, times and loggers."""

from __future__ import annotations

import sys

import pytest

from bids_app.errors import UsageError
from bids_app.training.logs import RunLog, Stopwatch, check_loggers, make_loggers, read_table


def add_steps(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        row = {"epoch": 1, "step": step, "loss": 1 / step, "rate": 0.1, "norm": 2.0}
        log.step(row, Stopwatch(seconds=2.0, waiting=0.5, clips=8))


def test_a_resumed_run_repeats_the_steps_after_its_state(tmp_path):
    log = RunLog(tmp_path)
    add_steps(log, 1, 5)
    log.truncate(3)
    add_steps(log, 4, 6)
    for name in ("steps.csv", "speed.csv"):
        assert read_table(tmp_path / name)["step"] == [1, 2, 3, 4, 5, 6]
    assert read_table(tmp_path / "steps.csv")["loss"] == pytest.approx([1 / k for k in range(1, 7)])


def test_only_the_first_process_writes(tmp_path):
    add_steps(RunLog(tmp_path / "log", is_first=False), 1, 2)
    assert not (tmp_path / "log").exists()


def test_times_are_summed_up_as_clips_per_second_and_share_of_waiting():
    times = Stopwatch()
    for _ in range(4):
        times.add(Stopwatch(seconds=2.0, waiting=0.5, clips=8))
    assert times.summary() == {"clips_per_s": 4.0, "waiting": 0.25}


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 5), (4, 6)):  # interrupted after step 5, with a state of step 3
        (logger,) = make_loggers(["tensorboard"], tmp_path, {"seed": 0}, first - 1)
        log = RunLog(None, loggers=[logger])
        add_steps(log, first, last)
        log.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert {"loss", "rate", "norm", "clips_per_s", "waiting"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_whose_package_is_missing_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"--logger {name}.*neurostorm\[{name}\]"):
        check_loggers([name])
