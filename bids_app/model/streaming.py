"""Batched inference over many clips; the batch size is halved when the device runs out of memory.

Clips are read one by one from an iterator and released after use, so that memory is independent of the run's length.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator

import torch

from bids_app.errors import TemporaryError
from bids_app.model.config import EncoderConfig
from bids_app.model.windows import plan_windows

LOGGER = logging.getLogger(__name__)
MAX_BATCH = 32
MAX_CPU_BATCH = 4
FREE_SHARE = 0.7
"""Maximum share of a GPU's free memory for a batch."""
FLOATS_PER_TOKEN = 20
"""Estimated floats in memory per token and channel in the first stage."""


def clip_bytes(config: EncoderConfig) -> int:
    """Estimate the memory per clip in a batch, bytes; the first stage is the largest."""
    x, y, z, t = config.img_size
    gx, gy, gz, gt = config.grid(0)
    return 4 * (2 * x * y * z * t + FLOATS_PER_TOKEN * gx * gy * gz * gt * config.embed_dim)


def starting_batch(config: EncoderConfig, device: torch.device) -> int:
    """Return the initial batch size: by the free memory of a GPU; on a CPU enough clips for all cores.

    The last stages have few windows per clip (five in the published configuration), and each window runs on one core.
    """
    if device.type != "cuda":
        windows = plan_windows(config.grid(config.n_stages - 1), config.window(config.n_stages - 1), False).counts
        return min(MAX_CPU_BATCH, math.ceil(2 * torch.get_num_threads() / math.prod(windows)))
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(MAX_BATCH, int(FREE_SHARE * free / clip_bytes(config))))


def apply_in_batches(
    apply: Callable[[torch.Tensor], torch.Tensor], clips: Iterable[torch.Tensor], batch: int
) -> Iterator[torch.Tensor]:
    """Apply a function to clips in batches; halve the batch size when the device runs out of memory.

    Parameters
    ----------
    apply : callable
        (B, 1, x, y, z, t) to (B, K).
    clips : iterable of torch.Tensor, (1, x, y, z, t)
    batch : int
        Initial batch size.

    Yields
    ------
    torch.Tensor, (b, K)
        The outputs, in the clips' order.

    Raises
    ------
    TemporaryError
        The memory is too small for one clip.
    """
    waiting: list[torch.Tensor] = []
    size = batch
    for clip in clips:
        waiting.append(clip)
        while len(waiting) >= size:
            output = _try(apply, waiting[:size])
            if output is None:
                size = _halved(size)
            else:
                del waiting[:size]
                yield output
    while waiting:
        output = _try(apply, waiting[:size])
        if output is None:
            size = _halved(min(size, len(waiting)))
        else:
            del waiting[:size]
            yield output


def _try(apply: Callable[[torch.Tensor], torch.Tensor], clips: list[torch.Tensor]) -> torch.Tensor | None:
    """Return the output, or None if the device ran out of memory."""
    try:
        return apply(torch.stack(clips) if len(clips) > 1 else clips[0][None])
    except torch.OutOfMemoryError:
        pass
    if torch.cuda.is_available():  # outside the handler, whose traceback keeps the arrays alive
        torch.cuda.empty_cache()
    return None


def _halved(size: int) -> int:
    if size == 1:
        raise TemporaryError(
            "The device has too little free memory for one clip.",
            "Wait until other processes free memory, or use --device cpu.",
        )
    LOGGER.warning("The device has too little memory for batches of %d clips; continuing with %d.", size, size // 2)
    return size // 2
