"""What is written of a T1w image: the image itself, its mask, transforms and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app.bids.entities import split_name
from bids_app.bids.writer import copy_file
from bids_app.outputs.names import name_run
from bids_app.outputs.schema import MaskSidecar, T1wSidecar
from bids_app.preprocess.anatomical import Anatomy
from bids_app.preprocess.io.headers import load_nifti

BRAIN = "Brain"
"""What masks are of."""


def anatomy_outputs(anatomy: Anatomy, datasets: Mapping[str, Path], out_dir: Path) -> Path:
    """Lay out what was made of a T1w image: at its own resolution, with mask, transforms and figures."""
    from bids_app.reports.figures.brains import plot_flicker, plot_outlines

    found = split_name(anatomy.source.name)[0]
    entities = {key: value for key, value in found.items() if key not in ("part", "echo")}
    names = name_run(out_dir / "tree", entities, datasets, anatomy.used or [anatomy.source])
    image = load_nifti(anatomy.native)
    affine, shape = image.affine, image.shape[:3]

    t1w = names.path("T1w", ".nii.gz", "anat", desc="preproc")
    corrected = image.get_fdata(dtype=np.float32).reshape(shape)
    corrected /= on_grid(anatomy.bias, shape, affine)
    save_int16(t1w, corrected, affine)
    names.sidecar(t1w, T1wSidecar(skull_stripped=anatomy.stripped, description=describe_t1w(anatomy)))

    mask = on_grid(anatomy.mask, shape, affine, outside="constant") > 0.5
    path = names.path("mask", ".nii.gz", "anat", desc="brain")
    nib.Nifti1Image(mask.astype(np.uint8), affine).to_filename(path)
    names.sidecar(path, MaskSidecar(kind=BRAIN, raw_sources=names.sources))

    there, back = {"from_": "T1w", "to": anatomy.template}, {"from_": anatomy.template, "to": "T1w"}
    copy_file(anatomy.to_template, names.path("xfm", anatomy.to_template.suffix, "anat", **there, mode="image"))
    copy_file(anatomy.from_template, names.path("xfm", anatomy.from_template.suffix, "anat", **back, mode="image"))

    plot_outlines(
        anatomy.image,
        {"brain mask": anatomy.mask},
        names.path("T1w", ".svg", "figures", desc="mask"),
        title=f"Brain mask of {names.stem}",
    )
    template, brain = template_images(anatomy.template, out_dir)
    plot_flicker(
        template,
        anatomy.in_template,
        names.path("T1w", ".svg", "figures", desc="norm"),
        outline=brain,
        names=(anatomy.template, "T1w"),
        title=f"{names.stem} on the template",
    )
    return names.tree


def describe_t1w(anatomy: Anatomy) -> str:
    """What was done to the T1w image that is written, in words."""
    if anatomy.merged:
        return f"Mean of {len(anatomy.used)} images, aligned with each other; without its bias field (N4)"
    return "Without its bias field (N4)"


def on_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray, outside: str = "nearest") -> np.ndarray:
    """A 3D image on another grid of its space, linearly, in float32; (X, Y, Z)."""
    from scipy.ndimage import affine_transform

    image = load_nifti(path)
    to_voxels = np.linalg.inv(image.affine) @ affine
    data = image.get_fdata(dtype=np.float32)
    return affine_transform(data, to_voxels[:3, :3], to_voxels[:3, 3], shape, output=np.float32, order=1, mode=outside)


def template_images(name: str, out_dir: Path) -> tuple[Path, Path]:
    """A template and its brain mask as files, for figures."""
    from bids_app.catalog.templates import load_template

    template = load_template(name)
    head, brain = out_dir / "template.nii.gz", out_dir / "template_mask.nii.gz"
    nib.Nifti1Image(template.t1w, template.affine).to_filename(head)
    nib.Nifti1Image(template.mask.astype(np.uint8), template.affine).to_filename(brain)
    return head, brain


def save_int16(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Save an image in 16 bits with a scale, which loses nothing that a scanner measured."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_data_dtype(np.int16)
    image.to_filename(path)
