"""All runs of the cohort as a table and a wall of thumbnails, for the pages of the output folder.

The thumbnails are made from the figures of the reports, and made again only where a figure is newer.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from bids_app.group.cohort import Cohort
from bids_app.group.overview import failed_checks
from bids_app.group.predictions import number
from bids_app.group.quality import screen
from bids_app.group.ratings import GroupRatings
from bids_app.group.reading import MISSING, UNREADABLE, RunRecord
from bids_app.outputs.ratings import RATINGS
from bids_app.outputs.schema import FAILED as RUN_FAILED
from bids_app.outputs.schema import LEVELS, OK
from bids_app.reports.contents import spec
from bids_app.reports.figures.thumbnails import UNREADABLE_MARK, made_from, names_of, write_thumbnails
from bids_app.reports.group import FIGURES
from bids_app.reports.index import METRICS, RATING_COLOURS, STATUS_COLOURS, VERDICT_COLOURS
from bids_app.reports.pages import find_pages, page_of
from bids_app.reports.run_table import CATEGORY, NUMBER, TEXT, Column, RunTable, guess_column, metric_column

FOLDER = f"{FIGURES}/wall"
"""Folder of the thumbnails, one file per run."""
NOT_READ = "x"
"""Code of a figure that cannot be read."""
MAX_SERIAL = 64
"""Maximum runs whose thumbnails are made in a single process."""

Strip = tuple[list[Path | None], Path]
"""Figures of a run, and the file of its thumbnails."""


def run_table(
    cohort: Cohort, ratings: GroupRatings, maps: Sequence[Mapping[str, Any]], out_dir: Path, n_procs: int
) -> RunTable:
    """Return all runs with their columns, and write their thumbnails.

    Parameters
    ----------
    cohort : Cohort
    ratings : GroupRatings
    maps : sequence of dict
        Maps of embeddings.
    out_dir : pathlib.Path
        Root of the derivatives.
    n_procs : int
        Number of processes.
    """
    kinds = spec()["group"]["thumbnails"]
    figures = write_wall(cohort.runs, out_dir, n_procs)
    pages = find_pages(out_dir)
    has_any = any(code.strip("0") for code in figures)
    return RunTable(
        runs=[run.stem for run in cohort.runs],
        pages=[page_of(pages, run.participant, run.stem) for run in cohort.runs],
        columns=[*main_columns(cohort, ratings), *other_columns(cohort)],
        figures=figures if has_any else (),
        kinds=kinds if has_any else (),
        folder=quote(FOLDER),
        maps=maps,
    )


def write_wall(runs: Sequence[RunRecord], out_dir: Path, n_procs: int) -> list[str]:
    """Write the thumbnails of runs, and remove those of other runs.

    Returns
    -------
    list of str
        Of each run, for each kind of thumbnail, the index of its figure, from 1; 0 without one, `NOT_READ` if it cannot
        be read.
    """
    folder, codes, strips = out_dir / FOLDER, [], []
    names = {name: _names_of_figures(out_dir, name) for name in dict.fromkeys(run.participant for run in runs)}
    for run in runs:
        has = names[run.participant]
        found = [_first_figure(out_dir, run, kind["figures"], has) for kind in spec()["group"]["thumbnails"]]
        codes.append("".join(str(index) for index, _ in found))
        if any(index for index, _ in found):
            strips.append(([path for _, path in found], folder / f"{run.stem}.jpg"))
    wanted = {path for _, path in strips}
    for path in folder.glob("sub-*.jpg"):
        if path not in wanted:
            path.unlink(missing_ok=True)
    outdated = [strip for strip in strips if _is_outdated(strip)]
    if outdated:
        folder.mkdir(parents=True, exist_ok=True)
    if len(outdated) <= MAX_SERIAL or n_procs < 2:
        for strip in outdated:
            _write(strip)
    else:
        with ProcessPoolExecutor(min(n_procs, 16)) as pool:
            list(pool.map(_write, outdated, chunksize=16))
    return [_mark_unreadable(code, folder / f"{run.stem}.jpg") for run, code in zip(runs, codes, strict=True)]


def main_columns(cohort: Cohort, ratings: GroupRatings) -> list[Column]:
    """Return the columns on status, verdict, rating and image quality."""
    runs = cohort.runs
    found = screen(cohort)
    outlying = {run.stem: int(n) for run, n in zip(found.runs, found.out.sum(axis=1), strict=True)}
    reasons = {run.stem: ", ".join(found.outlying_metrics(i)) for i, run in enumerate(found.runs)}
    metrics = {name for run in runs for name in run.quality}
    statuses = (OK, UNREADABLE, RUN_FAILED, MISSING)
    columns = [
        _category("status", "Status", [run.status for run in runs], statuses, STATUS_COLOURS),
        _category("verdict", "Verdict", [run.worst_verdict for run in runs], LEVELS, VERDICT_COLOURS),
        _category("rating", "Rating", [ratings.consensus(run) for run in runs], RATINGS, RATING_COLOURS),
    ]
    columns += [metric_column(name, _metric(runs, name), True) for name in METRICS if name in metrics]
    checks = [", ".join(failed_checks(run)) for run in runs]
    columns += [
        Column("checks", "Failed checks", checks, TEXT, shown=True),
        Column("outliers", "Outlying metrics", [outlying.get(run.stem) for run in runs], NUMBER, shown=True, digits=0),
        Column("outlying", "Outlying values", [reasons.get(run.stem, "") for run in runs], TEXT),
        Column("warnings", "Warnings", [run.n_warnings for run in runs], NUMBER, digits=0),
    ]
    columns += [
        _category(entity, title, [run.entities.get(entity, "") for run in runs])
        for entity, title in (("ses", "Session"), ("task", "Task"))
    ]
    if cohort.site_column:
        columns.append(_category("site", "Site", [cohort.site(run) for run in runs]))
    worse = [name for name in spec()["group"]["worse"] if name in metrics and name not in METRICS]
    columns += [metric_column(name, _metric(runs, name)) for name in worse]
    return [column for column in columns if any(value not in (None, "") for value in column.values)]


def other_columns(cohort: Cohort) -> Iterator[Column]:
    """Yield the predictions of each adapter, and the columns of ``participants.tsv``."""
    for adapter in sorted({name for run in cohort.runs for name in run.predictions}):
        rows = [run.predictions.get(adapter, {}) for run in cohort.runs]
        title = f"Prediction of {adapter}"
        if any(row.get("label") for row in rows):
            labels = [str(row.get("label", "")).replace("n/a", "") for row in rows]
            yield Column(f"prediction-{adapter}", title, labels, CATEGORY)
        else:
            values = [number(row.get("value")) for row in rows]
            if np.isfinite(values).any():
                unit = cohort.cards[adapter].unit if adapter in cohort.cards else ""
                yield Column(f"prediction-{adapter}", title, values, NUMBER, unit=unit)
    for name in dict.fromkeys(name for row in cohort.phenotypes.values() for name in row):
        texts = [cohort.phenotype(run, name) for run in cohort.runs]
        if name != cohort.site_column and any(texts):
            yield guess_column(f"participants-{name}", f"{name} (participants.tsv)", texts)


def _category(
    name: str,
    title: str,
    values: Sequence[str],
    levels: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
) -> Column:
    return Column(name, title, values, CATEGORY, tuple(levels), colours or {}, shown=bool(colours), filtered=True)


def _metric(runs: Sequence[RunRecord], name: str) -> list[float | None]:
    return [run.quality.get(name) for run in runs]


def _names_of_figures(out_dir: Path, participant: str) -> set[str]:
    """Return the names of the files in the folder with a participant's figures."""
    try:
        return set(os.listdir(out_dir / participant / "figures"))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _first_figure(
    out_dir: Path, run: RunRecord, labels: Sequence[str], names: Collection[str]
) -> tuple[int, Path | None]:
    """Return the index (from 1) and path of the first figure that a run has; 0 and None without one."""
    for index, label in enumerate(labels, start=1):
        name = f"{run.stem}_desc-{label}_bold.svg"
        if name in names and (path := out_dir / run.participant / "figures" / name).is_file():
            return index, path
    return 0, None


def _mark_unreadable(code: str, path: Path) -> str:
    """Put `NOT_READ` for the figures that could not be read when the thumbnails in a file were made."""
    if not code.strip("0"):
        return code
    names = made_from(path).decode().split("\n")
    marked = [name.startswith(UNREADABLE_MARK) for name in names] + [False] * (len(code) - len(names))
    return "".join(NOT_READ if bad else old for old, bad in zip(code, marked, strict=False))


def _is_outdated(strip: Strip) -> bool:
    """Return True if the thumbnails of a run are missing, of other figures, or older than one of them."""
    figures, path = strip
    try:
        made = path.stat().st_mtime_ns
        if made_from(path).replace(UNREADABLE_MARK.encode(), b"") not in (b"", names_of(figures)):
            return True
        return any(figure.stat().st_mtime_ns >= made for figure in figures if figure is not None)
    except OSError:
        return True


def _write(strip: Strip) -> None:
    write_thumbnails(*strip)
