"""Out-of-distribution scans are detected, with the stated false-alarm rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.adapters.domain import MIN_COHORT, Distance, Domain, shrink
from bids_app.adapters.file import DOMAINS, Adapter, AdapterCard, load_adapter, save_adapter
from bids_app.errors import BadDataError

C = 40


def mixing(seed: int = 0) -> np.ndarray:
    """Return a mixing matrix that makes features correlated and different in size, like those of an encoder."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(C, C)) * np.geomspace(1, 1e-2, C)[:, None] * np.geomspace(1e-3, 10, C)


def scans(n: int, seed: int, scatter: float = 1.0) -> np.ndarray:
    return 5 + scatter * np.random.default_rng(seed).normal(size=(n, C)) @ mixing()


def people(n: int, each: int = 1) -> list[str]:
    return [f"{i // each}" for i in range(n)]


@pytest.mark.parametrize("n", [20, 60, 300])
def test_the_false_alarm_rate_is_the_stated_one(n: int) -> None:
    far, stated = [], 0.0
    for seed in range(12):  # cohorts with fewer scans than features among them
        domain = Domain.fit(scans(n, seed), people(n))
        stated = domain.limit[1]
        far += [domain.measure(scan).is_far for scan in scans(150, 1000 + seed)]
    assert stated == pytest.approx(max(0.01, 1 / (n + 1)))
    assert np.mean(far) == pytest.approx(stated, abs=0.012)


def test_distances_leave_out_all_scans_of_the_same_participant() -> None:
    rng = np.random.default_rng(0)
    own = np.repeat(scans(30, 0), 4, axis=0) + 1e-3 * rng.normal(size=(120, C)) @ mixing()
    together, apart = Domain.fit(own, people(120, each=4)), Domain.fit(own, people(120))
    assert np.median(together.distances) > 1.3 * np.median(apart.distances)
    far = [together.measure(scan).is_far for scan in scans(300, 99)]
    assert np.mean(far) < 2.5 * together.limit[1]


def test_a_different_kind_of_scan_is_out_of_distribution() -> None:
    domain = Domain.fit(scans(30, 0), people(30))
    strange = 5 + np.random.default_rng(5).normal(size=C) @ mixing(seed=7)
    assert domain.measure(strange).is_far
    assert not domain.measure(scans(30, 0).mean(axis=0)).is_far


def test_the_distance_does_not_depend_on_the_units_of_features() -> None:
    units = np.geomspace(1e-4, 1e4, C)
    one, other = Domain.fit(scans(30, 0), people(30)), Domain.fit(scans(30, 0) * units, people(30))
    scan = scans(1, 9)[0]
    assert other.measure(scan * units).value == pytest.approx(one.measure(scan).value, rel=1e-6)


def test_constant_features_are_accepted() -> None:
    values = scans(30, 0)
    values[:, 3] = 7.0
    assert np.isfinite(Domain.fit(values, people(30)).measure(values[0]).value)


def test_shrinkage_decreases_with_the_number_of_scans() -> None:
    draws = np.random.default_rng(0).normal(size=(2000, 10)) * np.sqrt(np.arange(1, 11))
    few, many = np.cov(draws[:8].T, bias=True), np.cov(draws.T, bias=True)
    truth = np.diag(np.arange(1.0, 11))
    assert np.linalg.norm(shrink(few, 8) - truth) < np.linalg.norm(few - truth)
    assert np.linalg.eigvalsh(shrink(few, 8)).min() > 0.05
    np.testing.assert_allclose(shrink(many, 2000), many, atol=0.02 * np.abs(many).max())


def test_too_small_a_cohort_is_rejected() -> None:
    with pytest.raises(BadDataError, match="too few"):
        Domain.fit(scans(40, 0), people(40, each=5))
    assert MIN_COHORT == 10


def test_an_adapter_file_stores_the_domain(tmp_path) -> None:
    domain = Domain.fit(scans(60, 0), people(60, each=2))
    card = AdapterCard("age", "regression", "age", "0" * 64, "voxel", ranges={"age": [20, 80]})
    plain = Adapter(card, {"head.weight": torch.zeros(1, C), "head.bias": torch.zeros(1)})
    read = load_adapter(save_adapter(tmp_path / "a.safetensors", plain.with_domains({"embedding": domain})))
    assert read.card == card
    assert read.domain is not None
    assert read.domain.participants == 30
    scan = scans(1, 9)[0]
    assert read.domain.measure(scan).value == pytest.approx(domain.measure(scan).value, rel=1e-3)
    assert load_adapter(save_adapter(tmp_path / "b.safetensors", plain)).domain is None


def test_invalid_reference_statistics_are_rejected() -> None:
    arrays = Domain.fit(scans(30, 0), people(30)).as_arrays()
    with pytest.raises(BadDataError, match="shapes or values"):
        Domain.from_arrays(arrays | {"mean": np.zeros(3)})
    with pytest.raises(BadDataError, match="positive definite"):
        Domain.from_arrays(arrays | {"covariance": np.ones((C, C))})
    with pytest.raises(BadDataError, match="Unexpected arrays"):
        Domain.from_arrays({"mean": np.zeros(3)})
    with pytest.raises(BadDataError, match="3 features"):
        Domain.from_arrays(arrays).measure(np.zeros(3))


def test_stored_distances_are_rounded_upwards() -> None:
    domain = Domain.fit(scans(30, 0), people(30))
    stored = domain.as_arrays()["distances"]
    assert stored.dtype == np.float32
    assert (stored >= domain.distances).all()
    np.testing.assert_allclose(stored, domain.distances, rtol=1e-6)


def test_the_clips_of_a_long_run_are_as_far_from_the_cohort_as_those_of_a_short_one() -> None:
    def clips(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
        return scans(n, seed) + shift * mixing().std(axis=0)

    cohort = [clips(4, seed) for seed in range(60)]
    by_clips = Domain.fit(cohort, people(60))
    by_mean = Domain.fit(np.stack([scan.mean(axis=0) for scan in cohort]), people(60))
    short, long = ([clips(n, 100 + seed) for seed in range(40)] for n in (4, 40))
    ratios = []
    for domain, reduce in ((by_clips, np.asarray), (by_mean, lambda scan: scan.mean(axis=0))):
        medians = [np.median([domain.measure(reduce(scan)).value for scan in runs]) for runs in (short, long)]
        ratios.append(medians[1] / medians[0])
    assert ratios[0] == pytest.approx(1, abs=0.1)
    assert ratios[1] < 0.6
    far = [by_clips.measure(scan).is_far for scan in short]
    assert np.mean(far) < 0.1
    assert by_clips.measure(clips(40, 999, shift=3.0)).is_far


def test_the_evidence_falls_beyond_the_limit() -> None:
    domain = Domain.fit(scans(60, 0), people(60))
    inside, outside = domain.measure(scans(60, 0).mean(axis=0)), domain.measure(scans(1, 5, scatter=2.5)[0])
    farther = domain.measure(scans(1, 5, scatter=9.0)[0])
    assert inside.evidence == 1
    assert 0 <= farther.evidence < outside.evidence < 1
    assert Distance(2.0, 1.0, 0.01, tail=0.5).evidence == pytest.approx(np.exp(-2))
    assert Distance(2.0, 1.0, 0.01).evidence == 0


def test_all_reference_statistics_of_a_cohort_are_kept_in_the_file(tmp_path) -> None:
    domains = {name: Domain.fit(scans(30, seed), people(30)) for seed, name in enumerate(DOMAINS)}
    card = AdapterCard("age", "regression", "age", "0" * 64, "voxel", signal=tuple(f"m{i}" for i in range(C)))
    written = Adapter(card, {"weight": torch.zeros(1, C), "bias": torch.zeros(1)}).with_domains(domains)
    read = load_adapter(save_adapter(tmp_path / "a.safetensors", written))
    assert read.card.signal == card.signal
    assert set(read.domains) == set(domains)
    for name, domain in domains.items():
        assert np.allclose(read.domains[name].mean, domain.mean, rtol=1e-6)
