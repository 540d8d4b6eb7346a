"""Steps of the participant level that combine several packages: thin functions without knowledge of the graph.

Each step takes ``out_dir``, the folder for its files, and returns a value that can be pickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_app.adapters.attribution import PREDICTION_METHODS, Regions, RunAttribution, attribute, reconstruction_errors
from bids_app.adapters.cohort_ranges import range_evidence
from bids_app.adapters.file import EMBEDDING, AdaptedModel
from bids_app.adapters.own_head import judge_card, read_any_adapter
from bids_app.adapters.predict import Encoded
from bids_app.adapters.verdict import RULES, Facts, judge_prediction, judge_scan
from bids_app.bids.derivatives import DerivedRun
from bids_app.bids.entities import as_label, join_name
from bids_app.bids.fieldmaps import Fieldmap
from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.catalog.atlases import find_atlas
from bids_app.catalog.models import find_model, weights_path
from bids_app.clips import ClipReader, GridSeries, labels_to_model_grid
from bids_app.errors import BadDataError, NoInputError, RegistrationError
from bids_app.files import read_rows
from bids_app.model.device import choose_device
from bids_app.outputs.schema import CLIPS
from bids_app.preprocess.anatomical import Anatomy, PreparedT1w, UnusableT1w, normalise_t1w, prepare_t1w
from bids_app.preprocess.brain_signal import measure_signal
from bids_app.preprocess.confounds import Confounds, measure_confounds
from bids_app.preprocess.hmc import MotionEstimate
from bids_app.preprocess.ingest.derivatives import examine_derived
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.images import Series, examine_bold, set_dummies
from bids_app.preprocess.masking import prepare_bold
from bids_app.preprocess.multi_echo import CombinedEchoes, combine_echoes
from bids_app.preprocess.preprocessed import AlignedSeries, OnGrid, PreprocessedRun
from bids_app.preprocess.registration.alignment import Alignment
from bids_app.preprocess.registration.bold_to_t1w import coregister, search
from bids_app.preprocess.registration.bold_to_template import normalise_boldref
from bids_app.preprocess.registration.boldref import EpiReference, mask_boldref
from bids_app.preprocess.resample import model_grid_coverage, resample_to_model_grid
from bids_app.preprocess.sbref import use_sbref
from bids_app.preprocess.sdc.choice import SYN
from bids_app.preprocess.sdc.estimate import correct_distortion as correct_by_fieldmap
from bids_app.preprocess.sdc.syn import correct_by_anatomy
from bids_app.reports.contents import beyond_limits

MIN_TSNR = 2.0
"""Temporal SNR below which the mean image was removed from the series."""
WITHOUT_MEAN = {"tsnr": None, "sd_percent": None, "gm_wm_mean": None} | dict.fromkeys(
    ("tsnr_unknown", "fluctuation_unknown", "contrast_unknown"),
    "The series has no mean image, to which this measure is relative.",
)
"""Facts of a series without its mean image."""


def prepare_anatomy(
    t1w: Path, repeats: Sequence[Path], seed: int, threads: int, required: bool, stamp: str, out_dir: Path
) -> PreparedT1w | UnusableT1w:
    """Average T1w images, extract the brain and remove the bias field; ``stamp`` changes when a file changes.

    An unusable image raises an error only if it is ``required``.
    """
    try:
        return prepare_t1w(t1w, out_dir, repeats, seed, threads)
    except BadDataError as error:
        if required:
            raise
        return UnusableT1w(t1w, error.message)


def normalise_anatomy(
    prepared: PreparedT1w | UnusableT1w,
    template: str,
    seed: int,
    required: bool,
    out_dir: Path,
    lesion: Path | None = None,
    stamp: str = "",
    device: str = "cpu",
) -> Anatomy | UnusableT1w:
    """Register a T1w image to the template; if that fails, raise an error only if the image is ``required``.

    ``stamp`` changes when the lesion mask changes.
    """
    if isinstance(prepared, UnusableT1w):
        return prepared
    try:
        return normalise_t1w(prepared, out_dir, template, seed, lesion, choose_device(device))
    except RegistrationError as error:
        if required:
            raise
        return UnusableT1w(prepared.source, error.message)


def examine(
    bold: Path,
    metadata: dict[str, Any],
    events: Path | None,
    dummy_scans: int | None,
    ignore: Sequence[str],
    stamp: str,
    out_dir: Path,
) -> Series:
    """Check a BOLD file with its sidecar and events; ``stamp`` changes when a file changes."""
    return prepare_bold(bold, metadata, out_dir, dummy_scans, last_onset(events), ignore)


def examine_derivative(
    derived: DerivedRun,
    metadata: dict[str, Any],
    events: Path | None,
    dummy_scans: int | None,
    stamp: str,
    out_dir: Path,
) -> Series:
    """Check a run of other derivatives; ``stamp`` changes when a file changes."""
    return examine_derived(derived, metadata, out_dir, dummy_scans, last_onset(events))


def sbref(motion: MotionEstimate, sbref: Path, run_name: str, stamp: str, out_dir: Path) -> MotionEstimate:
    """Use the SBRef as reference image; ``stamp`` changes when the file changes."""
    return use_sbref(motion, sbref, run_name, out_dir)


def combine(
    first: Series,
    others: Sequence[Path],
    echo_times: Sequence[float],
    metadata: dict[str, Any],
    motion: MotionEstimate,
    ignore: Sequence[str],
    threads: int,
    stamp: str,
    out_dir: Path,
) -> CombinedEchoes:
    """Check the other echoes of a run and combine all; ``stamp`` changes when a file changes."""
    echoes = [first]
    for number, path in enumerate(others, start=2):
        folder = out_dir / f"echo-{number}"
        folder.mkdir()
        echoes.append(set_dummies(examine_bold(path, metadata, folder, ignore=ignore), first.n_dummy))
    combined = combine_echoes(echoes, echo_times, motion, out_dir, threads)
    for echo in echoes[1:]:
        if echo.path != echo.source:
            echo.path.unlink()  # the uncompressed copy
    return combined


def combined_series(combined: CombinedEchoes, out_dir: Path) -> Series:
    """Return the series of combined echoes."""
    return combined.series


def combined_motion(combined: CombinedEchoes, out_dir: Path) -> MotionEstimate:
    """Return the motion of combined echoes."""
    return combined.motion


def last_onset(events: Path | None) -> float | None:
    """Read the onset of the last event of a run, s."""
    if events is None:
        return None
    rows = read_rows(events)
    try:
        onsets = [row["onset"] for row in rows]
        return max((float(onset) for onset in onsets if onset not in ("n/a", "")), default=None)
    except (ValueError, KeyError, TypeError) as error:
        raise BadDataError(
            f"{events.name}: not a valid events table ({error}).", "Add a column 'onset' with numbers in s."
        ) from error


def correct_distortion(
    series: Series,
    motion: MotionEstimate,
    metadata: dict[str, Any],
    method: str,
    fieldmap: Fieldmap | None,
    seed: int,
    stamp: str,
    out_dir: Path,
    anatomy: Anatomy | UnusableT1w | None = None,
) -> MotionEstimate:
    """Correct susceptibility distortion by fieldmap or T1w; ``stamp`` changes when a fieldmap changes.

    The correction only improves a run: where it is not possible, the run continues without it, with a warning.
    """
    try:
        if method != SYN:
            assert fieldmap is not None
            return correct_by_fieldmap(series.source, metadata, motion, fieldmap, out_dir, seed)
        assert anatomy is not None
        if isinstance(anatomy, UnusableT1w):
            reason = "The T1w image could not be used."
        else:
            return correct_by_anatomy(series.source, metadata, motion, anatomy, out_dir, seed)
    except (BadDataError, NoInputError, RegistrationError) as error:
        reason = error.message
    return replace(motion, omitted=(*motion.omitted, f"Susceptibility distortion was not corrected: {reason}"))


def mask_run(series: Series, motion: MotionEstimate, out_dir: Path) -> EpiReference:
    """Mask the brain in the boldref."""
    return mask_boldref(series.source, motion.boldref, out_dir)


def search_alignment(
    reference: EpiReference, prepared: PreparedT1w | UnusableT1w, seed: int, out_dir: Path
) -> np.ndarray | None:
    """Find a rigid alignment with the T1w image, while that is registered to the template; see `search`."""
    return None if isinstance(prepared, UnusableT1w) else search(reference, prepared, out_dir, seed)


def align(
    reference: EpiReference,
    template: str,
    seed: int,
    required: bool,
    out_dir: Path,
    anatomy: Anatomy | UnusableT1w | None = None,
    start: np.ndarray | None = None,
) -> Alignment:
    """Register a run to its T1w image, or to the template if it has none that can be used.

    If the registration to the T1w image fails, an error is raised only if the image is ``required``. ``start`` is the
    result of `search_alignment`.
    """
    problem = anatomy.reason if isinstance(anatomy, UnusableT1w) else ""
    if isinstance(anatomy, Anatomy):
        try:
            return coregister(reference, anatomy, out_dir, seed, start)
        except RegistrationError as error:
            if required:
                raise
            problem = error.message
    try:
        return replace(normalise_boldref(reference, out_dir, template, seed), t1w_problem=problem)
    except RegistrationError as error:
        raise RegistrationError(f"{problem} {error.message}".strip(), error.hint) from error


def confounds(
    series: Series, motion: MotionEstimate, alignment: Alignment, fd_spike_mm: float, threads: int, out_dir: Path
) -> Confounds:
    """Compute confounds and image quality metrics."""
    return measure_confounds(series, motion, alignment, out_dir, fd_spike_mm, threads)


def collect(
    series: Series,
    motion: MotionEstimate,
    reference: EpiReference,
    alignment: Alignment,
    confounds: Confounds,
    seed: int,
    notes: tuple[str, ...],
    corrects_distortion: bool,
    echoes: tuple[Path, ...],
    out_dir: Path,
    anatomy: Anatomy | UnusableT1w | None = None,
) -> PreprocessedRun:
    """Collect the results of the steps in a `PreprocessedRun`.

    Parameters
    ----------
    series, motion, reference, alignment, confounds
        Results of the steps.
    seed : int
        Seed of the registrations.
    notes : tuple of str
        Choice of the distortion correction, for the report.
    corrects_distortion : bool
        The run has a step that corrects distortion; without a result, a warning of that step replaces the notes.
    echoes : tuple of pathlib.Path
        The other echoes that were combined with the first.
    out_dir : pathlib.Path
        Unused.
    anatomy : Anatomy, optional
        For the route ``t1w``.
    """
    sdc = motion.sdc
    if corrects_distortion and sdc is None:
        notes = ()
    used = anatomy if isinstance(anatomy, Anatomy) and alignment.route == "t1w" else None
    warnings = series.warnings + (used.warnings if used else ()) + alignment.warnings
    doubts = (used.doubts if used else ()) + alignment.doubts
    omitted = series.omitted + motion.omitted
    if alignment.t1w_problem:
        omitted += (
            f"{alignment.t1w_problem} The T1w image was not used: the run was registered directly to "
            f"{alignment.template}; expect errors of a few millimetres.",
        )
    elif alignment.route == "direct":
        warnings += (
            f"{series.source.name}: no T1w image, registered directly to {alignment.template}; expect errors of a few "
            "millimetres.",
        )
    return PreprocessedRun(
        **vars(align_series(series, motion, alignment)),
        boldref=motion.boldref,
        brain_mask=alignment.brain_mask,
        dseg=alignment.dseg,
        confounds=confounds.table,
        confounds_meta=confounds.sidecar,
        carpet=confounds.carpet,
        route=alignment.route,
        quality={
            **(used.quality if used else {}),
            **alignment.quality,
            **confounds.quality,
            **(sdc.quality if sdc else {}),
        },
        warnings=warnings + doubts + omitted,
        t2star=motion.t2star,
        hmc_file=motion.hmc_file,
        coreg_file=alignment.coreg_file,
        to_template=alignment.to_template,
        from_template=alignment.from_template,
        epi_mask=reference.mask,
        boldref_in_template=alignment.boldref_in_template,
        boldref_in_t1w=alignment.boldref_in_t1w,
        anatomy=used,
        echoes=echoes,
        sbref=motion.sbref,
        other_sources=sdc.sources if sdc else (),
        notes=notes,
        omitted=omitted,
        doubts=doubts,
        seed=seed,
        orientation=orientation_of(alignment),
    )


def orientation_of(alignment: Alignment) -> Orientation:
    """Return the orientation of a raw run: that of the T1w image, if it is less similar to the mirrored T1w image."""
    similarity, mirrored = (alignment.quality.get(name) for name in ("coreg_similarity", "coreg_mirrored"))
    if alignment.route == "t1w" and similarity is not None and mirrored is not None and mirrored < similarity:
        return Orientation(LeftRight.AS_STORED, ("T1w",))
    return Orientation()


def align_series(series: Series, motion: MotionEstimate, alignment: Alignment) -> AlignedSeries:
    """Return what resampling needs of a raw run."""
    return AlignedSeries(
        source=series.source,
        bold=series.path,
        tr=series.tr,
        n_volumes=series.n_volumes,
        n_dummy=series.n_dummy,
        motion=motion.motion,
        chain=alignment.chain,
        template=alignment.template,
        data_mask=series.data_mask,
        sdc=motion.sdc,
        slices=series.slices,
    )


def resample(
    series: Series, motion: MotionEstimate, alignment: Alignment, threads: int, device: str, out_dir: Path
) -> OnGrid:
    """Resample the original volumes to the model grid in one interpolation; this does not depend on confounds."""
    return resample_derivative(align_series(series, motion, alignment), threads, device, out_dir)


def resample_derivative(preprocessed: AlignedSeries, threads: int, device: str, out_dir: Path) -> OnGrid:
    """Resample a series, such as one of other derivatives, to the model grid."""
    series = resample_to_model_grid(preprocessed, out_dir / "grid", threads, choose_device(device))
    return OnGrid(out_dir / "grid", model_grid_coverage(preprocessed, series), measure_signal(series))


def clip_outputs(
    grid: OnGrid,
    preprocessed: PreprocessedRun,
    entities: Mapping[str, str],
    metadata: Mapping[str, Any],
    source: str,
    normalisations: Sequence[str],
    out_dir: Path,
) -> Path:
    """Write a run on the model grid as an entry of clip stores; return the tree.

    Parameters
    ----------
    grid, preprocessed
        Results of the steps.
    entities, metadata : mapping
        Of the run; the sidecar may be reduced to the keys of the scanner.
    source : str
        BIDS URI of the run.
    normalisations : sequence of str
        One store for each.
    """
    from bids_app.training.data.entries import add_entry
    from bids_app.training.data.facts import facts_of

    series = GridSeries.open(grid.folder)
    origin = preprocessed.origin.start_time if preprocessed.origin else None
    series = replace(series, start=series.start + (preprocessed.start_time or origin or 0.0))
    tree = out_dir / "tree"
    for normalisation in normalisations:
        folder = tree / f"sub-{entities['sub']}" / CLIPS / normalisation
        folder.mkdir(parents=True)
        name = join_name(entities, "").removesuffix("_")
        add_entry(folder, name, series, normalisation, source=source, **facts_of(entities, metadata, preprocessed))
    return tree


def judge(
    encoded: Encoded,
    preprocessed: PreprocessedRun,
    grid: OnGrid,
    age: float | None,
    site: str | None,
    simulated: bool | None,
    on_out_of_domain: str,
    out_dir: Path,
) -> Encoded:
    """Judge a scan and each of its predictions.

    Parameters
    ----------
    age : float, optional
        Age of the participant in years, if known.
    site : str, optional
        Site of the participant, if known.
    simulated : bool, optional
        The scan is of neurostorm-phantom; None: unknown.
    """
    found = encoded.reconstruction.facts if encoded.reconstruction else {}
    facts = {**scan_facts(preprocessed, grid, age), **found, "simulated": simulated, **encoded.verdict_facts}
    predictions = (
        replace(
            p, verdict=judge_card(judge_prediction(facts, p.card, p.distances, on_out_of_domain, p.certainty), p.card)
        )
        for p in (
            replace(p, site=site, range_evidence=range_evidence(facts, p.card.ranges)) for p in encoded.predictions
        )
    )
    return replace(encoded, predictions=tuple(predictions), verdict=judge_scan(facts))


def scan_facts(run: PreprocessedRun, grid: OnGrid, age: float | None = None) -> Facts:
    """Return the facts for the verdict on a run; see `bids_app.adapters.verdict`."""
    tsnr = run.quality.get("tsnr")
    mean_removed = run.offset > 0 or (None if tsnr is None else tsnr < MIN_TSNR)
    return {
        **run.quality,
        **grid.signal,
        **(WITHOUT_MEAN if mean_removed else {}),
        "tr": run.tr,
        "seconds": (run.n_volumes - run.n_dummy) * run.tr,
        "coverage": grid.coverage,
        "age": age,
        "orientation": run.orientation,
        "omitted": " ".join(run.omitted),
        "doubts": " ".join(run.doubts),
        "unusual": "; ".join(beyond_limits(run.quality, skip=[rule.figure for rule in RULES])),
        "mean_removed": mean_removed,
    }


def attribute_run(
    grid: OnGrid,
    encoded: Encoded,
    model: str,
    adapters: Sequence[Path],
    method: str,
    control: str,
    n_clips: int,
    seed: int,
    atlas: str,
    device: str,
    threads: int,
    stamp: str,
    out_dir: Path,
) -> RunAttribution:
    """Attribute each prediction, or the reconstruction error, to regions; ``stamp`` changes when a file changes.

    Parameters as in `bids_app.adapters.attribution.attribute`.
    """
    import torch

    from bids_app.model.api import load_model
    from bids_app.model.checkpoint import read_checkpoint
    from bids_app.model.mae import autoencoder_from, trained_mask

    torch.set_num_threads(threads)
    chosen, found_atlas = choose_device(device), find_atlas(atlas)
    regions = Regions(found_atlas.name, labels_to_model_grid(load_nifti(found_atlas.path)), found_atlas.names)
    checkpoint = read_checkpoint(weights_path(find_model(model)))
    reader = ClipReader(GridSeries.open(grid.folder), checkpoint.config.img_size[3])
    if method not in PREDICTION_METHODS:
        autoencoder = autoencoder_from(checkpoint).to(chosen).eval()
        name = as_label(encoded.facts.model)
        errors = reconstruction_errors(
            autoencoder, reader, regions, trained_mask(checkpoint), n_clips=n_clips, control=control, seed=seed
        )
        return RunAttribution(found_atlas, {name: errors})
    loaded = load_model(model, chosen, with_head=False)
    attributable = [p for p in encoded.predictions if p.card.task != EMBEDDING]
    outputs = {p.card.name: p.label_index for p in attributable if not p.is_refused}
    found = {}
    for adapter in (read_any_adapter(path, find_model(model)) for path in adapters):
        name = adapter.card.name
        if name in outputs:
            adapted = AdaptedModel(loaded, adapter)
            found[name] = attribute(adapted, reader, regions, outputs[name], method, n_clips, control, seed)
    if not attributable:
        raise BadDataError(
            f"--attribution {method}: no adapter makes a prediction to attribute.",
            "Give an --adapter, or use --attribution reconstruction.",
        )
    return RunAttribution(found_atlas, found)
