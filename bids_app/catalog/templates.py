"""Templates for spatial normalisation, found on this machine. Nothing is downloaded.

`MNI152NLin6Asym` (the model's space) is part of this package at 2 mm; files of TemplateFlow's cache take precedence.
Its tissue maps are nilearn's, which are in MNI152NLin2009aSym, warped by a registration of the two templates
(`benchmarks/template.py`).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.errors import BadDataError, NoInputError, UsageError
from bids_app.settings import home_dir

CATALOG = Path(__file__).with_name("templates.yml")
PACKAGED = Path(__file__).parents[1] / "data"
"""Folder of the files that are part of this package."""
MODEL_SPACE = "MNI152NLin6Asym"
WORKING_MM = 2.0
MARGIN_MM = 10.0


@dataclass(frozen=True)
class Space:
    """A template space: its matrix to the model's space, and its 2 mm grid.

    Parameters
    ----------
    name : str
        Label in BIDS file names.
    to_model : numpy.ndarray, (4, 4)
        Affine from points of this space to points of the model's space, RAS mm.
    shape, affine : tuple of int, numpy.ndarray (4, 4)
        Grid of BOLD series in this space.
    accuracy : str
        Accuracy of ``to_model`` in words.
    """

    name: str
    to_model: np.ndarray
    shape: tuple[int, int, int]
    affine: np.ndarray
    accuracy: str

    def pull_to(self, other: Space) -> np.ndarray:
        """Return the matrix from points of this space to points of another, (4, 4)."""
        return np.linalg.inv(other.to_model) @ self.to_model


@dataclass(frozen=True)
class Template:
    """A template at 2 mm, cropped to the brain with a margin.

    Parameters
    ----------
    space : Space
    t1w : numpy.ndarray, (X, Y, Z) float32
    mask : numpy.ndarray, (X, Y, Z) bool
        Brain mask, with ventricles.
    gm, wm : numpy.ndarray, (X, Y, Z) float32
        Probability maps of grey and white matter.
    affine : numpy.ndarray, (4, 4)
        Voxel indices to RAS mm.
    version : str
        Source file and the start of its SHA-256 checksum.
    """

    space: Space
    t1w: np.ndarray
    mask: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    affine: np.ndarray
    version: str

    @property
    def name(self) -> str:
        return self.space.name

    @property
    def csf(self) -> np.ndarray:
        """Probability map of cerebrospinal fluid: the brain without grey and white matter."""
        return np.clip(1 - self.gm - self.wm, 0, 1) * self.mask


@cache
def catalog() -> dict[str, dict[str, Any]]:
    """Read ``templates.yml``."""
    import yaml

    return yaml.safe_load(CATALOG.read_text())


@cache
def space(name: str) -> Space:
    """Return a space of the catalog by its name.

    Raises
    ------
    UsageError
        The space is not in the catalog.
    """
    if name not in catalog():
        raise UsageError(f"Unknown space {name}.", f"Choose from {', '.join(catalog())}.")
    entry = catalog()[name]
    affine = np.diag([WORKING_MM, WORKING_MM, WORKING_MM, 1.0])
    affine[:3, 3] = entry["grid"]["origin"]
    to_model = np.vstack([np.asarray(entry["to_model"], dtype=np.float64), [0, 0, 0, 1]])
    return Space(name, to_model, tuple(entry["grid"]["shape"]), affine, entry["accuracy"])


def templateflow_home() -> Path:
    """Return TemplateFlow's cache: ``TEMPLATEFLOW_HOME``, or the default in the home folder."""
    given = os.environ.get("TEMPLATEFLOW_HOME")
    return Path(given) if given else home_dir() / ".cache" / "templateflow"


def available() -> tuple[str, ...]:
    """List the templates that are on this machine, best first."""
    return tuple(name for name in catalog() if template_files(name) is not None)


def stand_in_for(name: str) -> str:
    """Return the template itself if it is on this machine, otherwise one of its family, or else the best available."""
    names = available()
    if name in names or not names:
        return name
    family = catalog()[name].get("tissues_from")
    return family if family in names else names[0]


def warp_name(source: str, target: str) -> str:
    """Return TemplateFlow's name of the transform that resamples images of one template space in another."""
    return f"tpl-{target}_from-{source}_mode-image_xfm.h5"


def warp_between(source: str, target: str) -> Path | None:
    """Return the transform that resamples images of one template space in another; None if there is none.

    TemplateFlow's transforms take precedence over those of this package.
    """
    name = warp_name(source, target)
    paths = (templateflow_home() / f"tpl-{target}" / name, PACKAGED / name)
    return next(filter(_has_content, paths), None)


def load_template(name: str | None = None) -> Template:
    """Load a template at 2 mm.

    Parameters
    ----------
    name : str, optional
        Default: the best available one.

    Raises
    ------
    NoInputError
        The template is not on this machine.
    """
    name = name or next(iter(available()), "")
    return _load(name, str(templateflow_home()))


@cache
def _load(name: str, home: str) -> Template:
    """Load a template; ``home`` separates cached results for different TemplateFlow folders."""
    template_space = space(name)
    files = template_files(name)
    if files is None:
        raise NoInputError(
            f"{name}: not in TemplateFlow's cache ({home}).",
            f"Set TEMPLATEFLOW_HOME to a folder that contains it; available: {', '.join(available())}.",
        )
    t1w, affine = _read(files["t1w"])
    fine_mask = _brain(files, t1w)
    shape, grid = _cropped_grid(fine_mask, affine)
    gm, wm = _tissues(template_space, files, shape, grid)
    return Template(
        space=template_space,
        t1w=_resample(t1w, affine, shape, grid),
        mask=_resample(fine_mask.astype(np.float32), affine, shape, grid) > 0.5,
        gm=gm,
        wm=wm,
        affine=grid,
        version=f"{files['t1w'].name} (sha256 {_sha256(files['t1w'])[:12]})",
    )


def _tissues(
    template_space: Space, files: dict[str, Path], shape: tuple[int, ...], grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Resample the maps of grey and white matter to a grid, through the matrix if they are from another template."""
    source = space(catalog()[template_space.name].get("tissues_from", template_space.name))
    found = files if source is template_space else template_files(source.name)
    if found is None:
        raise NoInputError("The template embedded in nilearn is missing.", "Install nilearn again.")
    onto = template_space.pull_to(source) @ grid
    gm, wm = (_resample(*_scaled(found[kind]), shape, onto) for kind in ("gm", "wm"))
    return gm, wm


def brain_on(name: str, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Resample the brain mask of a template to any grid of its space, (X, Y, Z) bool.

    Parameters
    ----------
    name : str
        Template; if it is not on this machine, the best available one is used with its matrix.
    shape, affine : tuple of int, numpy.ndarray (4, 4)
        Target grid, in the template's RAS mm.
    """
    template = load_template(stand_in_for(name))
    grid = space(name).pull_to(template.space) @ affine
    return _resample(template.mask.astype(np.float32), template.affine, shape, grid, smooth=False) > 0.5


def template_files(name: str) -> dict[str, Path] | None:
    """Return the files of a template; None if one is missing or is an empty placeholder of TemplateFlow."""
    entry = catalog()[name]
    if entry["source"] == "nilearn":
        from importlib.util import find_spec

        spec = find_spec("nilearn")
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "datasets" / "data"
        files = {kind: folder / entry[kind] for kind in ("t1w", "gm", "wm")}
        return files if all(map(_has_content, files.values())) else None
    packaged = {kind: PACKAGED / file for kind, file in entry.get("packaged", {}).items()}
    folder = templateflow_home() / f"tpl-{name}"
    for t1w, mask in zip(entry["t1w"], entry["mask"], strict=True):
        if _has_content(folder / t1w) and _has_content(folder / mask):
            return packaged | {"t1w": folder / t1w, "mask": folder / mask}
    return packaged if packaged and all(map(_has_content, packaged.values())) else None


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine)
    except Exception as error:
        raise BadDataError(f"{path}: template cannot be read ({error}).", "Fetch or install it again.") from error


def _scaled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data, affine = _read(path)
    return data / 255, affine


def _brain(files: dict[str, Path], t1w: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    mask = _read(files["mask"])[0] > 0.5 if "mask" in files else t1w > 0  # skull-stripped
    return ndimage.binary_fill_holes(mask)  # the mask of MNI152NLin6Asym has holes in the ventricles


def _cropped_grid(mask: np.ndarray, affine: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and affine of a 2 mm RAS grid on even millimetres around the brain."""
    voxels = np.argwhere(mask)
    ends = np.array([voxels.min(axis=0), voxels.max(axis=0)]) @ affine[:3, :3].T + affine[:3, 3]
    low = np.floor((ends.min(axis=0) - MARGIN_MM) / WORKING_MM) * WORKING_MM
    high = np.ceil((ends.max(axis=0) + MARGIN_MM) / WORKING_MM) * WORKING_MM
    grid = np.diag([WORKING_MM, WORKING_MM, WORKING_MM, 1.0])
    grid[:3, 3] = low
    x, y, z = (int(n) for n in (high - low) / WORKING_MM + 1)
    return (x, y, z), grid


def _resample(
    data: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], grid: np.ndarray, smooth: bool = True
) -> np.ndarray:
    """Resample an image to a grid, after smoothing it to the coarser resolution."""
    from scipy import ndimage

    fine, coarse = (np.sqrt((a[:3, :3] ** 2).sum(axis=0)) for a in (affine, grid))
    if smooth:
        sigma = np.sqrt(np.maximum(coarse.mean() ** 2 - fine**2, 0)) / 2.3548 / fine
        data = ndimage.gaussian_filter(data, sigma)
    pull = np.linalg.inv(affine) @ grid
    return ndimage.affine_transform(data, pull[:3, :3], pull[:3, 3], shape, order=1)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
