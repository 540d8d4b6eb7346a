"""Many clips through a model, a batch at a time: as large as memory allows, halved where it was not enough.

Clips come one by one from an iterator and are let go once their answer is there, so that memory does not grow with the
length of a run.
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
"""Of a GPU's free memory that a batch may be expected to take."""
FLOATS_PER_TOKEN = 20
"""Numbers that are alive at a time in the first stage, per token and channel, by the widths of its arrays."""


def clip_bytes(config: EncoderConfig) -> int:
    """What one more clip in a batch takes while it is encoded, at the first stage, the largest."""
    x, y, z, t = config.img_size
    gx, gy, gz, gt = config.grid(0)
    return 4 * (2 * x * y * z * t + FLOATS_PER_TOKEN * gx * gy * gz * gt * config.embed_dim)


def starting_batch(config: EncoderConfig, device: torch.device) -> int:
    """Clips of a first batch: by the free memory of a GPU; on a CPU enough to keep every core busy.

    The last stages have few windows a clip (five in the published configuration), and a core works on a window.
    """
    if device.type != "cuda":
        windows = plan_windows(config.grid(config.n_stages - 1), config.window(config.n_stages - 1), False).counts
        return min(MAX_CPU_BATCH, math.ceil(2 * torch.get_num_threads() / math.prod(windows)))
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(MAX_BATCH, int(FREE_SHARE * free / clip_bytes(config))))


def apply_in_batches(
    apply: Callable[[torch.Tensor], torch.Tensor], clips: Iterable[torch.Tensor], batch: int
) -> Iterator[torch.Tensor]:
    """Apply a function to clips; where the device's memory does not suffice, halve the batch and go on.

    Parameters
    ----------
    apply : callable
        (B, 1, x, y, z, t) to (B, K).
    clips : iterable of torch.Tensor, (1, x, y, z, t)
    batch : int
        Clips of a batch to begin with.

    Yields
    ------
    torch.Tensor, (b, K)
        The answers, in the clips' order.

    Raises
    ------
    TemporaryError
        Not even one clip fits.
    """
    waiting: list[torch.Tensor] = []
    size = batch
    for clip in clips:
        waiting.append(clip)
        while len(waiting) >= size:
            answer = _try(apply, waiting[:size])
            if answer is None:
                size = _halved(size)
            else:
                del waiting[:size]
                yield answer
    while waiting:
        answer = _try(apply, waiting[:size])
        if answer is None:
            size = _halved(min(size, len(waiting)))
        else:
            del waiting[:size]
            yield answer


def _try(apply: Callable[[torch.Tensor], torch.Tensor], clips: list[torch.Tensor]) -> torch.Tensor | None:
    """The answer, or None where memory did not suffice."""
    try:
        return apply(torch.stack(clips))
    except torch.OutOfMemoryError:
        pass
    if torch.cuda.is_available():  # behind the handler, whose traceback holds on to the arrays
        torch.cuda.empty_cache()
    return None


def _halved(size: int) -> int:
    if size == 1:
        raise TemporaryError(
            "The device has not memory enough for one clip.",
            "Wait until others have freed some, or use --device cpu.",
        )
    LOGGER.warning("The device has not memory enough for %d clips at a time; going on with %d.", size, size // 2)
    return size // 2
