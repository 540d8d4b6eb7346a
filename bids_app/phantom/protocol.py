"""Scanner protocols: voxel size, timing, orientation and field of view, for BOLD and T1w scans."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bids_app.errors import UsageError
from bids_app.phantom.geometry import grid_affine, rng_for

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Protocol:
    """A BOLD protocol.

    Attributes
    ----------
    tr, te : float
        Repetition time and echo time, s.
    voxel_mm : (3,)
        Voxel size along right, anterior, superior.
    matrix : (3,)
        Number of voxels along right, anterior, superior.
    n_volumes : int
    orientation : str
        Axis codes of the stored array.
    oblique_deg : (3,)
        Rotation of the slab, degrees.
    slab_offset_mm : float
        Offset of the slab's centre above (negative: below) the brain's centre.
    dummies_kept : bool
        The series starts with non-steady-state volumes.
    snr : float
        Signal of grey matter over thermal noise.
    motion_mm : float
        Typical extent of head motion, mm and degrees.
    distortion : float
        Largest displacement in the brain by susceptibility distortion, mm; 0: none.
    readout : float
        Total readout time, s.
    """

    tr: float = 2.0
    te: float = 0.03
    voxel_mm: tuple[float, float, float] = (3.0, 3.0, 3.5)
    matrix: Size3 = (64, 64, 40)
    n_volumes: int = 60
    orientation: str = "RAS"
    oblique_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slab_offset_mm: float = 0.0
    dummies_kept: bool = False
    snr: float = 100.0
    motion_mm: float = 0.5
    distortion: float = 0.0
    readout: float = 0.03

    def __post_init__(self) -> None:
        if self.tr <= 0 or self.te <= 0 or min(self.voxel_mm) <= 0:
            raise UsageError(
                f"Simulated scan: TR {self.tr}, TE {self.te} and voxel size {self.voxel_mm} must be positive.",
                "Give times in s and voxel sizes in mm.",
            )
        if self.distortion < 0 or self.readout <= 0:
            raise UsageError(
                f"Simulated scan: invalid distortion of {self.distortion} mm or readout time of {self.readout} s.",
                "The distortion must be at least 0, and the readout time more than 0.",
            )
        if min(self.matrix) < 4 or self.n_volumes < 1:
            raise UsageError(
                f"Simulated scan: {self.matrix} voxels and {self.n_volumes} volumes are too few.",
                "At least 4 voxels along each axis and 1 volume are required.",
            )

    @property
    def flip_deg(self) -> float:
        """Ernst angle of grey matter, degrees."""
        return float(np.round(np.rad2deg(np.arccos(np.exp(-self.tr / 1.33)))))

    @property
    def peak_hz(self) -> float:
        """Field offset at the largest distortion, Hz."""
        return self.distortion / (self.readout * self.voxel_mm[1])

    @property
    def seconds(self) -> float:
        """Duration of the run, s."""
        return self.tr * self.n_volumes

    @property
    def slice_axis(self) -> int:
        """Axis of the stored array along which the slices are stacked."""
        return next(axis for axis, code in enumerate(self.orientation) if code in "SI")

    def grid(self) -> tuple[Size3, np.ndarray]:
        """Return the stored shape and affine of a volume."""
        centre = np.array([0.0, 0.0, self.slab_offset_mm])
        return grid_affine(self.matrix, self.voxel_mm, centre, self.orientation, np.array(self.oblique_deg))


SCANNERS = (
    Protocol(tr=2.0, voxel_mm=(3.0, 3.0, 3.5), matrix=(64, 72, 43), orientation="RAS"),
    Protocol(tr=0.8, voxel_mm=(3.0, 3.0, 3.0), matrix=(64, 72, 50), orientation="LAS", snr=80.0),
    Protocol(tr=2.5, voxel_mm=(3.5, 3.5, 3.5), matrix=(60, 64, 43), orientation="LPI", dummies_kept=True, snr=120.0),
    Protocol(tr=1.5, voxel_mm=(3.5, 3.5, 4.0), matrix=(58, 64, 30), orientation="LAS", slab_offset_mm=8.0),
    Protocol(tr=1.0, voxel_mm=(4.0, 4.0, 4.0), matrix=(52, 56, 38), orientation="RPI", dummies_kept=True),
    Protocol(tr=1.8, voxel_mm=(3.2, 3.2, 3.6), matrix=(64, 68, 32), orientation="PSR", slab_offset_mm=9.0),
)
"""Protocols of the simulated participants, in turn; the fourth and the sixth cut off part of the cerebellum."""

RUN_SECONDS = 100.0
SIZES = ("full", "small")


def protocol_for(
    participant: int,
    keys: tuple[int | str, ...],
    size: str = "full",
    volumes: int | None = None,
    base: Protocol | None = None,
) -> Protocol:
    """Return the protocol of one session: the participant's scanner with a random slab angle and position.

    Parameters
    ----------
    participant : int
        Index of the participant, from 0.
    keys : tuple
        Seed and names, see `bids_app.phantom.geometry.rng_for`.
    size : str
        ``"small"`` has larger voxels and shorter runs, for quick tests.
    volumes : int, optional
        Volumes per run; default: `RUN_SECONDS`, limited to 60 to 120 volumes.
    base : Protocol, optional
        Used instead of the participant's scanner; its angles and typical motion are varied.
    """
    if size not in SIZES:
        raise UsageError(f"Invalid value for --size: {size!r}.", f"Choose one of {', '.join(SIZES)}.")
    protocol = base or SCANNERS[participant % len(SCANNERS)]
    rng = rng_for(*keys, "protocol")
    x, y, z = np.round(rng.normal(0, 1, 3) * [9.0, 2.0, 2.0], 2).tolist() if participant % 2 else (0.0, 0.0, 0.0)
    protocol = replace(
        protocol,
        oblique_deg=(x, y, z) if base is None else _near(base.oblique_deg, rng),
        motion_mm=float(np.round(np.exp(rng.normal(np.log(base.motion_mm if base else 0.4), 0.5)), 3)),
        slab_offset_mm=protocol.slab_offset_mm + float(np.round(rng.normal(0, 1.5), 2)),
    )
    if size == "small":
        protocol = _coarsened(protocol, 4.5)
    n_volumes = volumes or (40 if size == "small" else int(np.clip(round(RUN_SECONDS / protocol.tr), 60, 120)))
    return replace(protocol, n_volumes=n_volumes)


def _near(degrees: tuple[float, float, float], rng: np.random.Generator) -> tuple[float, float, float]:
    """Return angles that differ as those of two sessions do."""
    x, y, z = np.round(np.array(degrees) + rng.normal(0, 1, 3) * [4.0, 1.0, 1.0], 2).tolist()
    return x, y, z


def _coarsened(protocol: Protocol, voxel_mm: float) -> Protocol:
    matrix = [round(n * v / voxel_mm) for n, v in zip(protocol.matrix, protocol.voxel_mm, strict=True)]
    return replace(protocol, voxel_mm=(voxel_mm,) * 3, matrix=(matrix[0], matrix[1], matrix[2]))


@dataclass(frozen=True)
class AnatomicalProtocol:
    """A T1w protocol; fields as in `Protocol`."""

    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    matrix: Size3 = (176, 224, 224)
    orientation: str = "RAS"
    noise: float = 0.02
    """Standard deviation of the noise, relative to white matter."""
    bias: float = 0.2
    """Standard deviation of the receive field's logarithm."""
    centre_mm: tuple[float, float, float] = (0.0, 0.0, -12.0)
    """Centre of the field of view, scanner mm."""
    oblique_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def grid(self) -> tuple[Size3, np.ndarray]:
        """Return the stored shape and affine."""
        return grid_affine(
            self.matrix, self.voxel_mm, np.array(self.centre_mm), self.orientation, np.array(self.oblique_deg)
        )


ANATOMICAL_SCANNERS = (
    AnatomicalProtocol(),
    AnatomicalProtocol((1.1, 1.1, 1.1), (160, 208, 204), "PIR"),
    AnatomicalProtocol((1.0, 1.2, 1.2), (176, 192, 188), "LPI"),
    AnatomicalProtocol((1.2, 1.2, 1.2), (150, 190, 186), "LAS", noise=0.03),
)


def anatomical_protocol_for(participant: int, size: str = "full") -> AnatomicalProtocol:
    """Return the T1w protocol of a participant (index from 0)."""
    protocol = ANATOMICAL_SCANNERS[participant % len(ANATOMICAL_SCANNERS)]
    return replace(protocol, voxel_mm=(2.0, 2.0, 2.0), matrix=(88, 112, 112)) if size == "small" else protocol
