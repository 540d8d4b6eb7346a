"""The training loop, the only one: AdamW, warm-up and cosine, a log, and a state from which a killed run goes on.

Everything random is drawn anew for each epoch from the seed and the epoch's number, so that a run that was taken up
again follows the same curve.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bids_app.errors import BadDataError, UsageError

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
    seed : int
    """

    epochs: int = 30
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.05
    final: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    seed: int = 0

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
    """What the loop needs of its data, see `bids_app.training.data.ClipBatches`."""

    @property
    def steps(self) -> int: ...

    def epoch(self, number: int) -> Iterator[Any]: ...


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
) -> Rows:
    """Train a model.

    Parameters
    ----------
    model : nn.Module
        Its parameters that ask for a gradient are trained.
    loss_of : callable
        From a batch to the loss; draws what is random from torch's generator.
    folder : Path, optional
        Where ``log.csv`` and ``state.pt`` are kept; if it holds a state, training goes on from there.
    validate : callable, optional
        Called after each epoch, in evaluation mode; its numbers go into the log.
    best_by : str, optional
        Which of these numbers is best when largest; the model ends as it was after the best epoch.
    patience : int, optional
        Epochs without a better one after which training stops.
    say : callable, optional
        Told a line an epoch.

    Returns
    -------
    list of dict
        A row an epoch: ``epoch``, ``loss``, ``rate``, ``seconds``, and what ``validate`` gave.
    """
    optimiser = optimiser_for(model, settings)
    rows, best = _resume(folder, model, optimiser, settings) if folder else ([], None)
    n_steps = max(1, settings.epochs * batches.steps // settings.accumulate)
    step = len(rows) * batches.steps // settings.accumulate
    for epoch in range(len(rows), settings.epochs):
        if patience is not None and best_by and _epochs_since_best(rows, best_by) >= patience:
            break
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        started = time.monotonic()
        losses = []
        model.train()
        for number, batch in enumerate(batches.epoch(epoch), start=1):
            loss = loss_of(batch)
            if not torch.isfinite(loss):
                raise BadDataError(f"The loss is {loss.item()} in epoch {epoch + 1}.", "Lower the learning rate.")
            (loss / settings.accumulate).backward()
            losses.append(loss.detach())
            if number % settings.accumulate == 0:
                _step(model, optimiser, settings, settings.rate(step, n_steps))
                step += 1
        row = {
            "epoch": epoch + 1,
            "loss": float(torch.stack(losses).mean()),
            "rate": settings.rate(max(step - 1, 0), n_steps),
            "seconds": time.monotonic() - started,
        }
        if validate is not None:
            model.eval()
            with torch.no_grad():
                row |= validate()
        rows.append(row)
        if best_by and _epochs_since_best(rows, best_by) == 0:
            best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if folder:
            _keep(folder, model, optimiser, rows, best)
        (say or log.info)(", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return rows


def _epochs_since_best(rows: Rows, column: str) -> int:
    """0 if the last epoch is better than all before it; of equals the later counts as better."""
    if not rows:
        return 0
    values = [row[column] for row in rows]
    return len(values) - 1 - max(range(len(values)), key=lambda i: (values[i], i))


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, settings: LoopSettings, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], settings.clip_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _keep(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, rows: Rows, best: State | None) -> None:
    """Write the state, then the log; the state is renamed into place, so that it is whole at any time."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".state.{os.getpid()}"
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "rows": rows, "best": best}
    torch.save(state, temporary)
    os.replace(temporary, folder / "state.pt")
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _resume(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, settings: LoopSettings
) -> tuple[Rows, State | None]:
    if not (folder / "state.pt").is_file():
        return [], None
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise BadDataError(
            f"{folder / 'state.pt'}: belongs to another training.", "Name another folder, or remove this one."
        ) from error
    if len(state["rows"]) > settings.epochs:
        raise UsageError(
            f"{folder}: has {len(state['rows'])} epochs behind it, more than the {settings.epochs} asked for.",
            "Name another folder.",
        )
    return list(state["rows"]), state["best"]
