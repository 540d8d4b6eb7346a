"""Runs of an output folder, with phenotypes and missing runs from the raw dataset.

Only ``participants.tsv`` and the names of the BOLD images are read from the raw dataset, which is optional.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bids_app.bids.entities import join_name, natural_key, split_name
from bids_app.errors import NeurostormError
from bids_app.files import read_rows
from bids_app.group.reading import MISSING, OUTPUT_ENTITIES, Card, ParticipantRecord, RunRecord, read_participants
from bids_app.settings import QuerySettings
from bids_app.terminal import first_of

SITE_COLUMNS = (
    "site", "site_id", "scanner", "scanner_id", "center", "centre", "acquisition_site", "institution", "scanner_model",
)  # fmt: skip
"""Columns of ``participants.tsv`` that may hold the site; the first match is used."""

MISSING_VALUES = ("", "n/a", "N/A", "NA", "nan", "NaN")


@dataclass(frozen=True)
class Cohort:
    """Input of the group level."""

    runs: list[RunRecord]
    """Runs in natural order of their names."""
    cards: dict[str, Card] = field(default_factory=dict)
    """Facts about each model and adapter, from the sidecars."""
    phenotypes: dict[str, dict[str, str]] = field(default_factory=dict)
    """Rows of ``participants.tsv``, by ``sub-<label>``."""
    site_column: str = ""
    """Column of ``participants.tsv`` with the site; empty if there is none."""
    notes: tuple[str, ...] = ()
    """Sentences on missing inputs."""
    faults: tuple[str, ...] = ()
    """Unreadable files that belong to no single run."""
    configurations: dict[str, dict[str, str]] = field(default_factory=dict)
    """Options by configuration, as far as they are known."""

    def __post_init__(self) -> None:
        self.runs.sort(key=lambda run: natural_key(run.stem))

    @property
    def participants(self) -> list[str]:
        """Participants with at least one run, as ``sub-<label>``."""
        return list(dict.fromkeys(run.participant for run in self.runs))

    def phenotype(self, run: RunRecord, column: str) -> str:
        """Return a column of ``participants.tsv`` for the participant of a run; empty if missing."""
        value = self.phenotypes.get(run.participant, {}).get(column, "")
        return "" if value in MISSING_VALUES else value

    def site(self, run: RunRecord) -> str:
        """Return the site of a run; empty if unknown."""
        return self.phenotype(run, self.site_column) if self.site_column else ""


def read_cohort(folders: Sequence[Path], bids_dir: Path, query: QuerySettings, n_procs: int) -> Cohort:
    """Read the participants' derivatives and the phenotypes and run names of the raw dataset.

    Parameters
    ----------
    folders : sequence of pathlib.Path
        Folders of the participants in the output folder.
    bids_dir : pathlib.Path
        Raw dataset; may be missing.
    query : QuerySettings
        Selected participants, sessions and tasks.
    n_procs : int
        Number of reading processes.
    """
    runs: list[RunRecord] = []
    cards: dict[str, Card] = {}
    faults: list[str] = []
    configurations: dict[str, dict[str, str]] = {}
    for record in read_participants(folders, n_procs):
        runs += (run for run in record.runs if is_selected(run.entities, query))
        faults += record.faults
        configurations |= record.configurations
        _keep_cards(cards, record)
    phenotypes, notes = read_phenotypes(bids_dir)
    listed = {stem: entities for stem, entities in raw_runs(bids_dir) if is_selected(entities, query)}
    if listed:
        known = {run.stem for run in runs}
        runs += (missing_run(stem, entities) for stem, entities in listed.items() if stem not in known)
    else:
        notes.append(f"{bids_dir}: no BOLD images found; runs that were not processed cannot be listed.")
    columns = {name.lower(): name for row in phenotypes.values() for name in row}
    site = next((columns[name] for name in SITE_COLUMNS if name in columns), "")
    return Cohort(runs, cards, phenotypes, site, tuple(notes), tuple(faults), configurations)


def is_selected(entities: dict[str, str], query: QuerySettings) -> bool:
    """Return True if the run is among the selected participants, sessions and tasks."""
    selected = {"sub": query.participants, "ses": query.sessions, "task": query.tasks}
    return all(not labels or entities.get(key) in labels for key, labels in selected.items())


def missing_run(stem: str, entities: dict[str, str]) -> RunRecord:
    """Return the record of a raw run without derivatives."""
    reason = "The run is in the raw dataset but was not processed."
    return RunRecord(stem, entities, MISSING, reason, "Run the participant level for this run.")


def read_phenotypes(bids_dir: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Read ``participants.tsv``: rows by participant, and notes if it cannot be read."""
    path = bids_dir / "participants.tsv"
    if not os.path.lexists(path):
        return {}, [f"{path}: file not found; sites and phenotypes are unknown."]
    try:
        rows = [{k: v or "" for k, v in row.items()} for row in read_rows(path)]
        labels = [f"sub-{row.pop('participant_id').removeprefix('sub-')}" for row in rows]
        repeated = [label for label, n in Counter(labels).items() if n > 1]
        notes = [f"{path}: {first_of(repeated, 5)} in several rows; the last one counts."] if repeated else []
        return dict(zip(labels, rows, strict=True)), notes
    except NeurostormError as error:
        return {}, [f"{error.message} Sites and phenotypes are unknown."]
    except KeyError as error:
        return {}, [f"{path}: column {error} is missing; sites and phenotypes are unknown."]


def raw_runs(bids_dir: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield name and entities of each BOLD run in the raw dataset; echoes and parts count as one run."""
    for folder in _folders(bids_dir, "sub-"):
        for parent in (folder, *_folders(folder, "ses-")):
            for name in sorted(_names(parent / "func")):
                entities, suffix, extension = split_name(name)
                if suffix == "bold" and extension in (".nii", ".nii.gz") and entities.get("part", "mag") == "mag":
                    own = {k: v for k, v in entities.items() if k not in (*OUTPUT_ENTITIES, "echo", "part")}
                    own = {"sub": folder.name.removeprefix("sub-")} | own
                    yield join_name(own, "").removesuffix("_"), own


def _folders(parent: Path, prefix: str) -> list[Path]:
    paths = [parent / name for name in sorted(_names(parent)) if name.startswith(prefix)]
    return [path for path in paths if os.path.isdir(path)]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _keep_cards(cards: dict[str, Card], record: ParticipantRecord) -> None:
    """Keep the first card of each name; a demonstration, untrained or research-only flag applies to all runs."""
    for name, card in record.cards.items():
        kept = cards.get(name, card)
        cards[name] = replace(
            kept,
            demonstration=kept.demonstration or card.demonstration,
            untrained=kept.untrained or card.untrained,
            research_only=kept.research_only or card.research_only,
        )
