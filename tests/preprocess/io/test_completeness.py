"""Truncated images are found from the ends of their files; complete ones are not decompressed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bids_app.errors import BadDataError, NeurostormError
from bids_app.preprocess.io import completeness
from bids_app.preprocess.io.completeness import check_complete


@pytest.fixture
def bold(tiny_dataset) -> Path:
    return tiny_dataset.bold_path()


@pytest.mark.parametrize("kept", [0.3, 0.9, -1, -4, -8, -9])
def test_a_truncated_file_is_named(bold: Path, kept: float) -> None:
    data = bold.read_bytes()
    bold.write_bytes(data[: int(kept * len(data)) if kept > 0 else int(kept)])
    with pytest.raises(BadDataError, match=rf"{bold.name}: (unreadable or )?truncated"):
        check_complete(bold)


def test_a_file_whose_end_was_not_copied_is_named(bold: Path) -> None:
    data = bold.read_bytes()
    bold.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(BadDataError, match=bold.name):
        check_complete(bold)


def test_volumes_missing_before_compression_are_named(bold: Path) -> None:
    bold.write_bytes(gzip.compress(gzip.decompress(bold.read_bytes())[:-5000]))
    with pytest.raises(BadDataError, match="truncated"):
        check_complete(bold)


def test_an_uncompressed_truncated_file_is_named(bold: Path) -> None:
    plain = bold.with_suffix("")
    plain.write_bytes(gzip.decompress(bold.read_bytes()))
    check_complete(plain)
    plain.write_bytes(plain.read_bytes()[:-1])
    with pytest.raises(BadDataError, match="truncated"):
        check_complete(plain)


@pytest.mark.parametrize("how", ["in two members", "with an empty last member", "with a surplus"])
def test_a_complete_file_of_another_form_is_accepted(bold: Path, how: str) -> None:
    data = gzip.decompress(bold.read_bytes())
    half = len(data) // 2
    forms = {
        "in two members": gzip.compress(data[:half]) + gzip.compress(data[half:]),
        "with an empty last member": gzip.compress(data) + gzip.compress(b""),
        "with a surplus": gzip.compress(data + bytes(100)),
    }
    bold.write_bytes(forms[how])
    check_complete(bold)


def test_a_complete_file_is_not_decompressed(bold: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decompressed")

    monkeypatch.setattr(completeness, "open_gzip", fail)
    check_complete(bold)


def test_a_file_of_three_bytes_is_named(bold: Path) -> None:
    bold.write_bytes(bold.read_bytes()[:3])
    with pytest.raises(NeurostormError, match=bold.name):
        check_complete(bold)
