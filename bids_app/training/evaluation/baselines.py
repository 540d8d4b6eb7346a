"""Features of the baselines: functional connectivity, mean image, amplitudes, motion and confounds, and site.

N  examples      U  volumes at 0.8 s      V  voxels of the brain      R  parcels      F  features
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bids_app.clips import MODEL_GRID_SHAPE, MODEL_TR
from bids_app.errors import BadDataError
from bids_app.training.data.labels import Segment
from bids_app.training.data.quantise import BACKGROUND
from bids_app.training.data.scan import Scan

CUBE_VOXELS, BLOCK_VOXELS = 12, 6
"""Edges of the cubes for functional connectivity without an atlas (24 mm) and for the mean image (12 mm)."""
MIN_PARCEL_VOXELS = 8
"""Minimum number of brain voxels in a usable parcel."""
ALFF_BAND = (0.01, 0.08)
"""Frequencies of ALFF, Hz."""
CHUNK_VOLUMES = 64
"""Volumes read at a time."""
Examples = Sequence[Scan | Segment]


def cube_labels(edge: int) -> np.ndarray:
    """Return a label image (96, 96, 96) of cubes with an edge in voxels; labels start at 1."""
    at = [np.arange(n) // edge for n in MODEL_GRID_SHAPE]
    counts = [int(a.max()) + 1 for a in at]
    x, y, z = np.meshgrid(*at, indexing="ij")
    return ((x * counts[1] + y) * counts[2] + z + 1).astype(np.int32)


def parcel_series(example: Scan | Segment, labels: np.ndarray, n_parcels: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean time series of each parcel.

    Parameters
    ----------
    labels : np.ndarray of int, (96, 96, 96)
        Parcels from 1 to ``n_parcels``; 0 is none.

    Returns
    -------
    series : np.ndarray, (U, R)
        0 for parcels with fewer than `MIN_PARCEL_VOXELS` voxels.
    voxels : np.ndarray of int, (R,)
        Brain voxels in each parcel.
    """
    scan, first = (example.scan, example.first) if isinstance(example, Segment) else (example, 0)
    indices = scan.voxel_indices
    parcel = labels.reshape(-1)[indices]
    voxels = np.bincount(parcel, minlength=n_parcels + 1)[1:]
    order = np.argsort(parcel, kind="stable")
    sorted_parcels = parcel[order]
    starts = np.flatnonzero(np.diff(sorted_parcels, prepend=-1))
    found = sorted_parcels[starts]
    series = np.zeros((example.n_vols, n_parcels + 1), np.float32)
    for a in range(0, example.n_vols, CHUNK_VOLUMES):
        chunk = scan.arrays.codes(first + a, first + min(a + CHUNK_VOLUMES, example.n_vols), len(indices))
        values = chunk.astype(np.float32) * np.float32(scan.scale)
        values[chunk == BACKGROUND] = 0
        series[a : a + len(chunk), found] = np.add.reduceat(values[:, order], starts, axis=1)
    series[:, 1:] /= np.maximum(voxels, 1)
    series[:, 1:][:, voxels < MIN_PARCEL_VOXELS] = 0
    return series[:, 1:], voxels


def connectivity_features(examples: Examples, labels: np.ndarray | None = None) -> np.ndarray:
    """Compute correlations between parcels, with shrinkage (nilearn); (N, F).

    Parameters
    ----------
    labels : np.ndarray of int, optional, (96, 96, 96)
        None: cubes of 24 mm.
    """
    from nilearn.connectome import ConnectivityMeasure

    labels = cube_labels(CUBE_VOXELS) if labels is None else _relabel(labels)
    pairs = [parcel_series(example, labels, int(labels.max())) for example in examples]
    enough = np.mean([voxels >= MIN_PARCEL_VOXELS for _, voxels in pairs], axis=0) >= 0.9
    if enough.sum() < 2:
        raise BadDataError(
            "Fewer than two parcels of the atlas overlap with the scans.", "Use an atlas in MNI152NLin6Asym space."
        )
    noise = np.random.default_rng(0)
    series = []
    for values, _ in pairs:
        kept = values[:, enough].astype(np.float64)
        flat = kept.std(axis=0) == 0
        kept[:, flat] = noise.normal(size=(len(kept), int(flat.sum())))  # uncorrelated
        series.append(kept)
    measure = ConnectivityMeasure(kind="correlation", vectorize=True, discard_diagonal=True, standardize=True)
    return np.asarray(measure.fit_transform(series))


def _relabel(labels: np.ndarray) -> np.ndarray:
    """Renumber labels consecutively from 1."""
    found = np.unique(labels)
    return np.searchsorted(found[found != 0], labels).astype(np.int32) * (labels != 0) + (labels != 0)


def mean_image_features(examples: Examples) -> np.ndarray:
    """Compute temporal means in cubes of 12 mm, (N, F); means of segments are relative to their scan."""
    labels = cube_labels(BLOCK_VOXELS)
    n_cubes = int(labels.max())
    rows, seen = [], []
    for example in examples:
        if isinstance(example, Segment):
            series, voxels = parcel_series(example, labels, n_cubes)
            rows.append(series.mean(axis=0))
        else:
            parcel = labels.reshape(-1)[example.voxel_indices]
            voxels = np.bincount(parcel, minlength=n_cubes + 1)[1:]
            sums = np.bincount(parcel, example.mean_image(), minlength=n_cubes + 1)[1:]
            rows.append(np.where(voxels >= MIN_PARCEL_VOXELS, sums / np.maximum(voxels, 1), 0))
        seen.append(voxels >= MIN_PARCEL_VOXELS)
    return np.stack(rows)[:, np.mean(seen, axis=0) >= 0.5]


def confound_features(examples: Examples) -> np.ndarray:
    """Return summaries of motion and confounds, and the scan length; (N, F), NaN for missing values."""
    names = sorted({name for example in examples for name in example.confounds})
    if not names:
        raise BadDataError(
            "No scan has confounds.", "Add *_desc-confounds_timeseries.tsv files and prepare the store again."
        )
    return np.array([[*(e.confounds.get(n, np.nan) for n in names), e.n_vols] for e in examples], dtype=float)


def amplitude_features(examples: Examples, labels: np.ndarray | None = None) -> np.ndarray:
    """Compute amplitudes of the mean series of parcels, (N, F): temporal SD, and that from 0.01 to 0.08 Hz (ALFF).

    Values are logarithms. Under the voxel normalisation, they are relative to the SD of single voxels. Segments that
    are too short for the band have no ALFF.

    Parameters
    ----------
    labels : np.ndarray of int, optional, (96, 96, 96)
        None: cubes of 24 mm.
    """
    labels = cube_labels(CUBE_VOXELS) if labels is None else _relabel(labels)
    pairs = [parcel_series(example, labels, int(labels.max())) for example in examples]
    enough = np.mean([voxels >= MIN_PARCEL_VOXELS for _, voxels in pairs], axis=0) >= 0.9
    if not enough.any():
        raise BadDataError("No parcel of the atlas overlaps with the scans.", "Use an atlas in MNI152NLin6Asym space.")
    rows = [[values[:, enough].std(axis=0), low_frequency_amplitude(values[:, enough])] for values, _ in pairs]
    features = np.log(np.maximum(np.array(rows, float), 1e-6)).reshape(len(rows), -1)
    return features[:, ~np.isnan(features).all(axis=0)]


def low_frequency_amplitude(series: np.ndarray) -> np.ndarray:
    """Return the mean amplitude of series (U, R) in the band of ALFF (Zang et al. 2007), (R,); NaN without the band."""
    frequencies = np.fft.rfftfreq(len(series), MODEL_TR)
    band = (frequencies >= ALFF_BAND[0]) & (frequencies <= ALFF_BAND[1])
    if not band.any():
        return np.full(series.shape[1], np.nan)
    return np.abs(np.fft.rfft(series - series.mean(axis=0), axis=0)[band]).mean(axis=0) * 2 / len(series)


def site_features(sites: Sequence[str]) -> np.ndarray:
    """Return indicators of the sites of examples, (N, sites)."""
    names = sorted(set(sites))
    if len(names) < 2:
        raise BadDataError("Fewer than two sites are known.", "Add a column site to participants.tsv.")
    return np.array([[site == name for name in names] for site in sites], dtype=float)


CONNECTIVITY, MEAN_IMAGE, AMPLITUDE, CONFOUNDS, SITE = "connectivity", "mean", "amplitude", "confounds", "site"
BASELINES = {
    CONNECTIVITY: "functional connectivity",
    MEAN_IMAGE: "mean image",
    AMPLITUDE: "amplitudes (SD, ALFF)",
    CONFOUNDS: "motion and confounds",
    SITE: "site",
}
NUISANCES = (CONFOUNDS, SITE)
"""Baselines that should not predict the target: if one does, the encoder's score is doubtful."""


def compute_features(name: str, examples: Examples, labels: np.ndarray | None, sites: Sequence[str] = ()) -> np.ndarray:
    """Compute the features (N, F) of a baseline in `BASELINES`."""
    if name == CONNECTIVITY:
        return connectivity_features(examples, labels)
    if name == AMPLITUDE:
        return amplitude_features(examples, labels)
    if name == SITE:
        return site_features(sites)
    return mean_image_features(examples) if name == MEAN_IMAGE else confound_features(examples)
