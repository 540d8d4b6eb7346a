"""Training, validation and test sets, split by participant or family, and their files.

A split file is TSV (``participant_id``, ``split``) or JSON (``{"training": [...], "validation": [...]}``); the set
``test`` is for evaluation. All sessions of a participant and all members of a family belong to one set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from bids_app.bids.entities import natural_key
from bids_app.bids.writer import write_text
from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.files import MAX_JSON_BYTES, parse_json, read_rows, read_text
from bids_app.terminal import count_of
from bids_app.training.data.labels import is_missing, read_table

TRAINING, VALIDATION, TEST = "training", "validation", "test"
Split = dict[str, tuple[str, ...]]
"""Participant labels, without prefix, of each set."""


class Example(Protocol):
    """Anything that belongs to a participant."""

    @property
    def participant(self) -> str: ...


def read_families(path: Path, column: str, participants: Collection[str]) -> dict[str, str]:
    """Read the family of each participant from a column of a table; omit participants without a family.

    Raises
    ------
    BadDataError
        See `read_table`.
    NoMatchError
        None of ``participants`` has a family.
    """
    rows = {participant: row[column] for (participant, _), row in read_table(path, column).items()}
    families = {participant: family for participant, family in rows.items() if not is_missing(family)}
    if families.keys().isdisjoint(participants):
        raise NoMatchError(
            f"{path}: none of {count_of(len(participants), 'participant')} has a value of {column}.",
            "Check the participant labels and the column.",
        )
    return families


def participant_groups(examples: Sequence[Example], families: Mapping[str, str] | None = None) -> list[str]:
    """Return the group of each example that must stay together: its family or its participant."""
    families = families or {}
    return [
        f"family {families[e.participant]}" if e.participant in families else f"participant {e.participant}"
        for e in examples
    ]


def split_participants(
    examples: Sequence[Example],
    fraction: float,
    seed: int,
    strata: Sequence[object] | None = None,
    families: Mapping[str, str] | None = None,
) -> tuple[list[int], list[int]]:
    """Split examples into two sets that share no participant or family.

    Parameters
    ----------
    examples : sequence of Example
    fraction : float
        Fraction of the participants (or families) in the second set; at least one.
    seed : int
    strata : sequence, optional
        Value of each example; the split is stratified by the value of each group's first example.
    families : mapping, optional
        See `read_families`.

    Returns
    -------
    list of int, list of int
        Indices into ``examples`` of the first and second set.

    Raises
    ------
    NoMatchError
        There is only one participant or family.
    """
    groups = participant_groups(examples, families)
    groups_by_stratum: dict[str, list[str]] = {}
    seen: set[str] = set()
    for index, group in enumerate(groups):
        if group not in seen:
            seen.add(group)
            groups_by_stratum.setdefault(str(strata[index]) if strata is not None else "", []).append(group)
    if len(seen) < 2:
        raise NoMatchError(
            f"Cannot split the scans of {len(seen)} participant (or family).", "At least two are required."
        )
    rng = np.random.default_rng(seed)
    ranked = []
    for members in groups_by_stratum.values():
        order = rng.permutation(len(members))
        ranked += [((rank + 0.5) / len(members), members[i]) for rank, i in enumerate(order)]
    n_second = min(max(1, round(fraction * len(seen))), len(seen) - 1)
    second = {group for _, group in sorted(ranked)[:n_second]}
    first = [i for i, group in enumerate(groups) if group not in second]
    return first, [i for i, group in enumerate(groups) if group in second]


def split_from_indices(examples: Sequence[Example], parts: Mapping[str, Iterable[int]]) -> Split:
    """Return the participants of each set of example indices."""
    return {
        name: tuple(sorted({examples[i].participant for i in indices}, key=natural_key))
        for name, indices in parts.items()
    }


def write_split(path: Path, split: Split) -> None:
    """Write a split atomically, as TSV or JSON depending on the file extension."""
    if path.suffix == ".json":
        write_text(path, json.dumps({name: list(labels) for name, labels in split.items()}, indent=1) + "\n")
        return
    rows = [(label, name) for name, labels in split.items() for label in labels]
    rows.sort(key=lambda row: natural_key(row[0]))
    write_text(path, "participant_id\tsplit\n" + "".join(f"sub-{label}\t{name}\n" for label, name in rows))


def read_split(path: Path, families: Mapping[str, str] | None = None) -> Split:
    """Read a split, and check that no participant or family belongs to two sets.

    Raises
    ------
    NoInputError
        The file is missing or unreadable.
    BadDataError
        A participant or family belongs to two sets, or the file is malformed.
    """
    pairs = list(_pairs(path))
    if not pairs:
        raise BadDataError(f"{path}: no participants found.", "Add the columns participant_id and split.")
    duplicates = sorted(label for label, n in Counter(label for label, _ in set(pairs)).items() if n > 1)
    if duplicates:
        raise BadDataError(
            f"{path}: participants in more than one set: {', '.join(duplicates[:5])}.",
            "Assign each participant to one set.",
        )
    if families:
        sets: dict[str, set[str]] = {}
        for label, name in pairs:
            if label in families:
                sets.setdefault(families[label], set()).add(name)
        divided = sorted(family for family, names in sets.items() if len(names) > 1)
        if divided:
            raise BadDataError(
                f"{path}: families in more than one set: {', '.join(divided[:5])}.", "Assign each family to one set."
            )
    split: dict[str, list[str]] = {}
    for label, name in dict.fromkeys(pairs):
        split.setdefault(name, []).append(label)
    return {name: tuple(labels) for name, labels in split.items()}


def check_sets(split: Split, path: Path) -> None:
    """Check the names of the sets of a split.

    Raises
    ------
    BadDataError
        A set has another name, or there is none for training.
    """
    wanted = f"Use {TRAINING}, {VALIDATION} and {TEST}."
    if unknown := set(split) - {TRAINING, VALIDATION, TEST}:
        raise BadDataError(f"{path}: unknown set: {min(unknown)}.", wanted)
    if TRAINING not in split:
        raise BadDataError(f"{path}: no set {TRAINING}.", wanted)


def apply_split(split: Split, examples: Sequence[Example], part: str) -> list[int]:
    """Return the indices of the examples whose participant belongs to a set of the split."""
    if part not in split:
        raise UsageError(f"The split has no {part} set.", f"Its sets are {', '.join(split)}.")
    participants = set(split[part])
    indices = [i for i, e in enumerate(examples) if e.participant in participants]
    if not indices:
        raise NoMatchError(f"No labelled scan belongs to the {part} set of the split.", "Check its participant labels.")
    return indices


def _pairs(path: Path) -> Iterable[tuple[str, str]]:
    if path.suffix == ".json":
        content = parse_json(read_text(path, MAX_JSON_BYTES), str(path))
        try:
            yield from ((str(p).removeprefix("sub-"), str(name)) for name, labels in content.items() for p in labels)
        except (AttributeError, TypeError) as error:
            raise BadDataError(f"{path}: not a split file ({error}).", 'Use {"training": ["01", ...], ...}.') from error
        return
    rows = read_rows(path)
    if rows and not {"participant_id", "split"} <= set(rows[0]):
        raise BadDataError(
            f"{path}: column participant_id or split is missing.", f"Its columns are {', '.join(rows[0])}."
        )
    for row in rows:
        yield (row["participant_id"] or "").removeprefix("sub-"), row["split"] or ""
