"""The map between MNI152NLin2009aSym (nilearn's template) and MNI152NLin6Asym (the model's space).

    python benchmarks/template.py                  # errors of the matrix and of the packaged field
    python benchmarks/template.py --write FOLDER   # also writes the files in bids_app/data

Both templates are registered directly (affine, SyN), twice with different metrics. Errors are distances to the
registration by cross-correlation, in mm over the brain; those of the second registration show how far two registrations
agree. r is the correlation of both T1w images in the brain. The packaged field is the first registration on a grid of
6 mm; tissue maps are warped with it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_app.catalog.templates import MODEL_SPACE, Template, load_template, space
from bids_app.preprocess.masking import ball
from bids_app.preprocess.registration.ants import Image, Registration, Stage, correlation, register
from bids_app.preprocess.registration.published import write_itk_composite
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.transforms import (
    Chain,
    Linear,
    Warp,
    apply_matrix,
    grid_points,
    linear,
    resample_to,
)

OTHER_SPACE = "MNI152NLin2009aSym"
AFFINE = Stage("Affine[0.1]", (100, 50), (4, 2), (2, 1))
CORRELATION = Stage("SyN[0.2,3,0]", (60, 50, 30), (4, 2, 1), (2, 1, 0), "CC[{fixed},{moving},1,2]", "1e-6,8")
INFORMATION = Stage("SyN[0.3,3,0]", (100, 70, 30), (4, 2, 1), (2, 1, 0), "MI[{fixed},{moving},1,32]", "1e-7,8")
FIELD_MM = 6.0
ROUNDED_MM = 0.02
"""Displacements are rounded to this step, which makes the files smaller."""


def register_templates(model: Template, other: Template, stage: Stage, folder: Path, name: str) -> Registration:
    """Register the brains of two templates; the model's is the fixed image."""
    near = ndimage.binary_dilation(model.mask, ball(6.0, model.affine))
    fixed, moving = (Image(t.t1w * t.mask, t.affine) for t in (model, other))
    start = model.space.pull_to(other.space)
    return register(fixed, moving, near, (AFFINE, stage), folder, start=start, name=name)


def errors_mm(chain: Chain, reference: Chain, points: np.ndarray) -> dict[str, float]:
    """Return the distances between two transforms of points (N, 3)."""
    distances = np.linalg.norm(chain(points) - reference(points), axis=1)
    return {"50 %": np.median(distances), "95 %": np.percentile(distances, 95), "maximum": distances.max()}


def on_coarse_grid(chain: Chain, affine: np.ndarray, start: str) -> Chain:
    """Return a transform as a displacement field on a coarse grid of a space, then a matrix.

    Parameters
    ----------
    chain : Chain
        From points of ``start``.
    affine : numpy.ndarray, (4, 4)
        Its linear part.
    start : str
    """
    grid = space(start)
    extent = (np.array(grid.shape) - 1) * 2.0
    shape = tuple(int(n) for n in np.ceil(extent / FIELD_MM) + 1)
    onto = np.diag([FIELD_MM, FIELD_MM, FIELD_MM, 1.0])
    onto[:3, 3] = grid.affine[:3, 3]
    points = grid_points(shape, onto)
    shift = apply_matrix(np.linalg.inv(affine), chain(points)) - points
    field = np.round(shift.reshape(*shape, 3) / ROUNDED_MM) * ROUNDED_MM
    return Chain((Warp(field.astype(np.float32), onto), Linear(affine)))


def write_transform(folder: Path, start: str, end: str, chain: Chain) -> Path:
    """Write a transform from points of ``start`` to points of ``end`` as an ITK composite, under its packaged name."""
    return write_itk_composite(folder / f"tpl-{start}_from-{end}_mode-image_xfm.h5", chain)


def write_tissues(other: Template, chain: Chain, folder: Path) -> None:
    """Write the maps of grey and white matter, warped to the model's space, as uint8 (255: probability of 1)."""
    grid = space(MODEL_SPACE)
    for label, data in (("GM", other.gm), ("WM", other.wm)):
        warped = resample_to(data, other.affine, grid.shape, grid.affine, chain)
        image = nib.Nifti1Image(np.round(np.clip(warped, 0, 1) * 255).astype(np.uint8), grid.affine)
        image.header.set_sform(grid.affine, 4)
        image.header.set_qform(grid.affine, 4)
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / f"tpl-{MODEL_SPACE}_res-02_label-{label}_probseg.nii.gz")


def main() -> None:
    """Register the templates and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the packaged files there")
    wanted = parser.parse_args()
    model, other = load_template(MODEL_SPACE), load_template(OTHER_SPACE)
    brain = grid_points(model.mask.shape, model.affine, model.mask)
    with tempfile.TemporaryDirectory() as name:
        started = time.process_time()
        reference = register_templates(model, other, CORRELATION, Path(name), "correlation")
        print(f"registration by cross-correlation: {time.process_time() - started:.0f} s of CPU time")
        if wanted.write:
            wanted.write.mkdir(parents=True, exist_ok=True)
            matrix = next(step.matrix for step in reference.chain.steps if isinstance(step, Linear))
            for start, end, chain, linear_part in (
                (MODEL_SPACE, OTHER_SPACE, reference.chain, matrix),
                (OTHER_SPACE, MODEL_SPACE, reference.inverse, np.linalg.inv(matrix)),
            ):
                write_transform(wanted.write, start, end, on_coarse_grid(chain, linear_part, start))
            write_tissues(other, reference.chain, wanted.write)
        again = register_templates(model, other, INFORMATION, Path(name), "information").chain
    rows = {
        "matrix of the catalog": linear(model.space.pull_to(other.space)),
        "packaged field, 6 mm": chain_between(MODEL_SPACE, OTHER_SPACE),
        "registration by mutual information": again,
        "registration by cross-correlation": reference.chain,
    }
    image = Image(other.t1w, other.affine)
    print("| from MNI152NLin6Asym to MNI152NLin2009aSym | 50 % | 95 % | maximum | r |\n| --- | --- | --- | --- | --- |")
    for title, chain in rows.items():
        values = errors_mm(chain, reference.chain, brain).values()
        similar = correlation(image.at(chain(brain)), model.t1w[model.mask])
        print(f"| {title} | {' | '.join(f'{value:.2f}' for value in values)} | {similar:.3f} |")


if __name__ == "__main__":
    main()
