"""State of a training run: what is saved so that it resumes, and signs that it has diverged.

FOLDER/state.pt       weights, optimiser and progress of the last saved step
FOLDER/good.pt        the last state whose loss had not diverged
FOLDER/checkpoints/   weights alone, for other commands: best, good, and every N steps
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bids_app.bids.writer import atomic_path
from bids_app.errors import BadDataError, InputOutputError, UsageError
from bids_app.training.data.batches import ClipSource

Rows = list[dict[str, float]]
State = dict[str, torch.Tensor]

STATE, GOOD = "state.pt", "good.pt"
CHECKPOINTS = "checkpoints"
PARTS = {"model", "optimiser", "rows", "losses", "best", "guard", "steps"}
"""Keys of a state; those of earlier versions have no ``recipe``."""
MAY_CHANGE = ("epochs", "checkpoint_interval")
"""Settings with which an interrupted run may be continued although they differ."""
WINDOW = 50
"""Steps over which the loss is judged."""
FACTOR = 2.0
"""A loss this many times as high as the lowest, and above the first, has diverged."""


@dataclass
class LossGuard:
    """Detects divergence of the loss.

    The loss of a run is the median of its last `WINDOW` steps. It has diverged if it is above the first one and more
    than `FACTOR` times the lowest one.

    Attributes
    ----------
    first, lowest : float, optional
        None before `WINDOW` steps.
    recent : list of float
        Losses of the last steps.
    """

    first: float | None = None
    lowest: float | None = None
    recent: list[float] = field(default_factory=list)

    def add(self, loss: float) -> None:
        """Add the loss of a step."""
        self.recent = [*self.recent[1 - WINDOW :], loss]
        if len(self.recent) == WINDOW:
            self.first = self.current if self.first is None else self.first
            self.lowest = self.current if self.lowest is None else min(self.lowest, self.current)

    @property
    def current(self) -> float:
        """Median of the last steps."""
        return statistics.median(self.recent)

    @property
    def limit(self) -> float:
        """Loss above which the run has diverged; of a run of fewer steps, relative to its first step."""
        if self.first is None or self.lowest is None:
            return FACTOR * self.recent[0]
        return max(self.first, FACTOR * self.lowest)

    @property
    def has_diverged(self) -> bool:
        """True if the loss of `WINDOW` steps is above the limit."""
        return self.first is not None and self.current > self.limit

    @property
    def is_good(self) -> bool:
        """True if neither the last steps nor the last one are above the limit."""
        return bool(self.recent) and max(self.current, self.recent[-1]) <= self.limit


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
    guard : LossGuard
    """

    rows: Rows = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: State | None = None
    guard: LossGuard = field(default_factory=LossGuard)


@dataclass(frozen=True)
class Checkpoints:
    """Weights to keep beside the state.

    Attributes
    ----------
    export : callable
        Writes weights, as a state dict of the model, to a file for other commands.
    every : int, optional
        Also keep the weights every so many steps.
    suffix : str
        Extension of the files.
    """

    export: Callable[[Path, State], object]
    every: int | None = None
    suffix: str = ".safetensors"

    def path(self, folder: Path, name: str) -> Path:
        """Return the path of a checkpoint in a training folder."""
        return folder / CHECKPOINTS / f"{name}{self.suffix}"


def fingerprint(settings: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what determines the results of a training run, as JSON values; it may be continued for more epochs.

    Parameters
    ----------
    settings : bids_app.training.optimiser.LoopSettings
    facts : mapping
        What determines the results beside the loop.
    """
    found = {**asdict(settings), **facts}
    return json.loads(json.dumps({key: found[key] for key in sorted(found) if key not in MAY_CHANGE}))


def describe_data(scans: Sequence[ClipSource], values: Sequence[str] = ()) -> str:
    """Return the number of scans, and a hash of their names, lengths, origins and values; part of `fingerprint`."""
    parts = [(scan.participant, scan.name, scan.n_vols, scan.stamp) for scan in scans]
    text = repr((parts, list(values)))
    return f"{len(scans)} ({hashlib.sha256(text.encode('utf-8', errors='surrogateescape')).hexdigest()[:12]})"


def check_state(folder: Path, recipe: Mapping[str, Any], before_loading: bool = False) -> None:
    """Check that an interrupted training run in a folder, if any, has the same recipe; nothing is written.

    Parameters
    ----------
    folder : Path
    recipe : mapping
        From `fingerprint`.
    before_loading : bool
        The recipe may lack facts that are known after the data are loaded.

    Raises
    ------
    UsageError
        It has another recipe, or one that its state does not tell.
    """
    path = folder / STATE
    if not path.is_file():
        return
    found = read_state(path, mmap=True).get("recipe")
    if found is None:
        raise UsageError(
            f"{path}: the state does not tell its recipe; it is of an earlier version.",
            "Remove the folder, or change --output.",
        )
    differing = [
        f"{key} {found.get(key)} instead of {recipe.get(key)}"
        for key in sorted(recipe if before_loading else {*found, *recipe})
        if found.get(key) != recipe.get(key)
    ]
    if differing:
        raise UsageError(
            f"{path}: the interrupted training run has another recipe: {'; '.join(differing)}.",
            "Give the same options and data to continue it, or remove the folder, or change --output.",
        )


def read_state(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a saved state.

    Raises
    ------
    BadDataError
        It is damaged.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged files make the unpickler raise any exception
        raise BadDataError(f"{path}: the state is not readable ({str(error)[:200]}).", "Remove the folder.") from error
    if not isinstance(found, dict) or not found.keys() >= PARTS:
        raise BadDataError(f"{path}: not a state of a training run.", "Remove the folder.")
    return found


def write_state(folder: Path, content: Mapping[str, Any], is_good: bool) -> None:
    """Write a state atomically; a good one is also kept as the last good one.

    Raises
    ------
    InputOutputError, CannotCreateError
        The disk is full or not writable; the state that was saved before is kept.
    """
    with atomic_path(folder / STATE) as temporary:
        try:
            torch.save(dict(content), temporary)
        except RuntimeError as error:  # of the stream: torch does not say that a disk is full
            raise InputOutputError(
                f"{folder / STATE}: writing failed; the disk is probably full, or a quota or a limit of file sizes is "
                f"exceeded ({str(error).splitlines()[0][:100]}).",
                "Free some space, then run the same command: it goes on from the last saved state.",
            ) from error
    if is_good:
        with atomic_path(folder / GOOD) as temporary:
            try:
                os.link(folder / STATE, temporary)  # without copying: a state is replaced, never changed
            except OSError:
                shutil.copyfile(folder / STATE, temporary)


def export_good(folder: Path | None, checkpoints: Checkpoints | None) -> str:
    """Write the weights of the last good state, and return a sentence on how to go on from them; empty without one."""
    if folder is None or checkpoints is None or not (folder / GOOD).is_file():
        return ""
    state = read_state(folder / GOOD)
    path = checkpoints.path(folder, "good")
    checkpoints.export(path, state["model"])
    step = len(state["rows"]) * state["steps"] + len(state["losses"])
    return f"The weights of step {step} are in {path}: go on from them with --start-from and another --output."
