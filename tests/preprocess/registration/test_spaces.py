"""Transforms between template spaces."""

import numpy as np
import pytest

from bids_app.catalog import templates
from bids_app.catalog.templates import MODEL_SPACE, load_template, space, warp_between
from bids_app.preprocess.registration.ants import Image, correlation, dice
from bids_app.preprocess.registration.spaces import chain_between, template_brain
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points

OTHER = "MNI152NLin2009aSym"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path_factory.getbasetemp() / "nothing"))


@pytest.fixture(scope="module")
def points():
    template = load_template(MODEL_SPACE)
    return grid_points(template.mask.shape, template.affine, template.mask)[::10]


def test_the_packaged_transforms_align_the_templates_better_than_the_matrix(points):
    model, other = load_template(MODEL_SPACE), load_template(OTHER)
    matrix = model.space.pull_to(other.space)
    expected = Image(model.t1w, model.affine).at(points)
    image = Image(other.t1w, other.affine)
    by_field = correlation(image.at(chain_between(MODEL_SPACE, OTHER)(points)), expected)
    assert by_field > 0.92
    assert by_field > correlation(image.at(apply_matrix(matrix, points)), expected) + 0.05


def test_the_packaged_transforms_are_inverse(points):
    there_and_back = chain_between(OTHER, MODEL_SPACE)(chain_between(MODEL_SPACE, OTHER)(points))
    distances = np.linalg.norm(there_and_back - points, axis=1)
    assert np.median(distances) < 0.3
    assert np.percentile(distances, 95) < 1.0


@pytest.mark.parametrize(("start", "end"), [(MODEL_SPACE, OTHER), (OTHER, MODEL_SPACE)])
def test_antspyx_reads_the_packaged_transforms(points, start, end):
    import ants

    itk = ants.read_transform(str(warp_between(end, start)))
    lps = np.array([-1, -1, 1])
    some = points[::100]
    found = np.array([itk.apply_to_point(point * lps) for point in some]) * lps
    np.testing.assert_allclose(found, chain_between(start, end)(some), atol=1e-3)


def test_a_space_is_mapped_to_itself_by_the_identity(points):
    np.testing.assert_array_equal(chain_between(OTHER, OTHER)(points), points)


def test_without_a_transform_the_matrix_is_used(points, tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "PACKAGED", tmp_path)
    found = chain_between(OTHER, MODEL_SPACE)(points)
    np.testing.assert_allclose(found, apply_matrix(space(OTHER).to_model, points))


def test_the_brain_of_a_template_is_resampled_to_another_space():
    grid = space(OTHER)
    brain = template_brain(MODEL_SPACE, OTHER, grid.shape, grid.affine)
    own = template_brain(OTHER, OTHER, grid.shape, grid.affine)
    assert dice(brain, own) > 0.95
