"""Training loop: AdamW, warm-up and cosine schedule, logs, and a state from which an interrupted run resumes.

Random numbers of each step depend only on seed, epoch and step, so that a resumed run gives the same results, even from
the middle of an epoch. Lightning Fabric handles devices, processes and precision.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from bids_app.errors import BadDataError, UsageError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

log = logging.getLogger(__name__)
Rows = list[dict[str, float]]
MAY_CHANGE = ("epochs", "checkpoint_interval")
"""Settings with which an interrupted run may be continued although they differ."""
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop.

    Attributes
    ----------
    epochs : int
    learning_rate : float
        Maximum learning rate, after the warm-up.
    weight_decay : float
        Weight decay of matrices.
    decay_vectors : bool
        Biases, norms and other vectors have the weight decay of matrices, instead of none.
    beta2 : float
        Decay of AdamW's mean of squared gradients, per step.
    warmup : float
        Fraction of the steps in which the learning rate rises from 0.
    final : float
        Final learning rate as a fraction of the maximum.
    clip_norm : float, optional
        Maximum norm of the gradients; None: they are not clipped.
    accumulate : int
        Batches per optimiser step; remaining batches of an epoch are not used.
    seed : int
    checkpoint_interval : float
        Time between saved states within an epoch, s; the state is also saved after each epoch.
    """

    epochs: int = 30
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.05
    final: float = 0.01
    clip_norm: float | None = 1.0
    accumulate: int = 1
    seed: int = 0
    checkpoint_interval: float = 600.0
    decay_vectors: bool = False
    beta2: float = 0.98

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.accumulate < 1:
            raise UsageError(
                f"Invalid values: --epochs {self.epochs}, --accumulate {self.accumulate}.", "Use at least 1."
            )
        if not self.learning_rate > 0 or not 0 <= self.warmup < 1:
            raise UsageError(
                f"Invalid values: learning rate {self.learning_rate}, warm-up {self.warmup}.",
                "Use a positive learning rate and a warm-up from 0 to below 1.",
            )

    def learning_rate_at(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        n_warmup = max(1, round(self.warmup * n_steps))
        if step < n_warmup:
            return self.learning_rate * (step + 1) / n_warmup
        progress = (step - n_warmup) / max(1, n_steps - n_warmup)
        return self.learning_rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress)))


class Batches(Protocol):
    """Batches for the training loop, such as `bids_app.training.data.loader.ClipBatches`."""

    @property
    def steps(self) -> int: ...

    def epoch(self, number: int, first: int = 0) -> Iterator[Any]: ...


def make_optimiser(model: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """Create AdamW for the parameters that require a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UsageError("The model has no trainable parameters.", "Choose another strategy.")
    of_vectors = settings.weight_decay if settings.decay_vectors else 0.0
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": of_vectors},
    ]
    betas = (0.9, settings.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, betas=betas)


class Objective(nn.Module):
    """Model and loss as one module, so that Fabric wraps both (processes, precision)."""

    def __init__(self, model: nn.Module, loss_of: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, holder: BatchHolder) -> torch.Tensor:
        """Compute the loss of a batch."""
        return self.loss_of(holder.batch)


class BatchHolder:
    """Opaque container of a batch, so that Fabric does not convert or move its tensors."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch


@dataclass
class TrainingProgress:
    """Progress of a training run; saved with the weights.

    Attributes
    ----------
    rows : list of dict
        Log of the completed epochs.
    losses : list of float
        Losses of the completed steps of the current epoch.
    best : dict, optional
        Weights after the best epoch.
    """

    rows: Rows = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: State | None = None


def fabric_for(device: torch.device | str = "cpu", processes: int = 1, precision: str = "32-true") -> Fabric:
    """Create Lightning Fabric for a device.

    Parameters
    ----------
    device : torch.device or str
        ``cpu``, ``cuda``, ``cuda:1``.
    processes : int
        Number of processes, one per device (DistributedDataParallel; gloo on CPUs).
    precision : str
        ``32-true`` or ``bf16-mixed``.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    device = torch.device(device)
    if processes > 1:
        return Fabric(accelerator=device.type, devices=processes, strategy="ddp", precision=precision)  # type: ignore[arg-type]
    devices = 1 if device.type == "cpu" else [device.index or 0]
    environment = LightningEnvironment()  # ignores the variables of a scheduler
    return Fabric(accelerator=device.type, devices=devices, precision=precision, plugins=[environment])  # type: ignore[arg-type]


def fit(
    model: nn.Module,
    batches: Batches,
    loss_of: Callable[[Any], torch.Tensor],
    settings: LoopSettings,
    folder: Path | None = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    monitor: str | None = None,
    patience: int | None = None,
    report: Callable[[str], None] | None = None,
    fabric: Fabric | None = None,
    facts: Mapping[str, Any] | None = None,
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
        Folder for ``log.csv`` (one row per epoch), ``steps.csv`` (one row per step) and ``state.pt``; training resumes
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
        See `fabric_for`; None: one process on the device of the model, float32.
    facts : mapping, optional
        What determines the results beside ``settings``, as JSON values; part of the state, see `check_state`.

    Returns
    -------
    list of dict
        One row per epoch: ``epoch``, ``loss``, ``rate``, ``seconds`` and the metrics of ``validate``.

    Raises
    ------
    BadDataError
        The loss is not finite, or the state belongs to another run.
    UsageError
        The state is of another recipe.
    """
    fabric = fabric or fabric_for(next(model.parameters()).device)
    run = _Run(model, batches, loss_of, settings, folder, fabric, fingerprint(settings, facts or {}))
    rows = run.progress.rows
    for epoch in range(len(rows), settings.epochs):
        if patience is not None and monitor and _epochs_since_best(rows, monitor) >= patience:
            break
        row = run.epoch(epoch)
        if validate is not None:
            model.eval()
            with torch.no_grad():
                row |= validate()
        rows.append(row)
        if monitor and _epochs_since_best(rows, monitor) == 0:
            run.progress.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        run.save_state()
        if fabric.is_global_zero:
            (report or log.info)(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    if run.progress.best is not None:
        model.load_state_dict(run.progress.best)
    model.eval()
    return rows


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set the precision of float32 products on a GPU, and restore it afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def fingerprint(settings: LoopSettings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what determines the results of a training run, as JSON values; it may be continued for more epochs."""
    found = {**asdict(settings), **facts}
    return json.loads(json.dumps({key: found[key] for key in sorted(found) if key not in MAY_CHANGE}))


def check_state(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Check that an interrupted training run in a folder, if any, has the same recipe; nothing is written.

    Parameters
    ----------
    folder : Path
    recipe : mapping
        From `fingerprint`.

    Raises
    ------
    UsageError
        It has another recipe, or one that its state does not tell.
    """
    path = folder / "state.pt"
    if not path.is_file():
        return
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("recipe")
    except Exception as error:  # damaged files make the unpickler raise any exception
        raise BadDataError(f"{path}: the state is not readable ({str(error)[:200]}).", "Remove the folder.") from error
    if found is None:
        raise UsageError(
            f"{path}: the state does not tell its recipe; it is of an earlier version.",
            "Remove the folder, or change --output.",
        )
    differing = [
        f"{key} {found.get(key)} instead of {recipe.get(key)}"
        for key in sorted({*found, *recipe})
        if found.get(key) != recipe.get(key)
    ]
    if differing:
        raise UsageError(
            f"{path}: the interrupted training run has another recipe: {'; '.join(differing)}.",
            "Give the same options to continue it, or remove the folder, or change --output.",
        )


class _Run:
    """One training run: wrapped model, optimiser and progress."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_of: Callable[[Any], torch.Tensor],
        settings: LoopSettings,
        folder: Path | None,
        fabric: Fabric,
        recipe: Mapping[str, Any],
    ) -> None:
        self.model, self.batches, self.settings, self.folder, self.fabric = model, batches, settings, folder, fabric
        self.recipe = dict(recipe)
        self.accumulate = min(settings.accumulate, batches.steps)
        self.per_epoch = batches.steps // self.accumulate
        self.optimiser = make_optimiser(model, settings)
        self.progress = TrainingProgress()
        if folder is not None and (folder / "state.pt").is_file():
            self.progress = self._resume(folder)
        self.wrapped, self.stepper = fabric.setup(Objective(model, loss_of), self.optimiser)
        self.saved_at = time.monotonic()

    def epoch(self, number: int) -> dict[str, float]:
        """Train for one epoch, or for the rest of a resumed epoch."""
        started, losses = time.monotonic(), self.progress.losses
        self.model.train()
        epoch_batches = self.batches.epoch(number, len(losses) * self.accumulate)
        hidden = None if self.fabric.is_global_zero else True  # None: only on a terminal
        with tqdm(total=self.per_epoch, initial=len(losses), desc=f"epoch {number + 1}", disable=hidden) as bar:
            while len(losses) < self.per_epoch:
                step = number * self.per_epoch + len(losses)
                loss = self._step(number, step, epoch_batches)
                losses.append(loss)
                bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                bar.update()
                if (
                    len(losses) < self.per_epoch
                    and time.monotonic() - self.saved_at >= self.settings.checkpoint_interval
                ):
                    self.save_state()
        if isinstance(epoch_batches, Generator):
            epoch_batches.close()  # stops reading ahead
        row = {
            "epoch": number + 1,
            "loss": float(np.mean(losses)),
            "rate": self._learning_rate(number * self.per_epoch + self.per_epoch - 1),
            "seconds": time.monotonic() - started,
        }
        self.progress.losses = []
        return row

    def _learning_rate(self, step: int) -> float:
        return self.settings.learning_rate_at(step, self.settings.epochs * self.per_epoch)

    def _step(self, epoch: int, step: int, batches: Iterator[Any]) -> float:
        seeds = np.random.SeedSequence([self.settings.seed, epoch, step])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        losses = []
        for index in range(1, self.accumulate + 1):
            batch = next(batches)  # one at a time to save memory
            with self.fabric.no_backward_sync(self.wrapped, enabled=index < self.accumulate):
                loss = self.wrapped(BatchHolder(batch))
                self.fabric.backward(loss / self.accumulate)
            losses.append(loss.detach())
        total: Any = self.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")
        mean = float(total)
        if not math.isfinite(mean):
            raise BadDataError(f"The loss is {mean} in epoch {epoch + 1}.", "Lower --learning-rate.")
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self._learning_rate(step)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        limit = math.inf if self.settings.clip_norm is None else self.settings.clip_norm
        norm = nn.utils.clip_grad_norm_(trained, limit)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self._log_step(
            {"epoch": epoch + 1, "step": step + 1, "loss": mean, "rate": self._learning_rate(step), "norm": norm}
        )
        return mean

    def _log_step(self, row: dict[str, Any]) -> None:
        """Append a row to ``steps.csv``."""
        if self.folder is None or not self.fabric.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "steps.csv"
        is_new = row["step"] == 1 or not path.exists()
        with open(path, "w" if is_new else "a") as file:
            if is_new:
                file.write(",".join(row) + "\n")
            file.write(",".join(f"{float(v):.9g}" for v in row.values()) + "\n")

    def save_state(self) -> None:
        """Write the state atomically, then the log."""
        self.saved_at = time.monotonic()
        if self.folder is None or not self.fabric.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".state.{os.getpid()}"
        progress = self.progress
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "rows": progress.rows,
                "losses": progress.losses,
                "best": progress.best,
                "steps": self.per_epoch,
                "seed": self.settings.seed,
                "recipe": self.recipe,
            },
            temporary,
        )
        os.replace(temporary, self.folder / "state.pt")
        if progress.rows:
            with open(self.folder / "log.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(progress.rows[0]))
                writer.writeheader()
                writer.writerows(progress.rows)

    def _resume(self, folder: Path) -> TrainingProgress:
        check_state(folder, self.recipe)
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        mismatch = BadDataError(
            f"{folder / 'state.pt'}: the state belongs to another training run.",
            "Remove the folder, or change --output.",
        )
        if (state.get("steps", self.per_epoch), state.get("seed", self.settings.seed)) != (
            self.per_epoch,
            self.settings.seed,
        ):
            raise mismatch
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise mismatch from error
        if len(state["rows"]) > self.settings.epochs:
            raise UsageError(
                f"{folder}: {len(state['rows'])} epochs are completed, more than --epochs {self.settings.epochs}.",
                "Raise --epochs, or change --output.",
            )
        losses = list(state.get("losses", []))
        self._truncate_step_log(folder / "steps.csv", len(state["rows"]) * self.per_epoch + len(losses))
        return TrainingProgress(list(state["rows"]), losses, state["best"])

    def _truncate_step_log(self, path: Path, n_steps: int) -> None:
        """Remove the steps after the saved state, which will be repeated."""
        if path.is_file() and self.fabric.is_global_zero:
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(lines[: n_steps + 1]))


def _epochs_since_best(rows: Rows, column: str) -> int:
    """Count the epochs since the best one; of equal epochs, the last is the best."""
    if not rows:
        return 0
    values = [row[column] for row in rows]
    return len(values) - 1 - max(range(len(values)), key=lambda i: (values[i], i))
