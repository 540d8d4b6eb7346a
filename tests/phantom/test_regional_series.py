"""Simulated regional time series have the covariance, spectrum, lags and amplitudes of their model, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.phantom.geometry import rng_for
from bids_app.phantom.regional_series import (
    PAIRS,
    group_covariance,
    make_model,
    own_covariance,
    parameters,
    regions,
    simulate_series,
)

STEP_S = 0.5
LINK = ("default", "control")


def between(networks: tuple[str, str]) -> np.ndarray:
    """Return which pairs of regions (R, R) connect two networks."""
    block = np.outer(regions().members(networks[0]), regions().members(networks[1]))
    return block | block.T


def mean_correlations(sign: float, runs: int = 12) -> np.ndarray:
    """Return the mean correlations (R, R) of runs of a group."""
    model = make_model(own_share=0.0, links={LINK: sign * 0.15})
    return np.mean([np.corrcoef(simulate_series(model, 2400, STEP_S, rng_for(k, "r")).T) for k in range(runs)], axis=0)


def slope(series: np.ndarray) -> float:
    frequencies = np.fft.rfftfreq(len(series), STEP_S)
    power = (np.abs(np.fft.rfft(series, axis=0)) ** 2).mean(axis=1)
    band = (frequencies > 0.02) & (frequencies < 0.1)
    return float(np.polyfit(np.log(frequencies[band]), np.log(power[band]), 1)[0])


def test_mean_correlations_are_those_of_the_real_run():
    known, found = regions(), parameters()
    own = np.mean([own_covariance(k) for k in range(200)], axis=0)
    whole = make_model(own).covariance
    off = ~np.eye(len(whole), dtype=bool)
    same = np.equal.outer(np.array(known.networks), np.array(known.networks)) & off
    pair = np.equal.outer(np.arange(len(whole)) % PAIRS, np.arange(len(whole)) % PAIRS) & off
    assert whole[off & ~same].mean() == pytest.approx(found.between_r, abs=0.01)
    assert whole[same & ~pair].mean() == pytest.approx(found.within_r, abs=0.01)
    assert whole[pair].mean() == pytest.approx(found.homologous_r, abs=0.01)


def test_homologous_regions_are_mirror_images_in_one_network():
    known = regions()
    assert np.allclose(known.centres[:PAIRS] * [-1, 1, 1], known.centres[PAIRS:])
    assert known.networks[:PAIRS] == known.networks[PAIRS:]
    assert (known.owners(known.centres) == np.arange(2 * PAIRS)).all()


def test_connectivity_differs_between_the_named_networks_and_nowhere_else():
    change = make_model(links={LINK: 0.15}).covariance - make_model(links={LINK: -0.15}).covariance
    assert change[between(LINK)] == pytest.approx(0.3)
    assert not change[~between(LINK)].any()
    observed = mean_correlations(1.0) - mean_correlations(-1.0)
    assert observed[between(LINK)].mean() == pytest.approx(0.3, abs=0.05)
    elsewhere = observed[~between(LINK) & ~np.eye(len(observed), dtype=bool)]
    assert abs(elsewhere.mean()) < 0.01
    assert elsewhere.std() < 0.06


def test_impossible_correlations_are_an_error():
    with pytest.raises(UsageError, match="No time series"):
        make_model(links={LINK: 0.6})
    with pytest.raises(UsageError, match="Unknown network: frontal"):
        make_model(gains={"frontal": 2.0})


def test_the_lag_is_the_peak_of_the_cross_correlation():
    series = simulate_series(make_model(lags_s={"visual": 1.5}), 8000, 0.25, rng_for("lag"))
    late, reference = series[:, regions().members("visual")].mean(axis=1), series[:, regions().members("default")]
    shifts = range(-16, 17)
    found = [np.corrcoef(np.roll(reference.mean(axis=1), k)[20:-20], late[20:-20])[0, 1] for k in shifts]
    assert shifts[int(np.argmax(found))] * 0.25 == pytest.approx(1.5, abs=0.5)


def test_a_lag_of_either_sign_leaves_the_correlations_at_equal_times_alike():
    late, early = (
        np.corrcoef(simulate_series(make_model(lags_s={"visual": lag}), 20000, STEP_S, rng_for("l")).T)
        for lag in (1.0, -1.0)
    )
    assert np.abs(late - early).mean() < 0.02


@pytest.mark.parametrize("exponent", [1.2, 1.73, 2.2])
def test_the_spectrum_has_the_exponent(exponent):
    assert slope(simulate_series(make_model(exponent=exponent), 8000, STEP_S, rng_for("s"))) == pytest.approx(
        -exponent, abs=0.15
    )


def test_the_exponent_does_not_change_the_variance():
    found = [simulate_series(make_model(exponent=e), 20000, STEP_S, rng_for("v")).std() for e in (1.3, 2.1)]
    assert found == pytest.approx([parameters().sd] * 2, rel=0.1)


def test_the_variance_changes_in_the_named_network_only():
    plain, raised = (
        simulate_series(make_model(gains=gains), 500, STEP_S, rng_for("g")) for gains in ({}, {"limbic": 1.4})
    )
    ratio = raised.std(axis=0) / plain.std(axis=0)
    assert ratio[regions().members("limbic")] == pytest.approx(1.4)
    assert ratio[~regions().members("limbic")] == pytest.approx(1.0)


def test_connectomes_are_more_similar_within_than_between_people():
    upper = np.triu_indices(2 * PAIRS, 1)
    people = [make_model(own_covariance(3, k)) for k in range(6)]
    sessions = [
        [np.corrcoef(simulate_series(model, 1200, STEP_S, rng_for(k, s)).T)[upper] for k, model in enumerate(people)]
        for s in ("1", "2")
    ]
    found = np.corrcoef(*sessions)[:6, 6:]
    assert np.diag(found).mean() > found[~np.eye(6, dtype=bool)].mean() + 0.05


def test_without_an_individual_share_people_are_equal():
    assert np.array_equal(make_model(own_covariance(1), 0.0).covariance, group_covariance())


def test_the_same_seed_gives_the_same_series():
    first, again, other = (simulate_series(make_model(), 40, STEP_S, rng_for(k, "x")) for k in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.array_equal(own_covariance(1, "a"), own_covariance(1, "a"))
