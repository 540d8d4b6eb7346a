"""Screening of image quality metrics."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from bids_app.group.quality import screen
from bids_app.group.reading import RunRecord


def test_a_missing_metric_is_beyond_no_limit() -> None:
    runs = [
        RunRecord(f"sub-0{k}", {"sub": f"0{k}"}, quality=quality)
        for k, quality in enumerate(({"tsnr": 5.0}, {"fd_mean": 0.1}))
    ]
    found = screen(SimpleNamespace(runs=runs))  # type: ignore[arg-type]
    beyond = {(found.runs[i].stem, found.names[j]) for i, j in zip(*np.nonzero(found.beyond), strict=True)}
    assert beyond == {("sub-00", "tsnr")}
