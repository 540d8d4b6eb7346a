"""From images in template space to the clips that an encoder reads.

    grid.py    the model grid, and how an image comes onto it: through affines, never by index
    series.py  a run on that grid: in-brain voxels only, in a file, written and read chunk by chunk
    cut.py     time in steps of 0.8 s, two normalisations, clips of 20 volumes that do not overlap

Who has volumes already resampled (preprocess/resample.py) writes them with `GridSeriesWriter`, and cuts the result with
`ClipReader`. Who has an image in template space calls `series_from_image`, or `to_model_grid` for a short one.
"""

from __future__ import annotations

from bids_app.clips.cut import (
    CLIP_VOLUMES,
    MODEL_TR,
    NORMALISATIONS,
    ClipReader,
    iter_clips,
    to_model_grid,
)
from bids_app.clips.grid import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, labels_to_model_grid
from bids_app.clips.series import GridSeries, GridSeriesWriter, series_from_image

__all__ = [
    "CLIP_VOLUMES",
    "MODEL_GRID_AFFINE",
    "MODEL_GRID_SHAPE",
    "MODEL_TR",
    "NORMALISATIONS",
    "ClipReader",
    "GridSeries",
    "GridSeriesWriter",
    "iter_clips",
    "labels_to_model_grid",
    "series_from_image",
    "to_model_grid",
]
