"""Taking over a run that another pipeline brought into a standard space: the same `PreprocessedRun`, without the road.

Nothing is estimated that the derivatives tell: their mask and confounds are used where they are there and fit. What is
checked is that the image lies where its affine says, since a mistake there would show in no figure of quality.

    T  volumes of the run      V  voxels of the brain mask
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bids_app.bids.derivatives import DerivedRun
from bids_app.catalog import templates
from bids_app.catalog.templates import MODEL_SPACE, load_template, space, stand_in_for, warp_between
from bids_app.errors import BadDataError
from bids_app.preprocess.ingest.confounds import FD, complete, known_dummies, read_table, write_table
from bids_app.preprocess.ingest.orientation import Placement, find_left_right, judge, look_at_placement
from bids_app.preprocess.io.headers import (
    FORMS_APART_MM,
    FORMS_HINT,
    SLICE_TIMING,
    corner_distances,
    forms_apart,
    load_nifti,
)
from bids_app.preprocess.io.images import Series, read_volume, save_image
from bids_app.preprocess.io.volumes import chunks
from bids_app.preprocess.iqms import measure_quality
from bids_app.preprocess.masking import brain_mask, prepare_bold
from bids_app.preprocess.preprocessed import Origin, PreprocessedRun
from bids_app.preprocess.registration.ants import dice
from bids_app.preprocess.registration.boldref import mask_boldref
from bids_app.preprocess.registration.transforms import linear, read_itk_composite, resample_to

ROUTE = "derivatives"
MNI_CODE = 4
SAME_PLACE_MM = 0.05
"""Corners of two grids may differ by this much, and count as one."""
STRIPPED_SHARE = 0.1
"""Share of the grid outside the brain below which data there count as none: the image is skull-stripped."""
MIN_MASK_DICE, GOOD_MASK_DICE = 0.85, 0.93
CARPET_NAME = "carpet.npy"


@dataclass(frozen=True)
class Brain:
    """Brain masks of a run on its own grid, (X, Y, Z) bool: the one that is used, and that of the image itself."""

    used: np.ndarray
    own: np.ndarray
    warnings: tuple[str, ...] = ()


def examine_derived(
    derived: DerivedRun,
    metadata: dict[str, Any],
    out_dir: Path,
    dummy_scans: int | None = None,
    events_end_s: float | None = None,
) -> Series:
    """Examine a preprocessed series; volumes to drop come from its table, else from its signal.

    Parameters
    ----------
    derived : DerivedRun
    metadata : dict
        Of the run.
    out_dir : pathlib.Path
    dummy_scans : int, optional
        Volumes to drop.
    events_end_s : float, optional
        When the run's last event begins, s.
    """
    check_forms(derived.bold)
    if dummy_scans is None:
        dummy_scans = known_dummies(read_table(derived.confounds, None, None, derived.bold.name).columns)
    if dummy_scans is None and derived.denoised:
        dummy_scans = 0  # no brightness is left to tell them by
    return prepare_bold(derived.bold, metadata, out_dir, dummy_scans, events_end_s, (SLICE_TIMING,))


def check_forms(bold: Path) -> None:
    """Refuse a header whose two affines contradict each other.

    Raises
    ------
    BadDataError
        They disagree about left and right, or by more than `FORMS_APART_MM`.
    """
    apart = forms_apart(load_nifti(bold), bold)
    if apart > FORMS_APART_MM:
        raise BadDataError(
            f"{bold.name}: sform and qform of its header put voxels up to {apart:.0f} mm apart.", FORMS_HINT
        )


def ingest_run(series: Series, derived: DerivedRun, out_dir: Path) -> PreprocessedRun:
    """Make a `PreprocessedRun` of a preprocessed series and what stands beside it.

    Parameters
    ----------
    series : Series
        As `examine_derived` returned it.
    derived : DerivedRun
    out_dir : pathlib.Path

    Raises
    ------
    BadDataError
        The image does not lie where its affine says, or what stands beside it cannot be read.
    """
    name, affine = derived.bold.name, series.open_raw().affine
    mean = mean_image(series)
    boldref = save_image(out_dir / "boldref.nii.gz", mean, affine, space_code=MNI_CODE)
    varies = read_volume(series.data_mask)[0] > 0.5
    brain = find_brain(derived, boldref, mean, affine, varies, out_dir)
    placement, place_warnings = check_placement(derived, mean, affine, brain, varies)
    values = gather(series, brain.used, out_dir / CARPET_NAME)
    table = read_table(derived.confounds, derived.confounds_meta, series.n_volumes, name)
    table = complete(table, values, series.n_dummy, derived.denoised)
    table_file, sidecar = write_table(table, out_dir)
    quality = measure_quality(values, brain.used, mean, affine, table.columns[FD].to_numpy(), series.n_dummy)
    if derived.denoised:
        quality = {key: value for key, value in quality.items() if not key.startswith(MEAN_FIGURES)}
    warnings = [*series.warnings, *brain.warnings, *place_warnings, *table.warnings]
    if derived.denoised:
        warnings.append(
            f"{name}: confounds were regressed out and the mean image with them; the global normalisation, which keeps "
            "the anatomy, has none to keep. Prefer the voxel-wise one, or the series before denoising."
        )
    template, chain, transform = way_to_model(derived.space, out_dir)
    if derived.space != MODEL_SPACE and chain is None:
        warnings.append(f"{name}: is in {transform}.")
    orientation = find_left_right(placement)
    return PreprocessedRun(
        source=derived.bold,
        bold=series.path,
        tr=series.tr,
        n_volumes=series.n_volumes,
        n_dummy=series.n_dummy,
        motion=None,
        chain=chain,
        template=template,
        data_mask=series.data_mask,
        boldref=boldref,
        brain_mask=save_mask(out_dir / "brain_mask.nii.gz", brain.used, affine),
        dseg=tissues_on(derived.space, brain.used, affine, out_dir / "dseg.nii.gz"),
        confounds=table_file,
        confounds_meta=sidecar,
        carpet=out_dir / CARPET_NAME,
        route=ROUTE,
        quality={**placement.quality, "epi_mask_dice": dice(brain.used, brain.own), **quality},
        warnings=tuple(warnings),
        epi_mask=save_mask(out_dir / "own_mask.nii.gz", brain.own, affine),
        boldref_in_template=on_template(mean, affine, derived.space, out_dir / "boldref_in_template.nii.gz"),
        space=derived.space,
        beside=tuple(path for path in (derived.mask, derived.confounds) if path is not None),
        notes=(f"Space: {transform}.", f"Left and right: {orientation.in_words}."),
        offset=lift(values) if derived.denoised else 0.0,
        orientation=orientation,
        origin=Origin(
            derived.pipeline,
            transform,
            slice_timing_corrected=_known(derived.metadata, "SliceTimingCorrected", bool),
            start_time=_known(derived.metadata, "StartTime", int, float),
        ),
    )


def _known(metadata: dict[str, Any], key: str, *kinds: type) -> Any:
    """What derivatives say of themselves, where it is of the right type; None otherwise."""
    value = metadata.get(key)
    return value if type(value) in kinds else None


MEAN_FIGURES = ("tsnr", "snr", "efc", "fber", "gsr")
"""Figures that need a mean image."""


def mean_image(series: Series) -> np.ndarray:
    """Mean over the steady volumes, (X, Y, Z) float32."""
    source = series.open_raw()
    total = np.zeros(source.shape[:3])
    for _, volumes in chunks(source, series.n_dummy):
        for volume in volumes:
            total += volume
    return (total / (series.n_volumes - series.n_dummy)).astype(np.float32)


def gather(series: Series, mask: np.ndarray, path: Path) -> np.ndarray:
    """Write the series in a mask to a file, and open that, (T, V) float32."""
    values = np.lib.format.open_memmap(path, "w+", np.float32, (series.n_volumes, int(mask.sum())))
    for first, volumes in chunks(series.open_raw()):
        values[first : first + len(volumes)] = volumes[:, mask]
    values.flush()
    return values


def lift(values: np.ndarray) -> float:
    """What to add to a series without a mean, so that nothing is below 0."""
    return float(max(0.0, -min(float(row.min()) for row in values)))


def find_brain(
    derived: DerivedRun, boldref: Path, mean: np.ndarray, affine: np.ndarray, varies: np.ndarray, out_dir: Path
) -> Brain:
    """The derivatives' brain mask on the run's grid, or one from the data; and the image's own for comparison.

    Parameters
    ----------
    derived : DerivedRun
    boldref : pathlib.Path
        File of the mean image.
    mean : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
    varies : numpy.ndarray, (X, Y, Z) bool
        Where the series varies over time.
    out_dir : pathlib.Path
    """
    name = derived.bold.name
    warnings: list[str] = []
    given = _on_grid(derived.mask, mean.shape, affine, warnings) if derived.mask else None
    outside = varies & ~given if given is not None else varies & _far_from_brain(derived.space, mean.shape, affine)
    if outside.sum() < STRIPPED_SHARE * varies.size:
        own = ndimage.binary_fill_holes(varies)
    elif derived.denoised:
        if given is None:
            raise BadDataError(
                f"{name}: without its mean image and without a brain mask beside it, the brain cannot be told.",
                "Put its *_desc-brain_mask.nii.gz beside it, or give the series before denoising.",
            )
        own = given
    else:
        own = brain_mask(mean, affine)
        if given is None or dice(given, own) < GOOD_MASK_DICE:  # perhaps the image is bright on one side only
            own = read_volume(mask_boldref(derived.bold, boldref, out_dir).mask)[0] > 0.5
    if given is None:
        warnings.append(f"{name}: there is no brain mask beside it; one was made from the image.")
        given = own
    elif dice(given, own) < MIN_MASK_DICE:
        warnings.append(
            f"{name}: the brain in it and its mask {derived.mask.name if derived.mask else ''} overlap by "
            f"{dice(given, own):.2f} only (Dice)."
        )
    used = given & varies
    if not used.any():
        raise BadDataError(f"{name}: nothing varies over time inside its brain mask.", "Check image and mask.")
    return Brain(used, own, tuple(warnings))


def _on_grid(path: Path, shape: Sequence[int], affine: np.ndarray, warnings: list[str]) -> np.ndarray:
    """A mask on the run's grid, through the affines."""
    check_forms(path)
    data, its_affine = read_volume(path)
    data = data.reshape(data.shape[:3])
    same = data.shape == tuple(shape)
    if same and corner_distances(affine, its_affine, shape).max() < SAME_PLACE_MM:
        return data > 0.5
    warnings.append(f"{path.name}: stands on another grid than the run; it was drawn on the run's through the affines.")
    return resample_to((data > 0.5).astype(np.float32), its_affine, shape, affine) > 0.5


def _far_from_brain(name: str, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    brain = templates.brain_on(name, shape, affine)
    return ~ndimage.binary_dilation(brain, iterations=3)


def check_placement(
    derived: DerivedRun, image: np.ndarray, affine: np.ndarray, brain: Brain, varies: np.ndarray
) -> tuple[Placement, tuple[str, ...]]:
    """Compare a run with the template and with the participant's own images in the space; see `placement.py`."""
    companions = {}
    for name, path in (("T1w", derived.t1w), ("boldref", derived.boldref)):
        if path is not None and not derived.denoised:
            data, its_affine = read_volume(path)
            companions[name] = data.reshape(data.shape[:3]), its_affine
    stripped = (varies & ~brain.own).sum() < STRIPPED_SHARE * varies.size
    seen = np.ones_like(varies) if stripped else varies
    if derived.denoised:
        image = brain.own.astype(np.float32)  # no brightness is left to compare
    found = look_at_placement(image, affine, brain.own, seen, derived.space, companions)
    return found, judge(found, derived.bold.name)


def way_to_model(name: str, out_dir: Path) -> tuple[str, Path | None, str]:
    """How points of the model's space are found in a run's space.

    Returns
    -------
    tuple
        The space in which points are to be given; the chain from there to the run's, if there is one; and what it is,
        in words.
    """
    warp = warp_between(name, MODEL_SPACE)
    if name != MODEL_SPACE and warp is not None:
        return MODEL_SPACE, read_itk_composite(warp).save(out_dir / "to_model.npz"), way_in_words(name)
    return name, None, way_in_words(name)


def way_in_words(name: str) -> str:
    """How a space is brought to the model's: ``MNI152NLin6Asym, the model's own space``."""
    if name == MODEL_SPACE:
        return f"{name}, the model's own space"
    warp = warp_between(name, MODEL_SPACE)
    if warp is not None:
        return f"{name}, taken to {MODEL_SPACE} by TemplateFlow's transform {warp.name}"
    return f"{name}, taken to {MODEL_SPACE} by a fixed affine matrix only: {space(name).accuracy}"


def tissues_on(name: str, brain: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    """The template's tissues on a run's grid within its brain: 1 grey matter, 2 white matter, 3 CSF."""
    template = load_template(stand_in_for(name))
    pull = linear(space(name).pull_to(template.space))
    maps = [
        resample_to(data, template.affine, brain.shape, affine, pull)
        for data in (template.gm, template.wm, template.csf)
    ]
    dseg = (np.argmax(maps, axis=0) + 1) * (np.sum(maps, axis=0) > 0.3) * brain
    return save_image(path, dseg.astype(np.uint8), affine, space_code=MNI_CODE)


def on_template(image: np.ndarray, affine: np.ndarray, name: str, path: Path) -> Path:
    """An image of a run's space on the grid of the template that figures show."""
    template = load_template(stand_in_for(name))
    drawn = resample_to(image, affine, template.t1w.shape, template.affine, linear(template.space.pull_to(space(name))))
    return save_image(path, drawn, template.affine, space_code=MNI_CODE)


def save_mask(path: Path, mask: np.ndarray, affine: np.ndarray) -> Path:
    """Write a mask."""
    return save_image(path, mask.astype(np.uint8), affine, space_code=MNI_CODE)
