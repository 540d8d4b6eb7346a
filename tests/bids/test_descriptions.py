"""``descriptions.tsv`` explains the labels of file names, and keeps what others wrote."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bids_app.bids.descriptions import LABELS, read_descriptions, write_descriptions


def test_labels_of_models_follow_those_of_all_outputs(tmp_path: Path) -> None:
    path = write_descriptions(tmp_path, {"demo": "Embeddings of\tthe model\ndemo"})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["desc_id"] for row in rows] == [*(f"desc-{label}" for label in LABELS), "desc-demo"]
    assert rows[-1]["description"] == "Embeddings of the model demo"
    assert json.loads((tmp_path / "descriptions.json").read_text()).keys() == {"Description", "desc_id", "description"}


def test_rows_of_other_models_and_people_are_kept(tmp_path: Path) -> None:
    write_descriptions(tmp_path, {"one": "The first"})
    with (tmp_path / "descriptions.tsv").open("a") as file:
        file.write("desc-mine\tMy own\n")
    found = read_descriptions(write_descriptions(tmp_path, {"two": "The second"}))
    assert [found[f"desc-{label}"] for label in ("one", "two", "mine")] == ["The first", "The second", "My own"]


def test_a_second_write_changes_nothing(tmp_path: Path) -> None:
    path = write_descriptions(tmp_path, {"one": "The first"})
    before = path.read_bytes(), path.stat().st_mtime_ns
    write_descriptions(tmp_path, {"one": "The first"})
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("content", ["", "a\tb\n1\t2\n", "\x00"])
def test_a_table_that_is_none_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "descriptions.tsv").write_text(content)
    assert "desc-brain" in read_descriptions(write_descriptions(tmp_path, {}))
