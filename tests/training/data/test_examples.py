"""Examples of a command: sites of participants."""

from __future__ import annotations

from pathlib import Path

from bids_app.training.data.examples import Dataset, label_scans
from bids_app.training.data.store import Scan


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
