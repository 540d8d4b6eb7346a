"""Diffeomorphic registration: known deformations of a head at 4 mm, masks, inverses and devices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_app.errors import RegistrationError
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.diffeomorphic import (
    MIN_JACOBIAN,
    Settings,
    compose,
    invert,
    jacobians,
    register_diffeomorphically,
    unfold,
)
from bids_app.preprocess.registration.transforms import (
    Chain,
    Warp,
    grid_points,
    linear,
    read_itk_composite,
    resample_to,
    rigid,
)

FAST = Settings(iterations=(20, 10), shrinks=(2, 1), sigmas=(1.0, 0.0), update_sigmas=(2.0, 1.0))
"""Two levels suffice at 4 mm."""
ALIGNED = np.eye(4)


def random_field(shape: tuple[int, ...], sigma: float, size: float, seed: int = 0) -> np.ndarray:
    """A smooth random field (3, X, Y, Z) with displacements up to ``size``."""
    noise = np.random.default_rng(seed).normal(size=(3, *shape))
    field = np.stack([ndimage.gaussian_filter(component, sigma) for component in noise])
    return (size * field / np.abs(field).max()).astype(np.float32)


@pytest.fixture(scope="module")
def deformed(head):
    """The head and a deformed copy, their brains, and the points of the cortex in both."""
    field = Warp(np.moveaxis(random_field(head.t1w.shape, 4, 8), 0, -1).copy(), head.affine)
    pull = Chain((field,))  # copy to head
    copy, brain = (
        resample_to(data.astype(np.float32), head.affine, head.t1w.shape, head.affine, pull)
        for data in (head.t1w, head.brain)
    )
    inside = grid_points(head.t1w.shape, head.affine, ndimage.binary_erosion(brain > 0.5))
    return Image(copy, head.affine), Image(head.t1w, head.affine), brain > 0.5, head.brain, inside, pull(inside)


@pytest.mark.parametrize("share", [0, 0.7, 1])
def test_a_known_deformation_is_recovered_by_either_measure_and_by_both(deformed, share, tmp_path):
    fixed, moving, fixed_mask, moving_mask, points, truth = deformed
    settings = replace(FAST, correlation_share=share)
    found = register_diffeomorphically(fixed, moving, fixed_mask, moving_mask, ALIGNED, tmp_path, settings=settings)
    before, after = (np.linalg.norm(truth - at, axis=1) for at in (points, found.chain(points)))
    assert np.median(after) < 0.5 * np.median(before)
    assert np.percentile(after, 95) < np.percentile(before, 95)


def test_both_transforms_are_inverse_and_do_not_fold(deformed, tmp_path):
    fixed, moving, fixed_mask, moving_mask, points, _ = deformed
    found = register_diffeomorphically(fixed, moving, fixed_mask, moving_mask, ALIGNED, tmp_path, settings=FAST)
    there_and_back = np.linalg.norm(found.inverse(found.chain(points)) - points, axis=1)
    assert np.percentile(there_and_back, 99) < 0.8  # mm, a fifth of a voxel
    for chain in (found.chain, found.inverse):
        (warp,) = (step for step in chain.steps if isinstance(step, Warp))
        voxels = np.moveaxis(warp.displacement, -1, 0) / 4
        assert jacobians(torch.from_numpy(voxels.copy())).min() > 0


def test_the_affine_alignment_is_part_of_the_transforms_and_their_files(head, deformed, tmp_path):
    fixed, moving, fixed_mask, moving_mask, points, truth = deformed
    matrix = rigid((0.1, -0.05, 0.2), (30, -20, 10))
    elsewhere = Image(moving.data, matrix @ head.affine)
    found = register_diffeomorphically(
        fixed, elsewhere, fixed_mask, moving_mask, matrix, tmp_path, name="x", settings=FAST
    )
    error = np.linalg.norm(found.chain(points) - linear(matrix)(truth), axis=1)
    assert np.median(error) < 0.5 * np.median(np.linalg.norm(truth - points, axis=1))
    assert found.forward_file == tmp_path / "x_Composite.h5"
    for file, chain in ((found.forward_file, found.chain), (found.inverse_file, found.inverse)):
        np.testing.assert_allclose(read_itk_composite(file)(points), chain(points), atol=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == {"x_Composite.h5", "x_InverseComposite.h5"}


def test_what_is_outside_the_masks_does_not_deform_its_surroundings(head, tmp_path):
    lesion = np.zeros(head.t1w.shape, bool)
    lesion[26:32, 24:34, 24:32] = True
    healthy = Image(head.t1w, head.affine)
    sick = Image(np.where(lesion, 0, head.t1w).astype(np.float32), head.affine)
    points = grid_points(lesion.shape, head.affine, ndimage.binary_dilation(lesion, iterations=3))
    moved = []
    for mask in (None, ~ndimage.binary_dilation(lesion, iterations=2)):
        found = register_diffeomorphically(healthy, sick, head.brain, mask, ALIGNED, tmp_path, settings=FAST)
        moved.append(np.linalg.norm(found.chain(points) - points, axis=1).mean())  # the truth is no displacement
    assert moved[1] < 0.5 * moved[0]


def test_the_result_does_not_depend_on_threads_and_leaves_their_number(deformed, tmp_path):
    fixed, moving, *masks = (
        Image(each.data.repeat(3, axis=0), each.affine) if isinstance(each, Image) else each.repeat(3, axis=0)
        for each in deformed[:4]
    )  # PyTorch splits sums of more than 32,768 values
    once = Settings(iterations=(2,), shrinks=(1,), sigmas=(0.0,), update_sigmas=(1.0,))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            register_diffeomorphically(fixed, moving, *masks, ALIGNED, tmp_path, name=str(threads), settings=once)
            assert torch.get_num_threads() == threads
            found.append((tmp_path / f"{threads}_Composite.h5").read_bytes())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_a_device_gives_the_transform_of_the_cpu(deformed, on_device, tmp_path):
    points = deformed[4]
    host, device = (
        register_diffeomorphically(*deformed[:4], ALIGNED, tmp_path, settings=FAST, device=name).chain(points)
        for name in ("cpu", on_device)
    )
    assert np.abs(host - device).max() < 0.2  # mm


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda image, _: image.fill(np.nan), "not finite"),
        (lambda image, _: image.fill(7), "the same value nearly everywhere"),
        (lambda _, mask: mask.fill(False), "overlap in 0 voxels"),
    ],
)
def test_an_image_that_cannot_be_registered_is_named_with_the_reason(deformed, spoil, message, tmp_path):
    fixed, moving, fixed_mask, moving_mask = (
        replace(each, data=each.data.copy()) if isinstance(each, Image) else each.copy() for each in deformed[:4]
    )
    spoil(moving.data, moving_mask)
    with pytest.raises(RegistrationError, match=f"t1w: .*{message}"):
        register_diffeomorphically(fixed, moving, fixed_mask, moving_mask, ALIGNED, tmp_path, name="t1w")
    assert not list(tmp_path.iterdir())


def steep_field() -> torch.Tensor:
    """A field that stretches by more than 2 in the middle, and compresses to about a third beside it."""
    x = np.arange(40) - 19.5
    shift = 1.45 * x * np.exp(-((x / 4) ** 2) / 2)
    field = np.zeros((3, 40, 12, 12), np.float32)
    field[0] = shift[:, None, None]
    return torch.from_numpy(field)


def test_steep_fields_are_inverted():
    field = steep_field()
    assert jacobians(field).min() < 0.5
    assert jacobians(field).max() > 2.2
    error = compose(invert(field), field)[:, 4:-4, 2:-2, 2:-2]
    assert error.abs().max() < 0.01  # voxels


def test_a_field_that_folds_is_smoothed_there_only():
    field = steep_field()
    folding = 2 * field
    assert jacobians(folding).min() < 0
    mended = unfold(folding)
    assert jacobians(mended).min() >= MIN_JACOBIAN
    torch.testing.assert_close(mended[:, :5], folding[:, :5])
    torch.testing.assert_close(unfold(field / 2), field / 2)


def test_images_at_the_border_of_the_grid_are_registered(head, tmp_path):
    fixed, brain = Image(head.t1w[8:, :, 6:], head.affine), head.brain[8:, :, 6:]
    found = register_diffeomorphically(fixed, fixed, brain, brain, ALIGNED, tmp_path, settings=FAST)
    points = grid_points(brain.shape, head.affine, brain)
    moved = np.linalg.norm(found.chain(points) - points, axis=1)
    assert np.median(moved) < 0.2
    assert moved.max() < 2  # half a voxel
