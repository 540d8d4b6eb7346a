"""Slices of images in RAS mm, and SVG elements for mosaics."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

PLANES = ("x", "y", "z")
PLANE_NAMES = {"x": "sagittal", "y": "coronal", "z": "axial"}


@dataclass(frozen=True)
class Volume:
    """3D image in memory.

    Parameters
    ----------
    data : np.ndarray, (X, Y, Z)
        Float32 values.
    affine : np.ndarray, (4, 4)
        Voxel indices to RAS mm.
    """

    data: np.ndarray
    affine: np.ndarray

    @classmethod
    def load(cls, image: Any) -> Volume:
        """Read a file or a nibabel image; a 4D image is averaged over time, in chunks."""
        import nibabel as nib

        if isinstance(image, Volume):
            return image
        if isinstance(image, str | Path):
            image = nib.load(image)
        if len(image.shape) == 4:
            total = np.zeros(image.shape[:3])
            for start in range(0, image.shape[3], 20):
                total += np.asarray(image.dataobj[..., start : start + 20], dtype=np.float32).sum(axis=3)
            data = (total / image.shape[3]).astype(np.float32)
        else:
            data = np.asarray(image.dataobj, dtype=np.float32)
        return cls(np.nan_to_num(data), np.asarray(image.affine, dtype=float))


@dataclass(frozen=True)
class Box:
    """Box in RAS mm with the pixel size of its slices.

    Parameters
    ----------
    low, high : np.ndarray, (3,)
        Corners, mm.
    step_mm : float
        Pixel size of the slices, mm.
    """

    low: np.ndarray
    high: np.ndarray
    step_mm: float

    @classmethod
    def around(cls, mask: Volume, margin_mm: float = 8.0, step_mm: float = 1.0) -> Box:
        """Return the bounding box of a mask with a margin."""
        voxels = np.argwhere(mask.data > 0)
        if len(voxels) == 0:
            voxels = np.array([[0, 0, 0], np.array(mask.data.shape) - 1])
        low, high = voxels.min(axis=0), voxels.max(axis=0)
        corners = np.array(
            [[(low, high)[i][0], (low, high)[j][1], (low, high)[k][2]] for i, j, k in np.ndindex(2, 2, 2)]
        )
        points = corners @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        return cls(points.min(axis=0) - margin_mm, points.max(axis=0) + margin_mm, step_mm)

    def cut(self, volume: Volume, plane: str, position_mm: float, order: int = 1) -> np.ndarray:
        """Resample a slice of a volume, (rows, columns): up is superior or anterior, right is right or anterior."""
        from scipy.ndimage import map_coordinates

        axis = PLANES.index(plane)
        across, up = [i for i in range(3) if i != axis]
        columns = np.arange(self.low[across], self.high[across], self.step_mm)
        rows = np.arange(self.high[up], self.low[up], -self.step_mm)
        points = np.empty((3, len(rows), len(columns)))
        points[axis], points[across], points[up] = position_mm, columns[None, :], rows[:, None]
        inverse = np.linalg.inv(volume.affine)
        voxels = np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3, None, None]
        return map_coordinates(volume.data, voxels, order=order, mode="constant", cval=0.0)


def cut_positions(mask: Volume, n_cuts: int) -> dict[str, list[float]]:
    """Choose evenly spaced slice positions within the mask, by plane, mm."""
    import nibabel as nib
    from nireports.reportlets.utils import cuts_from_bbox

    return cuts_from_bbox(nib.as_closest_canonical(nib.Nifti1Image(mask.data, mask.affine)), n_cuts)


def foreground(volume: Volume) -> Volume:
    """Return a foreground mask by an intensity threshold."""
    threshold = 0.1 * float(np.percentile(volume.data, 99))
    return Volume((volume.data > threshold).astype(np.float32), volume.affine)


def svg_text(x: float, y: float, text: str, *, size: int, color: str = "#fff") -> str:
    """Render text with a dark outline, legible on bright images."""
    rim = 'stroke="#000" stroke-width="3" paint-order="stroke"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" {rim}>{escape(text)}</text>'


def svg_image(pixels: np.ndarray, left: float, top: float, width: float, height: float, *, exact: bool = False) -> str:
    """Embed uint8 pixels (rows, columns[, RGB]) as an SVG image: JPEG, or lossless PNG with ``exact``."""
    from PIL import Image

    buffer = BytesIO()
    if exact:
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=82, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    kind, look = ("png", ' style="image-rendering:pixelated"') if exact else ("jpeg", "")
    return (
        f'<image x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"{look} '
        f'href="data:image/{kind};base64,{data}"/>'
    )
