"""Diffeomorphic registration of two images after an affine one: symmetric, greedy, by local correlation and MI.

Both images are deformed towards a common grid half-way between them, as in SyN (Avants et al. 2008, Medical Image
Analysis 12:26). Each iteration moves both by at most a fraction of a voxel along the gradient of two measures:
correlation within small cubes, which aligns edges whatever the bias field, and mutual information, which aligns
tissues. A Gaussian filter smooths the update, another the field. The field from image to image is the composition of
one field with the inverse of the other. The same code runs on CPUs and GPUs; on a CPU, results repeat to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from bids_app.errors import RegistrationError
from bids_app.preprocess.brain_extraction import torch_threads
from bids_app.preprocess.registration.ants import CHECK_OVERLAP, Image, Registration
from bids_app.preprocess.registration.published import write_itk_composite
from bids_app.preprocess.registration.transforms import Chain, Linear, Warp, resample_to
from bids_app.preprocess.registration.transforms import linear as chain_of

MARGIN = 6
"""Voxels around the masks in which the fields decay to 0."""
MIN_VOXELS = 1000
"""Minimum voxels in both masks."""
MIN_JACOBIAN = 0.1
"""Minimum determinant of the Jacobian of both fields: no voxel is compressed to less than a tenth of its volume."""
SMOOTHINGS = 100
"""Maximum number of times that a field is smoothed where it is too steep."""
INVERSIONS = 20
"""Fixed-point iterations of an inverse."""
TINY = 1e-9
CHECK_CONTENT = "Open the image and see whether it is a whole brain."


@dataclass(frozen=True)
class Settings:
    """Settings of a registration; the levels are from coarse to fine, and distances are in voxels of each level."""

    iterations: tuple[int, ...] = (30, 30, 20)
    shrinks: tuple[int, ...] = (4, 2, 1)
    sigmas: tuple[float, ...] = (2.0, 1.0, 0.0)
    """Standard deviation of the smoothing of the images, voxels of the full resolution."""
    step: float = 0.3
    """Displacement of the voxel that moves most in an iteration."""
    update_sigmas: tuple[float, ...] = (2.0, 2.0, 1.0)
    """Standard deviation of the smoothing of each update; then that of the whole field."""
    field_sigma: float = 0.55
    radius: int = 3
    """Of the cubes of the local correlation."""
    bins: int = 32
    """Of the joint histogram of mutual information."""
    correlation_share: float = 0.7
    """Weight of the local correlation; mutual information has the rest."""


def register_diffeomorphically(
    fixed: Image,
    moving: Image,
    fixed_mask: np.ndarray,
    moving_mask: np.ndarray | None,
    matrix: np.ndarray,
    out_dir: Path,
    *,
    name: str = "registration",
    settings: Settings | None = None,
    device: str = "cpu",
) -> Registration:
    """Register two images from an affine alignment.

    Parameters
    ----------
    fixed, moving : Image
    fixed_mask : numpy.ndarray, (X, Y, Z) bool
        Voxels of the fixed image that are compared.
    moving_mask : numpy.ndarray, (X, Y, Z) bool, optional
        Voxels of the moving image that are compared; all by default.
    matrix : numpy.ndarray, (4, 4)
        Fixed to moving, RAS mm.
    out_dir : pathlib.Path
        Folder for the two transform files.
    name : str
        Prefix of the files.
    settings : Settings, optional
    device : str
        Torch device.

    Returns
    -------
    Registration
        Displacements are on the grid of the fixed image.

    Raises
    ------
    RegistrationError
        The images hardly overlap, have no contrast, or are not finite.
    """
    settings = settings or Settings()
    shape, pull = fixed.data.shape, chain_of(matrix)
    counted = np.ones(moving.data.shape) if moving_mask is None else moving_mask
    moved, moved_mask = (
        resample_to(np.asarray(data, np.float32), moving.affine, shape, fixed.affine, pull)
        for data in (moving.data, counted)
    )
    both = fixed_mask & (moved_mask > 0.5)
    if both.sum() < MIN_VOXELS:
        raise RegistrationError(f"{name}: the images overlap in {both.sum()} voxels.", CHECK_OVERLAP)
    scaled, scaled_moved = _scaled(fixed.data, both, name), _scaled(moved, both, name)
    box = _box(fixed_mask if moving_mask is None else fixed_mask | (moved_mask > 0.5), max(settings.shrinks))
    images = _crop(np.stack([scaled, fixed_mask, scaled_moved, moved_mask], dtype=np.float32), box)
    with torch_threads(1):
        half_fixed, half_moving = fit(images.to(device), settings)
        forward = compose(invert(half_fixed), half_moving)
        backward = compose(invert(half_moving), half_fixed)
    there, back = (Warp(_uncrop(field, box, shape, fixed.affine), fixed.affine) for field in (forward, backward))
    chain, inverse = Chain((there, Linear(matrix))), Chain((Linear(np.linalg.inv(matrix)), back))
    return Registration(
        chain,
        inverse,
        write_itk_composite(out_dir / f"{name}_Composite.h5", chain),
        write_itk_composite(out_dir / f"{name}_InverseComposite.h5", inverse),
    )


@torch.inference_mode()
def fit(images: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Deform two images towards each other.

    Parameters
    ----------
    images : torch.Tensor, (4, X, Y, Z) float32
        First image, its mask, second image, its mask; intensities are mostly between 0 and 1. The shape is a multiple
        of all ``shrinks``.
    settings : Settings

    Returns
    -------
    tuple of torch.Tensor, (3, X, Y, Z)
        Displacements from the common grid to both images, in voxels.
    """
    fields = images.new_zeros((2, 3, 1, 1, 1))
    for n_iterations, shrink, sigma, update_sigma in zip(
        settings.iterations, settings.shrinks, settings.sigmas, settings.update_sigmas, strict=True
    ):
        size = tuple(n // shrink for n in images.shape[1:])
        level = _resized(smooth(images, sigma), size)
        fields = torch.stack([_resized(field, size) * (size[0] / field.shape[1]) for field in fields])
        first, second = fields if fields.shape[2:] == size else fields.new_zeros((2, 3, *size))
        for _ in range(n_iterations):
            seen = warp(level[:2], first), warp(level[2:], second)
            mask = (seen[0][1] > 0.5) & (seen[1][1] > 0.5)
            pushes = forces(seen[0][0], seen[1][0], mask, settings)
            first, second = (
                _moved(field, image[0], push, update_sigma, settings)
                for field, image, push in zip((first, second), seen, pushes, strict=True)
            )
        fields = torch.stack([unfold(first), unfold(second)])
    return fields[0], fields[1]


def _moved(
    field: torch.Tensor, image: torch.Tensor, push: torch.Tensor, update_sigma: float, settings: Settings
) -> torch.Tensor:
    """Move a field one step along the gradient of the deformed image times ``push``, (X, Y, Z), and smooth it."""
    update = smooth(gradient(image) * push, update_sigma)
    update *= settings.step / (update.square().sum(dim=0).max().sqrt() + TINY)
    return smooth(compose(update, field), settings.field_sigma)


def forces(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor, settings: Settings) -> list[torch.Tensor]:
    """Compute the weighted derivative of both measures for the intensities of each image, (X, Y, Z), in the mask."""
    share, total = settings.correlation_share, []
    by_correlation = local_correlation(first, second, mask, settings.radius)
    by_information = mutual_information(first[mask], second[mask], settings.bins)
    for local, common in zip(by_correlation, by_information, strict=True):
        values = local[mask]
        push = torch.zeros_like(first)
        push[mask] = share * values / (values.std() + TINY) + (1 - share) * common / (common.std() + TINY)
        total.append(push)
    return total


def local_correlation(
    first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor, radius: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the derivative of the squared correlation within cubes, for the intensities of both images.

    That of the centre of each cube is taken, as in ANTs (Avants et al. 2011, NeuroImage 54:2033). Voxels outside the
    mask do not contribute.
    """
    weights = mask.to(first.dtype)
    a, b = first * weights, second * weights
    n, sum_a, sum_b, sum_aa, sum_bb, sum_ab = cube_sums(torch.stack([weights, a, b, a * a, b * b, a * b]), radius)
    n = n.clamp(min=1)
    mean_a, mean_b = sum_a / n, sum_b / n
    var_a, var_b, both = sum_aa / n - mean_a**2, sum_bb / n - mean_b**2, sum_ab / n - mean_a * mean_b
    var_a += 1e-3 * var_a[mask].mean() + TINY  # no division by the variance of a constant region
    var_b += 1e-3 * var_b[mask].mean() + TINY
    from_a, from_b, scale = first - mean_a, second - mean_b, 2 * both / (var_a * var_b)
    return scale * (from_b - both / var_a * from_a), scale * (from_a - both / var_b * from_b)


def mutual_information(a: torch.Tensor, b: torch.Tensor, n_bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the derivative of mutual information for intensities between 0 and 1, (N,) and (N,).

    That is the derivative of the logarithm of the conditional density, from a joint histogram that is smoothed by one
    bin (Hermosillo et al. 2002, International Journal of Computer Vision 50:329).
    """
    place_a, place_b = (2 + (n_bins - 5) * values.clamp(0, 1) for values in (a, b))  # two bins are free at the ends
    bin_a, bin_b = place_a.floor(), place_b.floor()
    right_a, right_b = place_a - bin_a, place_b - bin_b
    corner = (bin_a * n_bins + bin_b).long()
    corners = [
        (corner, (1 - right_a) * (1 - right_b)),
        (corner + 1, (1 - right_a) * right_b),
        (corner + n_bins, right_a * (1 - right_b)),
        (corner + n_bins + 1, right_a * right_b),
    ]
    counts = torch.stack([torch.bincount(index, weight, minlength=n_bins**2) for index, weight in corners]).sum(dim=0)
    density = smooth(counts.reshape(1, n_bins, n_bins, 1).to(a.dtype), 1.0)[0, :, :, 0] / len(a) + TINY
    slopes = []
    for axis in (0, 1):
        conditional = (density / density.sum(dim=1 - axis, keepdim=True)).log()
        (slope,) = torch.gradient(conditional, dim=axis)
        slopes.append(torch.stack([slope.reshape(-1)[index] * weight for index, weight in corners]).sum(dim=0))
    return slopes[0], slopes[1]


def cube_sums(images: torch.Tensor, radius: int) -> torch.Tensor:
    """Sum images (C, X, Y, Z) over cubes around each voxel; beyond the border, they are 0."""
    return _filtered(images, [1.0] * (radius + 1))


def smooth(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Filter images (C, X, Y, Z) by a Gaussian; beyond the border, they are 0."""
    if sigma == 0:
        return images
    weights = np.exp(-(np.arange(int(np.ceil(3 * sigma)) + 1) ** 2) / (2 * sigma**2))
    return _filtered(images, (weights / (2 * weights.sum() - weights[0])).tolist())


def _filtered(images: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """Filter images (C, X, Y, Z) along each axis by symmetric weights, given from the centre."""
    for axis in (1, 2, 3):
        n, total = images.shape[axis], images * weights[0]
        for distance, weight in enumerate(weights[1 : images.shape[axis]], start=1):
            left, right = (images.narrow(axis, start, n - distance) for start in (0, distance))
            total.narrow(axis, distance, n - distance).add_(left, alpha=weight)
            total.narrow(axis, 0, n - distance).add_(right, alpha=weight)
        images = total
    return images


def warp(images: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Interpolate images (C, X, Y, Z) linearly at displaced voxels; beyond the border, they are 0."""
    axes = [torch.arange(n, dtype=field.dtype, device=field.device) for n in field.shape[1:]]
    points = [start + shift for start, shift in zip(torch.meshgrid(*axes, indexing="ij"), field, strict=True)]
    scaled = [2 * p / max(n - 1, 1) - 1 for p, n in zip(points, images.shape[1:], strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1)
    return functional.grid_sample(images[None], grid[None], align_corners=True)[0]


def gradient(image: torch.Tensor) -> torch.Tensor:
    """Compute central differences of an image (X, Y, Z), per voxel; (3, X, Y, Z), 0 at the border."""
    found = image.new_zeros((3, *image.shape))
    for axis, n in enumerate(image.shape):
        difference = image.narrow(axis, 2, n - 2) - image.narrow(axis, 0, n - 2)
        found[axis].narrow(axis, 1, n - 2).copy_(difference).div_(2)
    return found


def compose(first: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    """Return the displacements (3, X, Y, Z) of one field followed by another."""
    return first + warp(then, first)


def invert(field: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a field (3, X, Y, Z)."""
    inverse = -field
    for _ in range(INVERSIONS):
        inverse = inverse - compose(inverse, field) / 2  # whole steps diverge where the field is steep
    return inverse


def jacobians(field: torch.Tensor) -> torch.Tensor:
    """Compute the determinants of the Jacobian of a field (3, X, Y, Z) in voxels; (X, Y, Z), 1 at the border."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (gradient(component) for component in field)
    xx, yy, zz = xx + 1, yy + 1, zz + 1
    return xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)


def unfold(field: torch.Tensor) -> torch.Tensor:
    """Smooth a field (3, X, Y, Z) where it compresses too much, until it does so nowhere."""
    for _ in range(SMOOTHINGS):
        folded = jacobians(field) < MIN_JACOBIAN
        if not folded.any():
            break
        weight = smooth(cube_sums(folded[None].to(field.dtype), 1).clamp(max=1), 1.0)
        field = field + weight * (smooth(field, 1.0) - field)
    return field


def _scaled(image: np.ndarray, mask: np.ndarray, name: str) -> np.ndarray:
    """Scale an image so that nearly all of its voxels in a mask are between 0 and 1."""
    if not np.isfinite(image).all():
        raise RegistrationError(f"{name}: an image has values that are not finite.", CHECK_CONTENT)
    low, high = np.quantile(image[mask], (0.001, 0.999))
    if low == high:
        raise RegistrationError(f"{name}: an image has the same value nearly everywhere.", CHECK_CONTENT)
    return (image - low) / (high - low)


def _resized(images: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Interpolate images (C, X, Y, Z) on a grid of the same extent."""
    return functional.interpolate(images[None], size=size, mode="trilinear", align_corners=False)[0]


def _box(mask: np.ndarray, multiple: int) -> list[tuple[int, int]]:
    """Return the first and last voxel (exclusive) along each axis of a mask and its margin; they may be outside."""
    box = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        start, end = int(used[0]) - MARGIN, int(used[-1]) + 1 + MARGIN
        surplus = (start - end) % multiple
        box.append((start - surplus // 2, end + surplus - surplus // 2))
    return box


def _crop(images: np.ndarray, box: list[tuple[int, int]]) -> torch.Tensor:
    """Cut a box out of images (C, X, Y, Z); beyond the border, they are 0."""
    padding = [(max(0, -a), max(0, b - n)) for (a, b), n in zip(box, images.shape[1:], strict=True)]
    padded = np.pad(images, [(0, 0), *padding])
    inside = tuple(slice(a + before, b + before) for (a, b), (before, _) in zip(box, padding, strict=True))
    return torch.from_numpy(np.ascontiguousarray(padded[(slice(None), *inside)]))


def _uncrop(field: torch.Tensor, box: list[tuple[int, int]], shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Convert a field of a box (3, X, Y, Z) in voxels to displacements in mm (X, Y, Z, 3) on the whole grid."""
    vectors = np.einsum("ij,jxyz->xyzi", affine[:3, :3], field.cpu().numpy().astype(np.float64))
    whole = np.zeros((*shape, 3), np.float32)
    here = tuple(slice(max(0, a), min(b, n)) for (a, b), n in zip(box, shape, strict=True))
    there = tuple(slice(max(0, -a), min(b, n) - a) for (a, b), n in zip(box, shape, strict=True))
    whole[here] = vectors[there]
    return whole
