"""Examples of a command: sites of participants, and scans that people rated as failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.errors import BadDataError, NoInputError, NoMatchError
from bids_app.outputs.ratings import Rating, ratings_path, store_rating
from bids_app.training.data.examples import Dataset, label_scans, without_failed
from bids_app.training.data.scan import Scan


def dataset(root: Path, name: str, rows: str) -> Dataset:
    """Return a dataset of two scans with a table of participants."""
    folder = root / name
    folder.mkdir()
    (folder / "participants.tsv").write_text(f"participant_id\tsex\tsite\n{rows}")
    return Dataset(name, folder, [Scan(folder / str(k), f"{name}{k}", "", 1.0, 0.0, 20) for k in (1, 2)])


def test_sites_are_known_only_if_all_participants_have_one(tmp_path: Path) -> None:
    known = dataset(tmp_path, "a", "sub-a1\tF\tLeuven\nsub-a2\tM\tBasel\n")
    assert label_scans([known], "participants.tsv:sex").known_sites == ("Leuven", "Basel")
    partly = dataset(tmp_path, "b", "sub-b1\tF\tLeuven\nsub-b2\tM\tn/a\n")
    assert label_scans([partly], "participants.tsv:sex").known_sites == ()


def test_sites_of_several_datasets_are_told_apart(tmp_path: Path) -> None:
    both = [dataset(tmp_path, name, f"sub-{name}1\tF\t1\nsub-{name}2\tM\tn/a\n") for name in ("a", "b")]
    assert label_scans(both, "participants.tsv:sex").known_sites == ("a 1", "a", "b 1", "b")


def derivatives(root: Path, name: str, n: int = 3) -> Dataset:
    """Return a dataset of scans of derivatives, as prepared in a store elsewhere."""
    scans = [
        Scan(
            root / "store" / f"sub-{k}_task-rest",
            str(k),
            "",
            1.0,
            0.0,
            20,
            source=str(root / name / f"sub-{k}" / "func" / f"sub-{k}_task-rest_space-x_desc-preproc_bold.nii.gz"),
        )
        for k in range(n)
    ]
    (root / name).mkdir()
    return Dataset(name, root / name, scans)


def rate(dataset: Dataset, rater: str = "AB", **by_participant: str) -> None:
    for label, rating in by_participant.items():
        store_rating(dataset.path, rater, Rating(f"sub-{label[1:]}_task-rest_desc-coreg_bold", rating))


def test_scans_that_people_rated_as_failed_are_left_out(tmp_path: Path) -> None:
    first, second = derivatives(tmp_path, "a"), derivatives(tmp_path, "b")
    rate(first, _0="fail", _1="doubtful")
    said: list[str] = []
    kept = without_failed([first, second], said.append)
    assert [[scan.participant for scan in dataset.scans] for dataset in kept] == [["1", "2"], ["0", "1", "2"]]
    assert said[0] == "Left out as rated as failed: 1 of 6 scans"
    assert str(second.path) in said[1]


def test_scans_of_a_store_are_rated_in_the_derivatives_that_they_come_from(tmp_path: Path) -> None:
    dataset = derivatives(tmp_path, "a")
    rate(dataset, _2="fail")
    (kept,) = without_failed([Dataset("store", tmp_path / "store", dataset.scans)])
    assert [scan.participant for scan in kept.scans] == ["0", "1"]


def test_missing_and_damaged_ratings_and_nothing_left_are_errors(tmp_path: Path) -> None:
    dataset = derivatives(tmp_path, "a", 1)
    with pytest.raises(NoInputError, match="--exclude-failed"):
        without_failed([dataset])
    rate(dataset, _0="fail")
    with pytest.raises(NoMatchError, match="All 1 scans"):
        without_failed([dataset])
    ratings_path(dataset.path, "AB").write_text("damaged")
    with pytest.raises(BadDataError, match="damaged table"):
        without_failed([dataset])
