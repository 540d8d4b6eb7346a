"""What the targets share: bytes in; nothing but errors for users may come out."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

FOUND = Path(__file__).parent / "found"


def fuzz(target: Callable[[bytes, Path], None], seeds: list[bytes]) -> None:
    """Call a target with bytes that are changed again and again, until it raises or the time is over.

    Parameters
    ----------
    target : callable
        Takes the bytes, and a folder that it may write into.
    seeds : list of bytes
        Sound examples to begin with.
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
