"""Training of folds in several processes: the same predictions as in one."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch

from bids_app.bids.processes import start_time
from bids_app.errors import UsageError
from bids_app.model.api import load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.training.adapt import AdaptSettings, LabelledScans
from bids_app.training.evaluation.run import EvaluateSettings
from bids_app.training.evaluation.workers import FoldTraining, end_with, run_folds
from bids_app.training.optimiser import LoopSettings
from bids_app.training.tasks import Task
from tests.training.evaluation.test_evaluate import Shaded

SETTINGS = AdaptSettings("ln", batch_size=4, loop=LoopSettings(epochs=2, learning_rate=3e-2))


@pytest.fixture
def folds(tmp_path):
    """Three folds of a tiny encoder with other scans each."""
    torch.manual_seed(0)
    config = EncoderConfig(img_size=(4, 4, 4, 20), patch_size=(2, 2, 2, 1), embed_dim=4, depths=(1,))
    model = load_model(save_encoder(tmp_path / "m.safetensors", config, Encoder(config).state_dict(), "m"))
    values = tuple("dl"[k % 2] for k in range(8))
    task = Task.from_values("shade", values)

    def fold(first: int) -> FoldTraining:
        scans = tuple(Shaded(str(first + k), 2.0 * (k % 2)) for k in range(8))
        test = tuple(Shaded(str(first + k), 2.0 * (k % 2)) for k in range(8, 11))
        return FoldTraining(model, task, LabelledScans(scans, values), None, test, SETTINGS, "voxel")

    return [fold(first) for first in (0, 20, 40)]


def test_the_predictions_of_a_fold_do_not_depend_on_the_folds_before_it(folds):
    messages: list[str] = []
    forward = list(run_folds(folds, 1, messages.append))
    backward = list(run_folds(folds[::-1], 1, lambda _: None))[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not np.array_equal(forward[0], forward[1])
    assert [line for line in messages if line.startswith("fold")] == [f"fold {k} of 3" for k in (1, 2, 3)]


@pytest.mark.slow
def test_several_processes_give_the_same_predictions_in_the_same_order(folds):
    one, two = (list(run_folds(folds, workers, lambda _: None)) for workers in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_worker_ends_when_the_command_is_killed():
    ours, theirs = os.pipe()
    command = os.fork()
    if command == 0:
        worker = os.fork()
        if worker == 0:
            end_with(os.getppid())
            os.write(theirs, str(os.getpid()).encode())  # it watches
        time.sleep(60)
        os._exit(1)
    worker = int(os.read(ours, 20))
    assert start_time(worker)
    os.kill(command, signal.SIGKILL)
    os.waitpid(command, 0)
    deadline = time.monotonic() + 20
    while start_time(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not start_time(worker)
    os.close(ours)
    os.close(theirs)


def test_workers_without_anything_to_share_are_refused():
    with pytest.raises(UsageError, match="--workers is for strategies that train the encoder"):
        EvaluateSettings(AdaptSettings("linear"), workers=2)
