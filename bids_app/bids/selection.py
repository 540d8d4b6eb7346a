"""Which of several files is taken for a run; each choice adds a sentence to the notes that the report shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_app.bids.entities import natural_key, split_name
from bids_app.bids.sidecars import Inheritance, missing_content

BEST_ECHO_TIME = 0.03
"""Of several echoes, the one nearest to this echo time is taken, s: near grey matter's T2* at 3 T."""


def one_of_each_echo(files: Sequence[Path], notes: list[str]) -> list[Path]:
    """One file for each echo: ``part-mag`` before files that do not name a part, ``.nii.gz`` before ``.nii``."""
    chosen: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: ("_part-" not in path.name, path.suffix != ".gz")):
        kept = chosen.setdefault(split_name(path.name)[0].get("echo", ""), path)
        if kept is not path:
            notes.append(f"{kept.name} was taken rather than {path.name}.")
    return sorted(chosen.values(), key=lambda path: natural_key(path.name))


def choose_echo(files: Sequence[Path], inheritance: Inheritance, notes: list[str]) -> Path:
    """The echo nearest to `BEST_ECHO_TIME`; the second one when sidecars do not give all echo times.

    Parameters
    ----------
    files : sequence of pathlib.Path
        The echoes of one run, in order.
    inheritance : Inheritance
        Of their dataset.
    notes : list of str
        Receives what was chosen.
    """
    if len(files) == 1:
        return files[0]
    times = [_echo_time(inheritance.metadata(path)) for path in files]
    if any(math.isnan(time) for time in times):
        index, why = 1, "the echo times are not known"
    else:
        index = min(range(len(files)), key=lambda i: abs(times[i] - BEST_ECHO_TIME))
        why = f"TE {1000 * times[index]:.4g} ms is nearest to {1000 * BEST_ECHO_TIME:.0f} ms"
    echo = split_name(files[index].name)[0].get("echo", "?")
    notes.append(f"Of {len(files)} echoes, echo {echo} was taken: {why}.")
    return files[index]


def choose_t1w(bold: Path, t1ws: Sequence[Path], root: Path, notes: list[str]) -> Path | None:
    """The T1w that belongs to a run.

    Those of the run's session are looked at first, then those without a session, then those of the other sessions in
    order. Among several of one session the rule is: without contrast agent first, then the finest voxels, then the
    first by name.

    Parameters
    ----------
    bold : pathlib.Path
        The run.
    t1ws : sequence of pathlib.Path
        The T1w images of the run's participant.
    root : pathlib.Path
        Root of the dataset.
    notes : list of str
        Receives what was chosen when there was a choice, and that there is none.
    """
    if not t1ws:
        notes.append("There is no T1w image: the BOLD run is aligned with the template directly.")
        return None
    session = session_folder(bold, root)
    by_session: dict[str, list[Path]] = {}
    for path in t1ws:
        by_session.setdefault(session_folder(path, root), []).append(path)
    taken = min(by_session, key=lambda label: (label != session, label != "", natural_key(label)))
    candidates = by_session[taken]
    chosen = min(candidates, key=_t1w_rank) if len(candidates) > 1 else candidates[0]
    if taken != session:
        where = f"of {taken}" if taken else "without a session"
        notes.append(f"{session or 'The run'} has no T1w image of its own; {chosen.name} {where} was taken.")
    if len(candidates) > 1:
        notes.append(
            f"Of {len(candidates)} T1w images, {chosen.name} was taken "
            "(no contrast agent, then the finest voxels, then the first by name)."
        )
    return chosen


def repeats_of_t1w(t1w: Path, t1ws: Sequence[Path], notes: list[str]) -> tuple[Path, ...]:
    """Images that repeat a T1w: in its folder, and named differently in nothing but ``run-``; in the order of names.

    Other differences (``acq-``, ``rec-``, ``ce-``) are those of other images, which are not averaged with it.

    Parameters
    ----------
    t1w : pathlib.Path
        The one that was chosen.
    t1ws : sequence of pathlib.Path
        The T1w images of the participant.
    notes : list of str
        Receives what will be averaged.
    """

    def kind(path: Path) -> dict[str, str]:
        return {key: label for key, label in split_name(path.name)[0].items() if key != "run"}

    alike = (path for path in t1ws if path.parent == t1w.parent and kind(path) == kind(t1w))
    by_name = {path.name.split(".")[0]: path for path in alike if missing_content(path) is None}
    own = t1w.name.split(".")[0]
    repeats = tuple(by_name[name] for name in sorted(by_name, key=natural_key) if name != own)
    if repeats:
        notes.append(f"{t1w.name} was averaged with {', '.join(path.name for path in repeats)}.")
    return repeats


def _echo_time(metadata: dict[str, object]) -> float:
    """Echo time in seconds; NaN when it is not a number. Above 1 it can only be milliseconds."""
    time = metadata.get("EchoTime")
    if not isinstance(time, int | float) or isinstance(time, bool):
        return math.nan
    return time / 1000 if time > 1 else float(time)


def session_folder(path: Path, root: Path) -> str:
    """Name of the session's folder that a file lies in; empty when there is none."""
    folder = path.relative_to(root).parts[1]
    return folder if folder.startswith("ses-") else ""


def _t1w_rank(path: Path) -> tuple[bool, float, list[tuple[int, int | str]], bool]:
    return "_ce-" in path.name, _voxel_volume(path), natural_key(path.name.split(".")[0]), path.suffix != ".gz"


def _voxel_volume(path: Path) -> float:
    """Volume of a voxel in mm³ to a tenth; infinite when the header cannot be read, so that the image comes last."""
    import nibabel as nib

    try:
        header: Any = nib.load(path).header
        return round(math.prod(float(zoom) for zoom in header.get_zooms()[:3]), 1)
    except Exception:  # nibabel raises whatever its readers do on broken files; the run that needs it will say so
        return math.inf
