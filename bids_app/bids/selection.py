"""Selection of echo, T1w and repeats for a run; each selection adds a sentence to the notes in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.bids.entities import natural_key, split_name
from bids_app.bids.sidecars import Inheritance, missing_content
from bids_app.errors import NoInputError
from bids_app.settings import FIRST, SESSIONWISE

BEST_ECHO_TIME = 0.03
"""Preferred echo time, s: near the T2* of grey matter at 3 T."""
MIN_ECHOES = 3
"""Minimum number of echoes that are combined, as in fMRIPrep: T2* cannot be checked with two."""


@dataclass(frozen=True)
class EchoChoice:
    """The echo that represents a run; and all echoes in order of their echo times (s), if they are combined."""

    bold: Path
    echoes: tuple[Path, ...] = ()
    times: tuple[float, ...] = ()


def one_of_each_echo(files: Sequence[Path], notes: list[str]) -> list[Path]:
    """Select one file per echo: ``part-mag`` before files without ``part``, ``.nii.gz`` before ``.nii``."""
    chosen: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: ("_part-" not in path.name, path.suffix != ".gz")):
        kept = chosen.setdefault(split_name(path.name)[0].get("echo", ""), path)
        if kept is not path:
            notes.append(f"{kept.name} was used instead of {path.name}.")
    return sorted(chosen.values(), key=lambda path: natural_key(path.name))


def choose_echoes(
    files: Sequence[Path], inheritance: Inheritance, notes: list[str], echo: int | None = None
) -> EchoChoice:
    """Choose the echoes of a run.

    Three or more echoes with known echo times are combined. Otherwise the echo nearest to `BEST_ECHO_TIME` is chosen,
    or the second one if sidecars lack an echo time.

    Parameters
    ----------
    files : sequence of pathlib.Path
        The echoes of one run, in order.
    inheritance : Inheritance
        Sidecars of the dataset.
    notes : list of str
        Receives the selection.
    echo : int, optional
        Label of the only echo to use (``--echo-idx``).

    Raises
    ------
    NoInputError
        The run does not have this echo.
    """
    if len(files) == 1:
        return EchoChoice(files[0])
    if echo is not None:
        by_label = {split_name(path.name)[0].get("echo", "").lstrip("0"): path for path in files}
        if str(echo) not in by_label:
            raise NoInputError(
                f"{files[0].name}: the run has no echo {echo} (it has {', '.join(by_label)}).", "Correct --echo-idx."
            )
        notes.append(f"Echo {echo} of {len(files)} was used (--echo-idx).")
        return EchoChoice(by_label[str(echo)])
    times = [_echo_time(inheritance.metadata(path)) for path in files]
    unknown = [path.name for path, time in zip(files, times, strict=True) if math.isnan(time)]
    if len(files) >= MIN_ECHOES and not unknown and len(set(times)) == len(times):
        ordered = sorted(zip(times, files, strict=True))
        notes.append(f"{len(files)} echoes were combined by T2*.")
        return EchoChoice(ordered[0][1], tuple(path for _, path in ordered), tuple(time for time, _ in ordered))
    if unknown:
        index, why = 1, f"not combined, because EchoTime is missing or no number for {', '.join(unknown)}"
    else:
        index = min(range(len(files)), key=lambda i: abs(times[i] - BEST_ECHO_TIME))
        too_few = len(files) < MIN_ECHOES
        reason = f"combination by T2* requires {MIN_ECHOES} echoes" if too_few else "echo times are equal"
        nearest = f"TE {1000 * times[index]:.4g} ms is nearest to {1000 * BEST_ECHO_TIME:.0f} ms"
        why = f"{nearest}; not combined, because {reason}"
    label = split_name(files[index].name)[0].get("echo", "?")
    notes.append(f"Echo {label} of {len(files)} was used: {why}.")
    return EchoChoice(files[index])


def find_sbref(bold: Path, sbrefs: Sequence[Path]) -> Path | None:
    """Return the single-band reference next to a run, with its entities; None if it is missing or not fetched.

    ``sbrefs`` are those of the participant that match the filters.
    """
    start, _, end = bold.name.rpartition("_bold")
    names = (f"{start}_sbref{end}", f"{start}_sbref.nii.gz", f"{start}_sbref.nii")
    found = (path for name in names if (path := bold.with_name(name)) in sbrefs and missing_content(path) is None)
    return next(found, None)


def find_lesion(t1w: Path, rois: Sequence[Path], notes: list[str]) -> Path | None:
    """Return the lesion mask next to a T1w image; None if there is none. A note names it.

    ``rois`` are the masks of the participant that match the filters.

    Its name is ``sub-01_label-lesion_roi.nii.gz``, or one of the older ``sub-01_T1w_label-lesion_roi.nii.gz``,
    ``sub-01_desc-lesion_roi.nii.gz`` and ``sub-01_lesion_roi.nii.gz``. Entities that it has must be those of the T1w
    image; of several masks, the one with the most entities is chosen.
    """
    own = split_name(t1w.name)[0]
    found = []
    for path in rois:
        entities = split_name(path.name)[0]
        is_lesion = "lesion" in (entities.pop("label", ""), entities.pop("desc", "")) or "_lesion_roi." in path.name
        if is_lesion and path.parent == t1w.parent and entities.items() <= own.items():
            found.append((-len(entities), path.name, path))
    if not found:
        return None
    lesion = min(found)[-1]
    notes.append(f"The lesion of {lesion.name} is left out of the registration to the template.")
    return lesion


def choose_t1w(
    bold: Path, t1ws: Sequence[Path], root: Path, notes: list[str], reference: str = SESSIONWISE
) -> Path | None:
    """Choose the T1w image of a run.

    ``sessionwise``: images of the run's session are preferred, then images without a session, then those of the other
    sessions in order. ``first`` and ``average``: images without a session, then those of the first session, for all
    runs. Within a session, images without contrast agent are preferred, then the smallest voxels, then the first name.

    Parameters
    ----------
    bold : pathlib.Path
        The run.
    t1ws : sequence of pathlib.Path
        The T1w images of the run's participant.
    root : pathlib.Path
        Root of the dataset.
    notes : list of str
        Receives the selection if there was a choice.
    reference : str
        Value of ``--subject-anatomical-reference``.
    """
    if not t1ws:
        return None
    session = session_folder(bold, root)
    by_session = group_by_session(t1ws, root)
    preferred = session if reference == SESSIONWISE else ""
    selected = min(by_session, key=lambda label: (label != preferred, label != "", natural_key(label)))
    candidates = by_session[selected]
    chosen = min(candidates, key=_t1w_rank) if len(candidates) > 1 else candidates[0]
    if selected != session and reference == SESSIONWISE:
        where = f"of {selected}" if selected else "without a session"
        notes.append(f"{session or 'The run'} has no T1w image; {chosen.name} {where} was used.")
    if len(candidates) > 1:
        notes.append(
            f"{chosen.name} was used out of {len(candidates)} T1w images "
            "(no contrast agent, then the smallest voxels, then the first name)."
        )
    if len(by_session) > 1 and reference == FIRST:
        notes.append(f"{chosen.name} is the anatomical reference of all sessions.")
    return chosen


def group_by_session(paths: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Group files by the name of their session folder; empty for files without a session."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(session_folder(path, root), []).append(path)
    return found


def t1w_of_other_sessions(t1w: Path, t1ws: Sequence[Path], root: Path, notes: list[str]) -> tuple[Path, ...]:
    """List the best T1w image of each other session, to be averaged with the reference (``average``)."""
    by_session = group_by_session((path for path in t1ws if missing_content(path) is None), root)
    by_session.pop(session_folder(t1w, root), None)
    others = tuple(min(by_session[label], key=_t1w_rank) for label in sorted(by_session, key=natural_key))
    if others:
        notes.append(f"{t1w.name} was averaged with {', '.join(path.name for path in others)} of other sessions.")
    return others


def repeats_of_t1w(t1w: Path, t1ws: Sequence[Path], notes: list[str]) -> tuple[Path, ...]:
    """List the repeats of a T1w, which differ in ``run-`` only, in natural order.

    Images that differ in another entity (``acq-``, ``rec-``, ``ce-``) are not averaged with it.

    Parameters
    ----------
    t1w : pathlib.Path
        The selected T1w image.
    t1ws : sequence of pathlib.Path
        The T1w images of the participant.
    notes : list of str
        Receives the names of the averaged images.
    """

    def fixed_entities(path: Path) -> dict[str, str]:
        return {key: label for key, label in split_name(path.name)[0].items() if key != "run"}

    alike = (path for path in t1ws if path.parent == t1w.parent and fixed_entities(path) == fixed_entities(t1w))
    own = t1w.name.split(".")[0]
    by_name: dict[str, Path] = {}
    for path in alike:
        error = missing_content(path)
        if error is None:
            by_name[path.name.split(".")[0]] = path
        elif path != t1w:
            notes.append(f"{path.name} was not averaged with {t1w.name}: {error.message}")
    repeats = tuple(by_name[name] for name in sorted(by_name, key=natural_key) if name != own)
    if repeats:
        notes.append(f"{t1w.name} was averaged with {', '.join(path.name for path in repeats)}.")
    return repeats


def _echo_time(metadata: dict[str, object]) -> float:
    """Return the echo time in seconds; NaN if it is not a number. Values above 1 are in milliseconds."""
    time = metadata.get("EchoTime")
    if not isinstance(time, int | float) or isinstance(time, bool):
        return math.nan
    return time / 1000 if time > 1 else float(time)


def session_folder(path: Path, root: Path) -> str:
    """Return the name of the session folder of a file; empty if there is none."""
    folder = path.relative_to(root).parts[1]
    return folder if folder.startswith("ses-") else ""


def _t1w_rank(path: Path) -> tuple[bool, float, list[tuple[int, int | str]], bool]:
    return "_ce-" in path.name, _voxel_volume(path), natural_key(path.name.split(".")[0]), path.suffix != ".gz"


def _voxel_volume(path: Path) -> float:
    """Return the voxel volume in mm³, rounded to a tenth; infinite if the header cannot be read."""
    import nibabel as nib

    try:
        header: Any = nib.load(path).header
        return round(math.prod(float(zoom) for zoom in header.get_zooms()[:3]), 1)
    except Exception:  # nibabel raises various errors for broken files; the run that uses the image reports them
        return math.inf
