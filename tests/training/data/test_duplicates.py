"""Scans of different participants with the same data are found."""

from __future__ import annotations

from pathlib import Path

from bids_app.training.data.duplicates import find_copies, warn_of_copies
from bids_app.training.data.examples import load_datasets
from bids_app.training.data.store import ClipStore


def fill(folder: Path, invented_series, seeds: dict[str, tuple[int, ...]]) -> ClipStore:
    store = ClipStore(folder, "global")
    for participant, own in seeds.items():
        for run, seed in enumerate(own):
            store.add(f"sub-{participant}_run-{run}", invented_series(seed), participant)
    return store


def test_copies_under_other_labels_are_named_once(tmp_path: Path, invented_series) -> None:
    seeds = {"01": (1, 2), "02": (3,), "03": (2, 1), "04": (4, 4)}
    store = fill(tmp_path / "store", invented_series, seeds)
    groups = find_copies((scan.participant, scan) for scan in store)
    assert groups == [("01", "03")]  # repeated runs of one participant are no second person
    assert "sub-01 = sub-03" in warn_of_copies(groups)
    assert "and 2 more" in warn_of_copies([("a", "b")] * 7)


def test_copies_are_reported_when_datasets_are_loaded_also_between_datasets(tmp_path: Path, invented_series) -> None:
    for name in ("one", "two"):
        fill(tmp_path / name, invented_series, {"01": (1,)})
    said: list[str] = []
    load_datasets([tmp_path / "one"], tmp_path, "global", report=said.append)
    assert said == []
    load_datasets([tmp_path / "one", tmp_path / "two"], tmp_path, "global", report=said.append)
    (warning,) = said
    assert "sub-01@one = sub-01@two" in warning
