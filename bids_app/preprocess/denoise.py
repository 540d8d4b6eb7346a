"""Regression of confounds from a written series by nilearn, in blocks of voxels.

nilearn chooses columns of the confounds table (`load_confounds_strategy`), and regresses them out
(`clean`): linear trends and confounds are removed, means are kept. ``scrubbing`` also removes volumes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bids_app.errors import BadDataError
from bids_app.preprocess.io.arrays import create_array
from bids_app.preprocess.io.compression import open_gzip
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.images import read_volume
from bids_app.preprocess.io.series_writer import SeriesWriter

BLOCK = 4096
"""Voxels that are cleaned at once."""
N_TREND = 2
"""Parameters of the linear trend that is removed."""
VOLUMES = 16
"""Volumes that are written at once."""


@dataclass(frozen=True)
class Denoised:
    """A denoised series: its file, the confounds that were regressed out, and the volumes that were left out."""

    path: Path
    columns: tuple[str, ...]
    left_out: tuple[int, ...]
    n_volumes: int


def denoise_series(
    series: Path, table: Path, brain_mask: Path, strategy: str, tr: float, path: Path, scratch: Path
) -> Denoised:
    """Regress confounds out of a series, within the brain; voxels outside are 0.

    Parameters
    ----------
    series : pathlib.Path
        Written by `SeriesWriter`.
    table : pathlib.Path
        Its confounds (``.tsv``), with a sidecar.
    brain_mask : pathlib.Path
        On the grid of the series.
    strategy : str
        Name of a strategy in nilearn.
    tr : float
        s.
    path : pathlib.Path
        File to write (``.nii.gz``).
    scratch : pathlib.Path
        Folder for temporary files: an array of the brain's voxels, links.

    Raises
    ------
    BadDataError
        The table lacks columns that the strategy needs, or no more volumes remain than there are confounds.
    """
    from nilearn.signal import clean

    n_volumes = load_nifti(series).shape[3]
    confounds, kept = choose_confounds(series.name, np.arange(n_volumes), table, strategy, scratch)
    brain, affine = read_volume(brain_mask)
    where = brain > 0.5
    array = scratch / f"{path.name}.npy"
    values = create_array(array, (n_volumes, int(where.sum())))
    for volume, row in enumerate(_volumes(series, where)):
        values[volume] = row
    low, high = 0.0, 0.0
    for first in range(0, values.shape[1], BLOCK):
        part = slice(first, first + BLOCK)
        block = np.asarray(values[:, part], dtype=np.float64)
        cleaned = clean(
            block,
            confounds=confounds,
            sample_mask=kept,
            t_r=tr,
            detrend=True,
            standardize=None,
            filter=False,
        )
        cleaned += block[kept].mean(axis=0)
        values[: len(kept), part] = cleaned
        low, high = min(low, float(cleaned.min())), max(high, float(cleaned.max()))
    code = int(load_nifti(series).header["sform_code"])
    with SeriesWriter(path, where, affine, code, tr, len(kept), (low, high)) as writer:
        for first in range(0, len(kept), VOLUMES):
            writer.append(values[first : min(first + VOLUMES, len(kept))])
    del values
    array.unlink()
    left_out = tuple(int(n) for n in np.setdiff1d(np.arange(n_volumes), kept))
    return Denoised(path, tuple(confounds.columns), left_out, len(kept))


def choose_confounds(
    name: str, volumes: np.ndarray, table: Path, strategy: str, scratch: Path
) -> tuple[pd.DataFrame, np.ndarray]:
    """Read the confounds of a strategy, and which of some volumes of the run it keeps.

    Parameters
    ----------
    name : str
        Of the series, for errors.
    volumes : np.ndarray of int, (T,)
        From 0.
    table, strategy, scratch
        See `denoise_series`.

    Raises
    ------
    BadDataError
        The table lacks columns that the strategy needs, or no more volumes remain than there are confounds.
    """
    try:
        confounds, kept = load_confounds(table, strategy, scratch)
    except (ValueError, KeyError) as error:  # columns are missing
        raise BadDataError(
            f"{name}: not denoised by the strategy {strategy} ({error}).",
            "The confounds lack columns: choose another strategy of --denoise, or preprocess the run from raw data.",
        ) from error
    volumes = volumes if kept is None else np.intersect1d(volumes, np.asarray(kept, dtype=int))
    if len(volumes) <= confounds.shape[1] + N_TREND:
        raise BadDataError(
            f"{name}: not denoised by the strategy {strategy}: {len(volumes)} volumes remain, too few for "
            f"{confounds.shape[1]} confounds.",
            "Choose another strategy of --denoise; simple keeps volumes with motion.",
        )
    return confounds, volumes


def load_confounds(table: Path, strategy: str, scratch: Path) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Read the confounds of a strategy, and the volumes to keep (None: all), by nilearn.

    nilearn expects the table beside an image, and finds its sidecar by replacing "tsv" everywhere in the path. It
    receives links with other names, in a folder whose path, that of a file descriptor, does not contain "tsv".
    """
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for path in (table, table.with_suffix(".json")):
            Path(folder, f"sub-x_desc-confounds_timeseries{path.suffix}").symlink_to(path.absolute())
        image = Path(folder, "sub-x_desc-preproc_bold.nii.gz")
        image.touch()
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            name = f"/proc/self/fd/{descriptor}/{image.name}"
            return load_confounds_strategy(name, denoise_strategy=strategy)
        finally:
            os.close(descriptor)


def _volumes(series: Path, where: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the voxels of a mask of each volume of a compressed series of int16, (V,) float32."""
    image = load_nifti(series)
    header, shape = image.header, image.shape
    slope, middle = image.dataobj.slope, image.dataobj.inter
    n_bytes = 2 * int(np.prod(shape[:3]))
    with open_gzip(series) as file:
        file.read(image.dataobj.offset)
        for _ in range(shape[3]):
            volume = np.frombuffer(file.read(n_bytes), dtype=header.get_data_dtype()).reshape(shape[:3], order="F")
            yield volume[where] * np.float32(slope) + np.float32(middle)
