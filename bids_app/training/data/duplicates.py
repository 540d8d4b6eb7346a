"""Scans of different participants that are copies of each other: they are one person, counted several times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from bids_app.terminal import first_of
from bids_app.training.data.quantise import voxels_of
from bids_app.training.data.scan import Scan

MAX_NAMED = 5
"""Maximum number of groups of copies to name in a warning."""


def find_copies(scans: Iterable[tuple[str, Scan]]) -> list[tuple[str, ...]]:
    """Find the participants whose scans have the same data.

    Compared are checksums of the mean image and of the first and the last volume, which take little time to read.

    Parameters
    ----------
    scans : iterable of (str, Scan)
        Participant, unique over datasets, and scan.

    Returns
    -------
    list of tuple of str
        Groups of at least two participants, each group once.
    """
    by_content: dict[bytes, dict[str, None]] = {}
    for participant, scan in scans:
        by_content.setdefault(_checksum(scan), {})[participant] = None
    return list(dict.fromkeys(tuple(people) for people in by_content.values() if len(people) > 1))


def warn_of_copies(groups: Sequence[tuple[str, ...]]) -> str:
    """Return a warning that names participants with identical series."""
    listed = first_of([" = ".join(f"sub-{label}" for label in group) for group in groups], MAX_NAMED, "; ")
    return (
        f"Warning: different participants have identical series: {listed}. They count as several people, "
        "so that scores and coverage are too good. Leave out the copies."
    )


def _checksum(scan: Scan) -> bytes:
    """Return a checksum of the voxels, the mean image, and the first and the last volume of a scan."""
    arrays, mask, last = scan.arrays, scan.arrays.mask(), scan.n_vols - 1
    n_voxels = len(voxels_of(mask))
    found = hashlib.sha256(str(scan.n_vols).encode())
    for part in (mask, arrays.mean(n_voxels), arrays.codes(0, 1, n_voxels), arrays.codes(last, last + 1, n_voxels)):
        found.update(part.tobytes())
    return found.digest()
