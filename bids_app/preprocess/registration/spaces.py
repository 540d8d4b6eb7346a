"""Transforms between template spaces: TemplateFlow's, or those of this package, or else the catalog's matrices."""

from __future__ import annotations

import numpy as np

from bids_app.catalog.templates import load_template, space, stand_in_for, warp_between
from bids_app.preprocess.registration.transforms import Chain, linear, read_itk_composite, resample_to


def chain_between(start: str, end: str) -> Chain:
    """Return the transform from points of one template space to points of another.

    Parameters
    ----------
    start, end : str
        Names of spaces in the catalog.
    """
    if start == end:
        return Chain()
    warp = warp_between(end, start)
    return linear(space(start).pull_to(space(end))) if warp is None else read_itk_composite(warp)


def template_brain(template: str, onto: str, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Resample a template's brain mask to a grid of a space, (X, Y, Z) bool.

    Parameters
    ----------
    template : str
        If it is not on this machine, the best available one is used instead.
    onto : str
        Space of the grid.
    shape, affine : tuple of int, numpy.ndarray (4, 4)
        Grid in RAS mm.
    """
    found = load_template(stand_in_for(template))
    chain = chain_between(onto, found.name)
    return resample_to(found.mask.astype(np.float32), found.affine, shape, affine, chain) > 0.5
