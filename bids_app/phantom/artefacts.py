"""Imperfections of real scanners, as pure functions of arrays: array coils, aliasing, ghosts, spikes and noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_app.phantom.geometry import grid_points

COIL_RADIUS_MM = 135.0
"""Distance of the receive elements from the centre of the brain."""
N_ELEMENTS = 16


def coil_sensitivity(
    shape: tuple[int, int, int], affine: np.ndarray, ratio: float, rng: np.random.Generator
) -> np.ndarray:
    """Simulate the receive sensitivity of an array coil, the root of the sum of squares of its elements.

    The elements surround the head without the face, so the scalp is brighter than the brain and the neck is dark.

    Parameters
    ----------
    shape : tuple of int
    affine : (4, 4)
        Voxel to scanner mm.
    ratio : float
        Highest to lowest sensitivity within 75 mm of the centre of the brain; 1 for a uniform image.

    Returns
    -------
    (X, Y, Z) float32
        1 at the centre of the brain.
    """
    if ratio <= 1:
        return np.ones(shape, np.float32)
    step = 6
    small = (-(-shape[0] // step) + 1, -(-shape[1] // step) + 1, -(-shape[2] // step) + 1)
    points = grid_points(small, affine @ np.diag([step, step, step, 1.0]))
    centre = np.array([0.0, -18.0, 8.0]) + rng.normal(0, 5.0, 3)
    elements = _directions(rng) * COIL_RADIUS_MM + centre
    gains = rng.uniform(0.6, 1.4, len(elements))

    def log_sensitivity(at: np.ndarray) -> np.ndarray:
        squares = np.zeros(at.shape[:-1])
        for element, gain in zip(elements, gains, strict=True):
            squares += gain / (((at - element) ** 2).sum(axis=-1) + 45.0**2) ** 2
        return 0.5 * np.log(squares)

    ball = rng.normal(0, 1, (2000, 3))
    ball *= 75.0 * (rng.random(2000) ** (1 / 3) / np.linalg.norm(ball, axis=1))[:, None]
    inside = log_sensitivity(ball + centre)
    power = np.log(ratio) / float(inside.max() - inside.min())
    field = power * (log_sensitivity(points) - log_sensitivity(centre[None])[0])
    return np.exp(_enlarged(field.astype(np.float32), shape, step))


def _directions(rng: np.random.Generator) -> np.ndarray:
    """Return unit vectors (N, 3) that cover the sphere evenly, without the face and the neck."""
    n = 2 * N_ELEMENTS
    height = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (1 + 5**0.5) * np.arange(n) + rng.uniform(0, 2 * np.pi)
    around = np.sqrt(1 - height**2)
    vectors = np.stack([around * np.cos(angle), around * np.sin(angle), height], axis=1)
    return vectors[(vectors[:, 2] > -0.55) & ~((vectors[:, 1] > 0.55) & (vectors[:, 2] < 0.35))]


def _enlarged(coarse: np.ndarray, shape: tuple[int, int, int], step: int) -> np.ndarray:
    """Interpolate a coarse field linearly at every voxel."""
    for axis, n in enumerate(shape):
        at = np.arange(n) / step
        low = at.astype(int)
        near = np.moveaxis(coarse, axis, 0)
        share = (at - low)[:, None, None].astype(np.float32)
        coarse = np.moveaxis(near[low] * (1 - share) + near[np.minimum(low + 1, len(near) - 1)] * share, 0, axis)
    return np.ascontiguousarray(coarse)


def wrap_around(image: np.ndarray, axis: int, n_voxels: int) -> np.ndarray:
    """Alias an image whose field of view is ``n_voxels`` too small at each end of an axis; the image gets smaller."""
    length = image.shape[axis] - 2 * n_voxels
    moved = np.moveaxis(image, axis, 0)
    folded = moved[n_voxels : n_voxels + length].copy()
    folded[-n_voxels:] += moved[:n_voxels]
    folded[:n_voxels] += moved[n_voxels + length :]
    return np.moveaxis(folded, 0, axis)


def half_ghost(image: np.ndarray, axis: int, level: float) -> np.ndarray:
    """Add the ghost of EPI, shifted by half of the field of view along the phase-encoding axis."""
    return image + np.float32(level) * np.roll(image, image.shape[axis] // 2, axis=axis)


def motion_ghosts(image: np.ndarray, axis: int, level: float, rng: np.random.Generator) -> np.ndarray:
    """Blur and ghost a 3D image as breathing and small movements do: phase errors along the phase-encoding axis."""
    n = image.shape[axis]
    lines = np.fft.fftfreq(n)
    sway = ndimage.gaussian_filter1d(rng.standard_normal(n), 2.0, mode="wrap")
    phase = level * sway / sway.std() * np.minimum(np.abs(lines) / 0.05, 1.0)
    spectrum = np.fft.fft(image, axis=axis)
    shape = [1, 1, 1]
    shape[axis] = n
    return np.abs(np.fft.ifft(spectrum * np.exp(1j * phase).reshape(shape), axis=axis)).astype(np.float32)


def spike(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Add the stripes of a spike in k-space to each plane of the last axis; ``level``: relative to the signal."""
    x, y = (rng.integers(2, max(3, n // 3)) for n in image.shape[:2])
    i, j = np.indices(image.shape[:2], sparse=True)
    wave = np.cos(2 * np.pi * (x * i / image.shape[0] + y * j / image.shape[1]) + rng.uniform(0, 6.3))
    bright = float(image[image > image.mean()].mean())
    return np.abs(image + np.float32(level * bright) * wave[..., None].astype(np.float32))


def rician(image: np.ndarray, sigma: float | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a magnitude image with complex noise; ``sigma`` is a number or an array of the image's shape."""
    out = np.empty(image.shape, np.float32)
    levels = np.broadcast_to(np.asarray(sigma, np.float32), image.shape)
    for plane, signal, level in zip(out, image, levels, strict=True):  # plane by plane to save memory
        real, imaginary = rng.standard_normal((2, *signal.shape), dtype=np.float32) * level
        plane[...] = np.hypot(signal + real, imaginary)
    return out


def uniform_image(inv1: np.ndarray, inv2: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Combine the two inversion images of MP2RAGE (Marques et al. 2010), 0 to 4095; noise where there is no signal.

    Parameters
    ----------
    inv1, inv2 : (X, Y, Z)
        Signed signals.
    sigma : float
        Standard deviation of their noise.
    """
    out = np.empty(inv1.shape, np.float32)
    for plane, first, second in zip(out, inv1, inv2, strict=True):
        noise = rng.standard_normal((4, *first.shape), dtype=np.float32) * np.float32(sigma)
        a, b = first + noise[0] + 1j * noise[1], second + noise[2] + 1j * noise[3]
        product, power = (a * b.conj()).real, np.abs(a) ** 2 + np.abs(b) ** 2
        plane[...] = 4095 * (product / np.maximum(power, 1e-12) + 0.5)
    return out


def g_factor(
    shape: tuple[int, int, int], affine: np.ndarray, acceleration: float, rng: np.random.Generator
) -> np.ndarray:
    """Simulate the noise amplification of parallel imaging: highest in the centre of the head, (X, Y, Z) float32."""
    points = grid_points(shape, affine)
    centre = np.array([0.0, -18.0, 8.0]) + rng.normal(0, 6.0, 3)
    distance = np.linalg.norm(points - centre.astype(np.float32), axis=-1)
    return 1 + np.float32(0.18 * (acceleration - 1)) * np.exp(-((distance / 55.0) ** 2))
