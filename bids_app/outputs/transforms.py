"""Outputs that map between spaces: transform files of a T1w image and of a run, with their sidecars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bids_app.bids.writer import copy_file
from bids_app.catalog.templates import MODEL_SPACE
from bids_app.outputs.names import RunName
from bids_app.outputs.schema import TransformSidecar
from bids_app.preprocess.registration.published import transforms_to_spaces, write_itk_composite
from bids_app.preprocess.registration.transforms import Chain

COMPOSITE = "Composite of matrices and displacement fields (ITK)"
RIGID = "Rigid transform (ITK)"
MOTION = "Head motion: a rigid transform for each volume (ITK)"


def write_space_transforms(
    names: RunName,
    image: str,
    datatype: str,
    chain: Chain,
    inverse: Chain,
    template: str,
    spaces: Sequence[str],
    ancestors: Iterable[Path | str],
) -> None:
    """Write the transforms between an image and template spaces, both directions of each.

    Parameters
    ----------
    names : RunName
    image : str
        Space of the image in file names: ``T1w`` or ``boldref``.
    datatype : str
        ``anat`` or ``func``.
    chain, inverse : Chain
        Template points to points of the image, and the reverse.
    template : str
        Template that the image was registered to.
    spaces : sequence of str
        Further spaces; the model's space is always written.
    ancestors : iterable of pathlib.Path or str
        Outputs that were registered, and BIDS URIs of other inputs of the registration.
    """
    sources = tuple(ancestors)
    sidecar = TransformSidecar(description=COMPOSITE, template=template)
    for found in transforms_to_spaces(template, (MODEL_SPACE, *spaces), chain, inverse):
        ends = ((image, found.space, found.chain), (found.space, image, found.inverse))
        for start, end, pull in ends:
            path = names.path("xfm", ".h5", datatype, from_=start, to=end, mode="image")
            names.sidecar(write_itk_composite(path, pull), sidecar, sources)


def write_linear_transform(
    names: RunName, file: Path, start: str, end: str, desc: str, description: str, ancestors: Iterable[Path | str]
) -> Path:
    """Write a text file of rigid transforms of a run; return its path."""
    path = copy_file(file, names.path("xfm", ".txt", from_=start, to=end, mode="image", desc=desc))
    names.sidecar(path, TransformSidecar(description=description), ancestors)
    return path
