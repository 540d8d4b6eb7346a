"""The training loop, the only one: AdamW, warm-up and cosine, a log, and a state from which a killed run goes on.

Everything random is drawn anew for each step from the seed, the epoch and the step, so that a run that was taken up
again, even in the middle of an epoch, follows the same curve. Lightning Fabric sees to devices, processes, precision.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
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
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast.

    Attributes
    ----------
    epochs : int
    learning_rate : float
        The peak, after the warm-up.
    weight_decay : float
        Of matrices; biases, norms and other vectors have none.
    warmup : float
        Share of the steps in which the rate rises from 0.
    final : float
        What the cosine falls to, as a share of the peak.
    clip_norm : float
        Gradients are scaled down to this norm.
    accumulate : int
        Batches whose gradients make one step.
        What is left of an epoch after the last whole step is not used.
    seed : int
    keep_every : float
        Time between states that are kept within an epoch, s; one is kept after each epoch anyway.
    """

    epochs: int = 30
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.05
    final: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    seed: int = 0
    keep_every: float = 600.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.accumulate < 1:
            raise UsageError(f"{self.epochs} epochs and {self.accumulate} batches a step were asked for.", "1 or more.")
        if not self.learning_rate > 0 or not 0 <= self.warmup < 1:
            raise UsageError(f"A learning rate of {self.learning_rate} with warm-up {self.warmup} cannot be.")

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = max(1, round(self.warmup * n_steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        along = (step - rising) / max(1, n_steps - rising)
        return self.learning_rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * along)))


class Batches(Protocol):
    """What the loop needs of its data, see `bids_app.training.data.loader.ClipBatches`."""

    @property
    def steps(self) -> int: ...

    def epoch(self, number: int, first: int = 0) -> Iterator[Any]: ...


def optimiser_for(model: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW over the parameters that ask for a gradient."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    if not wanted:
        raise UsageError("Nothing in the model is to be trained.", "Choose another strategy.")
    groups = [
        {"params": [p for p in wanted if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, betas=(0.9, 0.98))


class Objective(nn.Module):
    """A model with its loss as one module, so that what wraps modules (processes, precision) wraps all of it."""

    def __init__(self, model: nn.Module, loss_of: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, sealed: Sealed) -> torch.Tensor:
        """A batch to its loss."""
        return self.loss_of(sealed.batch)


class Sealed:
    """A batch on its way through what wraps modules, which would take it apart and convert its pieces."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch


@dataclass
class Progress:
    """How far a training has come; kept beside the weights.

    Attributes
    ----------
    rows : list of dict
        Of the epochs behind it.
    losses : list of float
        Of the steps of the epoch in hand.
    best : dict, optional
        Weights after the best epoch.
    """

    rows: Rows = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: State | None = None


def fabric_for(device: torch.device | str = "cpu", processes: int = 1, precision: str = "32-true") -> Fabric:
    """Lightning Fabric for a kind of device.

    Parameters
    ----------
    device : torch.device or str
        ``cpu``, ``cuda``, ``cuda:1``.
    processes : int
        One a device; more than one share the batches (DistributedDataParallel), on CPUs through gloo.
    precision : str
        ``32-true`` or ``bf16-mixed``.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    device = torch.device(device)
    if processes > 1:
        return Fabric(accelerator=device.type, devices=processes, strategy="ddp", precision=precision)  # type: ignore[arg-type]
    devices = 1 if device.type == "cpu" else [device.index or 0]
    alone = LightningEnvironment()  # one process is one process, whatever a scheduler's variables say
    return Fabric(accelerator=device.type, devices=devices, precision=precision, plugins=[alone])  # type: ignore[arg-type]


def fit(
    model: nn.Module,
    batches: Batches,
    loss_of: Callable[[Any], torch.Tensor],
    settings: LoopSettings,
    folder: Path | None = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    best_by: str | None = None,
    patience: int | None = None,
    say: Callable[[str], None] | None = None,
    fabric: Fabric | None = None,
) -> Rows:
    """Train a model.

    Parameters
    ----------
    model : nn.Module
        Its parameters that ask for a gradient are trained.
    batches : Batches
        Of this process.
    loss_of : callable
        From a batch to the mean loss of its clips; draws what is random from torch's generator.
    folder : Path, optional
        Where ``log.csv`` (a row an epoch), ``steps.csv`` (a row a step) and ``state.pt`` are kept; if it holds a state,
        training goes on from there.
    validate : callable, optional
        Called after each epoch, in evaluation mode; its numbers go into the log.
    best_by : str, optional
        Which of these numbers is best when largest; the model ends as it was after the best epoch.
    patience : int, optional
        Epochs without a better one after which training stops.
    say : callable, optional
        Told a line an epoch.
    fabric : Fabric, optional
        See `fabric_for`; None: one process, on the model's device, in float32.

    Returns
    -------
    list of dict
        A row an epoch: ``epoch``, ``loss``, ``rate``, ``seconds``, and what ``validate`` gave.
    """
    fabric = fabric or fabric_for(next(model.parameters()).device)
    run = _Run(model, batches, loss_of, settings, folder, fabric)
    rows = run.progress.rows
    for epoch in range(len(rows), settings.epochs):
        if patience is not None and best_by and _epochs_since_best(rows, best_by) >= patience:
            break
        row = run.epoch(epoch)
        if validate is not None:
            model.eval()
            with torch.no_grad():
                row |= validate()
        rows.append(row)
        if best_by and _epochs_since_best(rows, best_by) == 0:
            run.progress.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        run.keep()
        if fabric.is_global_zero:
            (say or log.info)(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    if run.progress.best is not None:
        model.load_state_dict(run.progress.best)
    model.eval()
    return rows


class _Run:
    """One training: the model in its wrapping, the optimiser, and how far it has come."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_of: Callable[[Any], torch.Tensor],
        settings: LoopSettings,
        folder: Path | None,
        fabric: Fabric,
    ) -> None:
        self.model, self.batches, self.settings, self.folder, self.fabric = model, batches, settings, folder, fabric
        self.accumulate = min(settings.accumulate, batches.steps)
        self.per_epoch = batches.steps // self.accumulate
        self.optimiser = optimiser_for(model, settings)
        self.progress = Progress()
        if folder is not None and (folder / "state.pt").is_file():
            self.progress = self._resumed(folder)
        self.wrapped, self.stepper = fabric.setup(Objective(model, loss_of), self.optimiser)
        self.kept = time.monotonic()

    def epoch(self, number: int) -> dict[str, float]:
        """Train for an epoch, or for what is left of it."""
        started, losses = time.monotonic(), self.progress.losses
        self.model.train()
        given = self.batches.epoch(number, len(losses) * self.accumulate)
        hidden = None if self.fabric.is_global_zero else True  # None: shown on a terminal only
        with tqdm(total=self.per_epoch, initial=len(losses), desc=f"epoch {number + 1}", disable=hidden) as bar:
            while len(losses) < self.per_epoch:
                step = number * self.per_epoch + len(losses)
                loss = self._step(number, step, given)
                losses.append(loss)
                bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
                bar.update()
                if len(losses) < self.per_epoch and time.monotonic() - self.kept >= self.settings.keep_every:
                    self.keep()
        if isinstance(given, Generator):
            given.close()  # what is left of the epoch after its last whole step is not read
        row = {
            "epoch": number + 1,
            "loss": float(np.mean(losses)),
            "rate": self._rate(number * self.per_epoch + self.per_epoch - 1),
            "seconds": time.monotonic() - started,
        }
        self.progress.losses = []
        return row

    def _rate(self, step: int) -> float:
        return self.settings.rate(step, self.settings.epochs * self.per_epoch)

    def _step(self, epoch: int, step: int, given: Iterator[Any]) -> float:
        seeds = np.random.SeedSequence([self.settings.seed, epoch, step])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        found = []
        for place in range(1, self.accumulate + 1):
            batch = next(given)  # one at a time: batches are large
            with self.fabric.no_backward_sync(self.wrapped, enabled=place < self.accumulate):
                loss = self.wrapped(Sealed(batch))
                self.fabric.backward(loss / self.accumulate)
            found.append(loss.detach())
        total: Any = self.fabric.all_reduce(torch.stack(found).mean(), reduce_op="mean")
        mean = float(total)
        if not math.isfinite(mean):
            raise BadDataError(f"The loss is {mean} in epoch {epoch + 1}.", "Lower the learning rate.")
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self._rate(step)
        wanted = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(wanted, self.settings.clip_norm)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self._note({"epoch": epoch + 1, "step": step + 1, "loss": mean, "rate": self._rate(step), "norm": norm})
        return mean

    def _note(self, row: dict[str, Any]) -> None:
        """A row more in ``steps.csv``."""
        if self.folder is None or not self.fabric.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "steps.csv"
        is_new = row["step"] == 1 or not path.exists()
        with open(path, "w" if is_new else "a") as file:
            if is_new:
                file.write(",".join(row) + "\n")
            file.write(",".join(f"{float(v):.9g}" for v in row.values()) + "\n")

    def keep(self) -> None:
        """Write the state, then the log; the state is renamed into place, so that it is whole at any time."""
        self.kept = time.monotonic()
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
            },
            temporary,
        )
        os.replace(temporary, self.folder / "state.pt")
        if progress.rows:
            with open(self.folder / "log.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(progress.rows[0]))
                writer.writeheader()
                writer.writerows(progress.rows)

    def _resumed(self, folder: Path) -> Progress:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        other = BadDataError(
            f"{folder / 'state.pt'}: belongs to another training.", "Name another folder, or remove this one."
        )
        if (state.get("steps", self.per_epoch), state.get("seed", self.settings.seed)) != (
            self.per_epoch,
            self.settings.seed,
        ):
            raise other
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise other from error
        if len(state["rows"]) > self.settings.epochs:
            raise UsageError(
                f"{folder}: has {len(state['rows'])} epochs behind it, more than the {self.settings.epochs} asked for.",
                "Name another folder.",
            )
        losses = list(state.get("losses", []))
        self._cut_steps(folder / "steps.csv", len(state["rows"]) * self.per_epoch + len(losses))
        return Progress(list(state["rows"]), losses, state["best"])

    def _cut_steps(self, path: Path, n_steps: int) -> None:
        """Take away the steps that were made after the state was kept, and will be made again."""
        if path.is_file() and self.fabric.is_global_zero:
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(lines[: n_steps + 1]))


def _epochs_since_best(rows: Rows, column: str) -> int:
    """0 if the last epoch is better than all before it; of equals the later counts as better."""
    if not rows:
        return 0
    values = [row[column] for row in rows]
    return len(values) - 1 - max(range(len(values)), key=lambda i: (values[i], i))
