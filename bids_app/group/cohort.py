"""All runs of an output folder with what the raw dataset says of them: participants' traits, and runs that are missing.

Of the raw dataset only ``participants.tsv`` and the names of its BOLD images are read; without it the rest goes on.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bids_app.bids.entities import join_name, natural_key, split_name
from bids_app.group.reading import MISSING, OF_OUTPUTS, Card, ParticipantRecord, RunRecord, read_participants
from bids_app.settings import QuerySettings

SITE_COLUMNS = (
    "site", "site_id", "scanner", "scanner_id", "center", "centre", "acquisition_site", "institution", "scanner_model",
)  # fmt: skip
"""Columns of ``participants.tsv`` that may tell the sites apart; the first that is there is taken."""

MISSING_VALUES = ("", "n/a", "N/A", "NA", "nan", "NaN")


@dataclass(frozen=True)
class Cohort:
    """Everything the group level works on."""

    runs: list[RunRecord]
    """In the natural order of their names."""
    cards: dict[str, Card] = field(default_factory=dict)
    """What sidecars say of each model and adapter."""
    traits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Rows of ``participants.tsv`` by ``sub-<label>``."""
    site_column: str = ""
    """The column of the traits that tells sites apart; empty where there is none."""
    notes: tuple[str, ...] = ()
    """What was not to be had, as sentences."""
    faults: tuple[str, ...] = ()
    """Files of no run in particular that could not be read."""

    def __post_init__(self) -> None:
        self.runs.sort(key=lambda run: natural_key(run.stem))

    @property
    def participants(self) -> list[str]:
        """Those who have a run, as ``sub-<label>``."""
        return list(dict.fromkeys(run.participant for run in self.runs))

    def trait(self, run: RunRecord, column: str) -> str:
        """A participant's trait; empty where it is not known."""
        value = self.traits.get(run.participant, {}).get(column, "")
        return "" if value in MISSING_VALUES else value

    def site(self, run: RunRecord) -> str:
        """Where a run was measured; empty where it is not known."""
        return self.trait(run, self.site_column) if self.site_column else ""


def read_cohort(folders: Sequence[Path], bids_dir: Path, query: QuerySettings, n_procs: int) -> Cohort:
    """Read the participants' derivatives, and set them beside the raw dataset.

    Parameters
    ----------
    folders : sequence of pathlib.Path
        Of the participants, in the output folder.
    bids_dir : pathlib.Path
        The raw dataset; it need not be there.
    query : QuerySettings
        Whose participants, sessions and tasks are wanted.
    n_procs : int
        Processes to read with.
    """
    runs: list[RunRecord] = []
    cards: dict[str, Card] = {}
    faults: list[str] = []
    for record in read_participants(folders, n_procs):
        runs += (run for run in record.runs if is_wanted(run.entities, query))
        faults += record.faults
        _keep_cards(cards, record)
    traits, notes = read_traits(bids_dir)
    listed = {stem: entities for stem, entities in raw_runs(bids_dir) if is_wanted(entities, query)}
    if listed:
        known = {run.stem for run in runs}
        runs += (missing_run(stem, entities) for stem, entities in listed.items() if stem not in known)
    else:
        notes.append(f"{bids_dir}: no BOLD images are there, so runs that were never worked on are not known.")
    columns = {name.lower(): name for row in traits.values() for name in row}
    site = next((columns[name] for name in SITE_COLUMNS if name in columns), "")
    return Cohort(runs, cards, traits, site, tuple(notes), tuple(faults))


def is_wanted(entities: dict[str, str], query: QuerySettings) -> bool:
    """Whether a run is among the participants, sessions and tasks that were asked for."""
    wanted = {"sub": query.participants, "ses": query.sessions, "task": query.tasks}
    return all(not labels or entities.get(key) in labels for key, labels in wanted.items())


def missing_run(stem: str, entities: dict[str, str]) -> RunRecord:
    """The record of a run that the raw dataset has and the derivatives do not."""
    reason = "It is in the dataset, and was never worked on."
    return RunRecord(stem, entities, MISSING, reason, "Run the participant level for it.")


def read_traits(bids_dir: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Rows of ``participants.tsv`` by participant, and what is to be said where there are none."""
    path = bids_dir / "participants.tsv"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file, delimiter="\t")]
        return {f"sub-{row.pop('participant_id').removeprefix('sub-')}": row for row in rows}, []
    except FileNotFoundError:
        return {}, [f"{path}: not there, so sites and traits are not known."]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        return {}, [f"{path}: cannot be read ({error}), so sites and traits are not known."]


def raw_runs(bids_dir: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Names of a dataset's BOLD runs, with their entities; echoes and parts of one run count once."""
    for folder in _folders(bids_dir, "sub-"):
        for place in (folder, *_folders(folder, "ses-")):
            for name in sorted(_names(place / "func")):
                entities, suffix, extension = split_name(name)
                if suffix == "bold" and extension in (".nii", ".nii.gz") and entities.get("part", "mag") == "mag":
                    own = {k: v for k, v in entities.items() if k not in (*OF_OUTPUTS, "echo", "part")}
                    own = {"sub": folder.name.removeprefix("sub-")} | own
                    yield join_name(own, "").removesuffix("_"), own


def _folders(place: Path, prefix: str) -> list[Path]:
    return [place / name for name in sorted(_names(place)) if name.startswith(prefix) and (place / name).is_dir()]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _keep_cards(cards: dict[str, Card], record: ParticipantRecord) -> None:
    """Keep the first card of each name; one that warns of its use warns for all."""
    for name, card in record.cards.items():
        kept = cards.get(name, card)
        cards[name] = replace(
            kept,
            demonstration=kept.demonstration or card.demonstration,
            research_only=kept.research_only or card.research_only,
        )
