"""Progress bar of the steps, on a terminal only."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Status callback of the nipype plugins; use as a context manager.

    Parameters
    ----------
    n_steps : int
        Total number of steps.
    """

    def __init__(self, n_steps: int) -> None:
        self._n_steps = n_steps
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._n_steps, unit="step", leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, node: Any, status: str) -> None:
        """Update the bar when a step starts or ends."""
        if self._bar is None:
            return
        if status == "start":
            self._bar.set_postfix_str(node.name)
        else:
            self._bar.update()
