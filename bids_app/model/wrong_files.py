"""Errors of files that are not the expected weights, with the likely cause and the way out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bids_app.errors import BadDataError

ENCODER_FORMAT, ADAPTER_FORMAT = "neurostorm-encoder", "neurostorm-adapter"
CHECKPOINT, SAFETENSORS = "PyTorch checkpoint", "safetensors file"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ZIP = b"PK\x03\x04"
"""First bytes of a checkpoint."""
OPTIONS = {ENCODER_FORMAT: "--model", ADAPTER_FORMAT: "--adapter"}


def unreadable(path: Path, kind: str, error: Exception) -> BadDataError:
    """Return the error of a file that cannot be read as a ``kind`` of file, `CHECKPOINT` or `SAFETENSORS`."""
    first = b""
    with suppress(OSError), path.open("rb") as file:
        first = file.read(len(LFS_POINTER))
    if first == LFS_POINTER:
        return BadDataError(
            f"{path}: a Git LFS pointer instead of the weights.",
            "Run 'git lfs pull' in its folder, or download the file.",
        )
    if kind == SAFETENSORS and first.startswith(ZIP):
        return BadDataError(
            f"{path}: a PyTorch checkpoint, not a safetensors file.",
            "Give it with --model, which applies its head, or convert it with 'neurostorm-models convert --adapter'.",
        )
    return BadDataError(
        f"{path}: not a readable {kind} ({str(error)[:200]}).", "Download it again; it may be truncated."
    )


def wrong_format(path: Path, found: str, expected: str) -> BadDataError:
    """Return the error of a safetensors file of another format."""
    option = OPTIONS.get(found)
    hint = f"Give it with {option}." if option else f"Give a file of format {expected}."
    return BadDataError(f"{path}: the format is {found!a}, not {expected!r}.", hint)
