"""Memory estimate of a run from its header, to refuse runs that do not fit before they start.

The constants are from `benchmarks/preprocess.py`: a step needs 0.5 GB for libraries, 0.5 GB for its chunks, and 1.5
bytes per sample of the series (the largest step, confounds, keeps the brain in float32). The decompressed series is
memory-mapped: it counts only if the address space is limited (``ulimit -v``).
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
"""Memory of the main process, GB."""
STEP_GB = 1.0
BYTES_A_SAMPLE = 1.5
BYTES_A_T1W_VOXEL = 24
ATTRIBUTION_GB = 3.0


def step_gb(run: BoldRun) -> float:
    """Estimate the memory of the largest step of a run, GB; for an unreadable file the minimum."""
    return max(STEP_GB + BYTES_A_SAMPLE * _voxels(run.bold) / 1e9, 0.6 + BYTES_A_T1W_VOXEL * _voxels(run.t1w) / 1e9)


def check_run_memory(run: BoldRun, settings: Settings) -> None:
    """Check that the memory limit is sufficient for a run.

    Raises
    ------
    TemporaryError
        It is not; the hint has a sufficient limit.
    """
    largest = max(step_gb(run), ATTRIBUTION_GB if settings.model.attribution else 0.0)
    needed, allowed = WAITING_GB + largest, settings.resources.memory_gb
    if needed > allowed:
        raise TemporaryError(
            f"{run.bold.name}: needs about {needed:.1f} GB of memory, but the limit is {allowed:.1f} GB.",
            f"Use --mem {math.ceil(needed)}GB on a machine or in a job with that much memory.",
        )
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    mapped = _mapped_gb(run.bold)
    if limit != resource.RLIM_INFINITY and largest + mapped > limit / 1e9:
        raise TemporaryError(
            f"{run.bold.name}: a step needs {largest + mapped:.1f} GB of address space, including {mapped:.1f} GB for "
            f"the file, but the limit is {limit / 1e9:.1f} GB (ulimit -v).",
            "Raise the limit, or limit the memory with a control group or the job instead.",
        )


def add_memory_problem(run: BoldRun, settings: Settings) -> BoldRun:
    """Return the run, with the lack of memory as its problem if it does not fit."""
    if run.problem is None:
        try:
            check_run_memory(run, settings)
        except TemporaryError as error:
            return replace(run, problem=error)
    return run


def _voxels(path: Path | None) -> int:
    image = _load_valid(path)
    return math.prod(image.shape) if image else 0


def _mapped_gb(path: Path) -> float:
    image = _load_valid(path)
    return claimed_bytes(image) / 1e9 if image else 0.0


def _load_valid(path: Path | None) -> Any:
    """Load an image; None if its header is invalid: the step that reads it raises the error."""
    if path is None:
        return None
    try:
        image = load_nifti(path)
        check_size(image, path)
    except NeurostormError:
        return None
    return image
