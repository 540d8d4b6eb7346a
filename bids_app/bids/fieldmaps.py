"""Fieldmaps: selection for a run by `B0FieldSource` and `B0FieldIdentifier`, or by `IntendedFor`.

Unusable fieldmaps are skipped with a note, so that the run continues. Only sidecars are opened here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.bids.entities import join_name, natural_key, split_name
from bids_app.bids.sidecars import Inheritance, missing_content, read_direction
from bids_app.errors import NeurostormError

PAIR, PHASE_DIFFERENCE, TWO_PHASES, DIRECT = "pepolar", "phasediff", "phases", "fieldmap"
MAIN_FILE = {"phasediff": PHASE_DIFFERENCE, "phase1": TWO_PHASES, "fieldmap": DIRECT}
"""Suffix of the main image of each kind of fieldmap."""
COMPANIONS = {
    PHASE_DIFFERENCE: (("magnitude1", "magnitude"), ("magnitude2",)),
    TWO_PHASES: (("phase2",), ("magnitude1", "magnitude"), ("magnitude2",)),
    DIRECT: (("magnitude", "magnitude1"),),
}
"""Suffixes of the companion images, in the order of `Fieldmap.files`; the first existing alternative is used."""
OPTIONAL = "magnitude2"


@dataclass(frozen=True)
class Fieldmap:
    """A fieldmap and its sidecars.

    Attributes
    ----------
    kind : str
        ``pepolar`` (one EPI, or two with opposite phase encoding), ``phasediff``, ``phases``, ``fieldmap``.
    files : tuple of pathlib.Path
        ``pepolar``: the EPIs, first the one with the run's phase encoding; otherwise the main image and `COMPANIONS`.
    metadata : tuple of dict
        Sidecars of the files.
    """

    kind: str
    files: tuple[Path, ...]
    metadata: tuple[dict[str, Any], ...]


def opposite(direction: str) -> str:
    """Return the opposite phase-encoding direction: ``j-`` for ``j``."""
    return direction[:-1] if direction.endswith("-") else direction + "-"


def choose_fieldmap(
    bold: Path, metadata: dict[str, Any], fmaps: Sequence[Path], inheritance: Inheritance, notes: list[str]
) -> Fieldmap | None:
    """Choose the fieldmap of a run; None if there is none.

    A pair of EPIs is preferred over a measured field, and a measured field over a phase difference.

    Parameters
    ----------
    bold : pathlib.Path
        The run.
    metadata : dict
        Sidecar of the run.
    fmaps : sequence of pathlib.Path
        Images in the participant's ``fmap`` folders.
    inheritance : Inheritance
        Sidecars of the dataset.
    notes : list of str
        Receives the reason for each fieldmap that is not used.
    """
    images = [path for path in fmaps if split_name(path.name)[1] in ("epi", *MAIN_FILE)]
    sidecars: dict[Path, dict[str, Any]] = {}
    for path in images:
        try:
            sidecars[path] = _sidecar(path, inheritance)
        except NeurostormError as error:
            notes.append(f"{path.name} was not used: {error.message}")
    named = [
        path
        for path in images
        if path in sidecars and _is_intended_for(path, sidecars[path], bold, metadata, inheritance)
    ]
    if not named:
        if fmaps:
            notes.append(
                f"No fieldmap refers to {bold.name}: set IntendedFor, or B0FieldIdentifier together with the run's "
                "B0FieldSource."
            )
        return None
    named.sort(key=lambda path: natural_key(path.name))
    pair = _choose_epis(bold, metadata, [p for p in named if split_name(p.name)[1] == "epi"], sidecars, notes)
    if pair:
        return pair
    order = (DIRECT, PHASE_DIFFERENCE, TWO_PHASES)
    rest = [path for path in named if split_name(path.name)[1] in MAIN_FILE]
    for path in sorted(rest, key=lambda path: order.index(MAIN_FILE[split_name(path.name)[1]])):
        found = _add_companions(path, sidecars[path], fmaps, inheritance, notes)
        if found:
            return found
    return None


def _sidecar(path: Path, inheritance: Inheritance) -> dict[str, Any]:
    """Read the sidecar of an image; raise if the content of the image is missing or cannot be read."""
    error = missing_content(path)
    if error:
        raise error
    return inheritance.metadata(path)


def _is_intended_for(
    path: Path, sidecar: dict[str, Any], bold: Path, metadata: dict[str, Any], inheritance: Inheritance
) -> bool:
    """Return True if a fieldmap image is intended for a run."""
    sources = _as_list(metadata.get("B0FieldSource"))
    if sources:
        same_session = _session(path) in (_session(bold), "")
        return same_session and bool(set(sources) & set(_as_list(sidecar.get("B0FieldIdentifier"))))
    root = inheritance.root
    return any(
        _run_of(target) == _run_of(bold)
        for intended in _as_list(sidecar.get("IntendedFor"))
        for target in _targets(intended, root, path)
    )


def _targets(intended: str, root: Path, fieldmap: Path) -> list[Path]:
    """Return the paths that an entry of IntendedFor may mean: a BIDS URI, or a path from the participant's folder."""
    if intended.startswith("bids:"):
        return [root / intended.split(":", 2)[-1]]
    participant = root / fieldmap.relative_to(root).parts[0]
    return [participant / intended, root / intended]  # the second is invalid, but common


def _run_of(path: Path) -> Path:
    """Return a run's path without echo, part and extension."""
    entities, suffix, _ = split_name(path.name)
    return path.parent / join_name({k: v for k, v in entities.items() if k not in ("echo", "part")}, suffix)


def _session(path: Path) -> str:
    return split_name(path.name)[0].get("ses", "")


def _as_list(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def _choose_epis(
    bold: Path, metadata: dict[str, Any], epis: list[Path], sidecars: dict[Path, dict[str, Any]], notes: list[str]
) -> Fieldmap | None:
    """Choose two EPIs with opposite phase encoding; or one EPI with phase encoding opposite to the run's."""
    if not epis:
        return None
    by_direction: dict[str, list[Path]] = {}
    for path in epis:
        direction: Any = sidecars[path].get("PhaseEncodingDirection")
        if read_direction(direction):
            by_direction.setdefault(direction, []).append(path)
        else:
            notes.append(f"{path.name} was not used: its sidecar has no PhaseEncodingDirection.")
    own: Any = metadata.get("PhaseEncodingDirection")
    firsts = sorted(by_direction, key=lambda direction: (direction != own, direction))
    for direction in firsts:
        for first in by_direction[direction]:
            others = by_direction.get(opposite(direction), [])
            if others:
                second = min(others, key=lambda path: _count_differences(path, first))
                return Fieldmap(PAIR, (first, second), (sidecars[first], sidecars[second]))
    against = by_direction.get(opposite(own), []) if read_direction(own) else []
    if against:
        return Fieldmap(PAIR, (against[0],), (sidecars[against[0]],))
    if by_direction:
        found = ", ".join(sorted(by_direction))
        notes.append(
            f"{epis[0].name} was not used: no EPI has the opposite direction (available: {found}; the run: "
            f"{own or 'not in its sidecar'})."
        )
    return None


def _count_differences(path: Path, other: Path) -> int:
    """Count the entities, apart from ``dir``, in which two names differ."""
    a, b = split_name(path.name)[0], split_name(other.name)[0]
    return sum(a.get(key) != b.get(key) for key in (a.keys() | b.keys()) - {"dir"})


def _add_companions(
    path: Path, sidecar: dict[str, Any], fmaps: Sequence[Path], inheritance: Inheritance, notes: list[str]
) -> Fieldmap | None:
    """Build the fieldmap of a measured field or phase image with its companion images; None if one is missing."""
    entities, suffix, _ = split_name(path.name)
    kind = MAIN_FILE[suffix]
    by_suffix = {
        split_name(other.name)[1]: other
        for other in fmaps
        if other.parent == path.parent and split_name(other.name)[0] == entities
    }
    files, metadata = [path], [sidecar]
    for names in COMPANIONS[kind]:
        other = next((by_suffix[name] for name in names if name in by_suffix), None)
        if other is None and OPTIONAL not in names:
            notes.append(f"{path.name} was not used: its {names[0]} image is missing.")
            return None
        if other is not None:
            files.append(other)
            try:
                metadata.append(_sidecar(other, inheritance))
            except NeurostormError as error:
                notes.append(f"{path.name} was not used: {error.message}")
                return None
    return Fieldmap(kind, tuple(files), tuple(metadata))
