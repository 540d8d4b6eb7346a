"""Preprocessed series in output spaces, with masks and sidecars, and their denoised copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from bids_app.bids.descriptions import LABELS
from bids_app.catalog.templates import catalog, stand_in_for
from bids_app.errors import BadDataError
from bids_app.outputs.anatomical import BRAIN, BRAIN_IN_WORDS
from bids_app.outputs.names import RunName, entities_of
from bids_app.outputs.schema import (
    BoldSidecar,
    DenoisedSidecar,
    DistortionCorrection,
    MaskSidecar,
    MeasuredField,
)
from bids_app.preprocess.denoise import denoise_series
from bids_app.preprocess.output_space import why_not_in
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.preprocess.resample import resample_to_space
from bids_app.preprocess.sdc.apply import SdcField
from bids_app.settings import FUNC_SPACE, T1W_SPACE

RESOLUTION = "2 mm isotropic"
SERIES_IN_WORDS = "Preprocessed BOLD series, non-steady-state volumes included"


@dataclass(frozen=True)
class SeriesRequest:
    """Series to write: their spaces, and the strategy of nilearn to denoise them (None: they are not denoised)."""

    spaces: tuple[str, ...]
    denoise: str | None
    threads: int


def write_series(
    names: RunName,
    run: PreprocessedRun,
    wanted: SeriesRequest,
    ancestors: Sequence[Path | str],
    mask: Path,
    boldref: Path,
    out_dir: Path,
) -> tuple[str, ...]:
    """Write the series of a run in output spaces; return warnings about series that could not be written.

    Parameters
    ----------
    names : RunName
    run : PreprocessedRun
    wanted : SeriesRequest
    ancestors : sequence of pathlib.Path or str
        The raw series and the transforms to the template, in order, see `RunName.sidecar`.
    mask, boldref : pathlib.Path
        Outputs on the run's own grid.
    out_dir : pathlib.Path
        Folder for temporary files.
    """
    warnings: list[str] = []
    for space in wanted.spaces:
        reason = why_not_in(run, space)
        if reason:
            warnings.append(f"{run.source.name}: no series in {space}, because {reason}.")
            continue
        labels = entities_of_space(space)
        series, brain = resample_to_space(run, space, out_dir, wanted.threads)
        bold = names.path("bold", ".nii.gz", **labels, desc="preproc")
        series.rename(bold)
        reference = reference_of_space(names, run, space, boldref)
        sources = ancestors_in_space(names, run, space, ancestors)
        sidecar = describe_series(names, run, space, reference)
        names.sidecar(bold, sidecar, sources)
        if space == FUNC_SPACE:
            brain.unlink()  # `mask` is the same
            brain = mask
        else:
            brain = brain.rename(names.path("mask", ".nii.gz", **labels, desc="brain"))
            described = MaskSidecar(
                description=BRAIN_IN_WORDS,
                kind=BRAIN,
                raw_sources=names.sources,
                resolution=RESOLUTION,
                spatial_reference=reference,
                template=None if space == T1W_SPACE else stand_in_for(run.template),
            )
            names.sidecar(brain, described, sources)
        if wanted.denoise:
            try:
                write_denoised(names, bold, brain, sidecar, wanted.denoise, run.tr, labels, out_dir)
            except BadDataError as error:
                warnings.append(str(error))
    return tuple(warnings)


def write_denoised(
    names: RunName,
    bold: Path,
    brain: Path,
    sidecar: BoldSidecar,
    strategy: str,
    tr: float,
    labels: dict[str, str],
    out_dir: Path,
) -> None:
    """Write the denoised copy of a series."""
    from importlib.metadata import version

    path = names.path("bold", ".nii.gz", **labels, desc="denoised")
    table = names.locate("timeseries", ".tsv", desc="confounds")
    found = denoise_series(bold, table, brain, strategy, tr, path, out_dir)
    shared = {part.name: getattr(sidecar, part.name) for part in fields(sidecar)}
    shared |= {"n_volumes": found.n_volumes, "skull_stripped": True, "description": LABELS["denoised"]}
    described = DenoisedSidecar(
        **shared,
        strategy=strategy,
        software=f"nilearn {version('nilearn')}",
        confounds=found.columns,
        left_out=found.left_out,
    )
    names.sidecar(path, described, [bold, brain, table])


def entities_of_space(space: str) -> dict[str, str]:
    """Return the entities of a series in a space, as fMRIPrep names it."""
    if space == FUNC_SPACE:
        return {}
    return {"space": space} if space == T1W_SPACE else {"space": space, "res": "2"}


def reference_of_space(names: RunName, run: PreprocessedRun, space: str, boldref: Path) -> str | None:
    """Return the BIDS URI or address of the reference image of a space; None if it has none."""
    if space == FUNC_SPACE:
        return names.uri(boldref)
    if space == T1W_SPACE:
        assert run.anatomy
        anatomy = RunName(names.tree, entities_of(run.anatomy.used or (run.anatomy.source,)), ())
        return names.uri(anatomy.locate("T1w", ".nii.gz", "anat", desc="preproc"))
    return catalog()[space].get("reference")


def ancestors_in_space(
    names: RunName, run: PreprocessedRun, space: str, ancestors: Sequence[Path | str]
) -> list[Path | str]:
    """Return the raw series and the transforms through which it was brought to a space."""
    found = [one for one in ancestors if isinstance(one, str) or not _leaves(one, space)]
    if space in (FUNC_SPACE, T1W_SPACE) or space == run.template or run.route == "derivatives":
        return found
    # another template than that of the registration: its own composite replaces it
    last = ancestors[-1]
    if isinstance(last, Path) and f"_to-{run.template}_" in last.name:
        found[-1] = last.with_name(last.name.replace(f"_to-{run.template}_", f"_to-{space}_"))
    return found


def _leaves(transform: Path, space: str) -> bool:
    """Return whether a transform leads beyond the run's own space or that of the T1w image."""
    if space == FUNC_SPACE:
        return "_from-boldref_" in transform.name or "_from-T1w_" in transform.name
    return space == T1W_SPACE and "_from-T1w_" in transform.name


def describe_series(names: RunName, run: PreprocessedRun, space: str, reference: str | None) -> BoldSidecar:
    """Describe a preprocessed series."""
    return BoldSidecar(
        description=SERIES_IN_WORDS,
        raw_sources=names.sources,
        spatial_reference=reference,
        template=None if space in (FUNC_SPACE, T1W_SPACE) else run.template,
        repetition_time=run.tr,
        skull_stripped=False,
        resolution=None if space == FUNC_SPACE else RESOLUTION,
        slice_timing_corrected=run.slices is not None,
        start_time=run.start_time,
        distortion_corrected=run.sdc is not None,
        distortion_correction=describe_correction(run.sdc),
        task=names.entities.get("task", "n/a"),
        n_volumes=run.n_volumes,
    )


def describe_correction(sdc: SdcField | None) -> DistortionCorrection | None:
    """Describe the distortion correction; None if there is none."""
    if sdc is None:
        return None
    files = tuple(path.name for path in sdc.sources)
    fieldmap = MeasuredField(readout_s=sdc.readout_s, files=files) if files else None
    return DistortionCorrection(method=sdc.method, phase_encoding=sdc.phase_encoding, fieldmap=fieldmap)
