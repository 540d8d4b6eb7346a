"""Grids on which a preprocessed series is written: template spaces, the T1w image, and the run's own grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_app.catalog.templates import space
from bids_app.preprocess.io.images import MNI_CODE, NATIVE_CODE, read_volume
from bids_app.preprocess.preprocessed import AlignedSeries, PreprocessedRun
from bids_app.preprocess.registration.spaces import chain_between, template_brain
from bids_app.preprocess.registration.transforms import Chain, apply_matrix, linear, read_itk_text
from bids_app.settings import FUNC_SPACE, T1W_SPACE

MARGIN_VOXELS = 5
"""Margin around the brain of a series in the space of the T1w image."""


@dataclass(frozen=True)
class OutputSpace:
    """Grid of a series, and its transform to the boldref.

    Parameters
    ----------
    shape, affine : tuple of int, numpy.ndarray (4, 4)
        Grid; voxel indices to RAS mm.
    chain : Chain
        Points of the grid to points of the boldref.
    brain : numpy.ndarray, (X, Y, Z) bool
        Brain mask on the grid.
    code : int
        NIfTI code of the space.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    chain: Chain
    brain: np.ndarray
    code: int


def why_not_in(run: PreprocessedRun, name: str) -> str:
    """Return why a run cannot be written in a space; empty if it can."""
    if name in (FUNC_SPACE, T1W_SPACE) and run.route == "derivatives":
        return "it was imported from other derivatives, in a template space"
    if name == T1W_SPACE and not (run.anatomy and run.coreg_file):
        return "it was not registered to a T1w image"
    return ""


def find_output_space(run: AlignedSeries, name: str) -> OutputSpace:
    """Find the grid of a run in a space: ``func``, ``T1w``, or a template space of the catalog.

    Raises
    ------
    ValueError
        The run cannot be written in this space; see `why_not_in`.
    """
    if name in (FUNC_SPACE, T1W_SPACE):
        if not isinstance(run, PreprocessedRun) or why_not_in(run, name):
            raise ValueError(f"{run.source.name} has no series in {name}.")
        return _own_grid(run) if name == FUNC_SPACE else _t1w_grid(run)
    target = space(name)
    chain = chain_between(name, run.template)
    if run.chain is not None:
        chain = chain.then(Chain.load(run.chain))
    brain = template_brain(run.template, name, target.shape, target.affine)
    return OutputSpace(target.shape, target.affine, chain, brain, MNI_CODE)


def _own_grid(run: PreprocessedRun) -> OutputSpace:
    mask, affine = read_volume(run.brain_mask)
    return OutputSpace(mask.shape, affine, Chain(), mask > 0.5, NATIVE_CODE)


def _t1w_grid(run: PreprocessedRun) -> OutputSpace:
    """Return the 2 mm grid of the T1w image, cropped to the brain and a margin."""
    assert run.anatomy
    assert run.coreg_file
    mask, affine = read_volume(run.anatomy.mask)
    brain = mask > 0.5
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    wider = tuple(
        slice(max(part.start - MARGIN_VOXELS, 0), min(part.stop + MARGIN_VOXELS, size))
        for part, size in zip(box, brain.shape, strict=True)
    )
    cropped = affine.copy()
    cropped[:3, 3] = apply_matrix(affine, np.array([part.start for part in wider], dtype=np.float64))
    shown = brain[wider]
    return OutputSpace(shown.shape, cropped, linear(read_itk_text(run.coreg_file)), shown, NATIVE_CODE)
