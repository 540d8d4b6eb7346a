"""Ages in years and sites from participants.tsv."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.bids.participants import as_age, read_ages, read_sites


def write(root: Path, text: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "participants.tsv").write_text(text)
    return root


def test_ages_are_read_from_the_first_dataset_with_ages(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", "participant_id\tage\nsub-01\t34\nsub-02\tn/a\n")
    other = write(tmp_path / "other", "participant_id\tsex\tage\nsub-01\tF\t99\nsub-02\tM\t28.5\n")
    assert read_ages([tmp_path / "none", raw, other]) == {"01": 34.0, "02": 28.5}


@pytest.mark.parametrize(
    ("text", "age"),
    [("34", 34.0), ("89+", 89.0), ("26-30", None), ("n/a", None), ("", None), (None, None), ("-3", None)],
)
def test_invalid_age_is_none(text: str | None, age: float | None) -> None:
    assert as_age(text) == age


def test_ages_in_other_units_are_ignored(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", "participant_id\tage\nsub-01\t34\n")
    for units, found in (("weeks", {}), ("years", {"01": 34.0})):
        (raw / "participants.json").write_text(json.dumps({"age": {"Units": units}}))
        assert read_ages([raw]) == found


def test_unreadable_table_is_ignored(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", "participant_id\tage\nsub-01\t34\n")
    (raw / "participants.tsv").write_bytes(b"participant_id\tage\nsub-\xe9\t34\n")
    assert read_ages([raw]) == {}
    (raw / "participants.tsv").write_text("age\n34\n")
    assert read_ages([raw]) == {}


def test_sites_are_read_from_the_first_column_with_a_value(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", "participant_id\tsite\tsite_id\nsub-01\tLeuven\t1\nsub-02\tn/a\t2\nsub-03\t\tn/a\n")
    other = write(tmp_path / "other", "participant_id\tsite_name\nsub-01\tx\nsub-03\tBasel\n")
    assert read_sites([raw, other]) == {"01": "Leuven", "02": "2", "03": "Basel"}
    assert read_sites([tmp_path / "none"]) == {}


def test_an_unreadable_sidecar_leaves_ages_unknown(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", "participant_id\tage\nsub-01\t34\n")
    (raw / "participants.json").write_text("{")
    assert read_ages([raw]) == {}
