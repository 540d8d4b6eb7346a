"""Training loop: AdamW, warm-up and cosine schedule, and resuming.

Random numbers of each step depend only on seed, epoch and step, so that a resumed run gives the same results, even from
the middle of an epoch. A loss that is not finite or diverges ends the run, with the last good state kept.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from bids_app.errors import BadDataError, Terminated, UsageError
from bids_app.terminal import count_of
from bids_app.training.logs import RunLog, Stopwatch
from bids_app.training.optimiser import LoopSettings, make_optimiser
from bids_app.training.processes import fabric_for, lost_processes, noted_sigterm, on_first
from bids_app.training.sharding import gather, is_sharded, restore_optimiser, whole
from bids_app.training.state import (
    STATE,
    Checkpoints,
    LossGuard,
    Rows,
    State,
    TrainingProgress,
    check_state,
    export_good,
    fingerprint,
    read_state,
    write_state,
)

if TYPE_CHECKING:
    from lightning.fabric import Fabric

log = logging.getLogger(__name__)
HELD_OUT = "held_out"
"""Column of the mean loss of held-out clips."""


class Batches(Protocol):
    """Batches for the training loop, such as `bids_app.training.data.loader.ClipBatches`."""

    @property
    def steps(self) -> int: ...

    def epoch(self, number: int, first: int = 0) -> Iterator[Any]: ...


Loss = Callable[[Any], torch.Tensor]
"""Computes a loss from a batch."""


class Objective(nn.Module):
    """Model as a module that returns losses, so that Fabric wraps it for processes and precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, task: LossTask) -> torch.Tensor:
        """Compute a loss of a batch."""
        return task.loss_of(task.batch)


class LossTask:
    """A loss and its batch; opaque, so that Fabric does not convert or move tensors."""

    def __init__(self, loss_of: Loss, batch: Any) -> None:
        self.loss_of, self.batch = loss_of, batch


class HeldOut(Protocol):
    """Clips that are not trained with, such as `bids_app.training.held_out.HeldOutClips`."""

    def measure(self, compute: Callable[[Loss, Any], torch.Tensor], fabric: Fabric) -> float:
        """Return their mean loss, the same in all processes; ``compute`` applies a loss to a batch."""
        ...


def fit(
    model: nn.Module,
    batches: Batches,
    loss_of: Loss,
    settings: LoopSettings,
    folder: Path | None = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    monitor: str | None = None,
    patience: int | None = None,
    report: Callable[[str], None] | None = None,
    fabric: Fabric | None = None,
    facts: Mapping[str, Any] | None = None,
    held_out: HeldOut | None = None,
    checkpoints: Checkpoints | None = None,
    loggers: Callable[[int], Sequence[Any]] | None = None,
) -> Rows:
    """Train a model.

    Parameters
    ----------
    model : nn.Module
        Parameters that require a gradient are trained.
    batches : Batches
        Batches of this process.
    loss_of : callable
        Computes the mean loss of the clips of a batch; uses the global random generator of torch.
    settings : LoopSettings
    folder : Path, optional
        Folder for the logs and the state, see `bids_app.training.logs` and `bids_app.training.state`; training resumes
        from an existing state.
    validate : callable, optional
        Called after each epoch in evaluation mode; the metrics it returns are logged.
    monitor : str, optional
        Metric to maximise; the weights of the best epoch are restored at the end.
    patience : int, optional
        Stop after this number of epochs without improvement.
    report : callable, optional
        Receives one line per epoch.
    fabric : Fabric, optional
        See `bids_app.training.processes.fabric_for`; None: one process on the device of the model, float32.
    facts : mapping, optional
        What determines the results beside ``settings``, as JSON values; part of the state, see `check_state`.
    held_out : HeldOut, optional
        Their loss is measured after each epoch.
    checkpoints : Checkpoints, optional
        Weights to keep in ``folder``: of the epoch with the lowest held-out loss, and every so many steps.
    loggers : callable, optional
        Returns Fabric's loggers; receives the number of completed steps.

    Returns
    -------
    list of dict
        One row per epoch: ``epoch``, ``loss``, ``rate``, ``seconds``, ``clips_per_s``, ``waiting`` (share of the time),
        ``held_out``, and the metrics of ``validate``.

    Raises
    ------
    BadDataError
        The loss or a gradient is not finite, the loss has diverged, or the state belongs to another run.
    UsageError
        The state is of another recipe.
    Terminated
        SIGTERM; the state is saved first.
    TemporaryError
        Another process of the run has ended.
    """
    fabric = fabric or fabric_for(next(model.parameters()).device)
    recipe = fingerprint(settings, facts or {})
    with lost_processes(fabric), noted_sigterm() as terminated:
        run = _Run(model, batches, loss_of, settings, folder, fabric, recipe, checkpoints, loggers, terminated)
        rows = run.progress.rows
        for epoch in range(len(rows), settings.epochs):
            if patience is not None and monitor and _epochs_since_best(rows, monitor) >= patience:
                break
            row = run.epoch(epoch, is_measured=held_out is not None)
            model.eval()
            with torch.no_grad():
                row |= validate() if validate is not None else {}
                row |= {HELD_OUT: held_out.measure(run.compute, fabric)} if held_out is not None else {}
            rows.append(row)
            if monitor and _epochs_since_best(rows, monitor) == 0:
                run.progress.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
            if held_out is not None and row[HELD_OUT] == min(r[HELD_OUT] for r in rows):
                run.export("best")
            run.save_state()
            if fabric.is_global_zero:
                (report or log.info)(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
        run.log.close()
    if run.progress.best is not None:
        model.load_state_dict(run.progress.best)
    model.eval()
    return rows


class _Run:
    """One training run: wrapped model, optimiser and progress."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_of: Loss,
        settings: LoopSettings,
        folder: Path | None,
        fabric: Fabric,
        recipe: Mapping[str, Any],
        checkpoints: Checkpoints | None,
        loggers: Callable[[int], Sequence[Any]] | None,
        terminated: threading.Event,
    ) -> None:
        self.model, self.batches, self.loss_of, self.settings = model, batches, loss_of, settings
        self.folder, self.fabric, self.checkpoints, self.terminated = folder, fabric, checkpoints, terminated
        self.recipe = dict(recipe)
        self.accumulate = min(settings.accumulate, batches.steps)
        self.per_epoch = batches.steps // self.accumulate
        self.progress, optimiser_state = self._resume(folder) if folder is not None else (TrainingProgress(), None)
        is_first = fabric.is_global_zero
        self.log = RunLog(folder, is_first, loggers(self.n_steps) if loggers is not None and is_first else ())
        self.log.truncate(self.n_steps)
        self.is_sharded = is_sharded(fabric)
        self.wrapped = fabric.setup_module(Objective(model))
        self.optimiser = make_optimiser(model, settings)  # for the parameters of this device
        if optimiser_state is not None:
            self._restore(optimiser_state)
        self.stepper: Any = fabric.setup_optimizers(self.optimiser)
        if fabric.world_size > 1 and not self.is_sharded:
            self._fix_order_of_sums()
        self.saved_at = time.monotonic()

    @property
    def n_steps(self) -> int:
        """Number of completed steps."""
        return len(self.progress.rows) * self.per_epoch + len(self.progress.losses)

    def _fix_order_of_sums(self) -> None:
        """Have gradients summed over processes in the same order in all steps, so that a resumed run is bit-equal.

        DistributedDataParallel groups gradients anew after its first backward pass. One is made without data.
        """

        def zero(_: object) -> torch.Tensor:
            return torch.stack([0 * p.sum() for p in self.model.parameters() if p.requires_grad]).sum()

        self.fabric.backward(self.compute(zero, None))
        self.stepper.zero_grad(set_to_none=True)

    def compute(self, loss_of: Loss, batch: Any) -> torch.Tensor:
        """Compute a loss of a batch by the wrapped model."""
        return self.wrapped(LossTask(loss_of, batch))

    def epoch(self, number: int, is_measured: bool = False) -> dict[str, float]:
        """Train for one epoch, or for the rest of a resumed epoch; ``is_measured``: held-out clips follow."""
        losses, times, started = self.progress.losses, Stopwatch(), time.monotonic()
        self.model.train()
        epoch_batches = self.batches.epoch(number, len(losses) * self.accumulate)
        hidden = None if self.fabric.is_global_zero else True  # None: only on a terminal
        with tqdm(total=self.per_epoch, initial=len(losses), desc=f"epoch {number + 1}", disable=hidden) as bar:
            while len(losses) < self.per_epoch:
                loss, wants_state = self._step(number, epoch_batches, times)
                bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                bar.update()
                self._keep(wants_state)
        if isinstance(epoch_batches, Generator):
            epoch_batches.close()  # stops reading ahead
        if is_measured:
            self.save_state()  # the job may end while they are measured, which can take long
        rate = self._learning_rate(number * self.per_epoch + self.per_epoch - 1)
        row = {"epoch": number + 1, "loss": float(np.mean(losses)), "rate": rate}
        self.progress.losses = []
        return row | {"seconds": time.monotonic() - started} | times.summary()

    def _learning_rate(self, step: int) -> float:
        return self.settings.learning_rate_at(step, self.settings.epochs * self.per_epoch)

    def _step(self, epoch: int, batches: Iterator[Any], times: Stopwatch) -> tuple[float, bool]:
        """Make a step; return its loss, and whether the state is to be saved now."""
        step, started, own = self.n_steps, time.monotonic(), Stopwatch()
        seeds = np.random.SeedSequence([self.settings.seed, epoch, step])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        losses = []
        for index in range(1, self.accumulate + 1):
            asked = time.monotonic()
            batch = next(batches)  # one at a time to save memory
            own.waiting += time.monotonic() - asked
            own.clips += len(batch) * self.fabric.world_size
            with self.fabric.no_backward_sync(self.wrapped, enabled=index < self.accumulate):
                loss = self.compute(self.loss_of, batch)
                self.fabric.backward(loss / self.accumulate)
            losses.append(loss.detach())
        mean, wants_state, terminated = self._agree(torch.stack(losses).mean())
        self._check(mean, f"The loss is {mean}")
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self._learning_rate(step)
        limit = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        found: Any = self.fabric.clip_gradients(self.wrapped, self.stepper, max_norm=limit, error_if_nonfinite=False)
        norm = float(whole(found))
        self._check(norm, f"The norm of the gradients is {norm}")
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        own.seconds = time.monotonic() - started
        times.add(own)
        row = {"epoch": epoch + 1, "step": step + 1, "loss": mean, "rate": self._learning_rate(step), "norm": norm}
        self.log.step(row, own)
        self.progress.losses.append(mean)
        self.progress.guard.add(mean)
        if terminated:
            self.save_state()
            self.fabric.barrier()  # the end of one process may end the others
            raise Terminated
        return mean, wants_state

    def _agree(self, loss: torch.Tensor) -> tuple[float, bool, bool]:
        """Return the mean loss of all processes, and whether one wants to save the state or was terminated."""
        is_late = time.monotonic() - self.saved_at >= self.settings.checkpoint_interval
        flags = [float(is_late), float(self.terminated.is_set())]
        total: Any = self.fabric.all_reduce(torch.stack([loss.float(), *loss.new_tensor(flags)]), reduce_op="mean")
        mean, late, terminated = total.tolist()
        return mean, late > 0, terminated > 0

    def _check(self, value: float, what: str) -> None:
        """End the run before a step that would spoil the weights."""
        if not math.isfinite(value):
            self.save_state()
            self._stop(f"{what} in epoch {len(self.progress.rows) + 1}, step {self.n_steps + 1}.")

    def _keep(self, wants_state: bool) -> None:
        """Save the state and weights if they are due; end a run that has diverged."""
        guard = self.progress.guard
        if guard.has_diverged:
            self._stop(
                f"The loss has diverged: {guard.current:.4g} over the last steps before step {self.n_steps}, "
                f"{guard.lowest:.4g} at its lowest."
            )
        if self.checkpoints is not None and self.checkpoints.every and self.n_steps % self.checkpoints.every == 0:
            self.export(f"step-{self.n_steps:07d}")
        if wants_state and len(self.progress.losses) < self.per_epoch:
            self.save_state()

    def _stop(self, message: str) -> None:
        """End the run in all processes; the first one reports why."""

        def stop() -> None:
            self.log.close()
            good = export_good(self.folder, self.checkpoints)
            check = "Check the data (neurostorm-train store verify), or lower" if not self.n_steps else "Lower"
            raise BadDataError(message, f"{check} --learning-rate. {good}".strip())

        on_first(self.fabric, stop)

    def _gather(self) -> tuple[State, dict[str, Any]]:
        """Return the weights, and the state of the optimiser; in the first process, if they are divided."""
        if self.is_sharded:
            return gather(self.model, self.optimiser)
        return self.model.state_dict(), self.optimiser.state_dict()

    def export(self, name: str) -> None:
        """Write the weights as a checkpoint."""
        if self.checkpoints is None or self.folder is None:
            return
        weights, _ = self._gather()
        if self.fabric.is_global_zero:
            self.checkpoints.export(self.checkpoints.path(self.folder, name), weights)

    def save_state(self) -> None:
        """Write the state atomically, then the log."""
        self.saved_at = time.monotonic()
        weights, optimiser = self._gather()
        if self.folder is not None and self.fabric.is_global_zero:
            progress = self.progress
            content = {
                "model": weights,
                "optimiser": optimiser,
                "rows": progress.rows,
                "losses": progress.losses,
                "best": progress.best,
                "guard": asdict(progress.guard),
                "steps": self.per_epoch,
                "recipe": self.recipe,
            }
            write_state(self.folder, content, progress.guard.is_good)
        if not self.progress.losses:
            self.log.epoch(self.progress.rows, self.n_steps)

    def _restore(self, optimiser_state: dict[str, Any]) -> None:
        if self.is_sharded:
            restore_optimiser(self.model, self.optimiser, optimiser_state)
        else:
            self.optimiser.load_state_dict(optimiser_state)

    def _resume(self, folder: Path) -> tuple[TrainingProgress, dict[str, Any] | None]:
        """Load the weights of a state, and return its progress and its optimiser."""
        if not (folder / STATE).is_file():
            return TrainingProgress(), None
        check_state(folder, self.recipe)
        state = read_state(folder / STATE)
        mismatch = BadDataError(
            f"{folder / STATE}: the state belongs to another training run.", "Remove the folder, or change --output."
        )
        if state["steps"] != self.per_epoch:
            raise mismatch
        try:
            self.model.load_state_dict(state["model"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise mismatch from error
        if len(state["rows"]) > self.settings.epochs:
            raise UsageError(
                f"{folder}: {count_of(len(state['rows']), 'epoch')} completed; --epochs is {self.settings.epochs}.",
                "Raise --epochs, or change --output.",
            )
        guard = LossGuard(**state["guard"])
        progress = TrainingProgress(list(state["rows"]), list(state["losses"]), state["best"], guard)
        return progress, state["optimiser"]


def _epochs_since_best(rows: Rows, column: str) -> int:
    """Count the epochs since the best one; of equal epochs, the last is the best."""
    if not rows:
        return 0
    values = [row[column] for row in rows]
    return len(values) - 1 - max(range(len(values)), key=lambda i: (values[i], i))
