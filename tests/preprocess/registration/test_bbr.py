"""Boundary-based refinement of coregistration."""

import numpy as np
import pytest

from bids_app.catalog.templates import load_template
from bids_app.preprocess.registration import bbr as boundary
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.bbr import Boundary, BoundaryCost, refine, white_matter_boundary
from bids_app.preprocess.registration.bold_to_template import epi_like
from bids_app.preprocess.registration.transforms import apply_matrix, resample_to, rigid

OFF = rigid(np.radians((2, -1, 1)), (1.5, -1.5, 1.5), (0, -20, 10))


@pytest.fixture(scope="module")
def tissues():
    template = load_template("MNI152NLin2009aSym")
    return np.stack([template.gm, template.wm, template.csf], axis=-1), template.affine


@pytest.fixture(scope="module")
def surface(tissues) -> Boundary:
    return white_matter_boundary(*tissues, n_points=5000)


@pytest.fixture(scope="module")
def boldref() -> Image:
    """A T2*-weighted head on voxels of 3 mm, with noise."""
    template = load_template("MNI152NLin2009aSym")
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (84, -120, -66)
    data = resample_to(1000 * epi_like(template), template.affine, (57, 68, 54), affine)
    noise = np.random.default_rng(0).normal(0, 20, data.shape)
    return Image(np.abs(data + noise).astype(np.float32), affine)


def distance_mm(matrix, surface):
    return np.linalg.norm(apply_matrix(matrix, surface.points) - surface.points, axis=1)


def test_the_boundary_separates_white_and_grey_matter_and_points_outwards(tissues, surface):
    maps, affine = tissues
    grey, white = (Image(maps[..., i], affine) for i in (0, 1))
    np.testing.assert_allclose(white.at(surface.points), 0.5, atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(surface.normals, axis=1), 1)
    assert (grey.at(surface.points + boundary.DEPTH_MM * surface.normals) > 0.5).all()
    assert (white.at(surface.points - surface.normals) > 0.5).mean() > 0.95


def test_the_cost_is_lowest_at_the_true_alignment(surface, boldref):
    cost = BoundaryCost(surface, boldref)
    assert cost(np.eye(4)) < min(cost(rigid((0, 0, 0), step)) for step in np.vstack([np.eye(3), -np.eye(3)]) * 2)
    inverted = BoundaryCost(surface, Image(boldref.data.max() - boldref.data, boldref.affine))
    assert inverted(np.eye(4)) > 1


def test_a_small_misalignment_is_corrected(surface, boldref):
    found = refine(surface, boldref, OFF)
    assert found.accepted
    assert found.cost < found.cost_start
    assert np.median(distance_mm(OFF, surface)) > 2
    assert np.median(distance_mm(found.matrix, surface)) < 0.4
    assert found.quality["bbr_used"] == 1


def test_a_correct_alignment_is_kept(surface, boldref):
    found = refine(surface, boldref, np.eye(4))
    assert not found.accepted
    np.testing.assert_array_equal(found.matrix, np.eye(4))
    assert found.cost <= found.cost_start


def test_a_large_movement_is_rejected(surface, boldref, monkeypatch):
    monkeypatch.setattr(boundary, "MAX_MOVE_MM", 1.0)
    found = refine(surface, boldref, OFF)
    assert found.moved_mm > 1
    assert not found.accepted
    np.testing.assert_array_equal(found.matrix, OFF)


def test_an_image_without_contrast_of_grey_and_white_matter_is_not_refined(tissues, surface, boldref, monkeypatch):
    monkeypatch.setattr(boundary, "MAX_MOVE_MM", 20.0)
    maps, affine = tissues
    brain = Image(maps.sum(axis=-1), affine)
    flat = 800 * resample_to(brain.data, affine, boldref.data.shape, boldref.affine)
    noise = np.random.default_rng(1).normal(0, 20, flat.shape)
    found = refine(surface, Image(np.abs(flat + noise).astype(np.float32), boldref.affine), OFF)
    assert found.cost < found.cost_start * (1 - boundary.MIN_GAIN)
    assert not found.accepted
    np.testing.assert_array_equal(found.matrix, OFF)
    assert found.quality["bbr_cost"] == found.cost_start


def test_no_refinement_without_white_matter_or_outside_the_image(surface, boldref):
    assert len(white_matter_boundary(np.zeros((5, 5, 5, 3), np.float32), np.eye(4)).points) == 0
    assert refine(Boundary(surface.points[:10], surface.normals[:10]), boldref, np.eye(4)) is None
    assert refine(surface, boldref, rigid((0, 0, 0), (150, 0, 0))) is None
