"""Which fieldmap belongs to a run, by its sidecars: `B0FieldSource` and `B0FieldIdentifier`, or `IntendedFor`.

A fieldmap that cannot be used is left out with a note, so that the run goes on; nothing is opened here but sidecars.
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
"""Suffix of the image that a kind of fieldmap is found by."""
COMPANIONS = {
    PHASE_DIFFERENCE: (("magnitude1", "magnitude"), ("magnitude2",)),
    TWO_PHASES: (("phase2",), ("magnitude1", "magnitude"), ("magnitude2",)),
    DIRECT: (("magnitude", "magnitude1"),),
}
"""Suffixes of the images beside it, in the order of `Fieldmap.files`; of several names, the first that is there."""
OPTIONAL = "magnitude2"


@dataclass(frozen=True)
class Fieldmap:
    """A fieldmap of a run.

    Attributes
    ----------
    kind : str
        ``pepolar`` (one EPI or two of opposite phase encoding), ``phasediff``, ``phases``, ``fieldmap``.
    files : tuple of pathlib.Path
        ``pepolar``: the EPIs, first the one encoded as the run is; else the main image, then its `COMPANIONS`.
    metadata : tuple of dict
        Their sidecars.
    """

    kind: str
    files: tuple[Path, ...]
    metadata: tuple[dict[str, Any], ...]


def opposite(direction: str) -> str:
    """The phase-encoding direction against another: ``j`` and ``j-``."""
    return direction[:-1] if direction.endswith("-") else direction + "-"


def choose_fieldmap(
    bold: Path, metadata: dict[str, Any], fmaps: Sequence[Path], inheritance: Inheritance, notes: list[str]
) -> Fieldmap | None:
    """The fieldmap of a run, or None.

    A pair of EPIs is taken before a field that was measured directly, that before a phase difference.

    Parameters
    ----------
    bold : pathlib.Path
        The run.
    metadata : dict
        Its sidecar.
    fmaps : sequence of pathlib.Path
        Images in the participant's ``fmap`` folders.
    inheritance : Inheritance
        Of the dataset.
    notes : list of str
        Receives why a fieldmap that is there is not used.
    """
    images = [path for path in fmaps if split_name(path.name)[1] in ("epi", *MAIN_FILE)]
    sidecars: dict[Path, dict[str, Any]] = {}
    for path in images:
        try:
            sidecars[path] = _sidecar(path, inheritance)
        except NeurostormError as error:
            notes.append(f"{path.name} was not used: {error.message}")
    named = [path for path in images if path in sidecars and _names(path, sidecars[path], bold, metadata, inheritance)]
    if not named:
        if fmaps:
            notes.append(
                f"There are fieldmaps, but none of them names {bold.name} (IntendedFor, or B0FieldIdentifier and "
                "B0FieldSource)."
            )
        return None
    named.sort(key=lambda path: natural_key(path.name))
    pair = _pair(bold, metadata, [p for p in named if split_name(p.name)[1] == "epi"], sidecars, notes)
    if pair:
        return pair
    order = (DIRECT, PHASE_DIFFERENCE, TWO_PHASES)
    rest = [path for path in named if split_name(path.name)[1] in MAIN_FILE]
    for path in sorted(rest, key=lambda path: order.index(MAIN_FILE[split_name(path.name)[1]])):
        found = _with_companions(path, sidecars[path], fmaps, inheritance, notes)
        if found:
            return found
    return None


def _sidecar(path: Path, inheritance: Inheritance) -> dict[str, Any]:
    """What is known of an image whose content is here; raises where it is not, or cannot be read."""
    error = missing_content(path)
    if error:
        raise error
    return inheritance.metadata(path)


def _names(path: Path, sidecar: dict[str, Any], bold: Path, metadata: dict[str, Any], inheritance: Inheritance) -> bool:
    """Whether a fieldmap's image is for a run."""
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
    """What an entry of IntendedFor may mean: a BIDS URI, or a path from the participant's folder."""
    if intended.startswith("bids:"):
        return [root / intended.split(":", 2)[-1]]
    participant = root / fieldmap.relative_to(root).parts[0]
    return [participant / intended, root / intended]  # the second breaks the rule, and is common


def _run_of(path: Path) -> Path:
    """A run's path without what its echoes and parts differ by, and without extension."""
    entities, suffix, _ = split_name(path.name)
    return path.parent / join_name({k: v for k, v in entities.items() if k not in ("echo", "part")}, suffix)


def _session(path: Path) -> str:
    return split_name(path.name)[0].get("ses", "")


def _as_list(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def _pair(
    bold: Path, metadata: dict[str, Any], epis: list[Path], sidecars: dict[Path, dict[str, Any]], notes: list[str]
) -> Fieldmap | None:
    """Two EPIs of opposite directions; or one, against the run's."""
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
                second = min(others, key=lambda path: _unlike(path, first))
                return Fieldmap(PAIR, (first, second), (sidecars[first], sidecars[second]))
    against = by_direction.get(opposite(own), []) if read_direction(own) else []
    if against:
        return Fieldmap(PAIR, (against[0],), (sidecars[against[0]],))
    if by_direction:
        found = ", ".join(sorted(by_direction))
        notes.append(
            f"{epis[0].name} was not used: there is no EPI of the opposite direction (found: {found}; the run's: "
            f"{own or 'not in its sidecar'})."
        )
    return None


def _unlike(path: Path, other: Path) -> int:
    """In how many entities, the direction aside, two names differ."""
    a, b = split_name(path.name)[0], split_name(other.name)[0]
    return sum(a.get(key) != b.get(key) for key in (a.keys() | b.keys()) - {"dir"})


def _with_companions(
    path: Path, sidecar: dict[str, Any], fmaps: Sequence[Path], inheritance: Inheritance, notes: list[str]
) -> Fieldmap | None:
    """A measured field or phase, with the images that it needs."""
    entities, suffix, _ = split_name(path.name)
    kind = MAIN_FILE[suffix]
    beside = {
        split_name(other.name)[1]: other
        for other in fmaps
        if other.parent == path.parent and split_name(other.name)[0] == entities
    }
    files, metadata = [path], [sidecar]
    for names in COMPANIONS[kind]:
        other = next((beside[name] for name in names if name in beside), None)
        if other is None and OPTIONAL not in names:
            notes.append(f"{path.name} was not used: there is no {names[0]} image beside it.")
            return None
        if other is not None:
            files.append(other)
            try:
                metadata.append(_sidecar(other, inheritance))
            except NeurostormError as error:
                notes.append(f"{path.name} was not used: {error.message}")
                return None
    return Fieldmap(kind, tuple(files), tuple(metadata))
