"""The road from the raw files to a run that is ready for a grid, step after step.

The participant level puts the same steps into one graph; `preprocess_run` goes through them without one, for tests,
benchmarks and other programs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bids_app.bids.fieldmaps import Fieldmap
from bids_app.preprocess.anatomical import Anatomy, normalise_t1w, prepare_t1w
from bids_app.preprocess.confounds import Confounds, measure_confounds
from bids_app.preprocess.hmc import MotionEstimate, correct_motion
from bids_app.preprocess.io.images import Series
from bids_app.preprocess.masking import prepare_bold
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.preprocess.registration.alignment import Alignment, EpiReference
from bids_app.preprocess.registration.bold_to_t1w import coregister, mask_boldref, normalise_boldref
from bids_app.preprocess.sdc.estimate import SYN, choose_correction, correct_distortion
from bids_app.preprocess.sdc.syn import correct_by_anatomy
from bids_app.settings import PreprocessSettings


def unwarp_run(
    source: Path,
    metadata: dict[str, Any],
    motion: MotionEstimate,
    method: str,
    fieldmap: Fieldmap | None,
    out_dir: Path,
    seed: int,
    anatomy: Anatomy | None = None,
) -> MotionEstimate:
    """Undo a run's distortion by its fieldmap, or by the T1w image.

    Parameters
    ----------
    source : pathlib.Path
        The run, for messages.
    metadata : dict
        Its sidecar.
    motion : MotionEstimate
    method : str
        Of `choose_correction`.
    fieldmap : Fieldmap, optional
    out_dir : pathlib.Path
    seed : int
    anatomy : Anatomy, optional
        For the method ``syn``.
    """
    if method == SYN:
        assert anatomy is not None
        return correct_by_anatomy(source, metadata, motion, anatomy, out_dir, seed)
    assert fieldmap is not None
    return correct_distortion(source, metadata, motion, fieldmap, out_dir, seed)


def collect_run(
    series: Series,
    motion: MotionEstimate,
    reference: EpiReference,
    alignment: Alignment,
    confounds: Confounds,
    anatomy: Anatomy | None = None,
    seed: int | None = None,
    notes: tuple[str, ...] = (),
    out_dir: Path | None = None,
) -> PreprocessedRun:
    """Put what the steps found into one `PreprocessedRun`.

    Parameters
    ----------
    series, motion, reference, alignment, confounds
        Results of the steps.
    anatomy : Anatomy, optional
        On the route ``t1w``.
    seed : int, optional
        That the alignments ran with.
    notes : tuple of str
        Choices that were made on the way.
    out_dir : pathlib.Path, optional
        Not used; each step of a graph is given one.
    """
    unwarping = motion.unwarping
    anatomical = anatomy.quality if anatomy else {}
    warnings = series.warnings + (anatomy.warnings if anatomy else ()) + alignment.warnings
    if alignment.route == "direct":
        warnings += (
            f"{series.source.name}: without a T1w, it was aligned with {alignment.template} directly; expect some "
            "millimetres of difference.",
        )
    return PreprocessedRun(
        source=series.source,
        bold=series.path,
        tr=series.tr,
        n_volumes=series.n_volumes,
        n_dummy=series.n_dummy,
        motion=motion.motion,
        chain=alignment.chain,
        template=alignment.template,
        data_mask=series.data_mask,
        boldref=motion.boldref,
        brain_mask=alignment.brain_mask,
        dseg=alignment.dseg,
        confounds=confounds.table,
        confounds_meta=confounds.sidecar,
        carpet=confounds.carpet,
        route=alignment.route,
        quality={**anatomical, **alignment.quality, **confounds.quality, **(unwarping.quality if unwarping else {})},
        warnings=warnings,
        hmc_file=motion.hmc_file,
        coreg_file=alignment.coreg_file,
        to_template=alignment.to_template,
        from_template=alignment.from_template,
        epi_mask=reference.mask,
        boldref_in_template=alignment.boldref_in_template,
        boldref_in_t1w=alignment.boldref_in_t1w,
        anatomy=anatomy,
        unwarping=unwarping,
        beside=unwarping.sources if unwarping else (),
        slices=series.slices,
        notes=notes,
        seed=seed,
    )


def preprocess_run(
    bold: Path,
    metadata: dict[str, Any],
    t1w: Path | None,
    out_dir: Path,
    settings: PreprocessSettings | None = None,
    *,
    threads: int = 1,
    template: str | None = None,
    anatomy: Anatomy | None = None,
    fieldmap: Fieldmap | None = None,
) -> PreprocessedRun:
    """Go through all steps of preprocessing for one run, without a graph.

    Parameters
    ----------
    bold : pathlib.Path
    metadata : dict
        Its sidecar.
    t1w : pathlib.Path, optional
        Without one the run is aligned with the template directly.
    out_dir : pathlib.Path
        Each step gets a folder in it.
    settings : PreprocessSettings, optional
    threads : int
    template : str, optional
        By default the best that is on this machine.
    anatomy : Anatomy, optional
        Of the T1w, when it is known already.
    fieldmap : Fieldmap, optional
    """
    settings = settings or PreprocessSettings()
    seed = settings.random_seed

    def folder(name: str) -> Path:
        path = out_dir / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    series = prepare_bold(bold, metadata, folder("examine"), settings.dummy_scans, ignore=settings.ignore)
    motion = correct_motion(series, folder("motion"), threads)
    if anatomy is None and t1w is not None:
        anatomy = normalise_t1w(prepare_t1w(t1w, folder("t1w")), folder("normalise"), template, seed)
    method, told = choose_correction(
        bold.name, metadata, fieldmap, anatomy is not None, settings.ignore, settings.use_syn_sdc
    )
    if method:
        motion = unwarp_run(bold, metadata, motion, method, fieldmap, folder("sdc"), seed, anatomy)
    reference = mask_boldref(bold, motion.boldref, folder("mask"))
    if anatomy is not None:
        alignment = coregister(reference, anatomy, folder("align"), seed)
    else:
        alignment = normalise_boldref(reference, folder("align"), template, seed)
    confounds = measure_confounds(series, motion, alignment, folder("confounds"), settings.fd_spike_threshold, threads)
    return collect_run(series, motion, reference, alignment, confounds, anatomy, seed, (told,))
