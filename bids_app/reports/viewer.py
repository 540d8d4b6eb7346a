"""Interactive viewer of the participant report: its scripts, and the data of a run that they show.

A page opened from disk may load scripts from files beside it, but may not read other files. The data are therefore
scripts, too: each is one call with a JSON object, in which images are NIfTI files (gzip, base64). They lie among the
figures of the participant and are loaded when the viewer is opened. The scripts of the viewer and the template are
copied once to the output folder.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from bids_app.bids.writer import write_text
from bids_app.catalog.templates import MODEL_SPACE, load_template
from bids_app.reports.contents import VIEWER_DATA, Contents
from bids_app.reports.pages import template_text
from bids_app.reports.run_table import as_script

ASSETS = "report_assets"
"""Folder of the scripts in the output folder."""
NIIVUE = "niivue-0.69.0.js"
"""WebGL viewer of volumes, written by `scripts/update_niivue.py`."""
NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
MAX_POINTS = 600
"""Maximum number of points of a time course; volumes of longer runs are averaged."""
PEAK = 0.999
"""Contributions of at least this share of the largest are the largest, where the viewer opens."""
BRIGHTEST = 99.8
"""Percentile of an image that is shown white."""


@dataclass(frozen=True)
class RegionData:
    """Contributions of regions to a prediction, with their time courses.

    Attributes
    ----------
    labels : np.ndarray of int, (X, Y, Z)
        1 to R within the regions, in the order of the other fields; 0 outside.
    names : sequence of str, (R,)
    values, deviations : np.ndarray, (R,)
        Contribution, mean and standard deviation over clips; NaN where a region has none.
    p : np.ndarray, (R,), optional
        Corrected p values; NaN where a region has none.
    series : np.ndarray, (R, T)
        Mean time course of each region; NaN where a region has no voxel with signal.
    series_unit : str
    tr : float
        Repetition time, s.
    """

    labels: np.ndarray
    names: Sequence[str]
    values: np.ndarray
    deviations: np.ndarray
    p: np.ndarray | None
    series: np.ndarray
    series_unit: str
    tr: float


def write_run_data(
    path: Path, mean: np.ndarray, mask: np.ndarray, affine: np.ndarray, patch: int = 6, anatomy: str = ""
) -> Path:
    """Write the data of a run.

    Parameters
    ----------
    path : pathlib.Path
    mean : np.ndarray, (X, Y, Z)
        Mean over time on the model grid.
    mask : np.ndarray of bool, (X, Y, Z)
        Brain mask, shown as an outline.
    affine : np.ndarray, (4, 4)
        Voxel indices to RAS mm.
    patch : int
        Edge length of a patch of the encoder, voxels.
    anatomy : str
        Name of the data file of the T1w image in the same folder; empty without one.
    """
    from scipy.ndimage import binary_erosion

    outline = mask & ~binary_erosion(mask)
    content = {
        "bold": encode_image(mean, affine),
        "mask": encode_labels(outline, affine),
        "patch": patch,
        "anatomy": anatomy,
    }
    return _write(path, content)


def write_anatomy_data(path: Path, t1w: np.ndarray, affine: np.ndarray) -> Path:
    """Write a T1w image (X, Y, Z) in the model's space, with its affine (4, 4)."""
    return _write(path, {"image": encode_image(t1w, affine)})


def write_region_data(
    path: Path, image: np.ndarray, affine: np.ndarray, regions: RegionData, unit: str, answer: str, atlas: str
) -> Path:
    """Write a map of contributions and its regions.

    Parameters
    ----------
    path : pathlib.Path
    image : np.ndarray, (X, Y, Z)
        Contribution of each voxel, or of its region; NaN is shown as 0.
    affine : np.ndarray, (4, 4)
        Voxel indices to RAS mm.
    regions : RegionData
    unit : str
        Unit of the contributions.
    answer : str
        Label or target of the prediction; empty for a reconstruction.
    atlas : str
        Name of the atlas.
    """
    per_point = max(1, -(-regions.series.shape[1] // MAX_POINTS))
    series = _average(regions.series, per_point)
    peaks = np.nan_to_num(np.abs(series).max(axis=1, initial=0.0))
    steps = np.round(127 * np.nan_to_num(series) / np.where(peaks > 0, peaks, 1)[:, None]).astype(np.int8)
    missing = [None] * len(regions.names)
    rows = zip(
        regions.names,
        _numbers(regions.values),
        _numbers(regions.deviations),
        missing if regions.p is None else _numbers(regions.p),
        _numbers(peaks),
        _centres(regions.labels, affine, len(regions.names)),
        strict=True,
    )
    keys = ("name", "value", "deviation", "p", "peak", "at")
    shown = np.nan_to_num(image)
    largest = np.argwhere(np.abs(shown) >= PEAK * np.abs(shown).max())
    content = {
        "map": encode_map(shown, affine),
        "peak": _point(affine, _central(largest)),
        "labels": encode_labels(regions.labels, affine),
        "regions": [dict(zip(keys, row, strict=True)) for row in rows],
        "series": base64.b64encode(steps.tobytes()).decode(),
        "points": steps.shape[1],
        "seconds": regions.tr * per_point,
        "seriesUnit": regions.series_unit,
        "unit": unit,
        "answer": answer,
        "atlas": atlas,
    }
    return _write(path, content)


def encode_image(values: np.ndarray, affine: np.ndarray) -> str:
    """Encode intensities (X, Y, Z) from 0 as uint8 NIfTI, scaled by their 99.8th percentile above 0; base64."""
    found = np.nan_to_num(np.asarray(values, np.float32))
    high = float(np.percentile(found[found > 0], BRIGHTEST)) if (found > 0).any() else 1.0
    return _nifti(np.clip(np.round(255 * found / high), 0, 255).astype(np.uint8), affine, high / 255)


def encode_map(values: np.ndarray, affine: np.ndarray) -> str:
    """Encode values with sign, (X, Y, Z), as scaled int16 NIfTI; base64."""
    step = float(np.abs(values).max(initial=0.0)) / 32767 or 1.0
    return _nifti(np.round(values / step).astype(np.int16), affine, step)


def encode_labels(labels: np.ndarray, affine: np.ndarray) -> str:
    """Encode labels (X, Y, Z) from 0 as uint16 NIfTI; base64."""
    return _nifti(labels.astype(np.uint16), affine, 1.0)


def install_viewer(out_dir: Path) -> dict[str, str]:
    """Copy the scripts of the viewer to the output folder, where they are missing; return their URLs by role."""
    names = {"niivue": NIIVUE, "viewer": _name("viewer", _viewer()), "template": _name("template", _template())}
    texts = {"niivue": _niivue, "viewer": _viewer, "template": _template}
    for role, name in names.items():
        path, text = out_dir / ASSETS / name, texts[role]()
        if not path.is_file() or path.stat().st_size != len(text.encode()):
            write_text(path, text)
    return {role: f"{ASSETS}/{name}" for role, name in names.items()}


def viewer_facts(contents: Contents, scripts: Mapping[str, str]) -> dict[str, Any]:
    """Return what the viewer needs to know: URLs of its scripts, and title, name and adapters of the runs with data.

    Empty without a run with data.
    """
    runs = [[run.title, run.stem, list(run.overlays)] for run in contents.runs if run.in_viewer]
    folder = quote(f"sub-{contents.participant}/figures/")
    return {"scripts": dict(scripts), "folder": folder, "runs": runs} if runs else {}


@cache
def _niivue() -> str:
    return files("bids_app.reports").joinpath("assets", NIIVUE).read_text(encoding="utf-8")


@cache
def _viewer() -> str:
    return template_text("viewer.js")


@cache
def _template() -> str:
    template = load_template(MODEL_SPACE)
    return _call(VIEWER_DATA, {"image": encode_image(template.t1w, template.affine)})


def _name(role: str, text: str) -> str:
    """Return a file name that changes with the content, so that pages of other versions keep their own script."""
    return f"{role}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.js"


def _write(path: Path, content: dict[str, Any]) -> Path:
    return write_text(path, _call(path.name, content))


def _call(name: str, content: dict[str, Any]) -> str:
    return f"neurostormViewer({as_script(name)},{as_script(content)});\n"


def _nifti(values: np.ndarray, affine: np.ndarray, step: float) -> str:
    import nibabel as nib

    image = nib.Nifti1Image(values, affine)
    image.header.set_slope_inter(step, 0)
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    return base64.b64encode(gzip.compress(bytes(content), mtime=0)).decode()


def _average(series: np.ndarray, per_point: int) -> np.ndarray:
    """Average blocks of volumes; the last one may be shorter; (R, points)."""
    starts = np.arange(0, series.shape[1], per_point)
    lengths = np.diff([*starts, series.shape[1]])
    return np.add.reduceat(series, starts, axis=1) / lengths


def _numbers(values: np.ndarray) -> list[float | None]:
    """Round to four significant digits; None for NaN."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def _centres(labels: np.ndarray, affine: np.ndarray, n: int) -> list[list[float] | None]:
    """Return the voxel of each region that is nearest to its centre, RAS mm; None for regions without a voxel."""
    found: list[list[float] | None] = [None] * n
    voxels = np.argwhere(labels > 0)
    owners = labels[labels > 0]
    for label in np.unique(owners):
        found[int(label) - 1] = _point(affine, _central(voxels[owners == label]))
    return found


def _central(voxels: np.ndarray) -> np.ndarray:
    """Return the voxel that is nearest to the centre of some voxels (N, 3)."""
    return voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]


def _point(affine: np.ndarray, voxel: Any) -> list[float]:
    """Return the position of a voxel, RAS mm."""
    return [round(float(value), 1) for value in affine[:3, :3] @ np.asarray(voxel) + affine[:3, 3]]
