"""Provenance of an invocation: options, versions, outcome of each run and crash traces.

All files are in ``sub-X/log/<time>_<id>/`` of the output folder: ``summary.json`` for programs, ``neurostorm.log`` with
the messages (see `log`), ``neurostorm.toml`` to repeat the run (``--config-file``), and the traces of failed runs.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

from bids_app import __version__
from bids_app.bids.writer import dataset_uri, write_json, write_text
from bids_app.catalog.fetch import file_sha256
from bids_app.errors import EXIT_OK
from bids_app.outputs.schema import FAILED, OK, RUNNING, RunOutcome, Summary
from bids_app.settings import Settings, as_options

VERSIONS_OF = (
    "torch",
    "antspyx",
    "nibabel",
    "nilearn",
    "nipype",
    "niworkflows",
    "nireports",
    "pybids",
    "numpy",
    "scipy",
    "tedana",
)


def exit_code(outcomes: Sequence[RunOutcome]) -> int:
    """Return 0 if all runs succeeded, else the exit code of the first failed run."""
    codes = (outcome.exit_code for outcome in outcomes if outcome.status != OK)
    return next((code for code in codes if code is not None), EXIT_OK)


def new_run_id() -> str:
    """Make a name for the log folders of this invocation that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4()}"


def log_folder(out_dir: Path, participant: str, run_id: str) -> Path:
    """Return the log folder of a participant in an invocation."""
    return out_dir / f"sub-{participant}" / "log" / run_id


def iso_time(seconds: float) -> str:
    """Format a time (s since 1970) as ISO 8601 in the local time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def versions() -> dict[str, str]:
    """Return the versions of this program and its main dependencies."""
    found = {"neurostorm": __version__, "python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def as_toml(settings: Settings, run_id: str) -> str:
    """Format the invocation as TOML for ``--config-file``."""
    invocation = {
        "run_id": run_id,
        "command": shlex.join(sys.argv),
        "bids_dir": str(settings.bids_dir),
        "out_dir": str(settings.out_dir),
    }
    return tomli_w.dumps({"invocation": invocation, "options": as_options(settings), "versions": versions()})


def hash_inputs(files: Sequence[Path], datasets: Mapping[str, Path], stamp: str, out_dir: Path) -> dict[str, str]:
    """Hash the input files of a run (a step); SHA-256 by BIDS URI. ``stamp`` changes when a file changes."""
    return {dataset_uri(path, datasets): file_sha256(path) for path in files}


def write_log(
    settings: Settings,
    run_id: str,
    participant: str,
    outcomes: Sequence[RunOutcome],
    weights: Mapping[str, str],
    started: float,
    unfinished: Sequence[str] = (),
) -> Path:
    """Write the log folder of a participant; it is written again when its next run ends.

    Parameters
    ----------
    settings : Settings
    run_id : str
        From `new_run_id`.
    participant : str
        Label without ``sub-``.
    outcomes : sequence of RunOutcome
        Outcomes of the runs of this participant that have ended.
    weights : mapping
        SHA-256 of the encoder and adapter files, by path.
    started : float
        Start of the invocation, s since 1970.
    unfinished : sequence of str
        Names of its other runs.

    Returns
    -------
    pathlib.Path
        Log folder.
    """
    folder = log_folder(settings.out_dir, participant, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "neurostorm.toml", as_toml(settings, run_id))
    for outcome in outcomes:
        if outcome.trace:
            write_text(folder / f"crash-{outcome.stem}-{outcome.step}.txt", outcome.trace)
    ended = OK if all(outcome.status == OK for outcome in outcomes) else FAILED
    summary = Summary(
        run_id=run_id,
        participant=participant,
        status=RUNNING if unfinished else ended,
        exit_code=exit_code(outcomes),
        started=iso_time(started),
        finished=iso_time(time.time()),
        seconds=round(time.time() - started, 1),
        peak_memory_mb=max((cost["peak_rss_mb"] for run in outcomes for cost in run.steps.values()), default=None),
        command=tuple(sys.argv),
        random_seed=settings.preprocess.random_seed,
        threads=settings.resources.omp_threads,
        versions=versions(),
        weights=dict(weights),
        runs=tuple(outcomes),
        unfinished=tuple(unfinished) or None,
    )
    write_json(folder / "summary.json", summary.to_json())
    return folder
