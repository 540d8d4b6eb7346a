"""Brain extraction from a T1w image by a neural network, deepbet (Fisch et al., 2024), with checks of its result.

deepbet finds the head's bounding box of the brain on a grid of 128^3 and segments the brain within it on 256^3. Its
weights are part of its package. The mask includes ventricles and sulcal CSF.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from bids_app.errors import BadDataError
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.transforms import grid_points

VOLUME_ML = (300.0, 2200.0)
"""Accepted volumes. At birth the brain has about 340 mL (Holland et al., 2014, JAMA Neurol. 71:1266); the intracranial
volume of adults is 1,469 mL (men, SD 102) and 1,289 mL (women, SD 111; Matsumae et al., 1996, J. Neurosurg. 84:982)."""
MIN_COMPACTNESS = 0.85
"""Minimum volume relative to an ellipsoid with the same second moments. Brains have 0.94 to 0.96, as measured on the
template and on real T1w images of three scanners; a neck, holes or several parts lower it."""
MAX_ELONGATION = 1.75
"""Maximum ratio of the longest to the shortest axis of that ellipsoid. Brains have 1.3 to 1.5; those without their
lower or upper third have 1.8 and more."""


@dataclass(frozen=True)
class BrainShape:
    """Size and shape of a brain mask, independent of its position and orientation.

    Parameters
    ----------
    volume_ml : float
    compactness : float
        Volume divided by that of an ellipsoid with the same second moments; 1 for an ellipsoid.
    elongation : float
        Ratio of the longest to the shortest axis of that ellipsoid.
    """

    volume_ml: float
    compactness: float
    elongation: float

    @property
    def quality(self) -> dict[str, float]:
        """Quality metrics for the report."""
        return {"brain_compactness": self.compactness, "brain_elongation": self.elongation}


def extract_brain(image: Image, name: str, threads: int = 1) -> np.ndarray:
    """Segment the brain in a T1w image, with or without skull, (X, Y, Z) bool.

    Parameters
    ----------
    image : Image
        Any contrast in which white matter is brighter than grey matter; any orientation.
    name : str
        File name for messages.
    threads : int
        Threads of PyTorch; their number does not change the result.

    Raises
    ------
    BadDataError
        No brain was found, or the mask does not have the size and shape of a brain.
    """
    from deepbet.bet import BrainExtraction

    with torch_threads(threads):
        try:
            mask = BrainExtraction(no_gpu=True).run(nib.Nifti1Image(image.data, image.affine))[1]
        except (AssertionError, ValueError) as error:  # its bounding box or its largest component is empty
            raise BadDataError(
                f"{name}: brain extraction found no brain.", "Inspect the image: it should be a T1w of a human head."
            ) from error
    found = np.asarray(mask.dataobj) > 0
    failures = failed_checks(measure_shape(found, image.affine))
    if failures:
        raise BadDataError(
            f"{name}: brain extraction failed: {'; '.join(failures)}.",
            "Inspect the image: it should be a T1w of a whole human head.",
        )
    return found


def measure_shape(mask: np.ndarray, affine: np.ndarray) -> BrainShape:
    """Measure size and shape of a brain mask.

    Parameters
    ----------
    mask : numpy.ndarray, (X, Y, Z) bool
    affine : numpy.ndarray, (4, 4)
    """
    volume = float(mask.sum()) * abs(float(np.linalg.det(affine[:3, :3])))
    if mask.sum() < 10:
        return BrainShape(volume / 1e3, 0.0, float("inf"))
    variances = np.maximum(np.linalg.eigvalsh(np.cov(grid_points(mask.shape, affine, mask).T)), 1e-6)
    semi_axes = np.sqrt(5 * variances)
    ellipsoid = 4 / 3 * np.pi * float(np.prod(semi_axes))
    return BrainShape(volume / 1e3, volume / ellipsoid, float(semi_axes[-1] / semi_axes[0]))


def failed_checks(shape: BrainShape) -> list[str]:
    """Return the checks that a brain mask fails, as phrases for an error message."""
    failures = []
    if not VOLUME_ML[0] <= shape.volume_ml <= VOLUME_ML[1]:
        failures.append(f"a volume of {shape.volume_ml:.0f} mL is outside {VOLUME_ML[0]:.0f} to {VOLUME_ML[1]:.0f} mL")
    if shape.compactness < MIN_COMPACTNESS:
        failures.append(
            f"the mask has {shape.compactness:.2f} of the volume of an ellipsoid, below {MIN_COMPACTNESS:.2f}"
        )
    if shape.elongation > MAX_ELONGATION:
        failures.append(f"the mask is {shape.elongation:.1f} times as long as wide, above {MAX_ELONGATION:.1f}")
    return failures


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Set the number of threads of PyTorch, and restore it afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
