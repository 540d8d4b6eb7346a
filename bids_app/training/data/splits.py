"""Who trains and who tests: by participant, or by family where a column names them; kept in files.

A split file is TSV (``participant_id``, ``split``) or JSON (``{"training": [...], "validation": [...]}``). All sessions
of a participant, and all members of a family, are on one side.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from bids_app.bids.entities import natural_key
from bids_app.bids.writer import write_text
from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.training.data.labels import is_missing, read_table

TRAINING, VALIDATION = "training", "validation"
Split = dict[str, tuple[str, ...]]
"""Participants, without prefix, of each part."""


class Example(Protocol):
    """Anything that belongs to a participant."""

    @property
    def participant(self) -> str: ...


def read_families(path: Path, column: str) -> dict[str, str]:
    """The family of each participant, by a column of a table; who has none is a family alone."""
    rows = {person: row[column] for (person, _), row in read_table(path, column).items()}
    return {person: family for person, family in rows.items() if not is_missing(family)}


def groups_of(examples: Sequence[Example], families: Mapping[str, str] | None = None) -> list[str]:
    """What must stay together: for each example its family, or its participant."""
    families = families or {}
    return [
        f"family {families[e.participant]}" if e.participant in families else f"participant {e.participant}"
        for e in examples
    ]


def split_participants(
    examples: Sequence[Example],
    share: float,
    seed: int,
    strata: Sequence[object] | None = None,
    families: Mapping[str, str] | None = None,
) -> tuple[list[int], list[int]]:
    """Split examples so that no participant, and no family, is on both sides.

    Parameters
    ----------
    share : float
        Of the participants (or families) that go to the second part; at least one does.
    strata : sequence, optional
        A value for each example; groups are drawn from each value alike (by their first example).
    families : mapping, optional
        See `read_families`.

    Returns
    -------
    list of int, list of int
        Indices into ``examples``.
    """
    groups = groups_of(examples, families)
    kinds: dict[str, list[str]] = {}
    seen: set[str] = set()
    for index, group in enumerate(groups):
        if group not in seen:
            seen.add(group)
            kinds.setdefault(str(strata[index]) if strata is not None else "", []).append(group)
    if len(seen) < 2:
        raise NoMatchError(
            f"Scans of {len(seen)} participant cannot be split.", "At least two participants (or families) are needed."
        )
    rng = np.random.default_rng(seed)
    ranked = []
    for people in kinds.values():
        order = rng.permutation(len(people))
        ranked += [((place + 0.5) / len(people), people[i]) for place, i in enumerate(order)]
    n_second = min(max(1, round(share * len(seen))), len(seen) - 1)
    second = {group for _, group in sorted(ranked)[:n_second]}
    first = [i for i, group in enumerate(groups) if group not in second]
    return first, [i for i, group in enumerate(groups) if group in second]


def as_split(examples: Sequence[Example], parts: Mapping[str, Iterable[int]]) -> Split:
    """The participants of each part of a list of examples."""
    return {
        name: tuple(sorted({examples[i].participant for i in indices}, key=natural_key))
        for name, indices in parts.items()
    }


def write_split(path: Path, split: Split) -> None:
    """Write a split, whole or not at all; TSV or JSON by the file's name."""
    if path.suffix == ".json":
        write_text(path, json.dumps({name: list(people) for name, people in split.items()}, indent=1) + "\n")
        return
    rows = [(person, name) for name, people in split.items() for person in people]
    rows.sort(key=lambda row: natural_key(row[0]))
    write_text(path, "participant_id\tsplit\n" + "".join(f"sub-{person}\t{name}\n" for person, name in rows))


def read_split(path: Path, families: Mapping[str, str] | None = None) -> Split:
    """Read a split, and check that nobody, and no family, is in two parts.

    Raises
    ------
    BadDataError
        Someone is, or the file is no split.
    """
    pairs = list(_pairs(path))
    if not pairs:
        raise BadDataError(f"{path}: names no participant.", "See `neurostorm-train adapt --help` for what it holds.")
    twice = sorted(person for person, n in Counter(person for person, _ in set(pairs)).items() if n > 1)
    if twice:
        raise BadDataError(f"{path}: {', '.join(twice[:5])} in more than one part.", "Keep each on one side.")
    if families:
        sides: dict[str, set[str]] = {}
        for person, name in pairs:
            if person in families:
                sides.setdefault(families[person], set()).add(name)
        torn = sorted(family for family, names in sides.items() if len(names) > 1)
        if torn:
            raise BadDataError(f"{path}: families {', '.join(torn[:5])} are in more than one part.", "Split by family.")
    split: dict[str, list[str]] = {}
    for person, name in dict.fromkeys(pairs):
        split.setdefault(name, []).append(person)
    return {name: tuple(people) for name, people in split.items()}


def apply_split(split: Split, examples: Sequence[Example], part: str) -> list[int]:
    """Indices of the examples whose participant is in a part."""
    if part not in split:
        raise UsageError(f"The split has no part {part!r}.", f"It has {', '.join(split)}.")
    people = set(split[part])
    indices = [i for i, e in enumerate(examples) if e.participant in people]
    if not indices:
        raise NoMatchError(f"No scan with a label is of the split's {part} participants.", "Check the split's labels.")
    return indices


def _pairs(path: Path) -> Iterable[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).", "Check --split.") from error
    if path.suffix == ".json":
        try:
            content = json.loads(text)
            yield from ((str(p).removeprefix("sub-"), str(name)) for name, people in content.items() for p in people)
        except (ValueError, AttributeError, TypeError) as error:
            raise BadDataError(f"{path}: is no split ({error}).", 'Write {"training": ["01", ...], ...}.') from error
        return
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    if rows and not {"participant_id", "split"} <= set(rows[0]):
        raise BadDataError(f"{path}: has no columns participant_id and split.", f"It has {', '.join(rows[0])}.")
    for row in rows:
        yield row["participant_id"].removeprefix("sub-"), row["split"]
