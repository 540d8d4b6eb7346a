"""Training of the folds of an evaluation, one after another or in several processes, with the same results."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from bids_app.adapters.file import AdaptedModel
from bids_app.errors import EXIT_TERMINATED, TemporaryError
from bids_app.model.api import Model
from bids_app.training.adapt import AdaptSettings, LabelledScans, adapt, predict
from bids_app.training.data.loader import ClipSource
from bids_app.training.tasks import Task

WATCH_SECONDS = 0.5
"""Interval at which a worker looks whether the command still runs."""


@dataclass(frozen=True)
class FoldTraining:
    """Training of one fold, and prediction of its test set.

    Attributes
    ----------
    model : Model
    task : Task
        Defined on the training set.
    training : LabelledScans
    validation : LabelledScans, optional
    test : tuple of ClipSource
    settings : AdaptSettings
    normalisation : str
        Normalisation of the clips.
    images : mapping, optional
        Image vectors, for tasks about images.
    """

    model: Model
    task: Task
    training: LabelledScans
    validation: LabelledScans | None
    test: tuple[ClipSource, ...]
    settings: AdaptSettings
    normalisation: str
    images: Mapping[str, np.ndarray] | None = None

    def run(self, threads: int | None = None, report: Callable[[str], None] | None = None) -> np.ndarray:
        """Train an adapter, and return its predictions of the test set, (N, K); ``threads`` are those of torch."""
        if threads is not None:
            torch.set_num_threads(threads)
        adapter, _ = adapt(
            self.model,
            self.task,
            self.training,
            self.validation,
            self.settings,
            self.normalisation,
            "evaluated",
            report=report,
            images=self.images,
        )
        adapted, settings = AdaptedModel(self.model, adapter), self.settings
        return predict(adapted, self.task, self.test, settings.batch_size, settings.clip_average)


def _run(fold: FoldTraining, threads: int, command: int) -> np.ndarray:
    """Run a fold in a worker of a command, given by its process number."""
    end_with(command)
    return fold.run(threads)


@cache
def end_with(parent: int) -> None:
    """Have this process end soon after its parent, which may be killed and cannot end it then; once is enough."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(EXIT_TERMINATED)

    threading.Thread(target=watch, daemon=True).start()


def run_folds(folds: Sequence[FoldTraining], workers: int, report: Callable[[str], None]) -> Iterator[np.ndarray]:
    """Yield the predictions of folds in their order.

    Each process computes with as many threads as this one, since the last digits depend on their number.

    Parameters
    ----------
    folds : sequence of FoldTraining
    workers : int
        Number of processes; 1: this process.
    report : callable
        Receives progress messages; of other processes, only that a fold is finished.

    Raises
    ------
    TemporaryError
        A process was killed.
    """
    if workers == 1:
        for number, fold in enumerate(folds, 1):
            report(f"fold {number} of {len(folds)}")
            yield fold.run(report=report)
        return
    from joblib import Parallel, delayed

    threads = torch.get_num_threads()
    report(f"{workers} processes with {threads} threads each (OMP_NUM_THREADS)")
    parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator", mmap_mode=None, max_nbytes=None)
    try:
        for number, found in enumerate(parallel(delayed(_run)(fold, threads, os.getpid()) for fold in folds), 1):
            report(f"fold {number} of {len(folds)} finished")
            yield found
    except BrokenExecutor as error:  # of which loky's error of a killed process is one
        raise TemporaryError(
            "A process that trained a fold was killed, probably out of memory.", "Use fewer --workers."
        ) from error
