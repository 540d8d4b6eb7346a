"""ComBat on embeddings: differences between sites are removed, and the test set has no influence."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from bids_app.errors import BadDataError, UsageError
from bids_app.training.evaluation.harmonise import combat

SITES = ["A", "B", "C"] * 20
TRAIN = np.arange(45)


def features() -> np.ndarray:
    """Return features (60, 6) whose mean and spread differ between sites."""
    rng = np.random.default_rng(0)
    shift, scale = {"A": 0.0, "B": 3.0, "C": -2.0}, {"A": 1.0, "B": 2.0, "C": 0.5}
    return np.array([shift[s] + scale[s] * rng.normal(size=6) for s in SITES])


def spread_of_means(x: np.ndarray) -> float:
    sites = np.array(SITES)[45:]
    return float(np.std([x[45:][sites == s].mean() for s in "ABC"]))


def test_differences_between_sites_are_removed_from_the_test_set() -> None:
    pytest.importorskip("neuroCombat")
    x = features()
    assert spread_of_means(x) > 1.5
    assert spread_of_means(combat(x, SITES, TRAIN)) < 0.5


def test_the_test_set_has_no_influence_on_the_fit() -> None:
    pytest.importorskip("neuroCombat")
    x = features()
    other = np.vstack([x[:46], 50 * x[46:]])
    assert combat(x, SITES, TRAIN)[:46] == pytest.approx(combat(other, SITES, TRAIN)[:46])


def test_constant_features_are_kept() -> None:
    pytest.importorskip("neuroCombat")
    x = np.hstack([features(), np.full((60, 1), 7.0)])
    found = combat(x, SITES, TRAIN)
    assert (found[:, 6] == 7.0).all()
    assert np.isfinite(found).all()


def test_a_site_with_too_few_training_scans_is_named() -> None:
    pytest.importorskip("neuroCombat")
    with pytest.raises(BadDataError, match=r"too few training scans of the site D \(0\)"):
        combat(features(), [*SITES[:-1], "D"], TRAIN)


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch) -> None:
    original = builtins.__import__

    def without(name, *rest):
        if name == "neuroCombat":
            raise ImportError("No module named 'neuroCombat'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="neuroCombat") as error:
        combat(features(), SITES, TRAIN)
    assert "neurostorm[combat]" in error.value.hint
