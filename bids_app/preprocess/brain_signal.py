"""Whether a series on the model grid is the BOLD signal of a brain: measures, and tests against surrogates.

The tests compare a statistic of the run with the same statistic of surrogates made from the run itself: regions paired
at random, network labels permuted, volumes in random order. They need no reference cohort, and their false-alarm rate
is known. The regions are spheres around the coordinates of Seitzman et al. (2020), with their network labels.

    T  volumes      V  voxels of the brain      R  regions
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy import sparse

from bids_app.catalog.templates import MODEL_SPACE, load_template
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, GridSeries
from bids_app.errors import NoInputError
from bids_app.preprocess.registration.transforms import grid_points, sample

CHUNK_VOLUMES = 16
N_SURROGATES, N_ORDERS = 499, 199
"""Number of surrogates; of those with the volumes in random order."""
MIN_VOLUMES = 12
"""Minimum number of volumes for a measure; with fewer there are not enough degrees of freedom."""
MIN_ORDERED = 50
"""Minimum number of volumes for the test of their order; with fewer, its power is low (simulated runs of 42 failed)."""
MIN_REGION = 0.5
"""Minimum share of a region's voxels with data."""
MIN_REGIONS = 20
"""Minimum number of regions, or pairs of regions, for a test."""
MIDLINE_MM = 10.0
"""Homologous regions are at least this far from the midline."""
FAR_MM = 35.0
"""Minimum distance of two regions whose correlation counts for the networks; below it, smoothness contributes."""
HOMOLOGUE_MM = 15.0
"""Regions closer than this to each other's mirror image count as homologues, not as regions of one network."""
LAG_S = 2.0
"""Lag of the temporal autocorrelation, s."""
NEIGHBOUR_VOXELS = 5
"""Distance of neighbours, 10 mm: farther than interpolation between voxels of 4 mm reaches."""
N_NEIGHBOURS = 3000
SIGNAL_MEASURES = (
    "homologue_r", "network_r", "autocorrelation", "neighbour_r", "low_frequency", "high_frequency", "drift",
    "global_share", "gm_wm_mean", "gm_wm_sd", "sd_cv", "sd_percent",
)  # fmt: skip
"""Measures that are compared with an adapter's cohort; p values are not, since most scans have the lowest."""
BAND_HZ = (0.01, 0.1)
"""Band of spontaneous fluctuations (Biswal et al. 1995; Cordes et al. 2001)."""
TOP_HZ = 0.25
"""Highest frequency of the measures of the spectrum: that of a TR of 2 s, so that shorter TRs give the same values."""


@dataclass(frozen=True)
class RegionTable:
    """Spherical regions and their networks.

    Attributes
    ----------
    centres : numpy.ndarray, (R, 3)
        MNI mm.
    radii : numpy.ndarray, (R,)
        mm.
    networks : numpy.ndarray of str, (R,)
        ``unassigned`` for regions of no network.
    """

    centres: np.ndarray
    radii: np.ndarray
    networks: np.ndarray


@cache
def region_table() -> RegionTable:
    """Read the 300 regions of Seitzman et al. (2020) from nilearn's files, without the import of nilearn."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise NoInputError("nilearn is not installed.", "Install neurostorm again.")
    path = Path(spec.origin).parent / "datasets" / "data" / "seitzman_2018_ROIs_300inVol_MNI_allInfo.txt"
    rows = [line.split() for line in path.read_text().splitlines()[1:] if line.strip()]
    return RegionTable(
        np.array([row[:3] for row in rows], float),
        np.array([row[3] for row in rows], float),
        np.array([row[5] for row in rows]),
    )


def measure_signal(series: GridSeries, seed: int = 0) -> dict[str, float]:
    """Measure and test whether a series is the BOLD signal of a brain.

    Parameters
    ----------
    series : GridSeries
    seed : int
        Seed of the surrogates and of the sampled voxels.

    Returns
    -------
    dict of str to float
        Without the entries that cannot be computed, e.g. of a run that covers too few regions.
    """
    if series.n_vols < MIN_VOLUMES:
        return {}
    rng = np.random.default_rng(seed)
    table = region_table()
    mirrored = table.centres * [-1, 1, 1]
    spheres, own_share = _spheres(series.mask, table.centres, table.radii)
    twins, twin_share = _spheres(series.mask, mirrored, table.radii)
    pairs = _neighbours(series.mask, rng)
    read = _read(series, sparse.vstack([spheres, twins]).tocsr(), pairs)
    n = len(table.centres)
    nuisance = _nuisance(read.total)
    regions = _standardise(read.regions, nuisance)  # (T, 2R)
    seen = own_share >= MIN_REGION
    found = _image_measures(series, read)
    found |= _spectral_measures(read, series.tr, np.concatenate([seen, twin_share >= MIN_REGION]))
    left = seen & (twin_share >= MIN_REGION) & (table.centres[:, 0] < -MIDLINE_MM)
    found |= _test_homologues(regions[:, :n][:, left], regions[:, n:][:, left], rng)
    labelled = seen & (table.networks != "unassigned")
    found |= _test_networks(regions[:, :n][:, labelled], table.centres[labelled], table.networks[labelled], rng)
    if tests := [found[name] for name in ("homologue_p", "network_p") if name in found]:
        found["connectivity_p"] = min(1.0, len(tests) * min(tests))  # Bonferroni: either is evidence of a brain
    found |= _test_order(read.regions[:, :n][:, seen], series.tr, rng)
    found |= _correlate_neighbours(read.sampled, nuisance)
    return found


@dataclass(frozen=True)
class _Read:
    """What one pass through a series collects."""

    regions: np.ndarray  # (T, 2R) mean of each region and of its mirror image
    total: np.ndarray  # (T,) mean of the brain
    sampled: np.ndarray  # (T, 2, N) pairs of neighbouring voxels
    mean: np.ndarray  # (V,)
    sd: np.ndarray  # (V,)


def _read(series: GridSeries, weights: sparse.csr_matrix, pairs: np.ndarray) -> _Read:
    regions, total, sampled = [], [], []
    n_voxels = series.values.shape[1]
    sums, squares = np.zeros(n_voxels), np.zeros(n_voxels)
    first = series.rows(0, 1)[0].astype(np.float64)
    weights = weights.astype(np.float32)
    for start in range(0, series.n_vols, CHUNK_VOLUMES):
        rows = series.rows(start, min(start + CHUNK_VOLUMES, series.n_vols))
        regions.append((weights @ rows.T).T)
        total.append(rows.mean(axis=1, dtype=np.float64))
        sampled.append(rows[:, pairs])
        away = rows - first
        sums += away.sum(axis=0)
        squares += np.einsum("tv,tv->v", away, away)
    mean = sums / series.n_vols
    sd = np.sqrt(np.maximum(squares / series.n_vols - mean**2, 0))
    return _Read(
        np.concatenate(regions).astype(np.float64), np.concatenate(total),
        np.concatenate(sampled).astype(np.float64), first + mean, sd,
    )  # fmt: skip


def _columns(mask: np.ndarray) -> np.ndarray:
    """Return the column of each voxel of the grid in a series of the mask's voxels; -1 outside the mask."""
    column = np.full(mask.size, -1)
    column[mask.ravel()] = np.arange(int(mask.sum()))
    return column


def _spheres(mask: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return weights (R, V) that average the voxels of each sphere, and the share of each sphere in the mask."""
    column = _columns(mask)
    to_voxels = np.linalg.inv(MODEL_GRID_AFFINE)
    reach = int(np.ceil(radii.max() / 2)) + 1
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rows, columns, shares = [], [], np.zeros(len(centres))
    for index, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
        voxel = to_voxels[:3, :3] @ centre + to_voxels[:3, 3]
        near = np.rint(voxel).astype(int) + offsets
        near = near[(np.linalg.norm(near - voxel, axis=1) * 2 <= radius)]
        inside = near[np.all((near >= 0) & (near < MODEL_GRID_SHAPE), axis=1)]
        found = column[np.ravel_multi_index(tuple(inside.T), MODEL_GRID_SHAPE)]
        found = found[found >= 0]
        shares[index] = len(found) / max(len(near), 1)
        rows.append(np.full(len(found), index))
        columns.append(found)
    row, col = np.concatenate(rows), np.concatenate(columns)
    counts = np.bincount(row, minlength=len(centres))
    weights = 1.0 / counts[row]
    return sparse.csr_matrix((weights, (row, col)), shape=(len(centres), int(mask.sum()))), shares


def _neighbours(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample voxels whose neighbour at 10 mm, along a random axis, is in the mask too; columns (2, N)."""
    column = _columns(mask)
    found = []
    for axis in range(3):
        both = mask & np.roll(mask, -NEIGHBOUR_VOXELS, axis=axis)
        both[(slice(None),) * axis + (slice(-NEIGHBOUR_VOXELS, None),)] = False
        voxels = np.argwhere(both)
        chosen = voxels[rng.choice(len(voxels), min(N_NEIGHBOURS // 3, len(voxels)), replace=False)]
        there = chosen + np.eye(3, dtype=int)[axis] * NEIGHBOUR_VOXELS
        found.append([column[np.ravel_multi_index(tuple(at.T), MODEL_GRID_SHAPE)] for at in (chosen, there)])
    return np.concatenate(found, axis=1)


def _nuisance(total: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the mean, linear and quadratic drift and the global signal, (T, k)."""
    time = np.linspace(-1, 1, len(total))
    basis = np.stack([np.ones_like(time), time, time**2, total - total.mean()], axis=1)
    left, size, _ = np.linalg.svd(basis / np.maximum(np.linalg.norm(basis, axis=0), 1e-30), full_matrices=False)
    return left[:, size > 1e-6 * size.max()]


def _standardise(values: np.ndarray, nuisance: np.ndarray) -> np.ndarray:
    """Remove nuisance regressors from time courses (T, n), and scale to unit length; constant ones are 0."""
    rest = values - nuisance @ (nuisance.T @ values)
    length = np.linalg.norm(rest, axis=0)
    usable = length > 1e-6 * np.maximum(np.linalg.norm(values, axis=0), 1e-30)
    return np.where(usable, rest / np.where(usable, length, 1), 0)


def _p_value(value: float, surrogates: np.ndarray) -> float:
    """Return the share of surrogates that reach the value, the run itself included."""
    return float((1 + (surrogates >= value).sum()) / (1 + len(surrogates)))


def _test_homologues(left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Test whether a region correlates more with its mirror image than with the others' mirror images."""
    n = left.shape[1]
    if n < MIN_REGIONS:
        return {}
    r = left.T @ right
    others = (r.sum() - np.trace(r)) / (n * (n - 1))
    value = float(np.trace(r) / n - others)
    rows = np.arange(n)
    surrogates = np.array([r[rows, rng.permutation(n)].mean() for _ in range(N_SURROGATES)]) - others
    return {"homologue_r": value, "homologue_p": _p_value(value, surrogates)}


def _test_networks(
    values: np.ndarray, centres: np.ndarray, networks: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Test whether distant regions of one network correlate more than those of different networks."""
    n = len(networks)
    if n < MIN_REGIONS:
        return {}
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    mirrored = np.linalg.norm(centres[:, None] * [-1, 1, 1] - centres[None], axis=2)
    one, other = np.nonzero(np.triu((apart > FAR_MM) & (mirrored > HOMOLOGUE_MM)))
    r = (values.T @ values)[one, other]
    label = np.unique(networks, return_inverse=True)[1]

    def contrast(labels: np.ndarray) -> float:
        same = labels[one] == labels[other]
        within, n_within = float(r[same].sum()), int(same.sum())
        if n_within in (0, len(r)):
            return 0.0
        return within / n_within - (total - within) / (len(r) - n_within)

    total = float(r.sum())
    value = contrast(label)
    surrogates = np.array([contrast(label[rng.permutation(n)]) for _ in range(N_SURROGATES)])
    return {"network_r": value, "network_p": _p_value(value, surrogates)}


def _test_order(values: np.ndarray, tr: float, rng: np.random.Generator) -> dict[str, float]:
    """Test whether the order of the volumes matters: whether the spectrum of the regions (T, R) is not white.

    The statistic is the variance over frequencies of the mean periodogram. It responds to slow fluctuations and to
    rhythms, whose autocorrelation may be positive or negative.
    """
    if values.shape[1] < MIN_REGIONS or len(values) < MIN_ORDERED:
        return {}
    n, lag = len(values), max(1, round(LAG_S / tr))
    drift = _nuisance(np.zeros(n))
    unit = _standardise(values, drift)

    def unevenness(rows: np.ndarray) -> float:
        return float((np.abs(np.fft.rfft(rows, axis=0)[1:]) ** 2).mean(axis=1).var())

    value = unevenness(unit)  # drift is removed after reordering, since it takes power from the lowest frequencies
    surrogates = np.array([unevenness(_standardise(values[rng.permutation(n)], drift)) for _ in range(N_ORDERS)])
    autocorrelation = float(np.einsum("tr,tr->r", unit[:-lag], unit[lag:]).mean())
    return {"autocorrelation": autocorrelation, "order_p": _p_value(value, surrogates)}


def _correlate_neighbours(sampled: np.ndarray, nuisance: np.ndarray) -> dict[str, float]:
    """Correlate voxels with their neighbours at 10 mm: 0 in noise, 1 in a parcellated series."""
    if sampled.shape[2] < MIN_REGIONS:
        return {}
    here, there = (_standardise(sampled[:, side], nuisance) for side in (0, 1))
    return {"neighbour_r": float(np.einsum("tn,tn->n", here, there).mean())}


def _spectral_measures(read: _Read, tr: float, seen: np.ndarray) -> dict[str, float]:
    """Measure the spectrum up to `TOP_HZ`: power by band, relative to white noise, and the share of slow drift."""
    values = read.regions[:, seen]
    if values.shape[1] < MIN_REGIONS:
        return {}
    time = np.linspace(-1, 1, len(values))
    trend = np.linalg.qr(np.stack([np.ones_like(time), time], axis=1))[0]
    unit = _standardise(values, trend)
    power = (np.abs(np.fft.rfft(unit, axis=0)) ** 2).mean(axis=1)[1:]
    hertz = np.fft.rfftfreq(len(values), tr)[1:]
    common = hertz <= TOP_HZ + 1e-9
    power, hertz = power[common], hertz[common]
    power /= max(power.sum(), 1e-30)
    found = {}
    low = (hertz >= BAND_HZ[0]) & (hertz <= BAND_HZ[1])
    high = hertz > BAND_HZ[1]
    if low.any():
        found["low_frequency"] = float(power[low].sum() / low.mean())
    if high.sum() >= 4:
        found["high_frequency"] = float(power[high].sum() / high.mean())
    found["drift"] = float(power[hertz < BAND_HZ[0]].sum())
    means = read.regions[:, seen].mean(axis=0)
    spread = values.std(axis=0) / np.maximum(np.abs(means), 1e-30)
    total = read.total.std() / max(abs(read.total.mean()), 1e-30)
    found["global_share"] = float(total / max(np.median(spread), 1e-30))
    return found


@cache
def _tissues() -> tuple[np.ndarray, np.ndarray]:
    """Return grey and white matter of the template on the model grid, each (96, 96, 96) bool."""
    template = load_template(MODEL_SPACE)
    points = grid_points(MODEL_GRID_SHAPE, MODEL_GRID_AFFINE)
    gm, wm = (
        (sample(tissue, template.affine, points) > 0.7).reshape(MODEL_GRID_SHAPE)
        for tissue in (template.gm, template.wm)
    )
    return gm, wm


def _image_measures(series: GridSeries, read: _Read) -> dict[str, float]:
    """Measure the mean image and the map of the temporal standard deviation in grey and white matter."""
    gm, wm = (tissue[series.mask] for tissue in _tissues())
    found = {}
    if gm.sum() > 100 and wm.sum() > 100:
        for name, image in (("gm_wm_mean", read.mean), ("gm_wm_sd", read.sd)):
            if (below := float(np.median(image[wm]))) > 0:
                found[name] = float(np.median(image[gm])) / below
    percent = read.sd[read.mean > 0] / read.mean[read.mean > 0]
    if len(percent):
        low, high = np.percentile(percent, [5, 95])
        kept = percent[(percent >= low) & (percent <= high)]
        found["sd_cv"] = float(kept.std() / max(kept.mean(), 1e-30))
        found["sd_percent"] = float(100 * np.median(percent))
    return found
