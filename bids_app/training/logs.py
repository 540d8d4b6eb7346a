"""Logs of a training run: tables of steps and epochs, times, and loggers of Lightning Fabric.

FOLDER/steps.csv   one row per step: epoch, step, loss, rate (learning rate), norm (of the gradients)
FOLDER/speed.csv   one row per step: step, clips, seconds, waiting (of them, for data)
FOLDER/log.csv     one row per epoch
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.bids.writer import write_text
from bids_app.errors import UsageError
from bids_app.training.state import Rows

STEPS, SPEED, EPOCHS = "steps.csv", "speed.csv", "log.csv"
PROGRESS = ("epoch", "loss", "rate", "seconds", "clips_per_s", "waiting")
"""Columns of ``log.csv`` that are not metrics of a validation set."""
TENSORBOARD, WANDB = "tensorboard", "wandb"


@dataclass
class Stopwatch:
    """Times of the steps of an epoch, in this process.

    Attributes
    ----------
    seconds, waiting : float
        Time of the steps, and how much of it was waiting for data, s.
    clips : int
    """

    seconds: float = 0.0
    waiting: float = 0.0
    clips: int = 0

    def add(self, step: Stopwatch) -> None:
        """Add the times of a step."""
        self.seconds += step.seconds
        self.waiting += step.waiting
        self.clips += step.clips

    def summary(self) -> dict[str, float]:
        """Return clips per second, and the share of the time that was waiting."""
        seconds = max(self.seconds, 1e-9)
        return {"clips_per_s": self.clips / seconds, "waiting": self.waiting / seconds}


@dataclass(frozen=True)
class RunLog:
    """Logs of a run, written by its first process.

    Attributes
    ----------
    folder : Path, optional
        None: no tables.
    is_first : bool
        False: another process writes.
    loggers : sequence of lightning.fabric.loggers.Logger
    """

    folder: Path | None
    is_first: bool = True
    loggers: Sequence[Any] = ()

    def step(self, row: Mapping[str, Any], times: Stopwatch) -> None:
        """Add a step; the first one begins the tables anew."""
        if not self.is_first:
            return
        number = row["step"]
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            speed = {"step": number, "clips": times.clips, "seconds": times.seconds, "waiting": times.waiting}
            for name, values in ((STEPS, row), (SPEED, speed)):
                _append(self.folder / name, values, is_new=number == 1)
        shown = {key: float(value) for key, value in row.items() if key not in ("epoch", "step")}
        self._log({**shown, **times.summary()}, int(number))

    def epoch(self, rows: Rows, step: int) -> None:
        """Write the table of epochs, and add the metrics of the last one."""
        if not rows or not self.is_first:
            return
        if self.folder is not None:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(self.folder / EPOCHS, text.getvalue())
        metrics = {key: value for key, value in rows[-1].items() if key not in PROGRESS}
        self._log({"epoch": rows[-1]["epoch"], "epoch_loss": rows[-1]["loss"], **metrics}, step)

    def truncate(self, n_steps: int) -> None:
        """Remove the steps after a saved state, which will be repeated."""
        if self.folder is None or not self.is_first:
            return
        for path in (self.folder / STEPS, self.folder / SPEED):
            if path.is_file():
                lines = path.read_text().splitlines(keepends=True)
                write_text(path, "".join(lines[: n_steps + 1]))

    def close(self) -> None:
        """Write what the loggers still hold."""
        for logger in self.loggers:
            logger.finalize("success")

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step)


def _append(path: Path, row: Mapping[str, Any], is_new: bool) -> None:
    is_new = is_new or not path.exists()
    with open(path, "w" if is_new else "a") as file:
        if is_new:
            file.write(",".join(row) + "\n")
        file.write(",".join(f"{float(v):.9g}" for v in row.values()) + "\n")


def read_table(path: Path) -> dict[str, list[float]]:
    """Read a table of a run by columns; empty if there is none."""
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def check_loggers(names: Sequence[str]) -> None:
    """Check that the packages of loggers are installed.

    Raises
    ------
    UsageError
        One is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--logger {name} requires the package {name}, which is not installed.",
                f'pip install "neurostorm[{name}]"',
            )


def make_loggers(names: Sequence[str], folder: Path, recipe: Mapping[str, Any], first_step: int = 0) -> list[Any]:
    """Create Fabric's loggers, which write to folders of their names in the training folder.

    Weights & Biases is used offline: ``wandb sync`` uploads its folder. A resumed run has the same identity.

    Parameters
    ----------
    names : sequence of str
        `TENSORBOARD`, `WANDB`.
    folder : Path
    recipe : mapping
        Shown as hyperparameters.
    first_step : int
        Completed steps; a resumed run hides what TensorBoard has of later ones.
    """
    check_loggers(names)
    found: list[Any] = []
    if TENSORBOARD in names:
        from lightning.fabric.loggers import TensorBoardLogger

        found.append(TensorBoardLogger(folder, TENSORBOARD, version="", purge_step=first_step + 1))
    if WANDB in names:
        from lightning.pytorch.loggers import WandbLogger

        identity = hashlib.sha256(json.dumps([str(folder.resolve()), dict(recipe)]).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        found.append(
            WandbLogger(
                folder.stem, save_dir=folder, offline=True, id=identity, project="neurostorm",
                config=dict(recipe), settings={"silent": True},
            )
        )  # fmt: skip
    return found
