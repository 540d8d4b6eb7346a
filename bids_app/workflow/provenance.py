"""What is kept of an invocation: how each run ended, with which options and versions, and where it crashed.

Everything goes to ``sub-X/log/<time>_<id>/`` of the output folder: ``summary.json`` for programs, ``neurostorm.toml``
for doing it again (``--config-file``), and the traces of what failed.
"""

from __future__ import annotations

import importlib.metadata
import platform
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
from bids_app.outputs.schema import FAILED, OK, RunOutcome, Summary
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
)


def exit_code(outcomes: Sequence[RunOutcome]) -> int:
    """0 when every run is done, else the code of the first that is not."""
    codes = (outcome.exit_code for outcome in outcomes if outcome.status != OK)
    return next((code for code in codes if code is not None), EXIT_OK)


def new_run_id() -> str:
    """A name for this invocation's log folders that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4()}"


def iso_time(seconds: float) -> str:
    """A time in s since 1970 as ISO 8601, in the machine's own zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def versions() -> dict[str, str]:
    """Versions of this program and of what it stands on."""
    found = {"neurostorm": __version__, "python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def as_toml(settings: Settings, run_id: str) -> str:
    """The invocation as TOML, readable by ``--config-file``."""
    invocation = {
        "run_id": run_id,
        "command": " ".join(sys.argv),
        "bids_dir": str(settings.bids_dir),
        "out_dir": str(settings.out_dir),
    }
    return tomli_w.dumps({"invocation": invocation, "options": as_options(settings), "versions": versions()})


def hash_inputs(files: Sequence[Path], datasets: Mapping[str, Path], stamp: str, out_dir: Path) -> dict[str, str]:
    """The sha256 of a run's files by their BIDS URIs, as a step of its own; ``stamp`` tells when one changed."""
    return {dataset_uri(path, datasets): file_sha256(path) for path in files}


def write_log(
    settings: Settings,
    run_id: str,
    participant: str,
    outcomes: Sequence[RunOutcome],
    weights: Mapping[str, str],
    started: float,
) -> Path:
    """Write one participant's log folder.

    Parameters
    ----------
    settings : Settings
    run_id : str
        From `new_run_id`.
    participant : str
        Label without ``sub-``.
    outcomes : sequence of RunOutcome
        Of this participant's runs.
    weights : mapping
        The sha256 of the files of encoder and adapters, by their paths.
    started : float
        When the invocation started, s since 1970.

    Returns
    -------
    pathlib.Path
        The folder.
    """
    folder = settings.out_dir / f"sub-{participant}" / "log" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "neurostorm.toml", as_toml(settings, run_id))
    for outcome in outcomes:
        if outcome.trace:
            write_text(folder / f"crash-{outcome.stem}-{outcome.step}.txt", outcome.trace)
    summary = Summary(
        run_id=run_id,
        participant=participant,
        status=OK if all(outcome.status == OK for outcome in outcomes) else FAILED,
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
    )
    write_json(folder / "summary.json", summary.to_json())
    return folder
