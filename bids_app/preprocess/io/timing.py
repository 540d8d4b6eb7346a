"""When the volumes and slices of a run were measured, by its sidecar and header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_app.bids.sidecars import read_direction
from bids_app.errors import BadDataError

PLAUSIBLE_TR_S = (0.1, 20.0)
SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
SAME_TIME_S = 1e-3
HINT = "Mend it, or leave slice timing out with --ignore slicetiming."


@dataclass(frozen=True)
class Timing:
    """Repetition time in s, and what was odd."""

    tr: float
    warnings: tuple[str, ...] = ()


def repetition_time(header: Any, metadata: dict[str, Any], name: str, n_volumes: int) -> Timing:
    """Find the repetition time; the sidecar wins over the header.

    Parameters
    ----------
    header : nibabel.Nifti1Header
    metadata : dict
        The sidecar: ``RepetitionTime``, or ``VolumeTiming`` with even steps.
    name : str
        Name of the file, for messages.
    n_volumes : int

    Raises
    ------
    BadDataError
        No repetition time, or several that contradict each other.
    """
    from_sidecar = _from_sidecar(metadata, name, n_volumes)
    from_header = _from_header(header)
    warnings = []
    if from_sidecar is None and from_header is None:
        raise BadDataError(
            f"{name}: no RepetitionTime in its sidecar, and none in its header.",
            "Add RepetitionTime (seconds) to the JSON file.",
        )
    if from_sidecar is None:
        warnings.append(f"{name}: no RepetitionTime in its sidecar; {from_header:g} s was taken from the header.")
    elif from_header is not None and abs(from_sidecar - from_header) > 0.01 * from_sidecar:
        warnings.append(
            f"{name}: RepetitionTime is {from_sidecar:g} s in its sidecar and {from_header:g} s in its header; "
            "the sidecar's was taken."
        )
    tr = from_sidecar if from_sidecar is not None else from_header
    assert tr is not None
    return Timing(tr, tuple(warnings))


def _from_sidecar(metadata: dict[str, Any], name: str, n_volumes: int) -> float | None:
    tr, volume_times = metadata.get("RepetitionTime"), metadata.get("VolumeTiming")
    if tr is not None and volume_times is not None:
        raise BadDataError(
            f"{name}: both RepetitionTime and VolumeTiming in its sidecar, which exclude each other.",
            "Keep the one that is true.",
        )
    if volume_times is not None:
        return _even_step(volume_times, name, n_volumes)
    if tr is None:
        return None
    if isinstance(tr, bool) or not isinstance(tr, int | float) or not tr > 0:
        raise BadDataError(f"{name}: RepetitionTime is {tr!r} in its sidecar.", "Give seconds, as a number above 0.")
    if not PLAUSIBLE_TR_S[0] <= tr <= PLAUSIBLE_TR_S[1]:
        raise BadDataError(
            f"{name}: RepetitionTime is {str(tr)[:12]} s in its sidecar, which no BOLD run has.",
            "BIDS wants seconds, not milliseconds.",
        )
    return float(tr)


def _even_step(volume_times: Any, name: str, n_volumes: int) -> float:
    try:
        times = np.asarray(volume_times, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        times = np.array(np.nan)
    if times.ndim != 1 or not np.all(np.isfinite(times)):
        raise BadDataError(f"{name}: VolumeTiming is not a list of seconds.", "Give one time a volume.")
    if len(times) != n_volumes:
        raise BadDataError(
            f"{name}: VolumeTiming has {times.size} entries for {n_volumes} volumes.", "Give one time a volume."
        )
    steps = np.diff(times)
    if steps.min() <= 0 or np.ptp(steps) > 0.01 * steps.mean():
        raise BadDataError(
            f"{name}: its volumes are not evenly spaced in time (VolumeTiming).", "Runs like this are not supported."
        )
    return float(steps.mean())


def _from_header(header: Any) -> float | None:
    """Repetition time of the header, s; None where it is missing, has no unit, or cannot be true."""
    try:
        unit = header.get_xyzt_units()[1]
    except KeyError:  # a code that does not exist
        return None
    if unit not in SECONDS_PER_UNIT:
        return None
    tr = float(header["pixdim"][4]) * SECONDS_PER_UNIT[unit]
    return round(tr, 6) if PLAUSIBLE_TR_S[0] <= tr <= PLAUSIBLE_TR_S[1] else None


@dataclass(frozen=True)
class SliceTimes:
    """When slices are measured.

    Parameters
    ----------
    axis : int
        Stored axis along which slices lie.
    times : tuple of float
        By index along that axis, s after the volume's start.
    """

    axis: int
    times: tuple[float, ...]

    @property
    def reference(self) -> float:
        """The middle of the time in which slices are measured, s: when a corrected volume was measured."""
        return (min(self.times) + max(self.times)) / 2


def read_slice_times(
    metadata: dict[str, Any], tr: float, shape: tuple[int, ...], name: str
) -> tuple[SliceTimes | None, tuple[str, ...]]:
    """Slice times of a sidecar, by stored index.

    Parameters
    ----------
    metadata : dict
        The sidecar: ``SliceTiming`` in s, ``SliceEncodingDirection`` (``k`` by default; with a minus, the first time is
        that of the last slice).
    tr : float
        s.
    shape : tuple of int
        (X, Y, Z, ...).
    name : str
        Name of the file, for messages.

    Returns
    -------
    tuple
        None when there are none, all slices are measured at once, or there are not as many as slices; and warnings.

    Raises
    ------
    BadDataError
        Times that cannot be, or lie beyond the repetition time; an unknown direction.
    """
    given = metadata.get("SliceTiming")
    if not given:
        return None, ()
    try:
        times = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        times = np.array(np.nan)
    if times.ndim != 1 or not np.all(np.isfinite(times)) or times.min() < 0:
        raise BadDataError(f"{name}: SliceTiming is not a list of seconds.", HINT)
    if times.max() > tr * 1.001:
        raise BadDataError(
            f"{name}: a slice is measured {times.max():g} s after the volume's start (SliceTiming), but RepetitionTime "
            f"is {tr:g} s: they contradict each other.",
            f"BIDS wants seconds in both. {HINT}",
        )
    given = metadata.get("SliceEncodingDirection", "k")
    direction = read_direction(given)
    if direction is None:
        raise BadDataError(f"{name}: SliceEncodingDirection is {given!r}, not i, j or k with or without -.", HINT)
    axis, sign = direction
    if len(times) != shape[axis]:
        return None, (
            f"{name}: SliceTiming has {len(times)} times for {shape[axis]} slices, so slice timing was not corrected.",
        )
    if np.ptp(times) < SAME_TIME_S:
        return None, ()
    if sign < 0:
        times = times[::-1]
    return SliceTimes(axis, tuple(times.tolist())), ()
