"""Data for the viewer of the report: the T1w image, each run and its contributions on the model grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bids_app.adapters.attribution import Attribution
from bids_app.catalog.atlases import Atlas
from bids_app.catalog.templates import MODEL_SPACE
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, ClipReader, GridSeries, labels_to_model_grid
from bids_app.outputs.names import RunName, entities_of
from bids_app.preprocess.anatomical import Anatomy
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.transforms import resample_to
from bids_app.reports.contents import VIEWER_DATA
from bids_app.reports.viewer import RegionData, write_anatomy_data, write_region_data, write_run_data

CHUNK = 64
"""Volumes read at once."""
PERCENT, ARBITRARY = "% of the mean", "a.u."
"""Units of time courses: relative to the mean over time, or of series without a mean image."""


def write_viewer_anatomy(names: RunName, anatomy: Anatomy) -> Path:
    """Write the T1w image of a participant on the model grid."""
    image = load_nifti(anatomy.in_template)
    chain = chain_between(MODEL_SPACE, anatomy.template)
    values = resample_to(image.get_fdata(dtype=np.float32), image.affine, MODEL_GRID_SHAPE, MODEL_GRID_AFFINE, chain)
    return write_anatomy_data(viewer_path(names, "T1w"), values, MODEL_GRID_AFFINE)


def write_viewer_run(names: RunName, reader: ClipReader, anatomy: Anatomy | None) -> Path:
    """Write the mean image and brain mask of a run on the model grid, and which T1w image belongs to it."""
    mean = np.zeros(MODEL_GRID_SHAPE, np.float32)
    mean[reader.mask] = reader.statistics.mean
    t1w = ""
    if anatomy:
        own = RunName(names.tree, entities_of(anatomy.used or (anatomy.source,)), ())
        t1w = viewer_path(own, "T1w").name
    return write_run_data(viewer_path(names, "bold"), mean, reader.mask, MODEL_GRID_AFFINE, anatomy=t1w)


def write_viewer_contributions(names: RunName, name: str, found: Attribution, atlas: Atlas, series: GridSeries) -> Path:
    """Write the contributions of regions to a prediction, their map and their time courses.

    Parameters
    ----------
    names : RunName
    name : str
        Name of the adapter, or of the model for a reconstruction.
    found : Attribution
    atlas : Atlas
    series : GridSeries
    """
    stored = labels_to_model_grid(load_nifti(atlas.path))
    labels = np.zeros(MODEL_GRID_SHAPE, np.int32)
    for number, label in enumerate(found.index, start=1):
        labels[stored == label] = number
    seen = found.n_voxels > 0
    p = found.control.p_values(found.mean, seen & (found.n_tokens > 0)) if found.control else None
    courses, unit = regional_series(series, labels, len(found.index))
    regions = RegionData(
        labels,
        found.names,
        np.where(seen, found.mean, np.nan),
        np.where(seen, found.deviation, np.nan),
        p,
        courses,
        unit,
        series.tr,
    )
    path = viewer_path(names, "bold", name)
    return write_region_data(path, found.image, MODEL_GRID_AFFINE, regions, found.measure, found.target, atlas.name)


def regional_series(series: GridSeries, labels: np.ndarray, n: int) -> tuple[np.ndarray, str]:
    """Average a series over regions.

    Parameters
    ----------
    series : GridSeries
    labels : np.ndarray of int, (96, 96, 96)
        1 to ``n`` within the regions, 0 outside.
    n : int
        Number of regions, R.

    Returns
    -------
    np.ndarray, (R, T)
        Relative to the mean over time, NaN for regions without a voxel of the brain.
    str
        `PERCENT`, or `ARBITRARY` if any region has no mean above its variation, as in series without a mean image.
    """
    owners = labels[series.mask]
    sizes = np.bincount(owners, minlength=n + 1)[1:].astype(float)
    courses = np.empty((n, series.n_vols))
    for start in range(0, series.n_vols, CHUNK):
        rows = series.rows(start, min(start + CHUNK, series.n_vols))
        for offset, row in enumerate(rows):
            courses[:, start + offset] = np.bincount(owners, row, minlength=n + 1)[1:]
    courses[sizes == 0] = np.nan
    courses /= np.where(sizes > 0, sizes, np.nan)[:, None]
    known = sizes > 0
    mean = courses.mean(axis=1, keepdims=True)
    if (mean[known, 0] > courses[known].std(axis=1)).all():
        return 100 * (courses / np.where(known[:, None], mean, np.nan) - 1), PERCENT
    return courses - mean, ARBITRARY


def viewer_path(names: RunName, suffix: str, adapter: str = "") -> Path:
    """Return the path of a data file."""
    return names.path(suffix, ".js", "figures", desc=f"{adapter}{VIEWER_DATA}")
