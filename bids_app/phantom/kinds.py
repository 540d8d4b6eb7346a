"""Named kinds of participants and protocols whose whole heads are as difficult as those of real scans.

A kind joins a person, a T1w scan, a BOLD protocol and the vendor's way of writing headers. Voxel sizes, matrices and
orientations follow real scans of three vendors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from bids_app.errors import UsageError
from bids_app.phantom.epi import EpiImperfections
from bids_app.phantom.geometry import rng_for
from bids_app.phantom.head_shape import BRAIN_CENTRE_MM, HeadShape
from bids_app.phantom.protocol import AnatomicalProtocol, Protocol
from bids_app.phantom.whole_head import Person
from bids_app.phantom.whole_head_t1w import T1wScan

HEADERS = {"both": (1, 1), "qform": (1, 0), "sform": (0, 1)}
"""Codes of qform and sform that a kind's images have."""


@dataclass(frozen=True)
class Kind:
    """A kind of participant and protocol.

    Attributes
    ----------
    vendor : str
        ``Manufacturer`` in the sidecars.
    person : Person
        The typical person; each participant differs from it, see `vary`.
    t1w : T1wScan
    bold : Protocol
    epi : EpiImperfections
    header : str
        One of `HEADERS`.
    thickness_mm : float, optional
        Thickness of the BOLD slices, if there is a gap between them.
    """

    vendor: str
    person: Person = field(default_factory=Person)
    t1w: T1wScan = field(default_factory=T1wScan)
    bold: Protocol = field(default_factory=Protocol)
    epi: EpiImperfections = field(default_factory=EpiImperfections)
    header: str = "both"
    thickness_mm: float | None = None


def _t1w(voxel_mm: tuple[float, float, float], orientation: str, noise: float, **scan: object) -> T1wScan:
    """Return a T1w scan of a field of view of 192 x 248 x 256 mm, of which the lower third is face and neck."""
    x, y, z = (round(n / v) for n, v in zip((192, 248, 256), voxel_mm, strict=True))
    grid = AnatomicalProtocol(voxel_mm, (x, y, z), orientation, noise=noise, centre_mm=(0.0, -6.0, -30.0))
    if orientation in ("PSR", "PIR"):
        grid = replace(grid, oblique_deg=(4.0, -2.0, 1.5))
    return T1wScan(grid, **scan)  # type: ignore[arg-type]


ADULT = Person()
CHILD = Person(skull_mm=3.5, scalp_mm=3.8, csf_mm=0.6, marrow=0.5, neck_mm=46.0, face_size=0.72, brain_scale=0.93)
OLD = Person(skull_mm=6.0, scalp_mm=5.0, csf_mm=1.5, marrow=0.8, neck_mm=62.0, atrophy=0.8, lesions=7)
HEAVY = Person(skull_mm=5.5, scalp_mm=8.0, marrow=0.8, neck_mm=68.0)

KINDS: dict[str, Kind] = {
    "adult": Kind(
        "Siemens",
        ADULT,
        _t1w((1.0, 1.0, 1.0), "PSR", 0.03, coil=1.6),
        Protocol(2.0, 0.03, (3.0, 3.0, 3.75), (74, 74, 36), orientation="LAS", oblique_deg=(-17.0, 0, 0), snr=300.0),
        EpiImperfections(coil=1.6, ghost=0.012),
        thickness_mm=3.0,
    ),
    "flash": Kind(
        "GE",
        HEAVY,
        _t1w((1.0, 1.0, 1.2), "LPS", 0.035, sequence="flash", coil=2.5),
        Protocol(2.0, 0.03, (3.4, 3.4, 4.0), (64, 64, 33), orientation="LPI", dummies_kept=True, snr=300.0),
        EpiImperfections(coil=2.0, ghost=0.018, signal_loss=0.8),
        header="sform",
    ),
    "mp2rage": Kind(
        "Siemens",
        ADULT,
        _t1w((1.0, 1.0, 1.0), "PSR", 0.035, sequence="mp2rage", coil=3.0),
        Protocol(1.5, 0.025, (2.5, 2.5, 2.5), (84, 84, 52), orientation="LAS", oblique_deg=(-12.0, 1.0, 0), snr=220.0),
        EpiImperfections(coil=3.0, ghost=0.012, signal_loss=0.85, acceleration=2.0),
    ),
    "multiband": Kind(
        "Siemens",
        Person(skull_mm=4.5, scalp_mm=4.5, neck_mm=52.0),
        _t1w((1.0, 1.0, 1.0), "PIR", 0.025, sequence="fatsat", coil=1.4, removed="face"),
        Protocol(0.8, 0.037, (2.4, 2.4, 2.4), (88, 88, 60), orientation="LAS", oblique_deg=(-10.0, 0, 1.0), snr=160.0),
        EpiImperfections(coil=1.8, ghost=0.006, acceleration=6.0),
    ),
    "child": Kind(
        "Philips",
        CHILD,
        _t1w((1.0, 1.0, 1.0), "PSR", 0.04, coil=2.5, ghosts=0.15),
        Protocol(2.0, 0.03, (3.0, 3.0, 3.5), (76, 76, 38), orientation="LPS", snr=280.0, motion_mm=1.2),
        EpiImperfections(coil=3.2, ghost=0.018),
        header="qform",
    ),
    "old": Kind(
        "GE",
        OLD,
        _t1w((1.0, 1.0, 1.0), "RPI", 0.03, coil=5.0, ghosts=0.25),
        Protocol(2.5, 0.03, (3.5, 3.5, 3.5), (64, 64, 40), orientation="LPI", oblique_deg=(-8.0, 2.0, 0), snr=280.0),
        EpiImperfections(coil=2.5, ghost=0.018, spikes=3),
    ),
    "thick": Kind(
        "Siemens",
        Person(skull_mm=4.5, scalp_mm=6.0, neck_mm=60.0),
        _t1w((3.0, 1.33, 1.33), "RAS", 0.02, coil=2.8),
        Protocol(1.0, 0.03, (3.0, 3.0, 3.75), (64, 64, 18), orientation="LAS", oblique_deg=(-9.0, 0, 0), snr=300.0),
        EpiImperfections(coil=2.2, ghost=0.012),
        thickness_mm=3.0,
    ),
    "wrapped": Kind(
        "Philips",
        HEAVY,
        _t1w((1.0, 1.1, 1.1), "PSR", 0.04, coil=3.0, wrap_mm=26.0, spike=0.06),
        Protocol(2.0, 0.03, (3.0, 3.0, 4.0), (80, 80, 30), orientation="LPS", oblique_deg=(0, 0, 4.0), snr=220.0),
        EpiImperfections(coil=3.4, ghost=0.024, spikes=2, signal_loss=0.9),
        header="sform",
    ),
    "coarse": Kind(
        "Siemens",
        ADULT,
        _t1w((2.0, 2.0, 2.0), "RAS", 0.015, coil=1.5),
        Protocol(
            1.0, 0.03, (3.375, 3.375, 3.4), (64, 64, 33), orientation="LAS", oblique_deg=(-6.0, 3.0, 6.0), snr=320.0
        ),
        EpiImperfections(coil=1.5, ghost=0.006, acceleration=3.0),
    ),
    "stripped": Kind(
        "Philips",
        Person(atrophy=0.3),
        _t1w((1.0, 1.0, 1.0), "LAS", 0.03, coil=1.6, removed="skull"),
        Protocol(2.0, 0.03, (3.0, 3.0, 3.3), (80, 80, 35), orientation="LAS", oblique_deg=(-13.0, 0, 0), snr=300.0),
        EpiImperfections(coil=1.6, ghost=0.012),
    ),
}
"""Kinds by name: MPRAGE of an adult; FLASH; MP2RAGE; defaced with multiband EPI; a child; an old participant with
atrophy and lesions; thick sagittal slices with a slab of EPI; wrap-around; 2 mm; skull-stripped."""
SMALL_T1W_MM = 2.0


def kind_named(name: str) -> Kind:
    """Return a kind of `KINDS`.

    Raises
    ------
    UsageError
        Unknown name.
    """
    if name not in KINDS:
        raise UsageError(f"Invalid value for --kind: {name!r}.", f"Choose from {', '.join(KINDS)}, or all.")
    return KINDS[name]


def vary(person: Person, *keys: int | str) -> Person:
    """Return a random person like the given one; the same keys give the same person."""
    rng = rng_for(*keys, "kind")
    factors = np.exp(rng.normal(0, 1, 5) * [0.15, 0.2, 0.05, 0.25, 0.02])
    return replace(
        person,
        skull_mm=float(person.skull_mm * factors[0]),
        scalp_mm=float(person.scalp_mm * factors[1]),
        neck_mm=float(person.neck_mm * factors[2]),
        csf_mm=float(person.csf_mm * factors[3]),
        brain_scale=float(person.brain_scale * factors[4]),
    )


def resized(head_shape: HeadShape, scale: float) -> HeadShape:
    """Return a head shape whose head is larger (smaller) by a factor about the brain's centre."""
    affine = head_shape.affine.copy()
    affine[:3, :3] /= scale
    affine[:3, 3] = BRAIN_CENTRE_MM - affine[:3, :3] @ BRAIN_CENTRE_MM
    return replace(head_shape, affine=affine)


def small_t1w(scan: T1wScan) -> T1wScan:
    """Return a scan with voxels of at least 2 mm, for quick tests."""
    old = scan.protocol
    sizes = [max(v, SMALL_T1W_MM) for v in old.voxel_mm]
    matrix = [round(n * v / s) for n, v, s in zip(old.matrix, old.voxel_mm, sizes, strict=True)]
    grid = replace(old, voxel_mm=(sizes[0], sizes[1], sizes[2]), matrix=(matrix[0], matrix[1], matrix[2]))
    return replace(scan, protocol=grid)
