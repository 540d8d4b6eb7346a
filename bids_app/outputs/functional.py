"""Outputs of preprocessing: confounds, masks, boldrefs, transforms, image quality metrics, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_app.adapters.predict import Encoded
from bids_app.bids.writer import copy_file, dataset_uri, write_tsv
from bids_app.catalog.templates import catalog, stand_in_for
from bids_app.clips import MODEL_GRID_AFFINE, ClipReader, GridSeries
from bids_app.outputs.anatomical import BRAIN, BRAIN_IN_WORDS, name_anatomy, template_images
from bids_app.outputs.names import RunName, name_run
from bids_app.outputs.predictions import plot_model_outputs
from bids_app.outputs.schema import (
    BoldrefSidecar,
    MaskSidecar,
    Parameters,
    QualitySidecar,
    T2starSidecar,
    TransformSidecar,
)
from bids_app.outputs.series import SeriesRequest, describe_correction, write_series
from bids_app.outputs.transforms import MOTION, RIGID, write_linear_transform, write_space_transforms
from bids_app.outputs.viewer import write_viewer_run
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.preprocessed import OnGrid, PreprocessedRun
from bids_app.preprocess.registration.transforms import Chain, read_itk_composite
from bids_app.preprocess.sdc.apply import write_itk_field
from bids_app.reports.contents import quality_columns

CARPET_VOXELS = 3000
BOLDREFS = {
    "hmc": "Median of the volumes with the least motion, after head-motion correction",
    "coreg": "Boldref after susceptibility distortion correction, for the registration to the T1w image or template",
    "sbref": "Single-band reference, aligned with the volumes",
    "mean": "Mean of the steady-state volumes of the ingested series",
}
"""Descriptions of boldrefs by their ``desc-`` label; ``sbref``: of ``hmc``, if it is made from an SBRef."""
TISSUES = ("grey matter", "white matter", "CSF")


def run_outputs(
    preprocessed: PreprocessedRun,
    grid: OnGrid,
    entities: Mapping[str, str],
    datasets: Mapping[str, Path],
    notes: Sequence[str],
    output_spaces: Sequence[str],
    denoise: str | None,
    threads: int,
    out_dir: Path,
) -> Path:
    """Write the outputs of preprocessing except figures; return the folder of the tree."""
    run = preprocessed
    t1w = run.anatomy.source if run.anatomy else None
    own = [run.source, *run.echoes]
    names = name_run(out_dir / "tree", entities, datasets, [*own, run.sbref, t1w, *run.other_sources])
    raws = [dataset_uri(path, datasets) for path in own]
    anatomy = name_anatomy(names.tree, run.anatomy, datasets) if run.anatomy else None

    copy_file(run.confounds, names.path("timeseries", ".tsv", desc="confounds"))
    copy_file(run.confounds_meta, names.path("timeseries", ".json", desc="confounds"))

    boldref = copy_file(run.boldref, names.path("boldref", ".nii.gz", space=run.space, desc=boldref_kind(run)))
    transforms = write_transforms(names, run, raws, boldref, anatomy, output_spaces, datasets)
    if run.sdc is None:
        shown = describe_measured(run, raws, datasets)
        names.sidecar(boldref, replace(shown, spatial_reference=raws[0] if run.space else None), shown.raw_sources)
    else:
        hmc = names.locate("boldref", ".nii.gz", desc="hmc")
        shown = replace(describe_measured(run, raws, datasets), description=BOLDREFS["coreg"])
        names.sidecar(boldref, replace(shown, spatial_reference=names.uri(hmc)), [hmc, transforms.get("sdc")])

    mask = copy_file(run.brain_mask, names.path("mask", ".nii.gz", space=run.space, desc="brain"))
    described = MaskSidecar(
        description=BRAIN_IN_WORDS, kind=BRAIN, raw_sources=names.sources, spatial_reference=names.uri(boldref)
    )
    if run.route == "derivatives":
        names.sidecar(mask, described)
    elif anatomy:
        names.sidecar(mask, described, [boldref, anatomy.locate("mask", ".nii.gz", "anat", desc="brain")])
    else:
        names.sidecar(mask, replace(described, template=run.template), [boldref])

    if run.t2star:
        t2star = copy_file(run.t2star, names.path("T2starmap", ".nii.gz", space="boldref"))
        names.sidecar(
            t2star,
            T2starSidecar(units="s", raw_sources=names.sources, spatial_reference=names.uri(boldref)),
            [*raws, transforms.get("hmc")],
        )

    wanted = SeriesRequest(tuple(output_spaces), denoise, threads)
    warnings = write_series(names, run, wanted, [*raws, *transforms.values()], mask, boldref, out_dir)

    quality = {**run.quality, "coverage": grid.coverage, **grid.signal, **scan_sizes(run)}
    table = names.path("metrics", ".tsv", desc="quality")
    write_tsv(table, {key: [value] for key, value in {"bids_name": f"{names.stem}_bold", **quality}.items()})
    sidecar = QualitySidecar(
        route=run.route,
        template=run.template,
        quality=quality,
        warnings=(*run.warnings, *warnings),
        notes=(*notes, *run.notes),
        parameters=describe_parameters(run, threads),
        columns={"bids_name": {"Description": "Name of the run, with suffix"}, **quality_columns(quality)},
    )
    names.sidecar(table, sidecar)
    return names.tree


def boldref_kind(run: PreprocessedRun) -> str:
    """Return the ``desc-`` label of the boldref of a run."""
    if run.sdc is not None:
        return "coreg"
    return "hmc" if run.space is None else "mean"


def write_transforms(
    names: RunName,
    run: PreprocessedRun,
    raws: Sequence[str],
    boldref: Path,
    anatomy: RunName | None,
    output_spaces: Sequence[str],
    datasets: Mapping[str, Path],
) -> dict[str, Path]:
    """Write the transforms of a run, and return those from the raw series to the template, in order.

    Parameters
    ----------
    names : RunName
    run : PreprocessedRun
    raws : sequence of str
        BIDS URIs of the raw series; of several echoes, motion is estimated from the first.
    boldref : pathlib.Path
        Its boldref in the tree.
    anatomy : RunName, optional
        Names of the outputs of the T1w image, which another step writes.
    output_spaces : sequence of str
    datasets : mapping
        Input datasets.
    """
    found: dict[str, Path] = {}
    if run.hmc_file:
        hmc = names.locate("boldref", ".nii.gz", desc="hmc")
        found["hmc"] = write_linear_transform(names, run.hmc_file, "orig", "boldref", "hmc", MOTION, [raws[0], hmc])
    if run.sdc:
        found["sdc"] = write_distortion_correction(names, run, raws, datasets)
    if run.coreg_file and anatomy:
        t1w = anatomy.locate("T1w", ".nii.gz", "anat", desc="preproc")
        found["coreg"] = write_linear_transform(names, run.coreg_file, "boldref", "T1w", "coreg", RIGID, [boldref, t1w])
        found["norm"] = anatomy.locate("xfm", ".h5", "anat", from_="T1w", to=run.template, mode="image")
    if run.route == "direct" and run.chain and run.from_template:
        write_space_transforms(
            names,
            "boldref",
            "func",
            Chain.load(run.chain),
            read_itk_composite(run.from_template),
            run.template,
            [space for space in output_spaces if space in catalog()],
            [boldref],
        )
        found["norm"] = names.locate("xfm", ".h5", from_="boldref", to=run.template, mode="image")
    return found


def describe_measured(run: PreprocessedRun, raws: Sequence[str], datasets: Mapping[str, Path]) -> BoldrefSidecar:
    """Describe the boldref before distortion correction, with the images that it is made from as raw sources."""
    if run.sbref is None:
        kind = "mean" if run.space else "hmc"
        return BoldrefSidecar(description=BOLDREFS[kind], raw_sources=tuple(raws))
    return BoldrefSidecar(description=BOLDREFS["sbref"], raw_sources=(*raws, dataset_uri(run.sbref, datasets)))


def write_distortion_correction(
    names: RunName, run: PreprocessedRun, raws: Sequence[str], datasets: Mapping[str, Path]
) -> Path:
    """Write the uncorrected boldref, and the displacement field of the distortion correction; return the latter."""
    assert run.sdc
    sdc = run.sdc
    measured = copy_file(sdc.distorted, names.path("boldref", ".nii.gz", desc="hmc"))
    shown = describe_measured(run, raws, datasets)
    names.sidecar(measured, shown, shown.raw_sources)
    field = names.path("xfm", ".nii.gz", from_="distorted", to="boldref", mode="image", desc="sdc")
    write_itk_field(sdc.warp, field)
    sidecar = TransformSidecar(
        description="Displacement field (ITK)",
        distortion_corrected=True,
        distortion_correction=describe_correction(sdc),
    )
    names.sidecar(field, sidecar, [*(dataset_uri(path, datasets) for path in sdc.sources), measured])
    return field


def scan_sizes(run: PreprocessedRun) -> dict[str, float]:
    """Return size (voxels, volumes) and resolution (mm, s) of a run under the names of MRIQC; axes as stored."""
    header = load_nifti(run.boldref).header
    found = {"size_t": run.n_volumes, "dummy_trs": run.n_dummy, "spacing_tr": run.tr}
    for axis, size, spacing in zip("xyz", header.get_data_shape(), header.get_zooms(), strict=False):
        found |= {f"size_{axis}": int(size), f"spacing_{axis}": round(float(spacing), 4)}
    return found


def describe_parameters(run: PreprocessedRun, threads: int) -> Parameters:
    """Return the processing parameters of a run."""
    found = Parameters(random_seed=run.seed, route=run.route, template=run.template, threads=threads)
    if run.origin is not None:
        return replace(
            found,
            pipeline=run.origin.pipeline,
            space=run.space,
            way_to_model_space=run.origin.transform_to_model,
            left_right_in_words=run.orientation.in_words,
            left_right=run.orientation.left_right,
            slice_timing_corrected=run.origin.slice_timing_corrected,
            start_time=run.origin.start_time,
        )
    return replace(
        found,
        slice_timing_corrected=run.slices is not None,
        start_time=run.start_time,
        distortion_corrected=run.sdc is not None,
        distortion_correction=describe_correction(run.sdc),
    )


def run_figures(
    preprocessed: PreprocessedRun,
    grid: OnGrid,
    encoded: Encoded,
    entities: Mapping[str, str],
    fd_spike_mm: float,
    out_dir: Path,
) -> Path:
    """Plot the figures of the report: alignments, mask, carpet, model input, embeddings and predictions."""
    names = RunName(out_dir / "tree", entities, ())
    plot_alignments(preprocessed, names, out_dir)
    plot_run_carpet(preprocessed, names, fd_spike_mm)
    plot_temporal_maps(preprocessed, names)
    reader = ClipReader(GridSeries.open(grid.folder))
    plot_model_input(reader, names)
    plot_model_outputs(encoded, names)
    write_viewer_run(names, reader, preprocessed.anatomy)
    return names.tree


def plot_alignments(run: PreprocessedRun, names: RunName, out_dir: Path) -> None:
    """Plot the brain mask on the boldref, and the boldref on the T1w image and the template."""
    from bids_app.reports.figures.brains import plot_flicker, plot_outlines

    masks = {"brain mask": run.brain_mask} | ({"from the EPI alone": run.epi_mask} if run.epi_mask else {})
    plot_outlines(run.boldref, masks, names.figure("mask"), title=f"Brain mask of {names.stem}")
    if run.sdc is not None:
        plot_flicker(
            run.sdc.distorted,
            run.boldref,
            names.figure("sdc"),
            outline=run.brain_mask,
            names=("measured", "corrected"),
            title=f"Distortion correction of {names.stem}",
        )
    if run.anatomy and run.boldref_in_t1w:
        plot_flicker(
            run.anatomy.image,
            run.boldref_in_t1w,
            names.figure("coreg"),
            outline=run.anatomy.mask,
            names=("T1w", "BOLD"),
            title=f"{names.stem} on the T1w image",
        )
    if run.boldref_in_template:
        shown = stand_in_for(run.space or run.template)
        template, brain = template_images(shown, out_dir)
        plot_flicker(
            template,
            run.boldref_in_template,
            names.figure("norm"),
            outline=brain,
            names=(shown, "BOLD"),
            title=f"{names.stem} on the template",
        )


def plot_run_carpet(run: PreprocessedRun, names: RunName, fd_spike_mm: float) -> None:
    """Plot motion and the carpet of brain voxels by tissue."""
    from bids_app.reports.figures.charts import plot_carpet

    if run.carpet is None or run.dseg is None:
        return
    values = np.load(run.carpet, mmap_mode="r")
    step = max(1, values.shape[1] // CARPET_VOXELS)
    tissue = load_nifti(run.dseg).get_fdata()[load_nifti(run.brain_mask).get_fdata() > 0.5].astype(int)[::step]
    plot_carpet(
        np.asarray(values[:, ::step])[:, tissue > 0],
        run.tr,
        pd.read_csv(run.confounds, sep="\t"),
        names.figure("carpet"),
        groups=tissue[tissue > 0] - 1,
        group_names=TISSUES,
        fd_threshold_mm=fd_spike_mm,
        title=f"Motion and signal of {names.stem}",
    )


def plot_temporal_maps(run: PreprocessedRun, names: RunName) -> None:
    """Plot the temporal SNR and the temporal standard deviation of each voxel of the brain."""
    from bids_app.reports.figures.brains import plot_map

    if run.carpet is None:
        return
    brain = load_nifti(run.brain_mask)
    inside = brain.get_fdata() > 0.5
    mean, deviation = temporal_statistics(np.load(run.carpet, mmap_mode="r")[run.n_dummy :])
    ratio = np.divide(mean, deviation, out=np.zeros_like(mean), where=deviation > 0)
    percent = 100 * deviation / max(float(np.median(mean)), 1e-12)
    for kind, values, unit, what in (
        ("tsnr", ratio, "temporal SNR", "Temporal SNR"),
        ("stdev", percent, "temporal SD, % of the median of the brain", "Temporal standard deviation"),
    ):
        volume = np.zeros(inside.shape, np.float32)
        volume[inside] = values
        image = nib.Nifti1Image(volume, brain.affine)
        plot_map(image, run.brain_mask, names.figure(kind), unit=unit, title=f"{what} of {names.stem}")


def temporal_statistics(values: np.ndarray, block: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over time of each voxel, (V,) each.

    Parameters
    ----------
    values : np.ndarray, (T, V)
        May be memory-mapped; read in blocks of voxels.
    block : int
        Voxels per block.
    """
    mean, deviation = np.zeros((2, values.shape[1]))
    for start in range(0, values.shape[1], block):
        own = slice(start, start + block)
        part = np.asarray(values[:, own], np.float64)
        mean[own], deviation[own] = part.mean(axis=0), part.std(axis=0)
    return mean, deviation


def plot_model_input(reader: ClipReader, names: RunName) -> None:
    """Plot the input of the encoder."""
    from bids_app.reports.figures.model_grid import GridView, plot_model_grid

    mean = np.zeros(reader.mask.shape, np.float32)
    mean[reader.mask] = reader.statistics.mean
    frame = reader.clip(0, "voxel")[0, ..., reader.clip_volumes // 2].numpy()
    views = [
        GridView("mean of the run", mean),
        GridView("one volume of the first clip, each voxel over time", frame, signed=True, unit="z"),
    ]
    title = f"{names.stem} on the model grid"
    plot_model_grid(views, MODEL_GRID_AFFINE, names.figure("grid"), mask=reader.mask, title=title)
