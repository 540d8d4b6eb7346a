"""Lists of participants."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.cluster.participants import find_participants, read_list
from bids_app.errors import InvalidBIDSError, NoInputError, NoMatchError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for name in ("sub-10", "sub-2", "sub-1", "sub-3 (copy)", "sub-4,5"):
        (tmp_path / "raw" / name).mkdir()
    return tmp_path / "raw"


@pytest.mark.parametrize(
    "text",
    [
        "sub-01\nsub-02\n03\n",
        "01, sub-02;03",
        "\ufeff# made by hand, 01 first\n01 02\t03\r\n02\n",
        "participant_id\tage\nsub-01\t20\nsub-02\t30\nsub-03\t40\n",
        "participant_id\nsub-01\nsub-02\nsub-03\n",
    ],
)
def test_tables_and_lists_with_any_separator_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my list, 1.txt"
    path.write_text(text)
    assert read_list(path) == ["01", "02", "03"]


def test_an_empty_list_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# none yet\n ,\n")
    with pytest.raises(NoInputError, match=r"list.txt: no participants"):
        read_list(path)


def test_all_participants_with_valid_labels_are_found_in_natural_order(dataset: Path) -> None:
    assert find_participants(dataset) == ["1", "2", "10"]


def test_participants_that_the_dataset_lacks_are_counted_and_named(dataset: Path) -> None:
    wanted = ["2", *(f"x{n}" for n in range(10_000))]
    with pytest.raises(NoMatchError, match=r"10000 of 10001 .*sub-x0, sub-x1.* and 9988 more"):
        find_participants(dataset, wanted)
    assert find_participants(dataset, ["10", "2"]) == ["10", "2"]


def test_a_missing_dataset_and_one_without_participants_are_errors(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no such folder"):
        find_participants(tmp_path / "none")
    with pytest.raises(InvalidBIDSError, match="no participants found"):
        find_participants(tmp_path)
