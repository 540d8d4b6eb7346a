"""Samples of Brainmarks' spaces from a run on the model grid, at the run's own repetition time.

    T  volumes    G  brain voxels of the run on the model grid    V  columns of a sample

The voxels of the model grid are those of MNI152NLin6Asym at 2 mm, so that nothing is interpolated again. Columns of
voxels are ordered as Brainmarks reads images: (z, y, x) of R-A-S voxels, in C order. Parcels are averaged over voxels;
Brainmarks averages them over the vertices of the surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import sparse

from bids_app.catalog.atlases import find_atlas
from bids_app.catalog.models import PACKAGE_DATA
from bids_app.clips import GridSeries, labels_to_model_grid
from bids_app.errors import BadDataError, UsageError
from bids_app.preprocess.io.headers import load_nifti

BRAIN_MASK = PACKAGE_DATA / "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz"
SCHAEFER = "schaefer2018-400-17networks"
"""Atlas of the catalog with the parcels in Brainmarks' order, that of 17 networks."""
CBIG_FILE = "Schaefer2018_400Parcels_17Networks_order_FSLMNI152_2mm.nii.gz"
"""The image of this atlas that Brainmarks uses."""
SHAPE = (91, 109, 91)
"""Shape of images in MNI152NLin6Asym at 2 mm."""
N_COLUMNS = {"mni": 228_483, "mni_cortex": 132_032, "schaefer400": 400}
"""Columns of a sample in Brainmarks 0.1.1, by space."""
IN_WORDS = {
    "mni": "brain voxels of MNI152NLin6Asym at 2 mm",
    "mni_cortex": "cortical voxels of MNI152NLin6Asym at 2 mm (Schaefer 2018)",
    "schaefer400": "means of the 400 parcels of Schaefer 2018 over voxels of MNI152NLin6Asym at 2 mm, not "
    "over vertices of the surface as in Brainmarks",
}
MIN_SD = 1e-6
"""Standard deviation, in the units of the series, up to which a column has no data, as in Brainmarks."""
VOLUMES = 32
COLUMNS = 16_384
"""Volumes that are read, and columns that are standardised, at once."""


@dataclass(frozen=True)
class Sample:
    """A run as a sample of Brainmarks.

    Attributes
    ----------
    bold : numpy.ndarray of float32, (T, V)
        z-scored for each column; 0 in columns without data.
    mean, std : numpy.ndarray of float32, (1, V)
        In the units of the series; 0 in columns without data.
    tr : float
        Repetition time, s.
    """

    bold: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    tr: float

    @property
    def n_without_data(self) -> int:
        """Number of columns without data."""
        return int((self.std == 0).sum())

    def as_dict(self) -> dict[str, Any]:
        """Return what a transform of Brainmarks takes."""
        return {"bold": self.bold, "mean": self.mean, "std": self.std, "tr": self.tr}


def source_of(space: str) -> Path:
    """Return the image that defines a space.

    Raises
    ------
    UsageError
        The space cannot be made from volumes.
    NoInputError
        The image is not on this machine.
    """
    if space not in N_COLUMNS:
        raise UsageError(
            f"The space {space} of Brainmarks is not available.",
            f"Choose a model of one of the spaces {', '.join(N_COLUMNS)}; the others need surfaces or other atlases.",
        )
    return BRAIN_MASK if space == "mni" else find_atlas(SCHAEFER).path


def columns_on_grid(space: str) -> np.ndarray:
    """Return the column of each voxel of the model grid, (96, 96, 96) int32, from 1; 0: none.

    Raises
    ------
    BadDataError
        The image of the space is not the one that Brainmarks uses.
    """
    path = source_of(space)
    image: Any = nib.as_closest_canonical(load_nifti(path))
    values = np.rint(np.asarray(image.dataobj)).astype(np.int32)
    if values.shape != SHAPE:
        raise BadDataError(f"{path}: invalid shape {values.shape}.", "Use the image in MNI152NLin6Asym at 2 mm.")
    numbers = NUMBERING[space](values)
    found, wanted = int(numbers.max()), N_COLUMNS[space]
    if found != wanted or len(np.unique(numbers)) != wanted + 1:
        raise BadDataError(
            f"{path}: {len(np.unique(numbers)) - 1} columns; the space {space} of Brainmarks has {wanted}.",
            f"Use {CBIG_FILE} of the Schaefer atlas (CBIG); see docs/integrations.md.",
        )
    return labels_to_model_grid(nib.Nifti1Image(numbers, image.affine))


def number_voxels(values: np.ndarray) -> np.ndarray:
    """Number the voxels above 0 of R-A-S volumes (x, y, z) in Brainmarks' order, from 1."""
    chosen = values.T > 0
    numbers = np.zeros(chosen.shape, np.int32)
    numbers[chosen] = np.arange(1, chosen.sum() + 1)
    return numbers.T


def number_parcels(values: np.ndarray) -> np.ndarray:
    """Return the labels: those of the Schaefer atlas are the numbers of the parcels."""
    return values


NUMBERING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mni": number_voxels,
    "mni_cortex": number_voxels,
    "schaefer400": number_parcels,
}


def make_sample(series: GridSeries, space: str, offset: float = 0.0) -> Sample:
    """Make the sample of a run, in blocks of volumes.

    Parameters
    ----------
    series : GridSeries
    space : str
        Key of `N_COLUMNS`.
    offset : float
        Was added to the values of the series; see `AlignedSeries.offset`.

    Raises
    ------
    UsageError, NoInputError, BadDataError
        As `columns_on_grid`; or no column has data.
    """
    inside, n_columns = columns_on_grid(space)[series.mask], N_COLUMNS[space]
    voxel = np.flatnonzero(inside)
    row = inside[voxel] - 1
    n_voxels = np.bincount(row, minlength=n_columns)
    weights = sparse.csr_array((1 / n_voxels[row], (row, voxel)), shape=(n_columns, len(inside)))
    values = np.empty((series.n_vols, n_columns), np.float32)
    for first in range(0, series.n_vols, VOLUMES):
        block = series.rows(first, first + VOLUMES).astype(np.float64)
        values[first : first + len(block)] = (weights @ block.T).T
    values[:, n_voxels > 0] -= offset
    mean, std = standardise(values)
    if not std.any():
        raise BadDataError(f"The run has no data in the space {space}.", "Check the run and its alignment.")
    return Sample(values, mean, std, series.tr)


def standardise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace the columns of (T, V) by their z-scores, 0 without variance; return mean and std (1, V) float32."""
    mean, std = (np.zeros((1, values.shape[1]), np.float32) for _ in range(2))
    for first in range(0, values.shape[1], COLUMNS):
        part = slice(first, first + COLUMNS)
        block = values[:, part].astype(np.float64)
        average, spread = block.mean(axis=0), block.std(axis=0)
        varies = spread > MIN_SD
        values[:, part] = (block - average) / np.where(varies, spread, 1) * varies
        mean[0, part], std[0, part] = average * varies, spread * varies
    return mean, std
