"""How much memory a run takes, by its header, so that one that cannot fit is refused before it is started.

The figures are those of `benchmarks/preprocess.py`: a step takes half a gigabyte for its libraries and as much for its
chunks, and 1.5 bytes for each number of the series (the largest step, confounds, keeps the brain in float32). The
unpacked series is mapped, not held: it counts only where the address space itself is limited (``ulimit -v``).
"""

from __future__ import annotations

import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_app.bids.query import BoldRun
from bids_app.errors import NeurostormError, TemporaryError
from bids_app.preprocess.io.headers import check_size, claimed_bytes, load_nifti
from bids_app.settings import Settings

WAITING_GB = 0.6
"""Of the process that starts the steps and waits for them."""
STEP_GB = 1.0
BYTES_A_SAMPLE = 1.5
BYTES_A_T1W_VOXEL = 24
ATTRIBUTION_GB = 3.0


def step_gb(run: BoldRun) -> float:
    """Memory that the largest step of a run takes, GB; of a file that cannot be read, that of the smallest."""
    return max(STEP_GB + BYTES_A_SAMPLE * _voxels(run.bold) / 1e9, 0.6 + BYTES_A_T1W_VOXEL * _voxels(run.t1w) / 1e9)


def check_memory_of(run: BoldRun, settings: Settings) -> None:
    """Refuse a run that takes more than there is.

    Raises
    ------
    TemporaryError
        With what would be enough.
    """
    largest = max(step_gb(run), ATTRIBUTION_GB if settings.model.attribution else 0.0)
    needed, allowed = WAITING_GB + largest, settings.resources.memory_gb
    if needed > allowed:
        raise TemporaryError(
            f"{run.bold.name}: takes about {needed:.1f} GB of memory, and {allowed:.1f} GB may be used.",
            f"Give it --mem {math.ceil(needed)}GB, on a machine or in a job that has as much.",
        )
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    mapped = _mapped_gb(run.bold)
    if limit != resource.RLIM_INFINITY and largest + mapped > limit / 1e9:
        raise TemporaryError(
            f"{run.bold.name}: a step takes {largest + mapped:.1f} GB of address space, of which its file is "
            f"{mapped:.1f} GB, and {limit / 1e9:.1f} GB are allowed (ulimit -v).",
            "Raise the limit, or limit memory by a control group or by the job instead.",
        )


def with_memory_checked(run: BoldRun, settings: Settings) -> BoldRun:
    """The run, or the run with the lack of memory as its problem."""
    if run.problem is None:
        try:
            check_memory_of(run, settings)
        except TemporaryError as error:
            return replace(run, problem=error)
    return run


def _voxels(path: Path | None) -> int:
    image = _sound(path)
    return math.prod(image.shape) if image else 0


def _mapped_gb(path: Path) -> float:
    image = _sound(path)
    return claimed_bytes(image) / 1e9 if image else 0.0


def _sound(path: Path | None) -> Any:
    """An image whose header can be believed; None otherwise: the step that needs it says why."""
    if path is None:
        return None
    try:
        image = load_nifti(path)
        check_size(image, path)
    except NeurostormError:
        return None
    return image
