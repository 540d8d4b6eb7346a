"""Repetition time and slice times of a run, from its sidecar and header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_app.bids.sidecars import read_direction
from bids_app.errors import BadDataError

PLAUSIBLE_TR_S = (0.1, 20.0)
SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
SAME_TIME_S = 1e-3
HINT = "Correct the JSON file; --ignore slicetiming leaves out the correction without a warning."


@dataclass(frozen=True)
class Timing:
    """Repetition time in s, and warnings."""

    tr: float
    warnings: tuple[str, ...] = ()


def repetition_time(header: Any, metadata: dict[str, Any], name: str, n_volumes: int) -> Timing:
    """Return the repetition time; the sidecar takes precedence over the header.

    Parameters
    ----------
    header : nibabel.Nifti1Header
    metadata : dict
        The sidecar: ``RepetitionTime``, or evenly spaced ``VolumeTiming``.
    name : str
        Name of the file, for messages.
    n_volumes : int

    Raises
    ------
    BadDataError
        The repetition time is missing, implausible or contradictory.
    """
    from_sidecar = _from_sidecar(metadata, name, n_volumes)
    from_header = _from_header(header)
    warnings = []
    if from_sidecar is None and from_header is None:
        raise BadDataError(
            f"{name}: RepetitionTime is missing from the sidecar and from the header.",
            "Add RepetitionTime (seconds) to the JSON file.",
        )
    if from_sidecar is None:
        warnings.append(f"{name}: RepetitionTime is missing from the sidecar; the header's {from_header:g} s is used.")
    elif from_header is not None and abs(from_sidecar - from_header) > 0.01 * from_sidecar:
        warnings.append(
            f"{name}: RepetitionTime is {from_sidecar:g} s in the sidecar, but {from_header:g} s in the header; "
            "the sidecar's value is used."
        )
    tr = from_sidecar if from_sidecar is not None else from_header
    assert tr is not None
    return Timing(tr, tuple(warnings))


def _from_sidecar(metadata: dict[str, Any], name: str, n_volumes: int) -> float | None:
    tr, volume_times = metadata.get("RepetitionTime"), metadata.get("VolumeTiming")
    if tr is not None and volume_times is not None:
        raise BadDataError(
            f"{name}: the sidecar has both RepetitionTime and VolumeTiming, which are mutually exclusive.",
            "Remove the incorrect one from the JSON file.",
        )
    if volume_times is not None:
        return _even_step(volume_times, name, n_volumes)
    if tr is None:
        return None
    if isinstance(tr, bool) or not isinstance(tr, int | float) or not tr > 0:
        raise BadDataError(
            f"{name}: RepetitionTime is {tr!r} in the sidecar.", "Set it to a number of seconds above 0."
        )
    if not PLAUSIBLE_TR_S[0] <= tr <= PLAUSIBLE_TR_S[1]:
        raise BadDataError(
            f"{name}: RepetitionTime is {str(tr)[:12]} s in the sidecar, outside the plausible range "
            f"({PLAUSIBLE_TR_S[0]:g} to {PLAUSIBLE_TR_S[1]:g} s).",
            "Correct the JSON file; BIDS requires seconds, not milliseconds.",
        )
    return float(tr)


def _even_step(volume_times: Any, name: str, n_volumes: int) -> float:
    times = _as_seconds(volume_times)
    if times.ndim != 1 or not np.all(np.isfinite(times)):
        raise BadDataError(f"{name}: VolumeTiming is not a list of seconds.", "List one onset per volume.")
    if len(times) != n_volumes:
        raise BadDataError(
            f"{name}: VolumeTiming has {times.size} entries for {n_volumes} volumes.", "List one onset per volume."
        )
    steps = np.diff(times)
    if steps.min() <= 0 or np.ptp(steps) > 0.01 * steps.mean():
        raise BadDataError(
            f"{name}: volumes are not evenly spaced in time (VolumeTiming).",
            "Sparse and irregular acquisitions are not supported; exclude the run.",
        )
    return float(steps.mean())


def _from_header(header: Any) -> float | None:
    """Return the header's repetition time, s; None if it is missing, implausible or without a unit."""
    try:
        unit = header.get_xyzt_units()[1]
    except KeyError:  # invalid unit code
        return None
    if unit not in SECONDS_PER_UNIT:
        return None
    tr = float(header["pixdim"][4]) * SECONDS_PER_UNIT[unit]
    return round(tr, 6) if PLAUSIBLE_TR_S[0] <= tr <= PLAUSIBLE_TR_S[1] else None


@dataclass(frozen=True)
class SliceTimes:
    """Acquisition times of slices.

    Parameters
    ----------
    axis : int
        Stored axis of slices.
    times : tuple of float
        Time of each slice along that axis, s after the start of the volume.
    """

    axis: int
    times: tuple[float, ...]

    @property
    def reference(self) -> float:
        """Reference time of corrected volumes, the middle between first and last slice time, s."""
        return (min(self.times) + max(self.times)) / 2


def read_slice_times(
    metadata: dict[str, Any], tr: float, shape: tuple[int, ...], name: str
) -> tuple[SliceTimes | None, tuple[str, ...]]:
    """Read the slice times of a sidecar.

    Slice timing correction only improves a run: where slice times are not valid, it is left out, and the run continues.

    Parameters
    ----------
    metadata : dict
        The sidecar: ``SliceTiming`` in s, ``SliceEncodingDirection`` (``k`` by default; with a minus, the order of
        slices is reversed).
    tr : float
        s.
    shape : tuple of int
        (X, Y, Z, ...).
    name : str
        Name of the file, for messages.

    Returns
    -------
    tuple
        Slice times, and sentences on all their faults. No slice times: the sidecar has none, all are equal, or they
        have faults.
    """
    if not metadata.get("SliceTiming"):
        return None, ()
    times = _as_seconds(metadata["SliceTiming"])
    direction = metadata.get("SliceEncodingDirection", "k")
    axis, sign = read_direction(direction) or (None, 1)
    faults = []
    if times.ndim != 1 or not np.all(np.isfinite(times)) or times.min() < 0:
        faults.append("SliceTiming is not a list of seconds")
    elif times.max() > tr * 1.001:
        faults.append(
            f"the latest slice time (SliceTiming) is {times.max():g} s, but RepetitionTime is {tr:g} s: they "
            "contradict each other (BIDS requires seconds in both)"
        )
    elif axis is not None and len(times) != shape[axis]:
        faults.append(f"SliceTiming has {len(times)} times for {shape[axis]} slices")
    if axis is None:
        faults.append(f"SliceEncodingDirection is {direction!r}; it must be i, j, k, i-, j- or k-")
    if faults or axis is None:
        return None, tuple(f"{name}: {fault}; slice timing was not corrected. {HINT}" for fault in faults)
    if np.ptp(times) < SAME_TIME_S:
        return None, ()
    return SliceTimes(axis, tuple((times if sign > 0 else times[::-1]).tolist())), ()


def _as_seconds(given: Any) -> np.ndarray:
    """Convert the value of a sidecar to an array; NaN if it has no numbers."""
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.array(np.nan)
