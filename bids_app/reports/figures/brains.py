"""Mosaics of brain slices: flicker figures of aligned images, and outlines of masks.

Images are files or nibabel images, overlaid by their affines. Neurological convention: left is left. Each function
writes one self-contained SVG file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from bids_app.reports.figures.cuts import PLANES, Box, Volume, cut_positions, foreground, svg_image, svg_text
from bids_app.reports.figures.style import PALETTE, save_svg

FLICKER_STYLE = """
.second{opacity:0}
@keyframes flicker{0%,40%{opacity:0}50%,90%{opacity:1}100%{opacity:0}}
#flicker:target .second{animation:flicker 2.4s ease-in-out infinite}
@media (prefers-reduced-motion:no-preference){svg:hover .second{animation:flicker 2.4s ease-in-out infinite}}
#second:target .second{opacity:1;animation:none}
"""
"""The images alternate on hover and for ``file.svg#flicker``; ``file.svg#second`` shows the second image."""


def plot_flicker(
    fixed: Any,
    moving: Any,
    path: Path,
    *,
    outline: Any = None,
    names: tuple[str, str] = ("fixed", "moving"),
    title: str,
) -> Path:
    """Plot two aligned images that alternate, for visual inspection of the alignment.

    Parameters
    ----------
    fixed, moving : path or nibabel image
        Images in the same space (RAS mm); grids may differ.
    path : pathlib.Path
        The SVG file to write.
    outline : path or nibabel image, optional
        Mask in the same space, plotted as an outline; the field of view is cropped to it.
    names : tuple of str
        Labels of the images.
    title : str
        Title of the figure, for its text alternative.
    """
    first, second = Volume.load(fixed), Volume.load(moving)
    mask = foreground(first) if outline is None else Volume.load(outline)
    mosaic = Mosaic(Box.around(mask), cut_positions(mask, 7))
    lines = "" if outline is None else mosaic.outlines(mask, PALETTE[1])
    body = (
        f'{mosaic.raster(first)}{mosaic.heading(names[0])}<g class="second">{mosaic.raster(second)}'
        f"{mosaic.heading(names[1])}</g>{lines}{mosaic.labels()}"
    )
    text = f"{names[0]} and {names[1]}, alternating, in {mosaic.description}."
    return mosaic.save(path, f'<g id="flicker"><g id="second">{body}</g></g>', title, text, FLICKER_STYLE)


def plot_outlines(background: Any, masks: Mapping[str, Any], path: Path, *, title: str) -> Path:
    """Plot the outlines of masks on an image.

    Parameters
    ----------
    background : path or nibabel image
        Background image.
    masks : mapping
        Name to path or nibabel image, in the same space; the field of view is cropped to the first.
    path : pathlib.Path
        The SVG file to write.
    title : str
        Title of the figure, for its text alternative.
    """
    volumes = {name: Volume.load(mask) for name, mask in masks.items()}
    first = next(iter(volumes.values()))
    mosaic = Mosaic(Box.around(first, margin_mm=14), cut_positions(first, 7))
    body = mosaic.raster(Volume.load(background)) + mosaic.heading("")
    left = 10.0
    for row, (color, (name, volume)) in enumerate(zip(PALETTE[1:], volumes.items(), strict=False)):
        line, dashes = ("&#9473;", "") if row == 0 else ("&#9477;", f"{7 - row} {2 + row}")  # not by colour alone
        body += mosaic.outlines(volume, color, dashes)
        body += f'<text x="{left:g}" y="20" font-size="14" fill="{color}">{line} {escape(name)}</text>'
        left += 34 + 8 * len(name)
    text = f"Outlines of {', '.join(masks)} in {mosaic.description}."
    return mosaic.save(path, body + mosaic.labels(), title, text)


def plot_map(values: Any, mask: Any, path: Path, *, unit: str, title: str) -> Path:
    """Plot a map of a measure within a mask, in colours from 0 to its 99th percentile.

    Parameters
    ----------
    values : path or nibabel image
        Map.
    mask : path or nibabel image
        Mask in the same space; the field of view is cropped to it.
    path : pathlib.Path
        The SVG file to write.
    unit : str
        Name and unit of the values, shown beside the scale.
    title : str
        Title of the figure, for its text alternative.
    """
    volume, brain = Volume.load(values), Volume.load(mask)
    inside = volume.data[brain.data > 0]
    high = float(np.percentile(inside, 99)) if inside.size else 0.0
    mosaic = Mosaic(Box.around(brain), cut_positions(brain, 7))
    body = f"{mosaic.colours(volume, high)}{mosaic.scale_bar(high, unit)}{mosaic.labels()}"
    middle = float(np.median(inside)) if inside.size else float("nan")
    text = f"{unit}, median over the brain {middle:.3g}, in {mosaic.description}."
    return mosaic.save(path, body, title, text)


class Mosaic:
    """Slices through a box, one row per plane, at one scale.

    Parameters
    ----------
    box : Box
        Field of view.
    positions : mapping
        Slice positions by plane, mm; the same number for each plane.
    width : int
        Width of the figure, pixels.
    """

    gap, header = 6, 30

    def __init__(self, box: Box, positions: Mapping[str, Sequence[float]], width: int = 1400) -> None:
        n_cuts = len(positions["x"])
        sizes = box.high - box.low
        widest = max(sizes[0], sizes[1])
        self.scale = (width / n_cuts - self.gap) / widest
        """Pixels per millimetre."""
        self.box = Box(box.low, box.high, 1 / self.scale)
        self.width, self.n_cuts = width, n_cuts
        self.cells: list[tuple[str, float, float, float]] = []
        """Plane, position (mm), and left and top edge (pixels) of each slice."""
        top = float(self.header)
        for plane in reversed(PLANES):
            wide, high = self._size(plane)
            for i, position in enumerate(positions[plane]):
                left = i * width / n_cuts + (width / n_cuts - wide) / 2
                self.cells.append((plane, float(position), left, top))
            top += high + self.gap
        self.height = top

    @property
    def description(self) -> str:
        """Text description of the slices."""
        return f"{self.n_cuts} axial, {self.n_cuts} coronal and {self.n_cuts} sagittal slices"

    def _size(self, plane: str) -> tuple[float, float]:
        sizes = (self.box.high - self.box.low) * self.scale
        across, up = [i for i in range(3) if i != PLANES.index(plane)]
        return float(sizes[across]), float(sizes[up])

    def raster(self, volume: Volume) -> str:
        """Render the slices of a volume as one grey-scale JPEG image in SVG, windowed by the values in the box."""
        canvas = np.zeros((round(self.height), self.width), np.float32)
        cuts = [self.box.cut(volume, plane, position) for plane, position, _, _ in self.cells]
        values = np.concatenate([cut[cut != 0] for cut in cuts])
        low, high = np.percentile(values, [2, 99.5]) if values.size else (0.0, 1.0)
        for cut, (_, _, left, top) in zip(cuts, self.cells, strict=True):
            row, column = round(top), round(left)
            cut = cut[: canvas.shape[0] - row, : canvas.shape[1] - column]
            canvas[row : row + cut.shape[0], column : column + cut.shape[1]] = np.where(cut == 0, low, cut)
        canvas[: self.header] = low
        grey = np.clip((canvas - low) / max(high - low, 1e-12), 0, 1)
        empty = canvas == 0
        return svg_image(np.where(empty, 0, 255 * grey).astype(np.uint8), 0, 0, self.width, canvas.shape[0])

    def colours(self, volume: Volume, high: float) -> str:
        """Render the slices of a map as one image in colours from 0 (black) to ``high``."""
        canvas = np.zeros((round(self.height), self.width), np.float32)
        for plane, position, left, top in self.cells:
            row, column = round(top), round(left)
            cut = self.box.cut(volume, plane, position)[: canvas.shape[0] - row, : canvas.shape[1] - column]
            canvas[row : row + cut.shape[0], column : column + cut.shape[1]] = cut
        return svg_image(_inferno(canvas / max(high, 1e-12)), 0, 0, self.width, canvas.shape[0])

    def scale_bar(self, high: float, unit: str) -> str:
        """Render the scale of `colours` in the heading."""
        ramp = svg_image(_inferno(np.linspace(0, 1, 128)[None]), 10, 8, 180, 13, exact=True)
        ramp = ramp.replace("<image ", '<image preserveAspectRatio="none" ')
        return f"{self.heading('')}{ramp}{svg_text(198, 20, f'0 to {high:.3g}: {unit}', size=14)}"

    def outlines(self, mask: Volume, color: str, dashes: str = "") -> str:
        """Render the outlines of a mask; ``dashes`` is an SVG dash array, empty for solid lines."""
        from skimage.measure import approximate_polygon, find_contours

        binary = Volume((mask.data > 0).astype(np.float32), mask.affine)
        lines = []
        for plane, position, left, top in self.cells:
            for line in find_contours(np.pad(self.box.cut(binary, plane, position), 1), 0.5):
                points = approximate_polygon(line, 0.4) - 1
                lines.append("M" + "L".join(f"{left + x:.1f} {top + y:.1f}" for y, x in points))
        look = f'fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round"'
        look += f' stroke-dasharray="{dashes}"' if dashes else ""
        return f'<path d="{"".join(lines)}" {look}/>'

    def heading(self, text: str) -> str:
        """Render the heading on an opaque background, so that it covers the heading below."""
        return (
            f'<rect width="{self.width}" height="{self.header - 2}" fill="#000"/>'
            f'<text x="10" y="20" font-size="15" fill="#fff">{escape(text)}</text>'
        )

    def labels(self) -> str:
        """Render the positions of the slices and the labels L and R."""
        found = []
        for i, (plane, position, left, top) in enumerate(self.cells):
            wide, high = self._size(plane)
            found.append(svg_text(left + 4, top + high - 5, f"{plane} = {round(position):d}", size=11, color="#b8c2cc"))
            if i % self.n_cuts == 0 and plane != "x":
                found.append(svg_text(left + 4, top + 15, "L", size=13))
                found.append(svg_text(left + wide - 13, top + 15, "R", size=13))
        return "".join(found)

    def save(self, path: Path, body: str, title: str, description: str, style: str = "") -> Path:
        """Write the figure on a black background."""
        background = f'<rect width="{self.width}" height="{self.height:.0f}" fill="#000"/>'
        return save_svg(path, self.width, round(self.height), background + body, title, description, style)


def _inferno(share: np.ndarray) -> np.ndarray:
    """Map values from 0 to 1 to RGB uint8 by matplotlib's colour map."""
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](np.clip(share, 0, 1), bytes=True))[..., :3]
