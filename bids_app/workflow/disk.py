"""Estimate of the disk space of runs from their headers, to refuse runs that do not fit before they start.

The constants are from the folders of two runs. 156 volumes of 80 x 80 x 35 voxels with a T1w image of 0.7 mm and an
output space left 499 MB of scratch and 204 MB of outputs (estimated: 650 and 324 MB); 40 volumes of 43 x 48 x 33 voxels
with a T1w image of 2 mm left 124 and 19 MB (estimated: 140 and 27 MB).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_app.bids.query import BoldRun
from bids_app.bids.sidecars import REPETITION_TIME
from bids_app.errors import CannotCreateError, NeurostormError
from bids_app.preprocess.io.headers import check_size, claimed_bytes, load_nifti
from bids_app.settings import CLIP_MB_PER_MINUTE, Settings

RUN_BYTES, RUN_OUTPUT_BYTES = 25e6, 5e6
"""Boldref, masks, registrations, figures and tables of a run: scratch, output."""
GRID_BYTES_A_VOLUME = 1e6
"""A volume on the model grid (float32, 220,000 voxels of the brain)."""
CARPET_BYTES_A_SAMPLE = 1.0
"""Series of the carpet plot: float32, the brain is a quarter of the field of view."""
SPACE_BYTES_A_VOLUME = 1.4e6
"""A volume of 2 mm in an output space (int16, compressed)."""
WARPED_BYTES_A_VOLUME = 3.7e6
"""A volume that is resampled to a standard space before it is ingested (float32, 91 x 109 x 91 voxels)."""
ANATOMY_BYTES, ANATOMY_OUTPUT_BYTES = 65e6, 20e6
"""Fields of the T1w in both directions, and figures: scratch, output."""
T1W_BYTES_A_VOXEL = 2.0
"""A corrected T1w image (float32, compressed)."""


@dataclass(frozen=True)
class DiskSpace:
    """Disk space in bytes."""

    scratch: float = 0.0
    output: float = 0.0

    def __add__(self, other: DiskSpace) -> DiskSpace:
        return DiskSpace(self.scratch + other.scratch, self.output + other.output)


def run_space(run: BoldRun, settings: Settings) -> DiskSpace:
    """Estimate the disk space of a run without its T1w; nothing if its header is invalid."""
    shape, n_bytes = _size_of(run.bold)
    if len(shape) < 4:
        return DiskSpace()
    series_a_space = 2 if settings.preprocess.denoise else 1
    in_spaces = len(settings.preprocess.output_spaces) * series_a_space * SPACE_BYTES_A_VOLUME * shape[3]
    copy: float = n_bytes if run.bold.suffix == ".gz" else 0
    if run.derived and run.derived.warp:
        copy += WARPED_BYTES_A_VOLUME * shape[3]
    series = GRID_BYTES_A_VOLUME * shape[3] + CARPET_BYTES_A_SAMPLE * math.prod(shape[:4])
    written = in_spaces + len(settings.preprocess.output_clips) * _clip_bytes(run, shape[3])
    return DiskSpace(RUN_BYTES + copy + series + written, RUN_OUTPUT_BYTES + written)


def _clip_bytes(run: BoldRun, n_volumes: int) -> float:
    """Return the size of the clips of a run under one normalisation; the header's TR is used if there is no other."""
    tr = run.metadata.get(REPETITION_TIME)
    try:
        seconds = n_volumes * float(load_nifti(run.bold).header.get_zooms()[3] if tr is None else tr)
    except (TypeError, ValueError):  # the step that reads it raises the error
        seconds = 0.0
    return CLIP_MB_PER_MINUTE * 1e6 * seconds / 60


def anatomy_space(t1w: Path) -> DiskSpace:
    """Estimate the disk space of the processed T1w image of a participant; nothing if its header is invalid."""
    shape, _ = _size_of(t1w)
    if len(shape) < 3:
        return DiskSpace()
    image = T1W_BYTES_A_VOXEL * math.prod(shape[:3])
    return DiskSpace(ANATOMY_BYTES + image, ANATOMY_OUTPUT_BYTES + image)


def space_of_participants(runs: Sequence[BoldRun], settings: Settings) -> dict[str, DiskSpace]:
    """Estimate the disk space of all runs of each participant, by label; runs with a problem are left out."""
    found: dict[str, DiskSpace] = {}
    usable = [run for run in runs if run.problem is None]
    for run in usable:
        found[run.participant] = found.get(run.participant, DiskSpace()) + run_space(run, settings)
    for participant, t1w in dict.fromkeys((run.participant, run.t1w) for run in usable if run.t1w):
        found[participant] += anatomy_space(t1w)
    return found


def check_disk(runs: Sequence[BoldRun], settings: Settings) -> str:
    """Check that scratch and outputs of all runs fit on their disks.

    With ``--clean-workdir`` the scratch files of a participant are deleted as soon as it is done: as many participants
    as processors need scratch space at a time. What earlier invocations left in these folders counts as available.

    Raises
    ------
    CannotCreateError
        They do not; the message has the required and the free space.
    """
    spaces = space_of_participants(runs, settings)
    scratches = sorted((space.scratch for space in spaces.values()), reverse=True)
    at_a_time = sum(scratches[: settings.resources.n_procs])
    scratch = at_a_time if settings.clean_workdir else sum(scratches)
    output = sum(space.output for space in spaces.values())
    for device, folders in _by_device((settings.work_dir, scratch), (settings.out_dir, output)).items():
        needed = sum(n_bytes for _, n_bytes in folders)
        free = shutil.disk_usage(device).free
        if needed > free and needed > free + sum(_bytes_in(folder) for folder, _ in folders):
            raise CannotCreateError(
                f"{' and '.join(str(folder) for folder, _ in folders)}: {_counted(len(spaces))} about "
                f"{readable_size(needed)}, but {readable_size(free)} are free.",
                _hint(settings, dict(folders), at_a_time, free, len(spaces)),
            )
    return f"about {readable_size(scratch)} of scratch and {readable_size(output)} of outputs needed"


def _counted(n_participants: int) -> str:
    return "1 participant needs" if n_participants == 1 else f"{n_participants} participants need"


def _hint(settings: Settings, needs: Mapping[Path, float], at_a_time: float, free: float, n_participants: int) -> str:
    """List the remedies for the folders that share a full disk, with the bytes that each needs."""
    remedies = ["Free some space"]
    scratch, output = needs.get(settings.work_dir), needs.get(settings.out_dir)
    if scratch is not None:
        remedies.append("give --work-dir on another disk")
        if at_a_time < scratch:
            remedies.append(
                f"delete scratch files of finished participants with --clean-workdir ({readable_size(at_a_time)})"
            )
    if output is not None and output > free:
        remedies.append("give an output folder on another disk")
    if n_participants > 1:
        remedies.append("process fewer participants at a time with --participant-label")
    return f"{', '.join(remedies[:-1])}, or {remedies[-1]}."


def _by_device(*folders: tuple[Path, float]) -> dict[Path, list[tuple[Path, float]]]:
    """Group folders by disk; keys are existing folders of these disks."""
    found: dict[int, tuple[Path, list[tuple[Path, float]]]] = {}
    for folder, n_bytes in folders:
        place = existing_parent(folder)
        found.setdefault(place.stat().st_dev, (place, []))[1].append((folder, n_bytes))
    return dict(found.values())


def existing_parent(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _bytes_in(folder: Path) -> int:
    """Return the size of all files below a folder, bytes."""
    return sum(_file_bytes(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names)


def _file_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # deleted meanwhile
        return 0


def _size_of(path: Path) -> tuple[Sequence[int], int]:
    """Return shape and uncompressed size of an image, from its header; an invalid one has no axes."""
    try:
        image = load_nifti(path)
        check_size(image, path)
    except NeurostormError:
        return (), 0
    return image.shape, claimed_bytes(image)


def readable_size(n_bytes: float) -> str:
    """Write a size in GB, or in MB below 0.1 GB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.0f} MB"
