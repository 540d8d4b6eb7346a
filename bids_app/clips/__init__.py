"""Clips: images in template space, resampled and normalised for the encoder.

    grid.py    the model grid, and mapping of images to it by their affines
    series.py  a run on that grid: brain voxels only, in a file, written and read in chunks
    cut.py     resampling to 0.8 s, two normalisations, non-overlapping clips of 20 volumes

Volumes that are resampled already (preprocess/resample.py) are written with `GridSeriesWriter` and read with
`ClipReader`. For an image in template space, use `series_from_image`, or `to_model_grid` if it is short.
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
