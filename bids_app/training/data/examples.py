"""What a command's arguments name: scans of datasets, prepared where they are not yet, and what is asked of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.errors import BadDataError, NoInputError
from bids_app.training.adapt import Labelled
from bids_app.training.data.labels import EventRule, Stretch, Target, read_table
from bids_app.training.data.sources import prepare, raw_dataset_of
from bids_app.training.data.splits import read_families
from bids_app.training.data.store import ClipStore, Scan

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
    """What can be learned from.

    Attributes
    ----------
    data : Labelled
    families : dict of str to str
        Of participants that have one.
    sites : tuple of str
        Of each example; empty where no column was named.
    """

    data: Labelled
    families: dict[str, str]
    sites: tuple[str, ...] = ()


def gather(
    paths: Sequence[Path],
    base: Path,
    normalisation: str,
    n_procs: int = 1,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
    say: Callable[[str], None] | None = None,
) -> list[Dataset]:
    """Each dataset (or store) with its scans, prepared where they are not yet.

    Parameters
    ----------
    base : Path
        Where stores of clips go.
    share, wait
        Which of how many processes this is, and what waits for the others, where several prepare.
    """
    stores = []
    for index, path in enumerate(paths):
        if not path.is_dir():
            raise NoInputError(f"{path}: no such folder.", "Name derivatives, or a store of clips.")
        is_known = [p.resolve().name for p in paths].count(path.resolve().name) == 1
        name = path.resolve().name if is_known else f"{path.resolve().name}{index + 1}"
        is_store = (path / "store.json").is_file()
        store = ClipStore(path if is_store else base / f"{name}_{normalisation}", normalisation)
        if not is_store:
            prepare(path, store, n_procs, share, say)
        stores.append((name, path, store))
    wait()
    return [Dataset(name, path, list(store)) for name, path, store in stores]


def ask(
    datasets: Sequence[Dataset],
    target: str,
    raw: Path | None = None,
    rule: EventRule | None = None,
    family_column: str | None = None,
    site_column: str | None = None,
) -> Examples:
    """Labels for the scans of datasets.

    Parameters
    ----------
    target : str
        See `Target.parse`; columns of families and sites may leave out ``participants.tsv:``.
    rule : EventRule, optional
        For events; one about images begins at their onsets.
    """
    rule = rule or EventRule()
    if target.endswith(f":{STIMULUS}"):
        rule = replace(rule, at_onset=True)
    pairs: list[tuple[Any, str]] = []
    families: dict[str, str] = {}
    sites: list[str] = []
    for dataset in datasets:
        found = Target.parse(target, dataset.path, raw, rule).examples(dataset.scans)
        if site_column:
            of_sites = _table(site_column, dataset, raw).of([_scan(e) for e, _ in found])
            found = [pair for pair, site in zip(found, of_sites, strict=True) if site is not None]
            sites += [site for site in of_sites if site is not None]
        if family_column:
            table = _table(family_column, dataset, raw)
            assert table.table is not None
            of_people = read_families(table.table, table.column)
            families |= {_person(p, dataset, datasets): f for p, f in of_people.items()}
        pairs += [(_renamed(e, _person(e.participant, dataset, datasets)), value) for e, value in found]
    labelled = Labelled(tuple(e for e, _ in pairs), tuple(value for _, value in pairs))
    return Examples(labelled, families, tuple(sites))


def participants_of(datasets: Sequence[Dataset], raw: Path | None = None) -> dict[str, dict[str, str]]:
    """Rows of ``participants.tsv`` by participant, under the labels that `ask` gives; empty where there is none."""
    found: dict[str, dict[str, str]] = {}
    for dataset in datasets:
        roots = (dataset.path, raw or raw_dataset_of(dataset.path))
        table = next((r / "participants.tsv" for r in roots if r and (r / "participants.tsv").is_file()), None)
        if table is not None:
            for (label, _), row in read_table(table, "participant_id").items():
                found[_person(label, dataset, datasets)] = row
    return found


def _table(text: str, dataset: Dataset, raw: Path | None) -> Target:
    return Target.parse(text if ":" in text else f"participants.tsv:{text}", dataset.path, raw)


def _scan(example: Scan | Stretch) -> Scan:
    return example.scan if isinstance(example, Stretch) else example


def _person(label: str, dataset: Dataset, datasets: Sequence[Dataset]) -> str:
    """A participant's label; of several datasets with the dataset's name, because labels are no one's own."""
    return label if len(datasets) == 1 else f"{label}@{dataset.name}"


def _renamed(example: Scan | Stretch, person: str) -> Scan | Stretch:
    if isinstance(example, Stretch):
        return replace(example, scan=replace(example.scan, participant=person))
    return replace(example, participant=person)


def read_images(path: Path) -> dict[str, np.ndarray]:
    """Given vectors of images.

    Parameters
    ----------
    path : Path
        ``.tsv`` with the column ``stim_file`` and one column a number; or ``.npy``, (K, O), with a ``.tsv`` of the same
        name beside it whose column ``stim_file`` names its rows.

    Returns
    -------
    dict of str to np.ndarray, (O,)
    """
    table = path.with_suffix(".tsv")
    for needed in (path, table):
        if not needed.is_file():
            raise NoInputError(f"{needed}: no such file.", "It has to name the images in a column stim_file.")
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or STIMULUS not in rows[0]:
        raise BadDataError(f"{table}: has no column {STIMULUS}, or no row.", "It has to name the images.")
    names = [row[STIMULUS] for row in rows]
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False).astype(np.float32)
        else:
            values = np.array([[float(v) for k, v in row.items() if k != STIMULUS] for row in rows], np.float32)
    except (ValueError, TypeError) as error:
        raise BadDataError(f"{path}: holds no vectors ({error}).", "One row an image, one column a number.") from error
    if values.ndim != 2 or len(values) != len(names) or len(set(names)) != len(names) or not np.isfinite(values).all():
        raise BadDataError(
            f"{path}: {values.shape} numbers for {len(names)} images, {len(set(names))} of them different.",
            "One row an image, all finite.",
        )
    return dict(zip(names, values, strict=True))


def read_weights(path: Path) -> dict[int, float]:
    """Weights of regions by label: a TSV with the columns ``index`` and ``weight``."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return {int(row["index"]): float(row["weight"]) for row in csv.DictReader(file, delimiter="\t")}
    except (OSError, KeyError, ValueError) as error:
        raise BadDataError(f"{path}: holds no weights ({error!r}).", "Columns index and weight are needed.") from error
