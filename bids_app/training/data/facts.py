"""From a preprocessed series to the content of a scan: its series on the model grid, and what is stored beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.query import BoldRun
from bids_app.bids.sidecars import SCANNER_KEYS
from bids_app.clips import GridSeries
from bids_app.errors import BadDataError
from bids_app.files import MAX_CONFOUNDS_BYTES, read_rows
from bids_app.preprocess.ingest.derivatives import examine_derived, ingest_run
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.preprocess.resample import resample_to_model_grid

MAX_SECONDS = 1e6
"""Limit of start times, s."""
CONFOUNDS = (
    "framewise_displacement",
    "std_dvars",
    "dvars",
    "rmsd",
    "trans_x",
    "trans_y",
    "trans_z",
    "rot_x",
    "rot_y",
    "rot_z",
    "csf",
    "white_matter",
    "global_signal",
)
"""Confounds whose mean and standard deviation are stored for the baseline of motion and confounds."""


def series_on_grid(run: BoldRun, out_dir: Path) -> tuple[PreprocessedRun, GridSeries]:
    """Ingest a preprocessed series and resample it to the model grid, as the participant level does.

    Parameters
    ----------
    run : BoldRun
        With `BoldRun.derived`.
    out_dir : Path

    Returns
    -------
    tuple of PreprocessedRun and GridSeries
        ``start`` of the latter includes the reference time of slice timing correction.
    """
    assert run.derived is not None
    folders = [out_dir / name for name in ("examine", "ingest", "grid")]
    for folder in folders:
        folder.mkdir()
    series = examine_derived(run.derived, run.metadata, folders[0])
    preprocessed = ingest_run(series, run.derived, folders[1])
    grid = resample_to_model_grid(preprocessed, folders[2])
    start = _seconds(run.metadata.get("StartTime") or 0.0, "StartTime", run.bold)
    return preprocessed, replace(grid, start=grid.start + start)


def facts_of(entities: Mapping[str, str], metadata: Mapping[str, Any], run: PreprocessedRun) -> dict[str, Any]:
    """Return what a store keeps of a run besides its clips, as arguments of `ClipStore.add`."""
    quality = {name: float(value) for name, value in {**run.quality, "tr": run.tr}.items() if math.isfinite(value)}
    return {
        "participant": entities["sub"],
        "session": entities.get("ses", ""),
        "labels": {key: entities[key] for key in ("task", "run") if key in entities},
        "confounds": read_confounds(run.confounds, run.n_dummy),
        "quality": quality,
        "scanner": {key: metadata[key] for key in SCANNER_KEYS if isinstance(metadata.get(key), str | int | float)},
    }


def _seconds(value: Any, name: str, bold: Path) -> float:
    """Return a time of a sidecar in seconds; an error if it is not a number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < MAX_SECONDS:
        raise BadDataError(f"{bold.name}: {name} is {str(value)[:50]}, not a time in s.", "Correct its sidecar.")
    return float(value)


def read_confounds(path: Path, n_dummy: int) -> dict[str, float]:
    """Read means and standard deviations of confounds after the non-steady-state volumes."""
    rows = read_rows(path, max_bytes=MAX_CONFOUNDS_BYTES)
    found: dict[str, float] = {}
    for name in CONFOUNDS:
        texts = [row[name] for row in rows[n_dummy:] if name in row]
        try:
            values = np.array([float(text) for text in texts if text not in (None, "", "n/a", "nan")])
        except ValueError as error:
            raise BadDataError(f"{path.name}: {name} is not a number ({error}).", "Correct the table.") from error
        if len(values):
            found[f"{name}_mean"], found[f"{name}_std"] = float(values.mean()), float(values.std())
            if name == "framewise_displacement":
                found[f"{name}_max"] = float(values.max())
    return found
