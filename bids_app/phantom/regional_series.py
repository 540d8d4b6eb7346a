"""Simulated regional time series: networks, covariance, spectrum, lags and amplitudes, and the effects on each.

Regions are pairs of homologous centres in both hemispheres. Correlations are the sum of a part that all regions share,
a part of each network, a part of each homologous pair, a part that decays with distance, random factors that all
participants have in common, and random factors of each participant. Spectra follow a power law.
The parameters were fitted to a real run (``regional_series.json``).

    R  regions      N  samples      F  frequencies
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from bids_app.catalog.templates import MODEL_SPACE, load_template
from bids_app.errors import UsageError
from bids_app.phantom.activity import NETWORKS
from bids_app.phantom.geometry import apply, rng_for

PAIRS = 48
"""Number of homologous pairs of regions."""
MIDLINE_MM = 6.0
"""Distance of medial regions from the midline, mm."""
NEAR_R, NEAR_MM = 0.15, 20.0
"""Correlation of neighbouring regions besides that of networks, and the distance at which it has fallen to 1 / e."""
FACTORS = 4
"""Number of random factors of a connectome, those of all participants and those of one."""
COMMON_SHARE, OWN_SHARE = 0.3, 0.15
"""Share of the variance that the factors of all participants and, by default, those of one explain."""
FLAT_BELOW_HZ = 0.008
"""Frequency below which the spectrum is flat."""
TAIL_S = 60.0
"""Time simulated beyond the end, because the transform is periodic, s."""
PARAMETERS = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class SeriesParameters:
    """Summaries of real regional time series.

    Attributes
    ----------
    between_r, within_r, homologous_r : float
        Mean correlation between regions of different networks, of one network, and of both hemispheres.
    exponent : float
        Power falls with the frequency to the power of minus ``exponent``.
    sd : float
        Median standard deviation of a region, relative to its mean signal.
    """

    between_r: float
    within_r: float
    homologous_r: float
    exponent: float
    sd: float


@cache
def parameters() -> SeriesParameters:
    """Read the parameters that were fitted to a real run."""
    content = json.loads(PARAMETERS.read_text())
    return SeriesParameters(**{name: float(content[name]) for name in SeriesParameters.__dataclass_fields__})


@dataclass(frozen=True)
class Regions:
    """The regions of all simulated participants.

    Attributes
    ----------
    centres : np.ndarray, (R, 3)
        MNI152NLin6Asym, RAS mm; the first half lies in the left hemisphere, the second half are its mirror images.
    networks : tuple of str
        Network of each region; those of `NETWORKS`, with both sides of a network taken together.
    """

    centres: np.ndarray
    networks: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the networks, sorted."""
        return tuple(sorted(set(self.networks)))

    def members(self, *networks: str) -> np.ndarray:
        """Return which regions belong to the named networks, (R,) bool."""
        unknown = sorted(set(networks) - set(self.networks))
        if unknown:
            raise UsageError(f"Unknown network: {', '.join(unknown)}.", f"Choose from {', '.join(self.names)}.")
        return np.isin(self.networks, networks)

    def owners(self, points: np.ndarray) -> np.ndarray:
        """Return the nearest region of points (V, 3), mm; (V,) from 0."""
        return cKDTree(self.centres).query(points)[1]


@cache
def regions() -> Regions:
    """Return the regions: foci of `NETWORKS`, and centres far from them in the template's grey matter."""
    template = load_template(MODEL_SPACE)
    grey = apply(template.affine, np.argwhere(template.gm > 0.5).astype(float))
    grey = grey[grey[:, 0] < -MIDLINE_MM]
    centres: list[tuple[float, ...]] = []
    names: list[str] = []
    for name, foci in NETWORKS.items():
        for focus in foci:
            x, y, z = focus.centre
            folded = (-max(abs(x), MIDLINE_MM), y, z)
            if folded not in centres:
                centres.append(folded)
                names.append(name.removesuffix("_left").removesuffix("_right"))
    seeds = cKDTree(np.array(centres))
    networks = list(names)
    distance = seeds.query(grey)[0]
    while len(centres) < PAIRS:
        far = int(np.argmax(distance))
        networks.append(names[int(seeds.query(grey[far])[1])])
        centres.append(tuple(grey[far]))
        distance = np.minimum(distance, np.linalg.norm(grey - grey[far], axis=1))
    left = np.array(centres, float)
    return Regions(np.concatenate([left, left * [-1.0, 1.0, 1.0]]), tuple(networks * 2))


@cache
def group_covariance() -> np.ndarray:
    """Return the correlations (R, R) of all participants, before effects; positive definite.

    With individual correlations of the share `OWN_SHARE`, their means are those of `parameters`.
    """
    found, known = parameters(), regions()
    n = len(known.networks)
    off = ~np.eye(n, dtype=bool)
    same = np.equal.outer(np.array(known.networks), np.array(known.networks)) & off
    pair = np.equal.outer(np.arange(n) % PAIRS, np.arange(n) % PAIRS) & off
    distance = np.linalg.norm(known.centres[:, None] - known.centres[None], axis=2)
    whole = NEAR_R * np.exp(-distance / NEAR_MM) + COMMON_SHARE * _common_factors(known)
    for part, target in (
        (off & ~same, found.between_r),
        (same & ~pair, found.within_r),
        (pair, found.homologous_r),
    ):
        whole[part] += target / (1 - OWN_SHARE) - whole[part].mean()
    np.fill_diagonal(whole, 1.0)
    return whole


def _common_factors(known: Regions) -> np.ndarray:
    """Return correlations (R, R) by factors: similar within a network, equal in homologous regions."""
    rng = rng_for("common connectome")
    network = {name: rng.normal(size=FACTORS) for name in known.names}
    half = rng.normal(size=(PAIRS, FACTORS)) + np.array([network[name] for name in known.networks[:PAIRS]])
    return _unit_rows(np.concatenate([half, half]))


def own_covariance(*keys: int | str) -> np.ndarray:
    """Simulate the correlations (R, R) that only one participant has, of mean 0; the same keys give the same."""
    return _unit_rows(rng_for(*keys, "connectome").normal(size=(2 * PAIRS, FACTORS)))


def _unit_rows(loadings: np.ndarray) -> np.ndarray:
    """Return the correlations (R, R) of regions with loadings (R, FACTORS)."""
    loadings = loadings / np.linalg.norm(loadings, axis=1, keepdims=True)
    return loadings @ loadings.T


@dataclass(frozen=True)
class RegionalModel:
    """What generates the regional time series of one participant.

    Attributes
    ----------
    covariance : np.ndarray, (R, R)
        Correlations of the regions at equal times, before lags.
    exponent : float
        Of the power spectrum.
    lags_s : np.ndarray, (R,)
        Delay of each region, s.
    sd : np.ndarray, (R,)
        Standard deviation of each region, relative to its mean signal.
    """

    covariance: np.ndarray
    exponent: float
    lags_s: np.ndarray
    sd: np.ndarray


def make_model(
    own: np.ndarray | None = None,
    own_share: float = OWN_SHARE,
    links: Mapping[tuple[str, str], float] | None = None,
    exponent: float | None = None,
    lags_s: Mapping[str, float] | None = None,
    gains: Mapping[str, float] | None = None,
) -> RegionalModel:
    """Compose the model of a participant from effects.

    Parameters
    ----------
    own : np.ndarray, (R, R), optional
        Individual correlations (`own_covariance`).
    own_share : float
        Their share, from 0 to 1; the rest is that of the group.
    links : mapping of (str, str) to float, optional
        Change of the correlation between two networks.
    exponent : float, optional
        Of the spectrum; default: that of `parameters`.
    lags_s, gains : mapping of str to float, optional
        Delay (s) and relative standard deviation of the regions of a network.

    Raises
    ------
    UsageError
        A network is unknown, or no time series have these correlations.
    """
    known = regions()
    whole = group_covariance()
    if own is not None:
        whole = (1 - own_share) * whole + own_share * own
    whole = whole.copy()
    for (first, second), change in (links or {}).items():
        block = np.outer(known.members(first), known.members(second))
        whole[block | block.T] += change
    np.fill_diagonal(whole, 1.0)
    if np.linalg.eigvalsh(whole)[0] < 0:
        raise UsageError("No time series have these correlations between networks.", "Use a smaller connectivity.")
    lags, sd = np.zeros(len(whole)), np.full(len(whole), parameters().sd)
    for name, lag in (lags_s or {}).items():
        lags[known.members(name)] += lag
    for name, gain in (gains or {}).items():
        sd[known.members(name)] *= gain
    return RegionalModel(whole, parameters().exponent if exponent is None else exponent, lags, sd)


def amplitudes(frequencies: np.ndarray, exponent: float) -> np.ndarray:
    """Return the amplitude (F,) of a power-law spectrum at frequencies in Hz; flat below `FLAT_BELOW_HZ`, 0 at 0 Hz."""
    found = np.maximum(frequencies, FLAT_BELOW_HZ) ** (-exponent / 2)
    found[frequencies == 0] = 0.0
    return found


def simulate_series(model: RegionalModel, n: int, step_s: float, rng: np.random.Generator) -> np.ndarray:
    """Simulate regional time series relative to the mean signal, (N, R).

    Parameters
    ----------
    model : RegionalModel
    n : int
        Number of samples.
    step_s : float
        Time between them, s.
    rng : np.random.Generator
    """
    length = n + round(TAIL_S / step_s)
    frequencies = np.fft.rfftfreq(length, step_s)
    values, axes = np.linalg.eigh(model.covariance)
    white = rng.standard_normal((length, len(values)))
    mixed = white @ (axes * np.sqrt(np.clip(values, 0, None))).T
    weights = amplitudes(frequencies, model.exponent)
    power = (weights**2).sum() * 2 / length  # of white noise of unit variance, after weighting
    spectrum = np.fft.rfft(mixed, axis=0) * (weights / np.sqrt(power))[:, None]
    spectrum *= np.exp(-2j * np.pi * frequencies[:, None] * model.lags_s)
    return model.sd * np.fft.irfft(spectrum, length, axis=0)[:n]
