"""Ingestion of runs that another pipeline preprocessed, as a `PreprocessedRun` in a standard space.

Series that are not in a standard space are resampled first, with the transform of their pipeline (`warp_series`).

The mask and confounds of the derivatives are used if they exist and match the run. The image's orientation is checked
against the template, because no image quality metric would show an error there.

    T  volumes of the run      V  voxels of the brain mask
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from bids_app.bids.derivatives import DerivedRun
from bids_app.catalog.templates import MODEL_SPACE, load_template, space, stand_in_for, warp_between
from bids_app.errors import BadDataError
from bids_app.preprocess.ingest.confounds import FD, add_missing_columns, count_marked_dummies, read_table, write_table
from bids_app.preprocess.ingest.orientation import (
    OrientationCheck,
    check_orientation,
    estimate_orientation,
    find_left_right,
)
from bids_app.preprocess.io.arrays import create_array
from bids_app.preprocess.io.headers import (
    FORM_HINT,
    MAX_FORM_DISTANCE_MM,
    SLICE_TIMING,
    corner_distances,
    form_distance_mm,
    load_nifti,
)
from bids_app.preprocess.io.images import MNI_CODE, Series, examine_bold, read_volume, save_image, set_dummies
from bids_app.preprocess.io.series_writer import RawSeriesWriter
from bids_app.preprocess.io.volumes import chunks
from bids_app.preprocess.iqms import compute_iqms
from bids_app.preprocess.masking import brain_mask, count_dummies, prepare_bold
from bids_app.preprocess.preprocessed import Origin, PreprocessedRun
from bids_app.preprocess.registration.ants import dice
from bids_app.preprocess.registration.boldref import mask_boldref
from bids_app.preprocess.registration.fsl import read_fsl_warp
from bids_app.preprocess.registration.spaces import chain_between, template_brain
from bids_app.preprocess.registration.transforms import grid_points, read_itk_composite, resample_to
from bids_app.preprocess.resample import find_covered_points, pull_volumes

ROUTE = "derivatives"
SAME_PLACE_MM = 0.05
"""Two grids are equal if their corners differ by less than this."""
STRIPPED_SHARE = 0.1
"""An image with less than this share of its grid outside the brain filled counts as skull-stripped."""
MIN_MASK_DICE, GOOD_MASK_DICE = 0.85, 0.93
CARPET_NAME = "carpet.npy"


@dataclass(frozen=True)
class Brain:
    """Brain masks of a run on its own grid, (X, Y, Z) bool: the one used, and the one found in the image itself."""

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
    """Check a preprocessed series, and count its dummy volumes in the confounds table or in the signal.

    Parameters
    ----------
    derived : DerivedRun
    metadata : dict
        Sidecar of the run.
    out_dir : pathlib.Path
    dummy_scans : int, optional
        Number of dummy volumes; estimated by default.
    events_end_s : float, optional
        Onset of the last event, s.
    """
    check_forms(derived.bold)
    if derived.warp is not None:
        return warp_series(derived, derived.warp, metadata, out_dir, dummy_scans, events_end_s)
    if dummy_scans is None:
        dummy_scans = count_marked_dummies(read_table(derived.confounds, None, None, derived.bold.name).columns)
    if dummy_scans is None and derived.denoised:
        dummy_scans = 0  # not detectable without the mean signal
    return prepare_bold(derived.bold, metadata, out_dir, dummy_scans, events_end_s, (SLICE_TIMING,))


def warp_series(
    derived: DerivedRun,
    warp: Path,
    metadata: dict[str, Any],
    out_dir: Path,
    dummy_scans: int | None,
    events_end_s: float | None,
) -> Series:
    """Check a series that is not in a template space, and resample it to the 2 mm grid of its space.

    The series replaces the uncompressed copy of other derivatives: later steps find it in its space, and the voxels of
    the model grid, which are on the same lattice, are copied. Parameters as in `examine_derived`.
    """
    table = read_table(derived.confounds, None, None, derived.bold.name).columns
    native_dir = out_dir / "native"
    native_dir.mkdir()
    native = examine_bold(derived.bold, metadata, native_dir, events_end_s=events_end_s, ignore=(SLICE_TIMING,))
    source, target = native.open_raw(), space(derived.space)
    points = read_fsl_warp(warp, source.shape, source.affine)(grid_points(target.shape, target.affine))
    covered = find_covered_points(source, None, points, read_volume(native.data_mask)[0] > 0.5)
    if not covered.any():
        raise BadDataError(
            f"{derived.bold.name}: no data in {derived.space} after the transform {warp.name}.",
            "Check that the transform belongs to the series.",
        )
    where = covered.reshape(target.shape)
    path = out_dir / "bold.nii"
    with RawSeriesWriter(path, where, target.affine, MNI_CODE, native.tr, native.n_volumes) as writer:
        for values in pull_volumes(source, None, points[covered]):
            writer.append(values)
    if native.path != derived.bold:
        native.path.unlink()
    data_mask = save_image(out_dir / "data_mask.nii.gz", where.astype(np.uint8), target.affine, space_code=MNI_CODE)
    series = replace(native, path=path, data_mask=data_mask)
    if dummy_scans is None:
        dummy_scans = count_marked_dummies(table)
    return set_dummies(series, count_dummies(series.open_raw(), series.tr) if dummy_scans is None else dummy_scans)


def warp_mask(derived: DerivedRun, shape: Sequence[int], affine: np.ndarray, out_dir: Path) -> DerivedRun:
    """Return a run that is not in a template space with its brain mask resampled to the grid of the warped series."""
    if derived.warp is None or derived.mask is None:
        return derived
    check_forms(derived.mask)
    mask, its_affine = read_volume(derived.mask)
    mask = mask.reshape(mask.shape[:3])
    pull = read_fsl_warp(derived.warp, mask.shape, its_affine)
    resampled = resample_to((mask > 0.5).astype(np.float32), its_affine, shape, affine, pull) > 0.5
    return replace(derived, mask=save_mask(out_dir / derived.mask.name, resampled, affine))


def check_forms(bold: Path) -> None:
    """Check that sform and qform of a header agree.

    Raises
    ------
    BadDataError
        They disagree about left and right, or by more than `MAX_FORM_DISTANCE_MM`.
    """
    distance = form_distance_mm(load_nifti(bold), bold)
    if distance > MAX_FORM_DISTANCE_MM:
        raise BadDataError(f"{bold.name}: sform and qform differ by up to {distance:.0f} mm.", FORM_HINT)


def ingest_run(series: Series, derived: DerivedRun, out_dir: Path) -> PreprocessedRun:
    """Make a `PreprocessedRun` of a preprocessed series, its mask and its confounds.

    Parameters
    ----------
    series : Series
        Result of `examine_derived`.
    derived : DerivedRun
    out_dir : pathlib.Path

    Raises
    ------
    BadDataError
        The image does not match its affine, or the mask or confounds are invalid.
    """
    name, affine = derived.bold.name, series.open_raw().affine
    sources = (derived.mask, derived.warp, derived.confounds)
    mean = mean_image(series)
    derived = warp_mask(derived, mean.shape, affine, out_dir)
    boldref = save_image(out_dir / "boldref.nii.gz", mean, affine, space_code=MNI_CODE)
    varies = read_volume(series.data_mask)[0] > 0.5
    brain = find_brain(derived, boldref, mean, affine, varies, out_dir)
    check, orientation_warnings = assess_orientation(derived, mean, affine, brain, varies)
    values = write_carpet(series, brain.used, out_dir / CARPET_NAME)
    table = read_table(derived.confounds, derived.confounds_meta, series.n_volumes, name)
    table = add_missing_columns(table, values, series.n_dummy, derived.denoised)
    table_file, sidecar = write_table(table, out_dir)
    quality = compute_iqms(values, brain.used, mean, affine, table.columns[FD].to_numpy(), series.n_dummy)
    if derived.denoised:
        quality = {key: value for key, value in quality.items() if not key.startswith(MEAN_IMAGE_IQMS)}
    warnings = [*series.warnings, *brain.warnings, *orientation_warnings, *table.warnings]
    if derived.denoised:
        warnings.append(
            f"{name}: denoising removed the mean image, which the global normalisation requires. Use an adapter with "
            "voxel-wise normalisation, or the series before denoising."
        )
    template, chain, transform = transform_to_model(derived.space, out_dir)
    if derived.space != MODEL_SPACE and chain is None:
        warnings.append(f"{name}: space {transform}.")
    orientation = find_left_right(check)
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
        dseg=resample_tissues(derived.space, brain.used, affine, out_dir / "dseg.nii.gz"),
        confounds=table_file,
        confounds_meta=sidecar,
        carpet=out_dir / CARPET_NAME,
        route=ROUTE,
        quality={**check.quality, "epi_mask_dice": dice(brain.used, brain.own), **quality},
        warnings=tuple(warnings),
        epi_mask=save_mask(out_dir / "own_mask.nii.gz", brain.own, affine),
        boldref_in_template=resample_to_template(mean, affine, derived.space, out_dir / "boldref_in_template.nii.gz"),
        space=derived.space,
        other_sources=tuple(path for path in sources if path is not None),
        notes=(f"Space: {transform}.", f"Left and right: {orientation.in_words}."),
        offset=nonnegative_offset(values) if derived.denoised else 0.0,
        orientation=orientation,
        origin=Origin(
            derived.pipeline,
            transform,
            slice_timing_corrected=_read_typed(derived.metadata, "SliceTimingCorrected", bool),
            start_time=_read_typed(derived.metadata, "StartTime", int, float),
            denoised=derived.denoised,
        ),
    )


def _read_typed(metadata: dict[str, Any], key: str, *kinds: type) -> Any:
    """Return a value of the derivatives' metadata if it has one of the types, else None."""
    value = metadata.get(key)
    return value if type(value) in kinds else None


MEAN_IMAGE_IQMS = ("tsnr", "snr", "efc", "fber", "gsr")
"""Prefixes of the image quality metrics that require a mean image."""


def mean_image(series: Series) -> np.ndarray:
    """Compute the mean of the steady-state volumes, (X, Y, Z) float32."""
    source = series.open_raw()
    total = np.zeros(source.shape[:3])
    for _, volumes in chunks(source, series.n_dummy):
        for volume in volumes:
            total += volume
    return (total / (series.n_volumes - series.n_dummy)).astype(np.float32)


def write_carpet(series: Series, mask: np.ndarray, path: Path) -> np.ndarray:
    """Write the series in a mask to a file, and return it memory-mapped, (T, V) float32."""
    values = create_array(path, (series.n_volumes, int(mask.sum())))
    for first, volumes in chunks(series.open_raw()):
        values[first : first + len(volumes)] = volumes[:, mask]
    values.flush()
    return values


def nonnegative_offset(values: np.ndarray) -> float:
    """Return the offset that makes all values of a series at least 0."""
    return float(max(0.0, -min(float(row.min()) for row in values)))


def find_brain(
    derived: DerivedRun, boldref: Path, mean: np.ndarray, affine: np.ndarray, varies: np.ndarray, out_dir: Path
) -> Brain:
    """Return the derivatives' brain mask on the run's grid (or one from the image), and the image's own mask.

    Parameters
    ----------
    derived : DerivedRun
    boldref : pathlib.Path
        File of the mean image.
    mean : numpy.ndarray, (X, Y, Z)
    affine : numpy.ndarray, (4, 4)
    varies : numpy.ndarray, (X, Y, Z) bool
        Voxels that vary over time.
    out_dir : pathlib.Path

    Raises
    ------
    BadDataError
        A denoised run has no brain mask, or no voxel of the mask varies over time.
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
                f"{name}: no brain mask was found in its folder, and none can be estimated without the mean image.",
                "Copy its *_desc-brain_mask.nii.gz into the same folder, or use the series before denoising.",
            )
        own = given
    else:
        own = brain_mask(mean, affine)
        if given is None or dice(given, own) < GOOD_MASK_DICE:  # possibly because of a bias field
            own = read_volume(mask_boldref(derived.bold, boldref, out_dir).mask)[0] > 0.5
    if given is None:
        warnings.append(f"{name}: no brain mask was found in its folder; one was estimated from the image.")
        given = own
    elif dice(given, own) < MIN_MASK_DICE:
        warnings.append(
            f"{name}: low overlap of the brain in the image with {derived.mask.name if derived.mask else 'the mask'} "
            f"(Dice {dice(given, own):.2f}, expected at least {MIN_MASK_DICE:.2f})."
        )
    used = given & varies
    if not used.any():
        raise BadDataError(
            f"{name}: no voxel of the brain mask varies over time.", "Check that image and mask belong together."
        )
    return Brain(used, own, tuple(warnings))


def _on_grid(path: Path, shape: Sequence[int], affine: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Read a mask, resampled to the run's grid if the grids differ."""
    check_forms(path)
    data, its_affine = read_volume(path)
    data = data.reshape(data.shape[:3])
    same = data.shape == tuple(shape)
    if same and corner_distances(affine, its_affine, shape).max() < SAME_PLACE_MM:
        return data > 0.5
    warnings.append(f"{path.name}: the mask has a different grid than the run; it was resampled to the run's grid.")
    return resample_to((data > 0.5).astype(np.float32), its_affine, shape, affine) > 0.5


def _far_from_brain(name: str, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    brain = template_brain(name, name, shape, affine)
    return ~ndimage.binary_dilation(brain, iterations=3)


def assess_orientation(
    derived: DerivedRun, image: np.ndarray, affine: np.ndarray, brain: Brain, varies: np.ndarray
) -> tuple[OrientationCheck, tuple[str, ...]]:
    """Compare a run with the template and with the participant's own images in the space; see `orientation.py`."""
    companions = {}
    for name, path in (("T1w", derived.t1w), ("boldref", derived.boldref)):
        if path is not None and not derived.denoised:
            data, its_affine = read_volume(path)
            companions[name] = data.reshape(data.shape[:3]), its_affine
    stripped = (varies & ~brain.own).sum() < STRIPPED_SHARE * varies.size
    seen = np.ones_like(varies) if stripped else varies
    if derived.denoised:
        image = brain.own.astype(np.float32)  # without a mean image, only the shape can be compared
    found = estimate_orientation(image, affine, brain.own, seen, derived.space, companions)
    return found, check_orientation(found, derived.bold.name)


def transform_to_model(name: str, out_dir: Path) -> tuple[str, Path | None, str]:
    """Find the transform from the model's space to a run's space.

    Returns
    -------
    tuple
        The space where the transform starts; its chain to the run's space, None if they are the same; and a
        description.
    """
    warp = warp_between(name, MODEL_SPACE)
    if name != MODEL_SPACE and warp is not None:
        return MODEL_SPACE, read_itk_composite(warp).save(out_dir / "to_model.npz"), describe_transform(name)
    return name, None, describe_transform(name)


def describe_transform(name: str) -> str:
    """Describe how a space is transformed to the model's: ``MNI152NLin6Asym, the model's own space``."""
    if name == MODEL_SPACE:
        return f"{name}, the model's own space"
    warp = warp_between(name, MODEL_SPACE)
    if warp is not None:
        return f"{name}, transformed to {MODEL_SPACE} by {warp.name}"
    return f"{name}, transformed to {MODEL_SPACE} by a fixed affine matrix only: {space(name).accuracy}"


def resample_tissues(name: str, brain: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    """Resample the template's tissues to a run's grid, within its brain: 1 grey matter, 2 white matter, 3 CSF."""
    template = load_template(stand_in_for(name))
    pull = chain_between(name, template.name)
    maps = [
        resample_to(data, template.affine, brain.shape, affine, pull)
        for data in (template.gm, template.wm, template.csf)
    ]
    dseg = (np.argmax(maps, axis=0) + 1) * (np.sum(maps, axis=0) > 0.3) * brain
    return save_image(path, dseg.astype(np.uint8), affine, space_code=MNI_CODE)


def resample_to_template(image: np.ndarray, affine: np.ndarray, name: str, path: Path) -> Path:
    """Resample an image to the template that figures show."""
    template = load_template(stand_in_for(name))
    pull = chain_between(template.name, name)
    resampled = resample_to(image, affine, template.t1w.shape, template.affine, pull)
    return save_image(path, resampled, template.affine, space_code=MNI_CODE)


def save_mask(path: Path, mask: np.ndarray, affine: np.ndarray) -> Path:
    """Write a mask."""
    return save_image(path, mask.astype(np.uint8), affine, space_code=MNI_CODE)
