"""Ratings of people at the group level: agreement of raters, comparison with verdicts and metrics, and which runs to
leave out.

A run has the worst rating that a rater gave to one of its figures or to its anatomy, and the median of its raters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.writer import write_columns, write_json
from bids_app.group.cohort import Cohort
from bids_app.group.overview import shortened
from bids_app.group.quality import metric_title
from bids_app.group.reading import RunRecord
from bids_app.group.statistics import Estimate, proportion
from bids_app.outputs.ratings import (
    DOUBTFUL,
    FAILED,
    FOLDER,
    PASSED,
    RATINGS,
    Rating,
    RunRating,
    escape_note,
    rate_runs,
    ratings_path,
    read_all_ratings,
    without_outdated,
    write_dictionary,
)
from bids_app.outputs.schema import LEVELS, OK, REFUSE
from bids_app.outputs.schema import PASS as VERDICT_PASS
from bids_app.outputs.schema import WARN as VERDICT_WARN
from bids_app.reports.contents import spec
from bids_app.reports.group import BAD, WARN, Cell, Remark, Section, Table, report_url
from bids_app.reports.index import RATING_COLOURS
from bids_app.terminal import count_of

INCLUDE = f"{FOLDER}/include.tsv"
"""Table of the runs to include in an analysis."""
SCAN = "scan"
"""Name of the verdict on the scan, beside those of adapters."""
SAME = {VERDICT_PASS: PASSED, VERDICT_WARN: DOUBTFUL, REFUSE: FAILED}
"""Ratings that correspond to the levels of a verdict."""
MIN_RUNS = 3
"""Minimum failed and passed runs for a comparison of their metrics."""
MAX_RATERS = 12
"""Maximum raters whose pairs are compared on the page."""


@dataclass(frozen=True)
class GroupRatings:
    """Ratings of an output folder.

    Attributes
    ----------
    by_rater : dict
        Ratings by rater and figure; without outdated ones.
    runs : dict of str to RunRating
        Ratings of the runs of the cohort that have any.
    outdated : list of str
        Figures that have changed since they were rated.
    """

    by_rater: dict[str, dict[str, Rating]] = field(default_factory=dict)
    runs: dict[str, RunRating] = field(default_factory=dict)
    outdated: list[str] = field(default_factory=list)

    def consensus(self, run: RunRecord) -> str:
        """Return the rating of a run; empty without ratings."""
        found = self.runs.get(run.stem)
        return found.consensus if found else ""

    def failed(self, runs: Sequence[RunRecord]) -> list[RunRecord]:
        """Return the runs that are to be left out."""
        return [run for run in runs if self.consensus(run) == FAILED]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two raters on the figures that both have rated."""

    raters: tuple[str, str]
    n: int
    same: float
    """Fraction of figures with the same rating."""
    kappa: float
    """Cohen's kappa; NaN if both raters gave a single rating to all figures."""
    weighted: float
    """Cohen's kappa with linear weights: pass and fail differ more than pass and doubtful."""


def read_group_ratings(out_dir: Path, cohort: Cohort, required: bool = False) -> GroupRatings:
    """Read the ratings of all raters, and write data dictionaries that tables of the browser lack.

    Raises
    ------
    BadDataError
        A table of ratings is damaged.
    NoInputError
        There are no ratings, but they are required.
    """
    found = read_all_ratings(out_dir, required)
    for rater in found:
        write_dictionary(ratings_path(out_dir, rater))
    current, outdated = without_outdated(out_dir, found)
    return GroupRatings(current, rate_runs([run.stem for run in cohort.runs], current), outdated)


def without_failed(cohort: Cohort, ratings: GroupRatings) -> Cohort:
    """Return the cohort without the runs that people rated as failed."""
    failed = {run.stem for run in ratings.failed(cohort.runs)}
    return replace(cohort, runs=[run for run in cohort.runs if run.stem not in failed])


def agreements(ratings: GroupRatings) -> list[Agreement]:
    """Compare all pairs of raters who have rated the same figures."""
    found = []
    for one, other in combinations(ratings.by_rater, 2):
        first, second = ratings.by_rater[one], ratings.by_rater[other]
        both = [name for name in first if name in second and first[name].rating and second[name].rating]
        if both:
            a, b = ([each[name].rating for name in both] for each in (first, second))
            same = float(np.mean([x == y for x, y in zip(a, b, strict=True)]))
            found.append(Agreement((one, other), len(both), same, kappa(a, b), kappa(a, b, "linear")))
    return found


def kappa(one: Sequence[str], other: Sequence[str], weights: str | None = None) -> float:
    """Compute Cohen's kappa of two lists of ratings; NaN if it is not defined, as all ratings are the same.

    Parameters
    ----------
    one, other : sequence of str
        Ratings of the same figures, entries of `RATINGS`.
    weights : str, optional
        ``linear``: differences of two steps count twice.
    """
    from sklearn.metrics import cohen_kappa_score

    if len({*one, *other}) < 2:
        return float("nan")
    return float(cohen_kappa_score(one, other, labels=list(RATINGS), weights=weights))


@dataclass(frozen=True)
class MetricComparison:
    """Image quality metric of failed and passed runs."""

    metric: str
    failed: np.ndarray
    """(F,) values of failed runs."""
    passed: np.ndarray
    """(P,) values of passed runs."""
    auc: float
    """Probability that the value of a failed run is higher than that of a passed run; ties count half."""


def compare_metrics(cohort: Cohort, ratings: GroupRatings) -> list[MetricComparison]:
    """Compare image quality metrics of failed and passed runs, without doubtful ones; the largest difference first."""
    from scipy.stats import rankdata

    found = []
    for metric in spec()["group"]["worse"]:
        groups = [
            np.array(
                [
                    run.quality[metric]
                    for run in cohort.runs
                    if ratings.consensus(run) == rating and metric in run.quality
                ]
            )
            for rating in (FAILED, PASSED)
        ]
        failed, passed = (values[np.isfinite(values)] for values in groups)
        if min(len(failed), len(passed)) >= MIN_RUNS:
            ranks = rankdata(np.concatenate([failed, passed]))[: len(failed)]
            above = ranks.sum() - len(failed) * (len(failed) + 1) / 2
            found.append(MetricComparison(metric, failed, passed, float(above / (len(failed) * len(passed)))))
    return sorted(found, key=lambda each: -abs(each.auc - 0.5))


@dataclass(frozen=True)
class VerdictComparison:
    """Ratings of people and the verdict on the scan, or on the predictions of an adapter."""

    name: str
    """`SCAN`, or the adapter."""
    counts: np.ndarray
    """(levels of the verdict, ratings) numbers of runs."""
    kappa: float

    @property
    def n(self) -> int:
        """Number of runs with both."""
        return int(self.counts.sum())

    @property
    def same(self) -> Estimate:
        """Fraction of runs whose rating corresponds to the verdict."""
        return proportion(int(np.trace(self.counts)), self.n)


def compare_verdicts(cohort: Cohort, ratings: GroupRatings) -> list[VerdictComparison]:
    """Compare ratings with the verdict on the scan and on the predictions of each adapter."""
    adapters = sorted({name for run in cohort.runs for name in run.predictions})
    found = []
    for name in (SCAN, *adapters):
        pairs = [
            (verdict, rating)
            for run in cohort.runs
            if (verdict := verdict_of(run, name)) and (rating := ratings.consensus(run))
        ]
        if pairs:
            counts = Counter(pairs)
            table = np.array([[counts[level, rating] for rating in RATINGS] for level in LEVELS])
            found.append(
                VerdictComparison(name, table, kappa([SAME[level] for level, _ in pairs], [r for _, r in pairs]))
            )
    return found


def verdict_of(run: RunRecord, name: str) -> str:
    """Return the verdict on a scan (`SCAN`) or on the prediction of an adapter; empty without one."""
    found = run.verdict if name == SCAN else str(run.predictions.get(name, {}).get("verdict", ""))
    return found if found in LEVELS else ""


def write_rating_tables(out_dir: Path, cohort: Cohort, ratings: GroupRatings) -> list[Path]:
    """Write ``group_ratings.tsv`` and ``ratings/include.tsv``, if there are ratings."""
    if not ratings.by_rater:
        return []
    tables = {
        out_dir / "group_ratings.tsv": _rating_rows(cohort, ratings),
        out_dir / INCLUDE: include_rows(cohort, ratings),
    }
    files: list[Path] = []
    for path, rows in tables.items():
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        described = {name: _describe(name) for name in columns}
        files += [write_columns(path, columns), write_json(path.with_suffix(".json"), described)]
    return files


def include_rows(cohort: Cohort, ratings: GroupRatings) -> list[dict[str, Any]]:
    """Return the rows of ``include.tsv``: all runs, with the reason of those that are to be left out."""
    rows = []
    for run in cohort.runs:
        rating = ratings.runs.get(run.stem, RunRating(run.stem, {}))
        reason = "" if run.status == OK else f"status {run.status}"
        if not reason and rating.consensus == FAILED:
            reason = ", ".join(rating.tags) or "rated as failed"
        rows.append(
            {
                "participant_id": run.participant,
                "run": run.stem,
                "include": "no" if reason else "yes",
                "rating": rating.consensus or "n/a",
                "n_raters": len(rating.by_rater),
                "reason": reason or "n/a",
            }
        )
    return rows


def ratings_section(cohort: Cohort, ratings: GroupRatings, excluded: bool = False) -> Section:
    """Build the section on ratings of people.

    Parameters
    ----------
    cohort : Cohort
        With the failed runs.
    ratings : GroupRatings
    excluded : bool
        True if the failed runs are left out of the other sections.
    """
    section = Section("ratings", "Ratings")
    if not ratings.by_rater:
        section.paragraphs.append("The figures have not been rated by people (neurostorm-review).")
        return section
    rated = [run for run in cohort.runs if ratings.consensus(run)]
    counts = Counter(ratings.consensus(run) for run in rated)
    raters = len(ratings.by_rater)
    section.paragraphs.append(
        f"{count_of(raters, 'rater')}; {len(rated):,} of {count_of(len(cohort.runs), 'run')} rated: "
        + ", ".join(f"{counts[rating]:,} {rating}" for rating in RATINGS)
        + ". A run has the worst rating of its figures and of its T1w image, and the median of its raters; of two, the "
        f"worse. {INCLUDE} lists the runs to include."
    )
    _add_remarks(section, ratings, counts[FAILED], excluded)
    section.tables += [table for table in _tables(cohort, ratings) if table.rows]
    return section


def _add_remarks(section: Section, ratings: GroupRatings, n_failed: int, excluded: bool) -> None:
    if ratings.outdated:
        text = f"{count_of(len(ratings.outdated), 'figure')} changed after the rating, which does not count; rate again"
        section.remarks.append(Remark(WARN, f"{text}: {', '.join(ratings.outdated[:3])}."))
    if n_failed:
        what = "left out of all other sections and tables" if excluded else "not left out (--exclude-failed does)"
        section.remarks.append(Remark(WARN, f"{count_of(n_failed, 'run')} rated as failed, {what}."))
    worst = min(agreements(ratings), key=lambda each: each.kappa if np.isfinite(each.kappa) else 2, default=None)
    if worst is not None and worst.kappa < 0.4:
        text = f"Raters {worst.raters[0]} and {worst.raters[1]} agree little: kappa {worst.kappa:.2f}."
        section.remarks.append(Remark(WARN, text))


def _tables(cohort: Cohort, ratings: GroupRatings) -> Iterator[Table]:
    failed = sorted(ratings.failed(cohort.runs), key=lambda run: -len(ratings.runs[run.stem].tags))
    yield Table(
        "Runs rated as failed",
        ("Run", "Rating", "Raters", "Tags", "Notes"),
        [_failed_row(run, ratings.runs[run.stem]) for run in failed],
        INCLUDE,
    )
    yield Table(
        "Agreement of raters",
        ("Raters", "Figures", "Same rating", "Cohen's kappa", "Kappa, linear weights"),
        [
            (
                Cell(" and ".join(each.raters)),
                Cell(f"{each.n:,}", value=each.n),
                Cell(f"{100 * each.same:.0f} %", value=each.same),
                Cell(_number(each.kappa)),
                Cell(_number(each.weighted)),
            )
            for each in agreements(ratings)[: MAX_RATERS * (MAX_RATERS - 1) // 2]
        ],
    )
    verdicts = compare_verdicts(cohort, ratings)
    yield Table(
        "Verdicts and ratings (number of runs)",
        ("Verdict on", "Verdict", *(f"Rated {rating}" for rating in RATINGS)),
        [
            (Cell(each.name), Cell(level, level=RATING_COLOURS[SAME[level]]), *(Cell(f"{n:,}", value=n) for n in row))
            for each in verdicts
            for level, row in zip(LEVELS, each.counts.tolist(), strict=True)
        ],
    )
    yield Table(
        "Agreement of verdicts and ratings",
        (
            "Verdict on",
            "Runs",
            "Agree",
            "95 % CI",
            "Cohen's kappa",
            "Passed, but rated fail",
            "Refused, but rated pass",
        ),
        [_verdict_row(each) for each in verdicts],
    )
    yield Table(
        "Image quality metrics of failed and passed runs",
        ("Metric", "Failed (median)", "Passed (median)", "Failed runs", "Passed runs", "AUC"),
        [
            (
                Cell(metric_title(each.metric)),
                Cell(f"{np.median(each.failed):.4g}"),
                Cell(f"{np.median(each.passed):.4g}"),
                Cell(str(len(each.failed))),
                Cell(str(len(each.passed))),
                Cell(f"{each.auc:.2f}"),
            )
            for each in compare_metrics(cohort, ratings)
        ],
    )


def _failed_row(run: RunRecord, rating: RunRating) -> tuple[Cell, ...]:
    return (
        Cell(run.stem, report_url(run.participant)),
        Cell(rating.consensus, level=RATING_COLOURS[rating.consensus]),
        Cell(", ".join(f"{rater}: {each}" for rater, each in rating.by_rater.items())),
        Cell(", ".join(rating.tags)),
        Cell(shortened("; ".join(rating.notes))),
    )


def _verdict_row(found: VerdictComparison) -> tuple[Cell, ...]:
    same, (missed, harsh) = found.same, (found.counts[0, -1], found.counts[-1, 0])
    return (
        Cell(found.name),
        Cell(f"{found.n:,}", value=found.n),
        Cell(f"{100 * same.value:.0f} %", value=same.value),
        Cell(f"{100 * same.low:.0f} to {100 * same.high:.0f} %", value=same.low),
        Cell(_number(found.kappa)),
        Cell(str(missed), level=BAD if missed else ""),
        Cell(str(harsh), level=WARN if harsh else ""),
    )


def _rating_rows(cohort: Cohort, ratings: GroupRatings) -> list[dict[str, Any]]:
    """Return the rows of ``group_ratings.tsv``: one per rated run."""
    adapters = sorted({name for run in cohort.runs for name in run.predictions})
    rows = []
    for run in cohort.runs:
        found = ratings.runs.get(run.stem)
        if found is None:
            continue
        row: dict[str, Any] = {"participant_id": run.participant, "run": run.stem, "rating": found.consensus or "n/a"}
        row |= {"n_raters": len(found.by_rater)}
        row |= {f"rater_{rater}": found.by_rater.get(rater, "n/a") for rater in ratings.by_rater}
        row |= {"tags": ",".join(found.tags) or "n/a", "notes": escape_note("; ".join(found.notes)) or "n/a"}
        rows.append(row | {f"verdict_{name}": verdict_of(run, name) or "n/a" for name in (SCAN, *adapters)})
    return rows


DESCRIBED: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant"},
    "run": {"Description": "Name of the run, without suffix"},
    "rating": {
        "Description": "Median of the raters, of an even number the worse of the two in the middle; the rating of a "
        "rater is the worst of the figures of the run and of its T1w image",
        "Levels": {"pass": "Good", "doubtful": "Between good and bad", "fail": "Not usable"},
    },
    "n_raters": {"Description": "Number of raters"},
    "tags": {"Description": "What is wrong, separated by commas"},
    "notes": {"Description": r"Notes of the raters, with \n for line feeds and \t for tabs"},
    "include": {
        "Description": "Whether to include the run in an analysis",
        "Levels": {"yes": "Completed, and not rated as failed", "no": "Rated as failed, or not completed"},
    },
    "reason": {"Description": "Why the run is to be left out"},
}


def _describe(column: str) -> dict[str, Any]:
    kind, _, name = column.partition("_")
    if column in DESCRIBED:
        return DESCRIBED[column]
    what = (
        f"Rating of {name}"
        if kind == "rater"
        else f"Verdict on the {'scan' if name == SCAN else f'prediction of {name}'}"
    )
    return {"Description": what}


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "n/a"
