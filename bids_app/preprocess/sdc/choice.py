"""Choice of the susceptibility distortion correction of a run, from sidecars and options."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from bids_app.bids.fieldmaps import DIRECT, PAIR, PHASE_DIFFERENCE, TWO_PHASES, Fieldmap
from bids_app.bids.query import BoldRun
from bids_app.bids.sidecars import read_direction
from bids_app.settings import PreprocessSettings

FIELDMAPS = "fieldmaps"
"""Value of ``--ignore`` that skips fieldmaps."""
SYN = "syn"
METHODS = {
    PAIR: "a pair of EPIs of opposite phase encoding (PEPOLAR)",
    PHASE_DIFFERENCE: "a phase difference",
    TWO_PHASES: "two phase images",
    DIRECT: "a measured field",
    SYN: "the T1w image, along the phase-encoding axis",
}
SAME_ECHO = 0.1
"""Relative difference up to which echo times count as equal."""


def correction_of(run: BoldRun, wanted: PreprocessSettings) -> tuple[str, str]:
    """Choose the correction of a run of the dataset under the settings of an invocation."""
    has_t1w = run.t1w is not None
    return choose_correction(run.bold.name, run.metadata, run.fieldmap, has_t1w, wanted.ignore, wanted.use_syn_sdc)


def choose_correction(
    name: str, metadata: dict[str, Any], fieldmap: Fieldmap | None, has_t1w: bool, ignore: Container[str], syn: bool
) -> tuple[str, str]:
    """Choose the distortion correction of a run.

    Parameters
    ----------
    name : str
        Name of the run's file.
    metadata : dict
        Its sidecar.
    fieldmap : Fieldmap, optional
    has_t1w : bool
    ignore : container of str
        ``fieldmaps``: use none.
    syn : bool
        Use the T1w image if there is no fieldmap.

    Returns
    -------
    tuple of str
        Key of `METHODS`, empty for no correction; and a sentence that explains the choice.
    """
    if FIELDMAPS in ignore and not syn:
        return "", "Distortion was not corrected (--ignore fieldmaps)."
    used = None if FIELDMAPS in ignore else fieldmap
    if used is None and not (syn and has_t1w):
        why = "there is neither a fieldmap nor a T1w image" if syn else "there is no fieldmap for it"
        return "", f"Distortion was not corrected: {why}."
    if not read_direction(metadata.get("PhaseEncodingDirection")):
        return "", f"Distortion was not corrected: the sidecar of {name} has no PhaseEncodingDirection."
    if used is None:
        return SYN, f"Distortion is corrected by {METHODS[SYN]}, since there is no fieldmap."
    names = ", ".join(path.name for path in used.files)
    if used.kind == PAIR and len(used.files) == 1:
        if not same_contrast(metadata, used.metadata[0]):
            if syn and has_t1w:
                return SYN, f"Distortion is corrected by {METHODS[SYN]}: {names} is a single EPI of another contrast."
            return "", (
                f"Distortion was not corrected: {names} is a single EPI without the run's echo time and sequence in "
                "its sidecar. EPIs of different contrast cannot be matched reliably; two opposite EPIs are needed."
            )
        names += " and the run's own reference image"
    if used.kind != PAIR and not {"TotalReadoutTime", "EffectiveEchoSpacing"} & metadata.keys():
        return "", (
            f"Distortion was not corrected: the sidecar of {name} has no TotalReadoutTime, which {names} requires."
        )
    return used.kind, f"Distortion is corrected by {METHODS[used.kind]}: {names}."


def same_contrast(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return True if the sidecars of two EPIs have equal echo times (within 10 %) and no different sequences.

    Matching a spin echo with a gradient echo removed 32 % of a simulated displacement in one head, and increased it in
    another.
    """
    echo, other_echo = one.get("EchoTime"), other.get("EchoTime")
    if not isinstance(echo, int | float) or not isinstance(other_echo, int | float) or echo <= 0:
        return False
    sequences = {str(s["ScanningSequence"]) for s in (one, other) if "ScanningSequence" in s}
    return abs(echo - other_echo) <= SAME_ECHO * echo and len(sequences) < 2
