"""All faults of a run that headers, sidecars and file sizes show, before it is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bids_app.bids.query import BoldRun
from bids_app.errors import NeurostormError
from bids_app.preprocess.anatomical import read_lesion
from bids_app.preprocess.ingest.derivatives import check_forms
from bids_app.preprocess.io.completeness import check_complete
from bids_app.preprocess.io.headers import (
    MIN_VOLUMES,
    SLICE_TIMING,
    BoldHeader,
    collected,
    examine_anatomy,
    inspect_header,
    inspect_image,
)
from bids_app.preprocess.io.images import check_n_dummies
from bids_app.preprocess.multi_echo import check_same_grid
from bids_app.preprocess.registration.fsl import check_fsl_warp
from bids_app.preprocess.sdc.choice import FIELDMAPS
from bids_app.settings import Settings
from bids_app.workflow.memory import check_run_memory
from bids_app.workflow.nodes import last_onset

Faults = tuple[NeurostormError, ...]


def inspect_run(
    run: BoldRun, settings: Settings, known: dict[Path, Faults] | None = None
) -> tuple[BoldHeader | None, Faults]:
    """Check all files of a run.

    Parameters
    ----------
    run : BoldRun
    settings : Settings
    known : dict, optional
        Faults of images that other runs use too; receives those of this run.

    Returns
    -------
    tuple of BoldHeader or None, and tuple of NeurostormError
        The header of the BOLD file, if it is readable, and all faults, without repetition.
    """
    faults: list[NeurostormError] = []
    header = None
    if run.problem:
        faults.append(run.problem)  # its metadata may be incomplete: files only
        inspect_image(run.bold, faults)
    else:
        header = inspect_header(
            run.bold, run.metadata, (SLICE_TIMING,) if run.derived else settings.preprocess.ignore, faults
        )
    with collected(faults):
        check_run_memory(run, settings)
    if settings.preprocess.dummy_scans:
        with collected(faults):
            check_dummies(run.bold, header, settings.preprocess.dummy_scans)
    if run.derived:
        with collected(faults):
            check_forms(run.bold)
        if run.derived.warp:
            with collected(faults):
                check_fsl_warp(run.derived.warp)
    known = {} if known is None else known
    for path in image_files(run, settings):
        if path not in known:
            known[path] = lesion_faults(path) if path == run.lesion else image_faults(path, is_t1w=path == run.t1w)
        faults += known[path]
    with collected(faults):
        check_echoes(run.echoes)
    with collected(faults):
        last_onset(run.events)
    return header, tuple({str(fault): fault for fault in faults}.values())


def check_echoes(echoes: Sequence[Path]) -> None:
    """Check that the echoes of a run have the same grid; unreadable ones have other faults.

    Raises
    ------
    BadDataError
        An echo differs from the first in size, number of volumes or orientation.
    """
    images = [inspect_image(path, []) for path in echoes]
    if images and all(image is not None for image in images):
        check_same_grid(echoes, images)


def check_dummies(bold: Path, header: BoldHeader | None, n_dummies: int) -> None:
    """Check the number of dummy volumes; without a known repetition time, against the number of volumes only.

    Raises
    ------
    BadDataError
        Too few volumes remain. A file whose size is unknown, or which is too short anyway, has other faults.
    """
    if header is not None:
        n_volumes, tr = header.n_volumes, header.tr
    else:
        image = inspect_image(bold, [])
        n_volumes, tr = (image.shape[3] if image else 0), None
    if n_volumes >= MIN_VOLUMES:
        check_n_dummies(bold.name, n_volumes, tr, n_dummies)


def image_files(run: BoldRun, settings: Settings) -> tuple[Path, ...]:
    """List the images without which a run cannot be processed."""
    derived = (run.derived.mask, run.derived.warp) if run.derived else ()
    t1w = (run.t1w,) if settings.preprocess.fail_without_t1w else ()
    return tuple(path for path in (*(run.echoes or (run.bold,)), *t1w, run.lesion, *derived) if path)


def faults_of_optional_images(run: BoldRun, settings: Settings) -> dict[Path, Faults]:
    """Check the images that are left out, with a warning, if they cannot be used; return those with faults."""
    fieldmaps = run.fieldmap.files if run.fieldmap and FIELDMAPS not in settings.preprocess.ignore else ()
    t1ws = (run.t1w, *run.t1w_repeats)
    optional = [path for path in (*t1ws, *fieldmaps, run.sbref) if path and path not in image_files(run, settings)]
    found = {path: image_faults(path, is_t1w=path in t1ws) for path in optional}
    return {path: faults for path, faults in found.items() if faults}


def lesion_faults(path: Path) -> Faults:
    """Check that a lesion mask is complete, not empty and not inverted."""
    faults: list[NeurostormError] = []
    with collected(faults):
        check_complete(path)
        read_lesion(path)
    return tuple(faults)


def image_faults(path: Path, *, is_t1w: bool) -> Faults:
    """Check that an image is complete, and the header of a T1w image."""
    faults: list[NeurostormError] = []
    with collected(faults):
        check_complete(path)
    if is_t1w:
        with collected(faults):
            examine_anatomy(path)
    return tuple({str(fault): fault for fault in faults}.values())
