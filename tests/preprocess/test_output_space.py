"""Grids of series in the run's own space, in the space of the T1w image, and in template spaces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bids_app.preprocess.anatomical import Anatomy
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.output_space import find_output_space, why_not_in
from bids_app.preprocess.preprocessed import PreprocessedRun
from bids_app.preprocess.registration.transforms import apply_matrix, grid_points, linear, rigid, write_itk_text

BOLD_AFFINE = rigid((0.1, 0, 0.05), (-30, -40, -20)) @ np.diag([3.0, 3.0, 4.0, 1.0])
T1W_AFFINE = rigid((0, 0.02, 0), (-60, -70, -50)) @ np.diag([2.0, 2.0, 2.0, 1.0])
TO_BOLDREF = rigid((0.05, 0.1, 0), (4, -3, 2))


@pytest.fixture
def run(tmp_path: Path) -> PreprocessedRun:
    """A run with a T1w image whose brain is a box."""
    brain = np.zeros((60, 70, 50), np.uint8)
    brain[3:40, 20:60, 10:45] = 1
    mask = save_image(tmp_path / "t1w_mask.nii.gz", brain, T1W_AFFINE)
    own = np.zeros((20, 22, 12), np.uint8)
    own[5:15, 5:15, 2:10] = 1
    own_mask = save_image(tmp_path / "brain_mask.nii.gz", own, BOLD_AFFINE)
    nothing = tmp_path / "nothing"
    anatomy = Anatomy(
        source=nothing, template="MNI152NLin6Asym", image=mask, bias=nothing, mask=mask, tissues=nothing, dseg=nothing,
        chain=nothing, inverse=nothing, to_template=nothing, from_template=nothing, in_template=nothing,
    )  # fmt: skip
    return PreprocessedRun(
        source=tmp_path / "sub-01_task-rest_bold.nii.gz", bold=nothing, tr=2.0, n_volumes=10, n_dummy=0, motion=None,
        chain=linear(rigid((0, 0, 0), (1, 2, 3))).save(tmp_path / "chain.npz"), template="MNI152NLin6Asym",
        data_mask=own_mask, boldref=own_mask, brain_mask=own_mask, dseg=None, confounds=nothing, confounds_meta=nothing,
        carpet=None, route="t1w", quality={}, warnings=(), anatomy=anatomy,
        coreg_file=write_itk_text(tmp_path / "coreg.txt", TO_BOLDREF),
    )  # fmt: skip


def test_the_own_space_is_the_grid_of_the_run(run: PreprocessedRun) -> None:
    found = find_output_space(run, "func")
    np.testing.assert_allclose(found.affine, BOLD_AFFINE, atol=1e-5)
    assert (found.shape, found.code) == ((20, 22, 12), 1)
    assert found.brain.sum() == 10 * 10 * 8
    np.testing.assert_allclose(found.chain(np.ones((1, 3))), np.ones((1, 3)))


def test_the_space_of_the_t1w_is_its_brain_with_a_margin(run: PreprocessedRun) -> None:
    found = find_output_space(run, "T1w")
    assert (found.shape, found.code) == ((3 + 37 + 5, 50, 45), 1)  # cut at the lower edge of the first axis
    assert found.brain.sum() == 37 * 40 * 35
    corner = np.argwhere(found.brain)[0]
    np.testing.assert_allclose(
        apply_matrix(found.affine, corner.astype(float)), apply_matrix(T1W_AFFINE, np.array([3.0, 20, 10])), atol=1e-4
    )
    points = grid_points((2, 2, 2), found.affine)
    np.testing.assert_allclose(found.chain(points), apply_matrix(TO_BOLDREF, points), atol=1e-6)


def test_a_template_space_is_reached_through_the_chain_of_the_run(run: PreprocessedRun) -> None:
    found = find_output_space(run, "MNI152NLin6Asym")
    assert (found.shape, found.code) == ((91, 109, 91), 4)
    np.testing.assert_allclose(found.chain(np.zeros((1, 3))), [[1, 2, 3]])


def test_spaces_that_a_run_does_not_have_are_explained(run: PreprocessedRun) -> None:
    assert [why_not_in(run, space) for space in ("func", "T1w", "MNI152NLin6Asym")] == ["", "", ""]
    direct = replace(run, route="direct", anatomy=None, coreg_file=None)
    assert not why_not_in(direct, "func")
    assert "not registered to a T1w image" in why_not_in(direct, "T1w")
    with pytest.raises(ValueError, match="no series in T1w"):
        find_output_space(direct, "T1w")
    imported = replace(run, route="derivatives")
    for space in ("func", "T1w"):
        assert "imported from other derivatives" in why_not_in(imported, space)
