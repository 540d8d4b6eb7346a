"""Outputs of a T1w image: preprocessed image, brain mask, transforms and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app.bids.writer import dataset_uri
from bids_app.catalog.templates import catalog
from bids_app.outputs.names import RunName, entities_of, name_run
from bids_app.outputs.schema import MaskSidecar, T1wSidecar
from bids_app.outputs.transforms import write_space_transforms
from bids_app.outputs.viewer import write_viewer_anatomy
from bids_app.preprocess.anatomical import Anatomy, UnusableT1w
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.images import NATIVE_CODE, save_image, stamp_header
from bids_app.preprocess.registration.separable import are_parallel, resample_parallel
from bids_app.preprocess.registration.transforms import Chain

BRAIN, BRAIN_IN_WORDS = "Brain", "Mask of the brain"
"""Type of the masks, as in their sidecars."""


def anatomy_outputs(
    anatomy: Anatomy | UnusableT1w, datasets: Mapping[str, Path], output_spaces: Sequence[str], out_dir: Path
) -> Path | None:
    """Write the outputs of a T1w image at its original resolution; return the folder of the tree.

    An unusable image has no outputs. Transforms are written for the template, the model's space, and ``output_spaces``.
    """
    if isinstance(anatomy, UnusableT1w):
        return None
    from bids_app.reports.figures.brains import plot_flicker, plot_outlines

    names = name_anatomy(out_dir / "tree", anatomy, datasets)
    image = load_nifti(anatomy.native)
    affine, shape = image.affine, image.shape[:3]

    t1w = names.path("T1w", ".nii.gz", "anat", desc="preproc")
    corrected = image.get_fdata(dtype=np.float32).reshape(shape)
    corrected /= resample_linearly(anatomy.bias, shape, affine)
    save_int16(t1w, corrected, affine)
    names.sidecar(t1w, T1wSidecar(skull_stripped=anatomy.stripped, description=describe_t1w(anatomy)))

    mask = resample_linearly(anatomy.mask, shape, affine, outside="constant") > 0.5
    path = names.path("mask", ".nii.gz", "anat", desc="brain")
    save_image(path, mask.astype(np.uint8), affine)
    described = MaskSidecar(
        description=BRAIN_IN_WORDS, kind=BRAIN, raw_sources=names.sources, spatial_reference=names.uri(t1w)
    )
    names.sidecar(path, described, [t1w])

    write_space_transforms(
        names,
        "T1w",
        "anat",
        Chain.load(anatomy.chain),
        Chain.load(anatomy.inverse),
        anatomy.template,
        [space for space in output_spaces if space in catalog()],
        [t1w, *((dataset_uri(anatomy.lesion, datasets),) if anatomy.lesion else ())],
    )

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
    write_viewer_anatomy(names, anatomy)
    return names.tree


def name_anatomy(tree: Path, anatomy: Anatomy, datasets: Mapping[str, Path]) -> RunName:
    """Make the names of the outputs of a T1w image."""
    used = anatomy.used or (anatomy.source,)
    return name_run(tree, entities_of(used), datasets, used)


def describe_t1w(anatomy: Anatomy) -> str:
    """Describe the processing of the T1w image."""
    if anatomy.merged:
        return f"Mean of {len(anatomy.used)} aligned images, corrected for the bias field (N4)"
    return "Corrected for the bias field (N4)"


def resample_linearly(path: Path, shape: tuple[int, ...], affine: np.ndarray, outside: str = "nearest") -> np.ndarray:
    """Resample a 3D image linearly to another grid in the same space; float32 (X, Y, Z)."""
    from scipy.ndimage import affine_transform

    image = load_nifti(path)
    to_voxels = np.linalg.inv(image.affine) @ affine
    data = image.get_fdata(dtype=np.float32)
    if are_parallel(to_voxels, shape):
        return resample_parallel(data, to_voxels, shape, outside=outside)
    return affine_transform(data, to_voxels[:3, :3], to_voxels[:3, 3], shape, output=np.float32, order=1, mode=outside)


def template_images(name: str, out_dir: Path) -> tuple[Path, Path]:
    """Write a template and its brain mask for figures; return both paths."""
    from bids_app.catalog.templates import load_template

    template = load_template(name)
    head, brain = out_dir / "template.nii.gz", out_dir / "template_mask.nii.gz"
    nib.Nifti1Image(template.t1w, template.affine).to_filename(head)
    nib.Nifti1Image(template.mask.astype(np.uint8), template.affine).to_filename(brain)
    return head, brain


def save_int16(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Save an image as scaled int16, which is sufficient for the precision of MRI data."""
    image = nib.Nifti1Image(data, affine)
    stamp_header(image.header, affine, NATIVE_CODE, None)
    image.header.set_data_dtype(np.int16)
    image.to_filename(path)
