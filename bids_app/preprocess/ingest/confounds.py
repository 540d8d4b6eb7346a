"""Confounds tables of other pipelines, under fMRIPrep's column names.

Existing columns are kept; missing columns that later steps need are computed where possible.

    T  volumes of the run      V  voxels of the brain
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bids_app.errors import BadDataError
from bids_app.files import MAX_CONFOUNDS_BYTES, MAX_JSON_BYTES, parse_json, read_table_text, read_text
from bids_app.preprocess.confounds import MOTION_COLUMNS, compute_dvars
from bids_app.preprocess.hmc import framewise_displacement

FD = "framewise_displacement"
DUMMY = "non_steady_state_outlier"
HCP_COLUMNS = 12
"""HCP's ``Movement_Regressors.txt``: translations (mm), rotations (degrees), and the derivatives of both."""


@dataclass(frozen=True)
class ConfoundsTable:
    """Confounds with one row per volume, the sidecar, and warnings."""

    columns: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_table(path: Path | None, meta: Path | None, n_volumes: int | None, source: str) -> ConfoundsTable:
    """Read a run's confounds; a table of the wrong length is ignored with a warning.

    Parameters
    ----------
    path, meta : pathlib.Path, optional
        The table (``.tsv`` with ``n/a``, HCP's ``.txt``, or MCFLIRT's ``.par``), and its sidecar.
    n_volumes : int, optional
        Number of volumes of the run; None: the number of rows is not checked.
    source : str
        Name of the run's file, for messages.

    Raises
    ------
    BadDataError
        The table or its sidecar is invalid.
    """
    empty = pd.DataFrame(index=range(n_volumes or 0))
    if path is None:
        return ConfoundsTable(
            empty, {}, (f"{source}: no confounds table was found in its folder; head motion is unknown.",)
        )
    table = _read_tsv(path) if path.suffix == ".tsv" else _read_movement(path)
    if n_volumes is not None and len(table) != n_volumes:
        return ConfoundsTable(
            empty,
            {},
            (f"{path.name}: the table has {len(table)} rows, but {source} has {n_volumes} volumes; it is ignored.",),
        )
    return ConfoundsTable(table, _read_meta(meta))


def _read_tsv(path: Path) -> pd.DataFrame:
    text = read_table_text(path, MAX_CONFOUNDS_BYTES)
    try:
        table = pd.read_csv(io.StringIO(text), sep="\t", na_values=["n/a"])
        return table.astype(np.float64)
    except (ValueError, OverflowError, pd.errors.ParserError) as error:
        raise BadDataError(
            f"{path}: not a table of numbers ({error}).", "Copy the file again from the derivatives, or remove it."
        ) from error


def _read_movement(path: Path) -> pd.DataFrame:
    text = read_table_text(path, MAX_CONFOUNDS_BYTES)
    try:
        rows = np.loadtxt(io.StringIO(text), ndmin=2)
    except (ValueError, OverflowError) as error:
        raise BadDataError(
            f"{path}: not a table of numbers ({error}).", "Copy the file again, or remove it."
        ) from error
    if rows.shape[1] not in (6, HCP_COLUMNS):
        raise BadDataError(
            f"{path}: the table has {rows.shape[1]} columns; MCFLIRT's tables have 6, HCP's 6 or {HCP_COLUMNS}.",
            "Copy the file again, or remove it.",
        )
    if path.suffix == ".par":  # MCFLIRT: rotations (rad), then translations (mm)
        parameters = np.hstack([rows[:, 3:6], rows[:, :3]])
    else:
        parameters = np.hstack([rows[:, :3], np.radians(rows[:, 3:6])])
    return pd.DataFrame(dict(zip(MOTION_COLUMNS, parameters.T, strict=True)))


def _read_meta(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    content = parse_json(read_text(path, MAX_JSON_BYTES), str(path), max_integer=None)
    return content if isinstance(content, dict) else {}


def count_marked_dummies(table: pd.DataFrame) -> int | None:
    """Count the dummy volumes that the table marks; None if the table does not come from fMRIPrep.

    fMRIPrep writes one column per non-steady-state volume, and no column if there are none.
    """
    marked = [name for name in table.columns if name.startswith(DUMMY)]
    if not marked:
        return 0 if "global_signal" in table.columns else None
    flagged = np.asarray((table[marked].to_numpy() > 0).any(axis=1))
    return int(np.argmin(flagged)) if not flagged.all() else len(table)


def add_missing_columns(confounds: ConfoundsTable, values: np.ndarray, n_dummy: int, denoised: bool) -> ConfoundsTable:
    """Add framewise displacement (from motion parameters), global signal and DVARS (from the series) if missing.

    Parameters
    ----------
    confounds : ConfoundsTable
    values : numpy.ndarray, (T, V)
        The series in the brain mask.
    n_dummy : int
    denoised : bool
        The mean image was removed, so global signal and DVARS are undefined.
    """
    table, meta, warnings = confounds.columns.copy(), dict(confounds.meta), list(confounds.warnings)
    if FD not in table and all(name in table for name in MOTION_COLUMNS):
        fd = framewise_displacement(table[list(MOTION_COLUMNS)].to_numpy())
        table[FD] = np.concatenate([[np.nan], fd[1:]])
        meta[FD] = {"Description": "From the motion parameters; rotations on a sphere of 50 mm.", "Units": "mm"}
    if FD not in table:
        table[FD] = np.nan
        meta[FD] = {"Description": "Unknown: the derivatives have no motion parameters."}
    if not denoised and "global_signal" not in table:
        table["global_signal"] = np.array([row.mean(dtype=np.float64) for row in values])
        meta["global_signal"] = {"Description": "Mean signal of the brain mask"}
    if not denoised and "std_dvars" not in table:
        dvars = compute_dvars(values, n_dummy)
        table["std_dvars"], table["dvars"] = dvars.std, dvars.nstd
        meta["std_dvars"] = {"Description": "DVARS divided by its expected value for the series' autocorrelation."}
        meta["dvars"] = {"Description": "Root mean square change from the previous volume, of the ingested series."}
    return ConfoundsTable(table, meta, tuple(warnings))


def write_table(confounds: ConfoundsTable, out_dir: Path) -> tuple[Path, Path]:
    """Write table and sidecar."""
    table, sidecar = out_dir / "confounds.tsv", out_dir / "confounds.json"
    confounds.columns.to_csv(table, sep="\t", index=False, na_rep="n/a", float_format="%.8g")
    sidecar.write_text(json.dumps(confounds.meta, indent=2) + "\n", encoding="utf-8")
    return table, sidecar
