"""Gzip files of ISA-L are those of zlib, for our code and for nibabel."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.preprocess.io.compression import DAMAGED, open_gzip

CONTENT = np.random.default_rng(0).integers(0, 50, 200_000, dtype=np.int16).tobytes()


def write(path: Path, content: bytes = CONTENT) -> Path:
    with open_gzip(path, "wb") as file:
        file.write(content)
    return path


def test_files_are_read_by_zlib_and_by_isal(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz")
    assert gzip.decompress(path.read_bytes()) == CONTENT
    with open_gzip(path) as file:
        assert file.read() == CONTENT


def test_the_same_content_gives_the_same_file_whatever_its_name_and_time(tmp_path: Path, monkeypatch) -> None:
    first = write(tmp_path / "a.gz").read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert write(tmp_path / "another.gz").read_bytes() == first


def test_a_file_is_closed_on_disk_with_its_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz")
    file = open_gzip(path)
    raw = file.myfileobj
    file.close()
    assert raw.closed


def damaged(path: Path, kind: str) -> bytes:
    content = bytearray(write(path).read_bytes())
    if kind == "truncated":
        return bytes(content[: len(content) // 2])
    if kind == "without its end":
        return bytes(content[:-3])
    if kind == "no gzip file":
        return b"PK" + bytes(content[2:])
    at = -6 if kind == "wrong checksum" else len(content) // 2
    content[at] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "without its end", "no gzip file", "wrong checksum", "damaged within"])
def test_damaged_files_raise_an_error_that_is_expected(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(damaged(path, kind))
    with open_gzip(path) as file, pytest.raises(DAMAGED):
        file.read()


def test_nibabel_reads_and_writes_images_with_it(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    assert np.array_equal(np.asarray(image.dataobj), values)
    with nib.openers.ImageOpener(path) as file:
        assert type(file.fobj).__module__ == "isal.igzip"
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 9))  # of another program
    assert np.array_equal(np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj), values)  # type: ignore[attr-defined]
