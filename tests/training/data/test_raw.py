"""The raw dataset of derivatives."""

from __future__ import annotations

from bids_app.training.data.raw import find_raw_dataset


def test_the_raw_dataset_is_found_in_a_parent_folder(tmp_path):
    out = tmp_path / "raw" / "derivatives" / "out"
    out.mkdir(parents=True)
    assert find_raw_dataset(out) is None
    (tmp_path / "raw" / "dataset_description.json").write_text("{}")
    assert find_raw_dataset(out) == tmp_path / "raw"
