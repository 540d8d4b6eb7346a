"""Simulated scans on the model grid contain only voxels in the field of view."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from bids_app.phantom.grid_scans import in_view


def run_of_cubes(motion: np.ndarray) -> SimpleNamespace:
    """A run of 10 x 10 x 10 voxels of 2 mm from 0 to 18 mm, with poses (T, 4, 4)."""
    return SimpleNamespace(
        bold=np.zeros((10, 10, 10, len(motion))), affine=np.diag([2.0, 2.0, 2.0, 1.0]), motion=motion
    )


def test_points_beyond_the_outermost_voxels_are_not_in_view():
    points = np.array([[0, 0, 0], [18, 18, 18], [9, 9, 9], [-0.1, 9, 9], [9, 18.1, 9]], np.float32)
    assert in_view(run_of_cubes(np.tile(np.eye(4), (5, 1, 1))), points).tolist() == [True, True, True, False, False]


def test_points_that_often_leave_the_field_of_view_are_excluded():
    points = np.array([[9, 9, 17], [9, 9, 9]], np.float32)
    motion = np.tile(np.eye(4), (20, 1, 1))
    motion[:2, 2, 3] = 5.0  # mm upwards in a tenth of the volumes
    assert in_view(run_of_cubes(motion), points).tolist() == [True, True]
    motion[:3, 2, 3] = 5.0
    assert in_view(run_of_cubes(motion), points).tolist() == [False, True]
