"""Figure of the model input: volumes on the model's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_app.reports.figures.cuts import PLANE_NAMES, PLANES, svg_image, svg_text
from bids_app.reports.figures.style import PALETTE, save_svg


@dataclass(frozen=True)
class GridView:
    """Volume on the model's grid, one row of `plot_model_grid`.

    Parameters
    ----------
    name : str
        Label, such as "Mean of the run".
    values : np.ndarray, (96, 96, 96)
        Values in any unit.
    signed : bool
        Use a diverging colour map centred at 0, masked to the brain, as for z-scores.
    unit : str
        Unit of the colour bar.
    """

    name: str
    values: np.ndarray
    signed: bool = False
    unit: str = ""


def plot_model_grid(
    views: Sequence[GridView], affine: np.ndarray, path: Path, *, mask: np.ndarray, patch: int = 6, title: str
) -> Path:
    """Plot three orthogonal slices of the model input, with the patches of the encoder.

    Parameters
    ----------
    views : sequence of GridView
        One row per view.
    affine : np.ndarray, (4, 4)
        Voxel indices of the grid to RAS mm.
    path : pathlib.Path
        The SVG file to write.
    mask : np.ndarray, (96, 96, 96)
        Brain mask, plotted as an outline.
    patch : int
        Edge length of a patch, voxels.
    title : str
        Title of the figure, for its text alternative.
    """
    import nibabel as nib
    from skimage.measure import find_contours

    def to_ras(values: np.ndarray) -> np.ndarray:
        image = nib.Nifti1Image(np.asarray(values, np.float32), affine)
        return np.asarray(nib.as_closest_canonical(image).dataobj)

    size, gap, left_margin, header = 300, 14, 10, 34
    brain = to_ras(mask)
    inside = np.argwhere(brain > 0)
    centre = inside.mean(axis=0).round().astype(int) if len(inside) else np.array(brain.shape) // 2
    scale = size / brain.shape[0]
    body = []
    for row, view in enumerate(views):
        top = header + row * (size + header + gap)
        volume = to_ras(view.values)
        low, high = _window(volume, brain, view.signed)
        body.append(svg_text(left_margin, top - 12, view.name, size=16))
        for column, plane in enumerate(reversed(PLANES)):
            left = left_margin + column * (size + gap)
            index = (*[slice(None)] * PLANES.index(plane), centre[PLANES.index(plane)])
            cut, brain_cut = volume[index].T[::-1], brain[index].T[::-1]
            pixels = _colour(np.where(brain_cut > 0, cut, 0) if view.signed else cut, low, high, view.signed)
            body.append(svg_image(pixels, left, top, size, size, exact=True))
            for line in find_contours(np.pad(brain_cut, 1), 0.5):
                points = "L".join(f"{left + (x - 0.5) * scale:.1f} {top + (y - 0.5) * scale:.1f}" for y, x in line)
                body.append(f'<path d="M{points}" fill="none" stroke="{PALETTE[1]}" stroke-width="1.5"/>')
            body.append(_lattice(left, top, size, patch * scale))
            if plane != "x":
                body += [svg_text(left + 8, top + 24, "L", size=18), svg_text(left + size - 20, top + 24, "R", size=18)]
            body.append(svg_text(left + 8, top + size - 10, PLANE_NAMES[plane], size=13, color="#b8c2cc"))
        body.append(_scale_bar(left_margin + 3 * (size + gap), top, size, low, high, view))
    width = left_margin + 3 * (size + gap) + 96
    height = len(views) * (size + header + gap)
    background = f'<rect width="{width}" height="{height}" fill="#000"/>'
    text = f"Axial, coronal and sagittal slices of: {'; '.join(view.name for view in views)}. Brain mask outlined."
    return save_svg(path, width, height, background + "".join(body), title, text)


def _window(volume: np.ndarray, brain: np.ndarray, signed: bool) -> tuple[float, float]:
    """Return the limits of the colour scale, from values in the brain."""
    values = volume[brain > 0] if (brain > 0).any() else volume
    if signed:
        limit = float(np.percentile(np.abs(values), 99)) or 1.0
        return -limit, limit
    low, high = map(float, np.percentile(values, [1, 99.5]))
    return low, high if high > low else low + 1.0


def _colour(cut: np.ndarray, low: float, high: float, signed: bool) -> np.ndarray:
    """Map a slice to RGB, (rows, columns, 3) uint8: grey, or blue-black-orange if signed."""
    share = np.clip((cut - low) / (high - low), 0, 1)
    if not signed:
        return np.repeat((255 * share).astype(np.uint8)[..., None], 3, axis=2)
    ends = np.array([[110, 196, 255], [0, 0, 0], [255, 176, 92]], float)
    return np.stack([np.interp(share, [0, 0.5, 1], ends[:, c]) for c in range(3)], axis=-1).astype(np.uint8)


def _lattice(left: float, top: float, size: float, step: float) -> str:
    """Render the boundaries of the patches."""
    at = np.arange(step, size - 0.5, step)
    lines = [f"M{left + x:.1f} {top}v{size}M{left} {top + x:.1f}h{size}" for x in at]
    return f'<path d="{"".join(lines)}" stroke="#fff" stroke-opacity=".13" stroke-width="1"/>'


def _scale_bar(left: float, top: float, height: float, low: float, high: float, view: GridView) -> str:
    ramp = _colour(np.linspace(high, low, 64)[:, None], low, high, view.signed)
    bar = svg_image(ramp, left, top + 40, 14, height - 80, exact=True).replace(
        "<image ", '<image preserveAspectRatio="none" '
    )
    ends = svg_text(left + 20, top + 50, _number(high), size=13) + svg_text(
        left + 20, top + height - 42, _number(low), size=13
    )
    return bar + ends + svg_text(left, top + 28, view.unit, size=13, color="#b8c2cc")


def _number(value: float) -> str:
    """Format with three significant digits, without decimals from 100 on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
