"""Ground truth of a simulated dataset on disk: writing and reading.

The files are in ``derivatives/truth``, a BIDS derivatives dataset; its README describes each file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_app.phantom.bold import SimulatedRun
from bids_app.phantom.geometry import apply, grid_points, sample
from bids_app.phantom.head_shape import BRAIN_CENTRE_MM, HeadShape
from bids_app.phantom.tissues import TEMPLATE

FIELD_SPACING_MM = 3.0
README = f"""\
# Ground truth of the simulated scans

All positions are RAS mm. A transform *from A to B* maps a point of A to the corresponding point of B.
*T1w* is the native space of the T1w image (also with `--no-t1w`), *boldref* the space of the BOLD image at the
reference volume (`ReferenceVolume`, the first in steady state), and {TEMPLATE} that of nilearn's embedded template.
Each session has its own T1w space.

| file | content |
| --- | --- |
| `states.tsv` | one row per run: state, protocol, number of non-steady-state volumes |
| `anat/*_from-T1w_to-{TEMPLATE}_mode-points_xfm.nii.gz` | displacements d, mm: T1w point p maps to p + d(p) |
| `anat/*_from-{TEMPLATE}_to-T1w_mode-points_xfm.nii.gz` | the inverse, in the same format |
| `anat/*_desc-brain_mask.nii.gz` | brain mask on the T1w image's grid |
| `func/*_from-boldref_to-T1w_mode-points_xfm.txt` | rigid, 4 x 4 |
| `func/*_desc-motion_xfm.npy` | (T, 4, 4): boldref point to its position in volume t; identity at the reference |
| `func/*_from-boldref_to-distorted_mode-points_xfm.nii.gz` | true to measured (distorted) positions (`--distortion`) |
| `func/*_desc-brain_mask.nii.gz` | brain mask on the BOLD image's grid, at the reference volume |
| `func/*_desc-activation_boldmap.nii.gz` | response to a long block over the mean signal, on the BOLD image's grid |
| `func/*_desc-design_timeseries.tsv` | the state's time course, one value per volume |
| `func/*_desc-truth.json` | state, events, protocol, reference volume |
"""


@dataclass(frozen=True)
class PointField:
    """A transform of points, stored as a displacement field.

    Attributes
    ----------
    displacement : (X, Y, Z, 3) float32
        mm.
    affine : (4, 4)
        Voxel to mm of the source space.
    """

    displacement: np.ndarray
    affine: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Transform points (..., 3), mm, to the target space; outside the field its edge values apply."""
        edge = apply(self.affine, np.array([[0.0] * 3, np.array(self.displacement.shape[:3]) - 1.0]))
        inside = np.clip(points, edge[0] + 1e-3, edge[1] - 1e-3)
        moves = [sample(self.displacement[..., axis], self.affine, inside) for axis in range(3)]
        return points + np.stack(moves, axis=-1)

    @classmethod
    def load(cls, path: Path) -> PointField:
        """Read a ``mode-points_xfm.nii.gz``."""
        image = nib.Nifti1Image.from_filename(path)
        return cls(np.asarray(image.dataobj, dtype=np.float32)[:, :, :, 0], image.affine)

    def save(self, path: Path) -> None:
        """Write the field as NIfTI, with vectors in the fifth dimension."""
        image = nib.Nifti1Image(self.displacement[:, :, :, None].astype(np.float32), self.affine)
        image.header.set_intent("vector")
        image.header.set_xyzt_units("mm")
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)


def fields_of(head_shape: HeadShape) -> tuple[PointField, PointField]:
    """Return T1w to template, and template to T1w, as fields that cover the head."""
    head_middle = apply(np.linalg.inv(head_shape.t1w_to_head), BRAIN_CENTRE_MM[None])[0]
    there, back = _grid(head_middle), _grid(BRAIN_CENTRE_MM)
    to_template = PointField((head_shape.t1w_to_template(there[0]) - there[0]).astype(np.float32), there[1])
    return to_template, PointField((head_shape.template_to_t1w(back[0]) - back[0]).astype(np.float32), back[1])


def _grid(middle_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the grid points (66, 78, 68, 3) and affine of a box of 195 x 231 x 201 mm."""
    shape = (66, 78, 68)
    affine = np.diag([FIELD_SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = middle_mm - FIELD_SPACING_MM * (np.array(shape) - 1) / 2
    return grid_points(shape, affine).astype(np.float64), affine


def write_run_truth(folder: Path, stem: str, run: SimulatedRun) -> None:
    """Write the ground truth of one run into its ``func`` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / f"{stem}_from-boldref_to-T1w_mode-points_xfm.txt", run.boldref_to_t1w, fmt="%.9f")
    np.save(folder / f"{stem}_desc-motion_xfm.npy", run.motion)
    save_image(folder / f"{stem}_desc-brain_mask.nii.gz", run.brain_mask.astype(np.uint8), run.affine)
    save_image(folder / f"{stem}_desc-activation_boldmap.nii.gz", run.activation.astype(np.float32), run.affine)
    if run.distortion is not None:
        moves = run.distortion.forward[..., None] * run.distortion.direction
        field = PointField(moves.astype(np.float32), run.distortion.affine)
        field.save(folder / f"{stem}_from-boldref_to-distorted_mode-points_xfm.nii.gz")
    lines = ["design", *(f"{v:.6f}" for v in run.design)]
    (folder / f"{stem}_desc-design_timeseries.tsv").write_text("\n".join(lines) + "\n")
    facts = {
        "State": run.state,
        "ReferenceVolume": run.reference,
        "NonSteadyStateVolumes": run.reference,
        "Events": [asdict(event) for event in run.events],
        "Protocol": asdict(run.protocol),
    }
    (folder / f"{stem}_desc-truth.json").write_text(json.dumps(facts, indent=2) + "\n")


def save_image(
    path: Path,
    data: np.ndarray,
    affine: np.ndarray,
    tr: float | None = None,
    slope: float | None = None,
    codes: tuple[int, int] = (1, 1),
) -> None:
    """Write a NIfTI image in mm and s; ``slope`` scales stored integers, ``codes`` are those of qform and sform."""
    image = nib.Nifti1Image(data, affine)
    qform, sform = codes
    image.set_sform(affine if sform else None, code=sform)
    image.set_qform(affine if qform else None, code=qform)
    image.header.set_xyzt_units("mm", "sec")
    if tr is not None:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    if slope is not None:
        image.header.set_slope_inter(slope, 0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
