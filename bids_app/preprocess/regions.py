"""Mean series of the regions of an atlas on the model grid, without confounds on request, and their correlations.

    T  volumes      R  regions      V  voxels of the brain on the model grid

A mean over voxels and a regression over time can be exchanged: confounds are regressed out of the mean of a region,
which gives the mean of the denoised series of its voxels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from bids_app.catalog.atlases import Atlas
from bids_app.clips import GridSeries, labels_to_model_grid
from bids_app.errors import BadDataError
from bids_app.preprocess.denoise import choose_confounds
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.preprocessed import PreprocessedRun

MIN_COVERAGE = 0.5
"""Minimum share of the voxels of a region with data; the default of XCP-D."""
NODE = "Node"
"""Column of a matrix of regions with the names of its rows, as in XCP-D: no name of a region."""
VOLUMES = 32
"""Volumes that are averaged at once."""


@dataclass(frozen=True)
class RegionSeries:
    """Mean series of the regions of an atlas.

    Attributes
    ----------
    labels : np.ndarray of int, (R,)
        Labels of the regions in the atlas, ascending.
    names : tuple of str
        Unique names of the regions.
    n_voxels, n_covered : np.ndarray of int, (R,)
        Voxels of each region on the model grid, and those with data in the brain.
    values : np.ndarray, (T, R)
        Means over the voxels with data, in the units of the series; NaN for regions below `MIN_COVERAGE`.
    volumes : np.ndarray of int, (T,)
        Volumes of the run, from 0; those that do not occur were left out.
    confounds : tuple of str
        Confounds that were regressed out, together with linear trends; empty: the series is not denoised.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    n_voxels: np.ndarray
    n_covered: np.ndarray
    values: np.ndarray
    volumes: np.ndarray
    confounds: tuple[str, ...] = ()

    @property
    def coverage(self) -> np.ndarray:
        """Share of the voxels of each region with data, (R,); 0 for a region without a voxel on the model grid."""
        return np.divide(self.n_covered, self.n_voxels, out=np.zeros(len(self.labels)), where=self.n_voxels > 0)

    @property
    def is_covered(self) -> np.ndarray:
        """True for regions with a series, (R,)."""
        return (self.n_covered > 0) & (self.coverage >= MIN_COVERAGE)

    @property
    def correlations(self) -> np.ndarray:
        """Pearson correlations of the series, (R, R); NaN for regions without a series or without variance.

        They are those of the series as written, in float32: what a regression leaves of a constant series is rounded.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.corrcoef(self.values.astype(np.float32), rowvar=False, dtype=np.float64).reshape(
                len(self.labels), len(self.labels)
            )
        return np.clip(found, -1.0, 1.0)


def extract_regions(series: GridSeries, atlas: Atlas, first_volume: int, offset: float = 0.0) -> RegionSeries:
    """Average a run on the model grid over the regions of an atlas, in blocks of volumes.

    Parameters
    ----------
    series : GridSeries
    atlas : Atlas
        Label image in MNI152NLin6Asym space; resampled to the model grid by nearest neighbour.
    first_volume : int
        Number of volumes of the run before the first one of the series.
    offset : float
        Was added to the values of the series; see `AlignedSeries.offset`.

    Raises
    ------
    BadDataError
        The atlas is not a label image, or has no region on the model grid.
    """
    image = load_nifti(atlas.path)
    on_grid = labels_to_model_grid(image)
    labels = np.array(sorted({*np.unique(np.asarray(image.dataobj)).astype(int).tolist()} - {0}))
    if not on_grid.any():
        raise BadDataError(
            f"{atlas.path}: no region on the model grid.", "Give a label image in MNI152NLin6Asym; check its affine."
        )
    n_voxels = np.bincount(np.searchsorted(labels, on_grid[on_grid != 0]), minlength=len(labels))
    inside = on_grid[series.mask]
    column = np.flatnonzero(inside)
    row = np.searchsorted(labels, inside[column])
    n_covered = np.bincount(row, minlength=len(labels))
    weights = sparse.csr_array((1 / n_covered[row], (row, column)), shape=(len(labels), len(inside)))
    values = np.empty((series.n_vols, len(labels)))
    for first in range(0, series.n_vols, VOLUMES):
        block = series.rows(first, first + VOLUMES).astype(np.float64)
        values[first : first + len(block)] = (weights @ block.T).T - offset
    found = RegionSeries(
        labels, unique_names(labels, atlas), n_voxels, n_covered, values, first_volume + np.arange(series.n_vols)
    )
    values[:, ~found.is_covered] = np.nan
    return found


def unique_names(labels: Collection[int], atlas: Atlas) -> tuple[str, ...]:
    """Return the names of regions; those that are missing, shared or `NODE` get the label of the region."""
    names = [" ".join(atlas.names.get(int(label), "").split()) for label in labels]
    shared = {"", NODE}
    while shared:
        names = [
            f"{name or 'region'}_{label}" if name in shared else name for name, label in zip(names, labels, strict=True)
        ]
        shared = {name for name, n in Counter(names).items() if n > 1}
    return tuple(names)


def denoise_regions(found: RegionSeries, run: PreprocessedRun, strategy: str, scratch: Path) -> RegionSeries:
    """Regress the confounds of a strategy of nilearn, and linear trends, out of series of regions; means are kept.

    Parameters
    ----------
    found : RegionSeries
    run : PreprocessedRun
        With the table of confounds.
    strategy : str
        Name in nilearn; ``scrubbing`` also leaves volumes out.
    scratch : pathlib.Path
        Folder for links.

    Raises
    ------
    BadDataError
        The table lacks columns that the strategy needs, or no more volumes remain than there are confounds.
    """
    from nilearn.signal import clean

    confounds, volumes = choose_confounds(run.source.name, found.volumes, run.confounds, strategy, scratch)
    values = found.values[np.searchsorted(found.volumes, volumes)]
    covered = found.is_covered
    signals = values[:, covered]
    if covered.any():
        values[:, covered] = signals.mean(axis=0) + clean(
            signals, confounds=confounds.iloc[volumes], t_r=run.tr, detrend=True, standardize=None, filter=False
        )
    return replace(found, values=values, volumes=volumes, confounds=tuple(confounds.columns))
