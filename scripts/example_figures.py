"""Draw the example pictures of the report's fold-outs from a simulated scan: good, moved, misaligned and cut.

After `make demo`: ``python scripts/example_figures.py demo/dataset demo/out``. The good ones are parts of the figures
of a run. For the others, the scan is spoiled, and the figure is drawn again by the code of the report.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from bids_app.catalog.templates import MODEL_SPACE, load_template
from bids_app.phantom.regional_series import make_model, regions, simulate_series
from bids_app.phantom.spoiled import cut_lower
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.registration.transforms import read_itk_text
from bids_app.reports.figures.brains import plot_flicker, plot_map, plot_outlines
from bids_app.reports.figures.charts import plot_carpet
from bids_app.reports.figures.connectivity import plot_connectivity
from bids_app.reports.figures.model_grid import GridView, plot_model_grid
from bids_app.reports.figures.thumbnails import draw_thumbnail
from bids_app.reports.reading import EXAMPLES, FOLDER

STEM, T1W = "sub-01_task-lefthand", "sub-01"
FIGURES = {
    "t1w-mask": f"{T1W}_desc-mask_T1w", "t1w-norm": f"{T1W}_desc-norm_T1w",
    **{kind: f"{STEM}_desc-{kind}_bold" for kind in ("coreg", "norm", "mask", "tsnr", "stdev", "carpet", "grid")},
}  # fmt: skip
"""Figures of the run that are good examples."""
SHIFT_MM, TURN_DEGREES = 10.0, 12.0
"""Misalignment: to the front, and about the axis from left to right."""
STEP_MM, JITTER_MM = 2.5, 0.35
"""Head motion: a shift that stays after two thirds of the run, and shifts of single volumes."""
N_VOLUMES, TR_S = 300, 2.0
"""Simulated regional series: volumes, and the time between them."""
QUALITY = 80


def misaligned(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Shift and turn an image by its affine."""
    angle = np.radians(TURN_DEGREES)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[1, 3] = SHIFT_MM
    return nib.Nifti1Image(image.get_fdata(dtype=np.float32), matrix @ image.affine)


def moved(series: np.ndarray, voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Move the volumes of a series (X, Y, Z, T); return it, and the framewise displacement (T,), mm."""
    random = np.random.default_rng(1)
    n_vols = series.shape[3]
    shifts = random.normal(0, JITTER_MM / 4, (n_vols, 3))
    jerks = random.choice(n_vols, n_vols // 10, replace=False)
    shifts[jerks] += random.normal(0, 4 * JITTER_MM, (len(jerks), 3))
    shifts[2 * n_vols // 3 :, 2] += STEP_MM
    volumes = [ndimage.shift(series[..., t], shifts[t] / voxel_mm, order=1, mode="nearest") for t in range(n_vols)]
    return np.stack(volumes, axis=3), np.abs(np.diff(shifts, axis=0, prepend=shifts[:1])).sum(axis=1)


def pushed_forward(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Distort the front of a brain along the axis from posterior to anterior, as near the sinuses."""
    data = image.get_fdata(dtype=np.float32)
    points = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), axis=-1)
    places = points @ image.affine[:3, :3].T + image.affine[:3, 3]
    centre = places[data > np.percentile(data, 70)]
    front = np.percentile(centre[:, 1], 98)
    distance = (places[..., 1] - front) ** 2 / 30**2 + (places[..., 0] - centre[:, 0].mean()) ** 2 / 30**2
    push = 14 * np.exp(-distance / 2) / image.affine[1, 1]
    warped = ndimage.map_coordinates(data, [points[..., 0], points[..., 1] - push, points[..., 2]], order=1)
    return nib.Nifti1Image(warped, image.affine)


def image_of(path: Path, key: str) -> nib.Nifti1Image:
    """Return an image of a data file of the viewer."""
    content = json.loads(path.read_text().partition(",")[2].rpartition(")")[0])
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(content[key])))


def draw_spoiled(dataset: Path, out: Path, folder: Path) -> dict[str, Path]:
    """Draw the figures of spoiled scans; return them by name."""
    func, anat, figures = out / "sub-01" / "func", out / "sub-01" / "anat", out / "sub-01" / "figures"
    t1w = load_nifti(anat / f"{T1W}_desc-preproc_T1w.nii.gz")
    t1w_mask = load_nifti(anat / f"{T1W}_desc-brain_mask.nii.gz")
    boldref = load_nifti(func / f"{STEM}_desc-hmc_boldref.nii.gz")
    mask = load_nifti(func / f"{STEM}_desc-brain_mask.nii.gz")
    bold_on_grid = image_of(figures / f"{STEM}_desc-viewer_bold.js", "bold")
    t1w_on_grid = image_of(figures / f"{T1W}_desc-viewer_T1w.js", "image")
    template = load_template(MODEL_SPACE)
    head = nib.Nifti1Image(template.t1w, template.affine)
    brain = nib.Nifti1Image(template.mask.astype(np.uint8), template.affine)
    pull = read_itk_text(func / f"{STEM}_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt").reshape(-1, 4, 4)[0]
    in_t1w = nib.Nifti1Image(boldref.get_fdata(dtype=np.float32), np.linalg.inv(pull) @ boldref.affine)

    def path(name: str) -> Path:
        return folder / f"{name}.svg"

    made = {}
    inside = t1w_mask.get_fdata() > 0
    top = np.nonzero(inside.any(axis=(0, 1)))[0]
    cut = inside.copy()
    cut[:, :, top[0] + 3 * len(top) // 4 :] = False
    cut_mask = nib.Nifti1Image(cut.astype(np.uint8), t1w_mask.affine)
    made["t1w-mask-cut"] = plot_outlines(t1w, {"brain mask": cut_mask}, path("t1w-mask-cut"), title="cut")
    made["t1w-norm-misaligned"] = plot_flicker(
        head, misaligned(t1w_on_grid), path("t1w-norm-misaligned"), outline=brain, title="x"
    )
    made["norm-misaligned"] = plot_flicker(
        head, misaligned(bold_on_grid), path("norm-misaligned"), outline=brain, title="x"
    )
    made["coreg-misaligned"] = plot_flicker(
        t1w, misaligned(in_t1w), path("coreg-misaligned"), outline=t1w_mask, title="x"
    )
    made["sdc-good"] = plot_flicker(pushed_forward(boldref), boldref, path("sdc-good"), outline=mask, title="x")
    made["sdc-distorted"] = plot_flicker(
        boldref, pushed_forward(boldref), path("sdc-distorted"), outline=mask, title="x"
    )
    lower, affine = cut_lower(boldref.get_fdata(dtype=np.float32), boldref.affine)
    lower_mask, _ = cut_lower(mask.get_fdata(dtype=np.float32), mask.affine)
    made["mask-cut"] = plot_outlines(
        nib.Nifti1Image(lower, affine), {"brain mask": nib.Nifti1Image(lower_mask, affine)}, path("mask-cut"), title="x"
    )
    made |= draw_moved(dataset, mask, path("tsnr-moved"), path("stdev-moved"), path("carpet-moved"))
    values = bold_on_grid.get_fdata(dtype=np.float32)
    whole = values > 0
    values[:, :, : np.nonzero(whole.any(axis=(0, 1)))[0][0] + 25] = 0
    view = GridView("mean of the run", values)
    signed = GridView("one volume", np.random.default_rng(0).standard_normal(values.shape) * (values > 0), signed=True)
    grid = plot_model_grid([view, signed], bold_on_grid.affine, path("grid-cut"), mask=values > 0, title="x")
    return made | {"grid-cut": grid}


def draw_moved(dataset: Path, mask: nib.Nifti1Image, tsnr: Path, stdev: Path, carpet: Path) -> dict[str, Path]:
    """Draw maps and carpet of a moved series."""
    raw = load_nifti(dataset / "sub-01" / "func" / f"{STEM}_bold.nii.gz")
    series, fd = moved(raw.get_fdata(dtype=np.float32), float(raw.header.get_zooms()[0]))
    mean, deviation = series.mean(axis=3), series.std(axis=3)
    inside = mask.get_fdata() > 0.5
    percent = 100 * deviation / np.median(mean[inside])
    for values, path, unit in ((mean / np.maximum(deviation, 1e-6), tsnr, "temporal SNR"), (percent, stdev, "SD")):
        plot_map(nib.Nifti1Image(values * inside, raw.affine), mask, path, unit=unit, title="x")
    voxels = series[inside].T
    dvars = np.sqrt((np.diff(voxels, axis=0, prepend=voxels[:1]) ** 2).mean(axis=1))
    confounds = pd.DataFrame({"framewise_displacement": fd, "dvars": dvars})
    plot_carpet(voxels[:, ::20], float(raw.header.get_zooms()[3]), confounds, carpet, title="x")
    return {"tsnr-moved": tsnr, "stdev-moved": stdev, "carpet-moved": carpet}


def draw_connectivity(good: Path, moved: Path) -> dict[str, Path]:
    """Draw the correlations of simulated regional series, and those after the same head motion in all regions."""
    random = np.random.default_rng(1)
    values = simulate_series(make_model(), N_VOLUMES, TR_S, random)
    jerks = np.where(random.random(N_VOLUMES) < 0.1, random.normal(0, 4 * values.std(), N_VOLUMES), 0)
    order = np.argsort(np.array(regions().networks), kind="stable")
    sizes = Counter(np.array(regions().networks)[order].tolist())
    for path, series in ((good, values), (moved, values + jerks[:, None])):
        plot_connectivity(np.corrcoef(series[:, order], rowvar=False), list(sizes.items()), path, title="x")
    return {"connectivity-good": good, "connectivity-moved": moved}


def main() -> int:
    """Write the pictures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dataset", type=Path)
    p.add_argument("out", type=Path)
    arguments = p.parse_args()
    (FOLDER / EXAMPLES).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        made = draw_spoiled(arguments.dataset, arguments.out, Path(temporary))
        made |= draw_connectivity(Path(temporary, "connected.svg"), Path(temporary, "connected-moved.svg"))
        own = arguments.out / "sub-01" / "figures"
        made |= {f"{kind}-good": own / f"{name}.svg" for kind, name in FIGURES.items()}
        for name, path in made.items():
            kind = name.removeprefix("t1w-").partition("-")[0]
            picture: Image.Image = draw_thumbnail(path.read_text(encoding="utf-8"), kind)
            picture.save(FOLDER / EXAMPLES / f"{name}.webp", quality=QUALITY, method=6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
