"""Thumbnails of a run's figures, side by side in one JPEG file, for the wall of the group report.

The images and outlines within the SVG files of `brains`, `model_grid` and `charts` are drawn directly: no browser and
no other renderer of SVG is needed.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bids_app.bids.writer import atomic_path
from bids_app.files import read_output

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 192
"""Width and height of a thumbnail, pixels."""
COMMENT = b"\xff\xfe"
"""Marker of a comment in a JPEG file, before its size."""
UNREADABLE_MARK = "!"
"""Mark before the name of a figure that could not be read."""
MAX_HEAD = 4096
"""Bytes of a JPEG file among which the comment is."""
QUALITY = 78
"""Quality of the JPEG file."""
CROPS = {"carpet": None, "connectivity": None, "grid": (0.0, 0.0, 0.6, 1.0)}
"""Part of the figure that is shown, by ``desc-`` label: left, top, right and bottom edge as fractions; None: its
largest image alone."""
MIDDLE = (2 / 7, 0.05, 5 / 7, 1.0)
"""The three middle columns of a mosaic of seven, for all other figures."""

VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
IMAGE = re.compile(r"<image ([^>]*)>")
DATA = re.compile(r'href="data:image/(?:jpeg|png);base64,([^"]+)"')
BOX = {name: re.compile(rf'(?:^| ){name}="(-?[\d.]+)"') for name in ("x", "y", "width", "height")}
OUTLINE = re.compile(r'<path d="(M[-\d. ML]+)" fill="none" stroke="(#[0-9a-f]{6})"')
MAX_PIXELS = 4_000_000
"""Maximum size of an image within a figure."""


class UnreadableFigureError(ValueError):
    """The file is no figure of the app."""


@dataclass(frozen=True)
class Raster:
    """Image within a figure: encoded pixels, and its position in units of the figure."""

    content: bytes
    left: float
    top: float
    width: float
    height: float
    flipped: bool
    """Stored upside down, as matplotlib does."""


def write_thumbnails(figures: Sequence[Path | None], path: Path) -> Path:
    """Write the thumbnails of a run as one JPEG file, from left to right.

    Parameters
    ----------
    figures : sequence of pathlib.Path or None
        SVG files. The thumbnail of one that is missing or cannot be read is black; the file says which cannot be read.
    path : pathlib.Path
        The JPEG file to write.
    """
    from PIL import Image

    strip = Image.new("RGB", (SIZE * len(figures), SIZE))
    unreadable = set()
    for index, figure in enumerate(figures):
        if figure is not None:
            try:
                strip.paste(draw_thumbnail(read_output(figure).decode(), kind_of(figure)), (SIZE * index, 0))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                unreadable.add(index)
    with atomic_path(path) as temporary:
        strip.save(temporary, "JPEG", quality=QUALITY, comment=names_of(figures, unreadable))
    return path


def names_of(figures: Sequence[Path | None], unreadable: Collection[int] = ()) -> bytes:
    """Return the names of figures, which the thumbnails keep as a comment, with marks for those that cannot be read."""
    marks = (UNREADABLE_MARK if index in unreadable else "" for index in range(len(figures)))
    names = ("" if figure is None else figure.name for figure in figures)
    return "\n".join(map("".join, zip(marks, names, strict=True))).encode()


def made_from(path: Path) -> bytes:
    """Read from which figures thumbnails were made, see `names_of`; empty if the file does not say.

    Raises
    ------
    OSError
        There is no such file.
    """
    with path.open("rb") as file:
        head = file.read(MAX_HEAD)
    at = head.find(COMMENT)
    size = int.from_bytes(head[at + 2 : at + 4], "big") if at >= 0 else 2
    return head[at + 4 : at + 2 + size]


def kind_of(figure: Path) -> str:
    """Return the ``desc-`` label of a figure."""
    found = re.search(r"_desc-([A-Za-z0-9+]+)_", figure.name)
    return found[1] if found else ""


def draw_thumbnail(svg: str, kind: str) -> Image:
    """Draw the images and outlines of a figure.

    Parameters
    ----------
    svg : str
        Content of the file.
    kind : str
        ``desc-`` label of the figure, which selects the part that is shown.

    Raises
    ------
    UnreadableFigureError
        The file has no size or no image.
    """
    from PIL import Image, ImageDraw

    view, rasters = VIEW.search(svg), _without_covered(_rasters(svg))
    if view is None or not rasters:
        raise UnreadableFigureError("no image")
    crop = CROPS.get(kind, MIDDLE)
    if crop is None:
        largest = max(rasters, key=lambda raster: raster.width * raster.height)
        return _decode(largest, SIZE, SIZE).resize((SIZE, SIZE), Image.Resampling.BOX)
    width, height = float(view[1]), float(view[2])
    left, top, right, bottom = crop[0] * width, crop[1] * height, crop[2] * width, crop[3] * height
    scale = SIZE / max(right - left, bottom - top)
    margins = (SIZE - scale * (right - left)) / 2, (SIZE - scale * (bottom - top)) / 2  # centred in the square
    left, top = left - margins[0] / scale, top - margins[1] / scale
    canvas = Image.new("RGB", (SIZE, SIZE))
    for raster in rasters:
        if raster.width > 2 * width or raster.height > 2 * height:
            raise UnreadableFigureError("an image that is larger than the figure")
        size = max(1, round(raster.width * scale)), max(1, round(raster.height * scale))
        pixels = _decode(raster, *size).resize(size, Image.Resampling.BILINEAR)
        canvas.paste(pixels, (round((raster.left - left) * scale), round((raster.top - top) * scale)))
    draw = ImageDraw.Draw(canvas)
    for points, colour in _outlines(svg):
        draw.line([((x - left) * scale, (y - top) * scale) for x, y in points], fill=colour, width=1)
    across, down = (math.floor(margin) for margin in margins)
    shown = Image.new("RGB", (SIZE, SIZE))
    shown.paste(canvas.crop((across, down, SIZE - across, SIZE - down)), (across, down))
    return shown


def _rasters(svg: str) -> Iterator[Raster]:
    """Yield the images of a figure in order: of a flicker figure, the second one covers the first."""
    for match in IMAGE.finditer(svg):
        data, box = DATA.search(match[1]), [BOX[name].search(match[1]) for name in BOX]
        if data and box[2] and box[3]:
            x, y = (float(found[1]) if found else 0.0 for found in box[:2])
            flipped = "scale(1 -1)" in match[1]
            yield Raster(base64.b64decode(data[1]), x, y, float(box[2][1]), float(box[3][1]), flipped)


def _without_covered(rasters: Iterable[Raster]) -> list[Raster]:
    """Leave out images that a later one covers, such as the first of a flicker figure."""
    return list({(each.left, each.top, each.width, each.height): each for each in rasters}.values())


def _decode(raster: Raster, width: int, height: int) -> Image:
    """Decode an image, at a lower resolution where the format allows it."""
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(raster.content), formats=("JPEG", "PNG"))
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableFigureError(f"an image of {image.width} x {image.height} pixels")
    image.draft("RGB", (width, height))
    return (ImageOps.flip(image) if raster.flipped else image).convert("RGB")


def _outlines(svg: str) -> Iterator[tuple[list[tuple[float, float]], str]]:
    """Yield the points and the colour of each line of the outlines."""
    for path, colour in OUTLINE.findall(svg):
        for line in path.split("M")[1:]:
            points = [tuple(map(float, pair.split())) for pair in line.split("L")]
            yield [(pair[0], pair[1]) for pair in points if len(pair) == 2], colour
