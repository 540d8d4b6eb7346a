"""A full disk is recognised, whatever the library that met it says."""

from __future__ import annotations

import gzip
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bids_app.bids.full_disk import hide_errors_of_freed_files, is_full, no_space, says_full
from tests.helpers.machine import run_on_small_disk

FULL = Path("/dev/full")
"""Device that has no space left."""


def with_numpy() -> None:
    np.zeros(10**6).tofile(FULL)


def with_savez() -> None:
    np.savez(FULL.open("wb"), zeros=np.random.default_rng(0).bytes(10**6))


def with_gzip() -> None:
    with gzip.open(FULL, "wb") as file:
        file.write(np.random.default_rng(0).bytes(10**6))


def with_zipfile() -> None:
    with zipfile.ZipFile(FULL.open("wb"), "w") as archive:
        archive.writestr("x", bytes(10**6))


def as_a_consequence() -> None:
    try:
        with FULL.open("w") as file:
            file.write("x" * 10**6)
    except OSError as error:
        raise ValueError("could not write the header") from error


@pytest.mark.parametrize("write", [with_numpy, with_savez, with_gzip, with_zipfile, as_a_consequence])
def test_an_error_of_a_library_is_recognised(write: Callable[[], None]) -> None:
    with pytest.raises((OSError, ValueError)) as caught:
        write()
    assert says_full(caught.value)


def test_an_error_of_hdf5_is_recognised() -> None:
    said = "Can't write data (file write failed: errno = 28, error message = 'No space left on device', buf = 0x7f)"
    assert says_full(OSError(said))


@pytest.mark.parametrize("error", [OSError("errno = 2"), FileNotFoundError(2, "No such file"), ValueError("disk")])
def test_other_errors_are_not(error: Exception) -> None:
    assert not says_full(error)


def test_a_folder_with_space_is_not_full(tmp_path: Path) -> None:
    assert not is_full(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_space_is_full(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from bids_app.bids.full_disk import is_full
folder = Path({str(tmp_path)!r})
assert not is_full(folder)
(folder / "x").write_bytes(bytes(1_500_000))
assert is_full(folder)
"""
    done = run_on_small_disk(code, tmp_path, megabytes=2)
    assert done.returncode == 0, done.stderr


def test_the_error_names_folder_and_step(tmp_path: Path) -> None:
    error = no_space(tmp_path, "step x")
    assert error.exit_code == 74
    assert f"{tmp_path}: no space left" in error.message
    assert "(step x)" in error.message


class FailsWhenFreed:
    """An object like a file of HDF5, whose disk is full when it is freed."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __del__(self) -> None:
        raise RuntimeError(self.message)


def test_errors_of_freed_files_are_hidden_only_on_a_full_disk(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr("sys.excepthook", sys.__excepthook__)
    hide_errors_of_freed_files()
    FailsWhenFreed("Can't decrement id ref count (unable to extend file, errno = 28)")
    assert capsys.readouterr().err == ""
    FailsWhenFreed("another error")
    assert "another error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "function", "hidden"),
    [
        ("h5py/_objects.pyx", "h5py._objects.ObjectID.__dealloc__", True),
        ("h5py/_objects.pyx", "h5py._objects.with_phil.wrapper", False),
        ("mine.py", "_dealloc", False),
    ],
)
def test_tracebacks_of_freed_files_are_not_printed(monkeypatch, capsys, file: str, function: str, hidden: bool) -> None:
    """Cython prints errors of its destructors by this function; the message does not always name the full disk."""
    monkeypatch.setattr("sys.unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr("sys.excepthook", sys.__excepthook__)
    hide_errors_of_freed_files()
    code = compile("raise RuntimeError('Cannot decrement id ref count')", file, "exec").replace(co_name=function)
    try:
        exec(code)
    except RuntimeError as error:
        trace = error.__traceback__
        assert trace is not None
        sys.excepthook(RuntimeError, error, trace.tb_next)
    assert ("Traceback" not in capsys.readouterr().err) == hidden
