"""Examples of a command: scans of its datasets with their labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.bids.entities import natural_key
from bids_app.bids.participants import site_of
from bids_app.clips import CLIP_VOLUMES
from bids_app.errors import BadDataError, NoInputError, NoMatchError, UsageError
from bids_app.files import check_regular, read_rows
from bids_app.outputs.ratings import FOLDER, failed_runs, read_all_ratings
from bids_app.terminal import count_of
from bids_app.training.adapt import LabelledScans
from bids_app.training.data.duplicates import find_copies, warn_of_copies
from bids_app.training.data.labels import EventRule, Segment, Target, read_table
from bids_app.training.data.places import is_url
from bids_app.training.data.raw import find_raw_dataset
from bids_app.training.data.scan import Scan
from bids_app.training.data.sources import (
    Found,
    find_own_clips,
    find_series,
    prepare_series,
    scans_of,
)
from bids_app.training.data.splits import read_families
from bids_app.training.data.store import ClipStore

STIMULUS = "stim_file"


@dataclass(frozen=True)
class Dataset:
    """One dataset of a command.

    Attributes
    ----------
    name : str
        Unique among those of the command.
    path : Path
    scans : list of Scan
    """

    name: str
    path: Path
    scans: list[Scan]


@dataclass(frozen=True)
class Examples:
    """Labelled scans with the families and sites of their participants.

    Attributes
    ----------
    data : LabelledScans
    families : dict of str to str
        Family of each participant who has one.
    sites : tuple of str
        Site of each example, if folds are to leave out sites; empty without a site column.
    known_sites : tuple of str
        Site of each example in ``participants.tsv``, or its dataset if there are several; empty if not all are known.
    """

    data: LabelledScans
    families: dict[str, str]
    sites: tuple[str, ...] = ()
    known_sites: tuple[str, ...] = ()

    def pick(self, indices: Sequence[int]) -> Examples:
        """Select examples by index."""
        sites, known = (tuple(given[i] for i in indices) if given else () for given in (self.sites, self.known_sites))
        return Examples(self.data.pick(indices), self.families, sites, known)


def load_datasets(
    paths: Sequence[Path | str],
    base: Path,
    normalisation: str,
    n_procs: int = 1,
    shard: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
    report: Callable[[str], None] | None = None,
    clip_volumes: int = CLIP_VOLUMES,
    exclude_failed: bool = False,
    name_copies: bool = True,
) -> list[Dataset]:
    """Load the scans of datasets or clip stores, and prepare missing clips.

    Runs of the participant level that were kept with ``--output-clips`` are read where they are.

    Parameters
    ----------
    paths : sequence of Path or str
        Derivatives or clip stores; the URL of a clip store is a text.
    base : Path
        Folder for new clip stores.
    shard : tuple of int
        Rank of this process and number of processes that prepare clips.
    wait : callable
        Waits for the other processes.
    report : callable, optional
        Receives messages about omitted series.
    clip_volumes : int
        Volumes of a clip of the encoder.
    exclude_failed : bool
        Leave out the scans that people rated as failed, see `without_failed`.
    name_copies : bool
        Warn of participants with the same series, see `find_copies`; reads a part of each scan.

    Raises
    ------
    UsageError
        A dataset is given twice: its participants would be trained with and held out.
    NoMatchError
        A store has no scans.
    """
    places = [given if is_url(given) else os.path.realpath(given) for given in paths]
    if twice := next((given for given, place in zip(paths, places, strict=True) if places.count(place) > 1), ""):
        raise UsageError(f"{twice}: is given twice.", "Give each dataset once.")
    sources: list[tuple[str, Path, Callable[[], list[Scan]]]] = []
    names = [Path(given).name if is_url(given) else Path(given).resolve().name for given in paths]
    for index, (given, name) in enumerate(zip(paths, names, strict=True)):
        path = Path(given)
        if not is_url(given) and not path.is_dir():
            raise NoInputError(f"{path}: no such folder.", "Give a derivatives dataset or a clip store.")
        name = name if names.count(name) == 1 else f"{name}{index + 1}"
        if is_url(given) or os.path.lexists(path / "store.json"):
            sources.append((name, path, partial(list, ClipStore(given, normalisation))))
            continue
        own, found = find_scans(path, normalisation)
        store = ClipStore(base / f"{name}_{normalisation}", normalisation) if found.series else None
        if store is not None:
            prepare_series(path, found, store, n_procs, shard, report)
        sources.append((name, path, partial(_join_scans, own, found, store)))
    wait()
    datasets = [
        Dataset(name, path, [replace(scan, clip_volumes=clip_volumes) for scan in read()])
        for name, path, read in sources
    ]
    if empty := next((dataset.path for dataset in datasets if not dataset.scans), None):
        raise NoMatchError(f"{empty}: has no scans.", "Complete it with neurostorm-train store build, or leave it out.")
    datasets = without_failed(datasets, report) if exclude_failed else datasets
    if report is not None and name_copies:
        scans = ((_unique_label(scan.participant, d, datasets), scan) for d in datasets for scan in d.scans)
        if copies := find_copies(scans):
            report(warn_of_copies(copies))
    return datasets


def without_failed(datasets: Sequence[Dataset], report: Callable[[str], None] | None = None) -> list[Dataset]:
    """Leave out the scans whose runs people rated as failed, in ``ratings`` of the derivatives that they come from.

    Raises
    ------
    NoInputError
        None of the datasets has ratings.
    NoMatchError
        All scans are left out.
    BadDataError
        A table of ratings is damaged.
    """
    by_root: dict[Path, list[str]] = {}
    for dataset in datasets:
        for scan in dataset.scans:
            by_root.setdefault(_derivatives_of(scan, dataset), []).append(scan.name)
    rated = [root for root in by_root if any(read_all_ratings(root).values())]
    if not rated:
        folders = ", ".join(str(root / FOLDER) for root in by_root)
        raise NoInputError(
            f"{folders}: no ratings, which --exclude-failed requires.",
            "Rate the figures with neurostorm-review, or omit --exclude-failed.",
        )
    failed = {root: failed_runs(root, by_root[root]) for root in rated}
    kept = [
        replace(d, scans=[s for s in d.scans if s.name not in failed.get(_derivatives_of(s, d), ())]) for d in datasets
    ]
    n_before, n_after = (sum(len(d.scans) for d in each) for each in (datasets, kept))
    if not n_after:
        raise NoMatchError(f"All {n_before} scans were rated as failed.", "Omit --exclude-failed, or add other scans.")
    if report is not None:
        report(f"Left out as rated as failed: {n_before - n_after} of {count_of(n_before, 'scan')}")
        for root in by_root.keys() - set(rated):
            report(f"No ratings: {root}; all of its scans are used")
    return kept


def _derivatives_of(scan: Scan, dataset: Dataset) -> Path:
    """Return the folder with the ratings of a scan: the dataset, or the derivatives that a clip store was made from."""
    if (dataset.path / FOLDER).is_dir():
        return dataset.path
    parents = Path(scan.source).parents
    return next((p.parent for p in parents if p.name == f"sub-{scan.participant}"), dataset.path)


def _join_scans(own: Mapping[str, Scan], found: Found, store: ClipStore | None) -> list[Scan]:
    """Return the runs that were kept as clips and the prepared ones, in natural order."""
    prepared = scans_of(found.series, store) if store is not None else []
    return sorted([*own.values(), *prepared], key=lambda scan: natural_key(scan.name))


def find_scans(dataset: Path, normalisation: str, part: tuple[int, int] = (0, 1)) -> tuple[dict[str, Scan], Found]:
    """Find the runs of a dataset: those that were kept as clips, and the series of the others.

    ``part`` as in `bids_app.training.data.sources.find_series`.

    Raises
    ------
    NoMatchError, UsageError
        There are neither.
    """
    own, others = find_own_clips(dataset, normalisation, part)
    try:
        found = find_series(dataset, part)
    except (NoMatchError, UsageError) as error:
        if not own and others:
            raise NoMatchError(
                f"{dataset}: the clips have {' and '.join(sorted(others))} normalisation, not {normalisation}.",
                f"Run neurostorm with --output-clips {normalisation}; finished steps are not repeated.",
            ) from error
        if not own:
            raise
        found = Found()
    series = tuple(each for each in found.series if each.name not in own)
    return own, Found(series, tuple(message for message in found.messages if message.name not in own))


def check_labels(
    paths: Sequence[Path],
    target: str,
    raw: Path | None = None,
    family_column: str | None = None,
    site_column: str | None = None,
) -> None:
    """Check that the tables of the labels have their columns, before clips are prepared; parameters as `label_scans`.

    Raises
    ------
    UsageError, NoInputError, BadDataError
        A table is missing, is not a regular file, or lacks the column.
    """
    for path in filter(Path.is_dir, paths):
        for text in filter(None, (family_column, site_column)):
            participants_target(text, path, raw).check()
        Target.parse(target, path, raw).check()


def label_scans(
    datasets: Sequence[Dataset],
    target: str,
    raw: Path | None = None,
    rule: EventRule | None = None,
    family_column: str | None = None,
    site_column: str | None = None,
) -> Examples:
    """Read the labels of the scans of datasets.

    Parameters
    ----------
    datasets : sequence of Dataset
    target : str
        See `Target.parse`.
    raw : Path, optional
        Raw dataset with tables.
    rule : EventRule, optional
        For events; clips of images start at their onsets.
    family_column, site_column : str, optional
        Columns of participants.tsv, or ``TABLE.tsv:COLUMN``.
    """
    rule = rule or EventRule()
    if target.endswith(f":{STIMULUS}"):
        rule = replace(rule, at_onset=True)
    pairs: list[tuple[Any, str]] = []
    families: dict[str, str] = {}
    sites: list[str] = []
    for dataset in datasets:
        labelled = Target.parse(target, dataset.path, raw, rule).read_examples(dataset.scans)
        if site_column:
            found_sites = participants_target(site_column, dataset.path, raw).read_values(
                [_scan(e) for e, _ in labelled]
            )
            labelled = [pair for pair, site in zip(labelled, found_sites, strict=True) if site is not None]
            sites += [site for site in found_sites if site is not None]
        if family_column:
            table = participants_target(family_column, dataset.path, raw)
            assert table.table is not None
            found_families = read_families(table.table, table.column, {e.participant for e, _ in labelled})
            families |= {_unique_label(p, dataset, datasets): f for p, f in found_families.items()}
        pairs += [
            (_with_participant(e, _unique_label(e.participant, dataset, datasets)), value) for e, value in labelled
        ]
    data = LabelledScans(tuple(e for e, _ in pairs), tuple(value for _, value in pairs))
    return Examples(data, families, tuple(sites), _known_sites(data, datasets, raw))


def _known_sites(data: LabelledScans, datasets: Sequence[Dataset], raw: Path | None) -> tuple[str, ...]:
    rows = read_participants(datasets, raw)
    sites = [site_of(rows.get(scan.participant, {})) for scan in data.scans]
    if len(datasets) > 1:  # sites of different datasets may have the same name
        names = [scan.participant.rpartition("@")[2] for scan in data.scans]
        sites = [f"{name} {site}".strip() for name, site in zip(names, sites, strict=True)]
    return tuple(sites) if all(sites) else ()


def read_participants(datasets: Sequence[Dataset], raw: Path | None = None) -> dict[str, dict[str, str]]:
    """Read the rows of ``participants.tsv`` by the participant labels of `label_scans`; empty without a table."""
    found: dict[str, dict[str, str]] = {}
    for dataset in datasets:
        roots = (dataset.path, raw or find_raw_dataset(dataset.path))
        table = next((r / "participants.tsv" for r in roots if r and os.path.lexists(r / "participants.tsv")), None)
        if table is not None:
            for (label, _), row in read_table(table, "participant_id").items():
                found[_unique_label(label, dataset, datasets)] = row
    return found


def participants_target(text: str, dataset: Path, raw: Path | None) -> Target:
    """Return a column of participants.tsv, or of the table that ``TABLE.tsv:COLUMN`` names; see `Target.parse`."""
    return Target.parse(text if ":" in text else f"participants.tsv:{text}", dataset, raw)


def _scan(example: Scan | Segment) -> Scan:
    return example.scan if isinstance(example, Segment) else example


def _unique_label(label: str, dataset: Dataset, datasets: Sequence[Dataset]) -> str:
    """Return the participant label; with several datasets, add the dataset name because labels may repeat."""
    return label if len(datasets) == 1 else f"{label}@{dataset.name}"


def _with_participant(example: Scan | Segment, participant: str) -> Scan | Segment:
    if isinstance(example, Segment):
        return replace(example, scan=replace(example.scan, participant=participant))
    return replace(example, participant=participant)


def read_images(path: Path) -> dict[str, np.ndarray]:
    """Read image vectors.

    Parameters
    ----------
    path : Path
        ``.tsv`` with a column ``stim_file`` and one column per dimension; or ``.npy``, (K, O), with a ``.tsv`` of the
        same name whose column ``stim_file`` names its rows.

    Returns
    -------
    dict of str to np.ndarray, (O,)
    """
    table = path.with_suffix(".tsv")
    check_regular(path)
    rows = read_rows(table)
    if not rows or STIMULUS not in rows[0]:
        raise BadDataError(f"{table}: column {STIMULUS} is missing or empty.", "Name one image per row.")
    names = [row[STIMULUS] for row in rows]
    try:
        if path.suffix == ".npy":
            values = np.load(path, mmap_mode="r", allow_pickle=False).astype(np.float32)
        else:
            values = np.array([[float(v) for k, v in row.items() if k != STIMULUS] for row in rows], np.float32)
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise BadDataError(f"{path}: invalid vectors ({error}).", "Use one row of numbers per image.") from error
    if values.ndim != 2 or len(values) != len(names) or len(set(names)) != len(names) or not np.isfinite(values).all():
        raise BadDataError(
            f"{path}: array of shape {values.shape} for {len(names)} images ({len(set(names))} unique).",
            "Use one row of finite numbers per image.",
        )
    return dict(zip(names, values, strict=True))


def read_weights(path: Path) -> dict[int, float]:
    """Read region weights by label from a TSV file with the columns ``index`` and ``weight``."""
    rows = read_rows(path)
    try:
        return {int(row["index"]): float(row["weight"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise BadDataError(f"{path}: invalid region weights ({error!r}).", "Use columns index and weight.") from error
