"""Splits without shared participants or families, and their files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bids_app.errors import BadDataError, NoMatchError
from bids_app.training.data.splits import (
    apply_split,
    read_families,
    read_split,
    split_from_indices,
    split_participants,
    write_split,
)


def make_scans(*names: str, sessions: int = 1) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(participant=n, session=f"{s + 1}" if sessions > 1 else "", labels={})
        for n in names
        for s in range(sessions)
    ]


def test_sets_share_no_participants():
    scans = make_scans(*"abcdefghij", sessions=3)
    first, second = split_participants(scans, 0.3, seed=1)
    assert sorted(first + second) == list(range(30))
    assert len({scans[i].participant for i in second}) == 3
    assert not {scans[i].participant for i in first} & {scans[i].participant for i in second}
    assert split_participants(scans, 0.3, seed=1) == (first, second)
    assert split_participants(scans, 0.3, seed=2) != (first, second)


def test_splits_are_stratified():
    scans = make_scans(*(f"p{k}" for k in range(40)))
    groups = ["F"] * 30 + ["M"] * 10
    _, second = split_participants(scans, 0.2, seed=0, strata=groups)
    assert sum(groups[i] == "F" for i in second) == 6
    assert sum(groups[i] == "M" for i in second) == 2


def test_splitting_one_participant_raises():
    with pytest.raises(NoMatchError, match="1 participant"):
        split_participants(make_scans("a", sessions=4), 0.5, seed=0)


def test_sets_share_no_families(tmp_path):
    scans = make_scans(*(f"p{k}" for k in range(30)), sessions=2)
    rows = "".join(f"sub-p{k}\t{'n/a' if k > 20 else f'f{k // 3}'}\n" for k in range(30))
    (tmp_path / "participants.tsv").write_text("participant_id\tfamily\n" + rows)
    families = read_families(tmp_path / "participants.tsv", "family", {scan.participant for scan in scans})
    assert (families["p0"], "p25" in families) == ("f0", False)
    first, second = split_participants(scans, 0.3, seed=4, families=families)
    sets = [{families.get(scans[i].participant, scans[i].participant) for i in part} for part in (first, second)]
    assert not sets[0] & sets[1]
    assert len(second) >= 6


def test_a_column_without_families_of_the_participants_is_refused(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tfamily\nsub-1\tA\nsub-2\tA\nsub-03\tn/a\n")
    assert read_families(path, "family", {"1", "03"}) == {"1": "A", "2": "A"}
    with pytest.raises(NoMatchError, match="none of 2 participants has a value of family"):
        read_families(path, "family", {"01", "03"})


@pytest.mark.parametrize("name", ["split.tsv", "split.json"])
def test_a_split_is_restored_from_its_file(tmp_path, name):
    scans = make_scans("10", "9", "a", sessions=2)
    split = split_from_indices(scans, {"training": [0, 2], "validation": [4]})
    assert split == {"training": ("9", "10"), "validation": ("a",)}
    write_split(tmp_path / name, split)
    assert read_split(tmp_path / name) == split
    assert apply_split(split, scans, "training") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("participant_id\tsplit\nsub-a\ttraining\nsub-a\tvalidation\n", "more than one set: a"),
        ("participant_id\tsplit\nsub-b\ttraining\nsub-c\tvalidation\n", "families in more than one set: smith"),
        ("participant_id\tgroup\nsub-b\ttraining\n", "participant_id or split"),
        ("participant_id\tsplit\n", "no participants"),
    ],
)
def test_splits_with_leakage_or_errors_raise(tmp_path, text, message):
    (tmp_path / "split.tsv").write_text(text)
    with pytest.raises(BadDataError, match=message):
        read_split(tmp_path / "split.tsv", {"b": "smith", "c": "smith"})
