"""A run on the model grid."""

import numpy as np
import pytest

from bids_app.clips import MODEL_GRID_SHAPE, GridSeries, GridSeriesWriter


@pytest.fixture
def series(tmp_path) -> GridSeries:
    """60 volumes at 2 s: 150 at 0.8 s."""
    mask = np.zeros(MODEL_GRID_SHAPE, dtype=bool)
    mask[40:50, 40:50, 40:50] = True
    random = np.random.default_rng(0)
    values = random.normal(500, 50, (60, 1000)) + random.normal(0, 100, 1000)
    with GridSeriesWriter(tmp_path / "series", mask, 2.0, 60, start=4.0) as writer:
        writer.append(values[:25])
        writer.append(values[25:])
    return GridSeries.open(tmp_path / "series")
