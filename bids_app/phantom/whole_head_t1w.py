"""Simulated T1w images of whole heads: several sequences, array coils, artefacts, and removal of face or skull."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from bids_app.errors import UsageError
from bids_app.phantom import artefacts
from bids_app.phantom.geometry import apply, grid_points, rng_for, sample, smooth_noise
from bids_app.phantom.head_shape import HeadShape
from bids_app.phantom.protocol import AnatomicalProtocol
from bids_app.phantom.t1w import BRIGHTNESS, FACE_MM, SLAB, SimulatedT1w
from bids_app.phantom.tissues import TissueMaps, t1w_brightness

CONTRASTS = {
    "mprage": {"gm": 0.66, "wm": 1.0, "csf": 0.22, "bone": 0.08, "fat": 1.05, "muscle": 0.48, "fluid": 0.22},
    "flash": {"gm": 0.82, "wm": 1.0, "csf": 0.32, "bone": 0.10, "fat": 1.15, "muscle": 0.66, "fluid": 0.40},
    "fatsat": {"gm": 0.66, "wm": 1.0, "csf": 0.22, "bone": 0.06, "fat": 0.40, "muscle": 0.48, "fluid": 0.20},
    "t2w": {"gm": 0.62, "wm": 0.42, "csf": 1.35, "bone": 0.05, "fat": 0.85, "muscle": 0.22, "fluid": 1.40},
}
"""Intensities relative to white matter (T2w: to grey and white matter's mean): MPRAGE, FLASH with weak contrast of grey
and white matter, MPRAGE with water excitation, and T2w (only for mislabelled images)."""
INV1 = {"gm": 0.09, "wm": 0.40, "csf": -0.30, "bone": 0.02, "fat": 0.55, "muscle": 0.12, "fluid": -0.30}
INV2 = {"gm": 0.90, "wm": 1.00, "csf": 0.60, "bone": 0.05, "fat": 0.90, "muscle": 0.60, "fluid": 0.60}
"""Signals of the two inversion images of MP2RAGE."""
SEQUENCES = (*CONTRASTS, "mp2rage")
REMOVALS = ("face", "skull")


@dataclass(frozen=True)
class T1wScan:
    """How a T1w image of a whole head is acquired.

    Attributes
    ----------
    protocol : AnatomicalProtocol
        Its grid and noise; ``bias`` is not used.
    sequence : str
        One of `SEQUENCES`.
    coil : float
        Bias of the receive coil over the brain, highest to lowest.
    transmit : float
        Standard deviation of the logarithm of the transmit field's effect.
    wrap_mm : float
        The field of view is smaller by this at each end of the anterior-posterior axis, and the image wraps around.
    ghosts : float
        Standard deviation of the phase errors of motion, radians.
    spike : float
        Amplitude of stripes, relative to the mean signal.
    removed : str, optional
        ``"face"`` or ``"skull"``.
    """

    protocol: AnatomicalProtocol = field(default_factory=AnatomicalProtocol)
    sequence: str = "mprage"
    coil: float = 2.0
    transmit: float = 0.05
    wrap_mm: float = 0.0
    ghosts: float = 0.0
    spike: float = 0.0
    removed: str | None = None

    def __post_init__(self) -> None:
        for value, choices in ((self.sequence, SEQUENCES), (self.removed or REMOVALS[0], REMOVALS)):
            if value not in choices:
                raise UsageError(f"Simulated T1w: invalid value {value!r}.", f"Choose one of {', '.join(choices)}.")
        if self.coil < 1:
            raise UsageError(f"Simulated T1w: the coil's bias is {self.coil}.", "Give 1 or more.")


def simulate_whole_head_t1w(
    head_shape: HeadShape, maps: TissueMaps, scan: T1wScan, keys: tuple[int | str, ...] = (0,)
) -> SimulatedT1w:
    """Simulate a T1w image of a whole head.

    Parameters
    ----------
    head_shape : HeadShape
    maps : TissueMaps
        Of `whole_head.whole_head_tissues`.
    scan : T1wScan
    keys : tuple of int or str
        Seed the scan's random numbers.
    """
    rng = rng_for(*keys, "whole-head t1w")
    shape, affine = scan.protocol.grid()
    codes = scan.protocol.orientation
    front = next(axis for axis, code in enumerate(codes) if code in "AP")
    template = _positions(head_shape, shape, affine)
    brain = _resampled(maps.brain, maps, template, shape) >= 0.5
    image = _signal(maps, scan, template, shape, affine, rng)
    step = np.linalg.norm(affine[:3, :3], axis=0)
    if scan.ghosts:
        image = artefacts.motion_ghosts(image, front, scan.ghosts, rng)
    if scan.spike:
        image = artefacts.spike(
            image, scan.spike * float(image[brain].mean() / image[image > image.mean()].mean()), rng
        )
    if scan.removed == "face":
        image = image * ~(_face(template, shape) & ~ndimage.binary_dilation(brain, iterations=3))
    if scan.removed == "skull":
        image = image * brain
    if scan.wrap_mm:
        n = round(scan.wrap_mm / step[front])
        image = artefacts.wrap_around(image, front, n)
        brain = np.moveaxis(np.moveaxis(brain, front, 0)[n:-n], 0, front)
        affine = affine.copy()
        affine[:3, 3] += n * affine[:3, front]
    scale = np.float32(1.0 if scan.sequence == "mp2rage" else BRIGHTNESS)
    return SimulatedT1w((image * scale).astype(np.float32), affine, brain)


def _positions(head_shape: HeadShape, shape: tuple[int, int, int], affine: np.ndarray) -> list[np.ndarray]:
    """Return the template positions (n, Y, Z, 3) of the voxels, slab by slab."""
    slabs = []
    for start in range(0, shape[0], SLAB):
        first = affine.copy()
        first[:3, 3] = apply(affine, np.array([start, 0.0, 0.0]))
        points = grid_points((min(SLAB, shape[0] - start), shape[1], shape[2]), first)
        slabs.append(head_shape.t1w_to_template(points))
    return slabs


def _resampled(
    volume: np.ndarray, maps: TissueMaps, template: list[np.ndarray], shape: tuple[int, int, int]
) -> np.ndarray:
    return np.concatenate([sample(volume, maps.affine, points) for points in template]).reshape(shape)


def _face(template: list[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Return the voxels in front of and below `FACE_MM`, (X, Y, Z) bool."""
    y, z = FACE_MM
    return np.concatenate([(p[..., 1] > y) & (p[..., 2] < z + 0.9 * (p[..., 1] - y)) for p in template]).reshape(shape)


def _signal(
    maps: TissueMaps,
    scan: T1wScan,
    template: list[np.ndarray],
    shape: tuple[int, int, int],
    affine: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the reconstructed image (X, Y, Z) before artefacts, white matter near 1 (MP2RAGE: 0 to 4095)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along_template = np.array(scan.protocol.voxel_mm)
    resolution = float(maps.affine[0, 0])
    blur = 0.42 * np.sqrt(np.clip(along_template**2 - resolution**2, 0, None)) / resolution
    coil = artefacts.coil_sensitivity(shape, affine, scan.coil, rng)
    texture = 1 + 0.05 * smooth_noise(maps.brain.shape, resolution, 6.0, rng) * (1 - maps.brain)

    def image_of(contrast: dict[str, float]) -> np.ndarray:
        brightness = t1w_brightness(maps, contrast) * texture
        return _resampled(ndimage.gaussian_filter(brightness, blur, truncate=2.5), maps, template, shape)

    noise = scan.protocol.noise
    if scan.sequence == "mp2rage":
        return artefacts.uniform_image(coil * image_of(INV1), coil * image_of(INV2), noise, rng)
    transmit = np.exp(scan.transmit * smooth_noise(shape, spacing, 160.0, rng))
    return artefacts.rician(coil * transmit * image_of(CONTRASTS[scan.sequence]), noise, rng)
