"""Scans of different participants with the same data are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.training.data.duplicates import find_copies, warn_of_copies
from bids_app.training.data.examples import load_datasets
from bids_app.training.data.places import Place
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


@pytest.fixture
def bytes_read(monkeypatch) -> list[int]:
    """Note how many bytes are read of the arrays of scans in shards."""
    n_bytes: list[int] = []
    real = Place.read_range

    def read_range(self: Place, name: str, start: int, n: int) -> object:
        n_bytes.append(n)
        return real(self, name, start, n)

    monkeypatch.setattr(Place, "read_range", read_range)
    return n_bytes


def test_two_volumes_of_each_scan_are_compared_and_none_before_pre_training(
    tmp_path: Path, invented_series, bytes_read
) -> None:
    store = fill(tmp_path / "store", invented_series, {"01": (1,), "02": (2,)})
    n_voxels = len(next(iter(store)).voxel_indices)
    bytes_read.clear()
    load_datasets([store.folder], tmp_path, "global", report=print, name_copies=False)
    assert bytes_read == []
    load_datasets([store.folder], tmp_path, "global", report=print)
    assert sum(n == n_voxels for n in bytes_read) == 2 * 2
    assert max(bytes_read) <= max(2 * n_voxels, 96**3 // 8)
