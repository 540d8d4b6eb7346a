"""Coverage of intervals and label sets where 90 % is promised: people with several runs, and shifts between sites.

    python benchmarks/calibration.py people     # 5 to 50 people of 1 to 10 runs, intraclass correlation 0 to 1
    python benchmarks/calibration.py labels     # label sets of three classes, with overconfident probabilities
    python benchmarks/calibration.py sites      # a site's shift, a larger spread, and a shift of the logits

Errors are normal with a variance of 1, of which the intraclass correlation is that of people. The coverage is that of a
run of a new person, the mean over simulated cohorts (`--cohorts`). Each cell has the coverage of our intervals, and of
two other methods: runs taken for independent (split conformal), and the weighted quantile of Lee, Barber and Willett
(2023).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import numpy as np
from scipy.special import softmax
from scipy.stats import norm

from bids_app.adapters.calibration import Calibration
from bids_app.adapters.calibration_fit import People, calibrate_classes, calibrate_values

LEVEL, KEY = 0.9, "0.9"
LABELS = ("a", "b", "c")
CORRELATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
PEOPLE, RUNS = (5, 9, 10, 15, 20, 50), (1, 2, 4, 10)
N_TEST = 4000
"""Test scans per cohort, one of each new person."""


def as_people(person: np.ndarray, sites: Iterable[str] = ()) -> People:
    """Return people of numbers (N,)."""
    return People(person.astype(str).tolist(), tuple(sites))


def ordinary_limit(scores: np.ndarray) -> float:
    """Return the split-conformal limit of scores (N,) that are taken for independent; infinite for too few."""
    rank = int(np.ceil((len(scores) + 1) * LEVEL - 1e-9))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else np.inf


def weighted_limit(scores: np.ndarray, person: np.ndarray) -> float:
    """Return the limit of Lee, Barber and Willett: each person weighs 1 / (K + 1), and infinity as well."""
    weights = 1 / np.bincount(person)[person] / (person.max() + 2)
    order = np.argsort(scores)
    reached = np.flatnonzero(np.cumsum(weights[order]) >= LEVEL - 1e-12)
    return float(scores[order][reached[0]]) if len(reached) else np.inf


def people_row(n: int, runs: int, correlation: float, cohorts: int) -> list[str]:
    """Return the coverage of an interval by the three methods."""
    rng = np.random.default_rng([n, runs, int(100 * correlation)])
    person = np.repeat(np.arange(n), runs)
    limits: dict[str, list[float]] = {"ours": [], "independent": [], "weighted": []}
    for _ in range(cohorts):
        errors = np.sqrt(correlation) * rng.normal(size=n)[person]
        errors += np.sqrt(1 - correlation) * rng.normal(size=len(person))
        promise = calibrate_values(errors, np.zeros(len(errors)), as_people(person)).promise()
        limits["ours"].append(promise.limits.get(KEY, np.nan))
        limits["independent"].append(ordinary_limit(np.abs(errors)))
        limits["weighted"].append(weighted_limit(np.abs(errors), person))
    return [shown(np.mean(2 * norm.cdf(found) - 1)) for found in limits.values()]


def shown(coverage: float) -> str:
    """Format a coverage; nan: none is promised."""
    return "none promised" if np.isnan(coverage) else f"{coverage:.3f}"


def print_people(cohorts: int) -> None:
    """Print the coverage of intervals by number of people, runs and intraclass correlation."""
    print("| people | runs | " + " | ".join(f"ICC {c:g}" for c in CORRELATIONS) + " |")
    print("| --- " * (2 + len(CORRELATIONS)) + "|")
    for n in PEOPLE:
        for runs in RUNS:
            cells = [" / ".join(people_row(n, runs, c, cohorts)) for c in CORRELATIONS if runs > 1 or c == 0]
            print(f"| {n} | {runs} | {' | '.join(cells + [''] * (len(CORRELATIONS) - len(cells)))} |", flush=True)


def labelled(person: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Simulate overconfident probabilities (N, 3) and true labels (N,); a share of the variance is that of people."""
    own = np.sqrt(share) * rng.normal(0, 1.5, (person.max() + 1, 3))[person]
    honest = own + np.sqrt(1 - share) * rng.normal(0, 1.5, (len(person), 3))
    draws = rng.gumbel(size=(person.max() + 1, 3))[person] if share == 1 else rng.gumbel(size=honest.shape)
    return softmax(2 * honest, axis=1), np.array(LABELS)[(honest + draws).argmax(axis=1)]


def inside_sets(made: Calibration, raw: np.ndarray, truth: np.ndarray, by_class: bool, site: str | None) -> float:
    """Return the share of scans whose label is in their set; nan if none is promised."""
    promise, p = made.promise(site), made.probabilities(raw)
    sets = [promise.label_set(row, LABELS, LEVEL, by_class) for row in p]
    if any(found is None for found in sets):
        return float("nan")
    return float(np.mean([t in (found or ()) for t, found in zip(truth, sets, strict=True)]))


def print_labels(cohorts: int) -> None:
    """Print the coverage of label sets, over all scans and within classes."""
    print("| people | runs | ICC | set | set within each class |\n" + "| --- " * 5 + "|")
    for n in (9, 10, 20, 50):
        for runs, correlation in ((1, 0.0), (4, 0.0), (4, 0.5), (4, 1.0), (10, 0.5)):
            rng = np.random.default_rng([n, runs, int(100 * correlation)])
            found: dict[bool, list[float]] = {False: [], True: []}
            person = np.repeat(np.arange(n), runs)
            for _ in range(cohorts):
                raw, truth = labelled(person, correlation, rng)
                made = calibrate_classes(raw, truth.tolist(), LABELS, as_people(person))
                fresh, fresh_truth = labelled(np.arange(500), correlation, rng)
                for by_class, values in found.items():
                    values.append(inside_sets(made, fresh, fresh_truth, by_class, None))
            cells = [shown(float(np.nanmean(v))) if np.isfinite(v).any() else shown(np.nan) for v in found.values()]
            print(f"| {n} | {runs} | {correlation:g} | {' | '.join(cells)} |", flush=True)


Site = Callable[[np.random.Generator, int], np.ndarray]
"""Signed errors of a number of people of one site."""


def shifted(rng: np.random.Generator, n: int, shift: float = 1.0) -> np.ndarray:
    """Return errors at a site whose mean error is shifted up or down, in standard deviations."""
    return rng.normal(size=n) + shift * rng.choice([-1, 1])


def wider(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return errors at a site with 1.5 times the spread."""
    return rng.normal(size=n) * 1.5


def drawn(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return errors at a site like others: the means differ by 1 SD, the spread by a factor of up to 1.5."""
    return (rng.normal(size=n) + rng.normal()) * np.exp(rng.uniform(-np.log(1.5), np.log(1.5)))


def cohort_of(sites: int, people: int, rng: np.random.Generator, kind: Site) -> tuple[np.ndarray, People]:
    """Return the errors of the people of several sites of a kind, two runs each."""
    errors = np.concatenate([np.repeat(kind(rng, people), 2) for _ in range(sites)])
    errors = np.sqrt(0.7) * errors + np.sqrt(0.3) * rng.normal(size=len(errors))
    person = np.repeat(np.arange(sites * people), 2)
    return errors, as_people(person, (f"site {k // people}" for k in person.tolist()))


def usual(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return errors at a site without a shift."""
    return rng.normal(size=n)


def site_row(n_sites: int, kind: Site, new: Site, where: str, cohorts: int) -> tuple[str, str]:
    """Return the coverage at a site, and that if no difference between sites is considered."""
    rng = np.random.default_rng([n_sites, len(where)])
    ours, pooled = [], []
    for _ in range(cohorts):
        errors, people = cohort_of(n_sites, 12, rng, kind)
        own = np.sqrt(0.7) * new(rng, N_TEST + 12)
        noise = np.sqrt(0.3) * rng.normal(size=len(own))
        test = np.abs(own + noise)[12:]
        if where == "calibrated":  # twelve people of the new site are in the calibration
            errors = np.concatenate([errors, (own + noise)[:12]])
            names = [f"{person}" for person in people.participants] + [f"new {k}" for k in range(12)]
            people = People(names, [*people.sites, *["new"] * 12])
        made = calibrate_values(errors, np.zeros(len(errors)), people)
        pooled.append(np.mean(test <= made.limits[KEY]))
        site = {"calibrated": "new", "named": "new", "without a name": None}[where]
        ours.append(
            np.mean(test <= made.promise(site).limits.get(KEY, np.nan)) if made.promise(site).limits else np.nan
        )
        words = made.promise(site).coverage
    unknown = "unknown" in words and where != "calibrated"
    return (f"{np.mean(ours):.3f}" if np.isfinite(ours).all() else "no interval") + (", unknown" if unknown else ""), (
        f"{np.mean(pooled):.3f}"
    )


def logit_row(n_sites: int, where: str, cohorts: int) -> tuple[str, str]:
    """Return the coverage of label sets at a site whose logits of the first class are shifted by 1."""
    rng = np.random.default_rng([n_sites, len(where), 7])
    ours, pooled = [], []

    def site(n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
        raw, truth = labelled(np.arange(n), 0.5, rng)
        return softmax(np.log(raw) + shift * np.array([1.0, 0, 0]), axis=1), truth

    for _ in range(cohorts):
        shifts = rng.normal(size=n_sites) if n_sites > 1 else np.zeros(1)
        parts = [site(24, shift) for shift in shifts]
        names = [f"site {k}" for k in range(n_sites)]
        fresh, truth = site(400, 1.0 if n_sites == 1 else rng.normal())
        if where == "calibrated":
            parts.append((fresh[:24], truth[:24]))
            names.append("new")
        raw, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        people = as_people(np.arange(len(raw)), (name for name in names for _ in range(24)))
        made = calibrate_classes(raw, labels.tolist(), LABELS, people)
        pooled.append(
            np.mean(
                1 - made.probabilities(fresh[24:])[np.arange(376), [LABELS.index(t) for t in truth[24:]]]
                <= made.limits[KEY]
            )
        )
        ours.append(inside_sets(made, fresh[24:], truth[24:], False, None if where == "without a name" else "new"))
        words = made.promise(None if where == "without a name" else "new").coverage
    unknown = "unknown" in words and where != "calibrated"
    return (f"{np.mean(ours):.3f}" if np.isfinite(ours).all() else "no set") + (", unknown" if unknown else ""), (
        f"{np.mean(pooled):.3f}"
    )


def print_sites(cohorts: int) -> None:
    """Print the coverage at a new site by the shift, the number of sites in the calibration, and what is known."""
    print("| new site | sites in the calibration | the site is | coverage | if sites are ignored |")
    print("| --- " * 5 + "|")
    cases: list[tuple[str, int, Site, Site]] = [
        ("mean error shifted by 1 SD", 1, usual, shifted),
        ("1.5 times the spread", 1, usual, wider),
        ("drawn like the sites of the calibration", 4, drawn, drawn),
        ("drawn like the sites of the calibration", 12, drawn, drawn),
        ("drawn like the sites of the calibration", 30, drawn, drawn),
    ]
    for name, n_sites, kind, new in cases:
        for where in ("without a name", "named", "calibrated"):
            cells = site_row(n_sites, kind, new, where, cohorts)
            print(f"| {name} | {n_sites} | {where} | {' | '.join(cells)} |", flush=True)
    for n_sites in (1, 12):
        for where in ("without a name", "named", "calibrated"):
            cells = logit_row(n_sites, where, max(10, cohorts // 4))
            name = "logits of a class shifted by 1" if n_sites == 1 else "logits shifted by 1 SD, like other sites"
            print(f"| {name} | {n_sites} | {where} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tables", nargs="*", choices=("people", "labels", "sites"), default=["people", "labels", "sites"])
    p.add_argument("--cohorts", type=int, default=200, help="simulated cohorts (default: %(default)s)")
    arguments = p.parse_args()
    for table in arguments.tables:
        print(f"\n{table}, {arguments.cohorts} cohorts")
        {"people": print_people, "labels": print_labels, "sites": print_sites}[table](arguments.cohorts)


if __name__ == "__main__":
    main()
