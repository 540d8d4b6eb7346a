"""Runner of the fuzz targets: any input may only raise errors for users."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

FOUND = Path(__file__).parent / "found"


def fuzz(target: Callable[[bytes, Path], None], seeds: list[bytes]) -> None:
    """Call a target with mutated bytes until it raises or the time is over.

    Parameters
    ----------
    target : callable
        Takes the bytes and a writable folder.
    seeds : list of bytes
        Valid examples to start from.
    """
    FOUND.mkdir(exist_ok=True)
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        arguments = [*sys.argv, str(corpus), f"-artifact_prefix={FOUND}/", "-max_len=8192", "-timeout=20"]
        atheris.Setup(arguments, lambda data: target(data, Path(folder)))
        atheris.Fuzz()
