"""Coregistration of a boldref with the T1w, and its quality checks."""

from dataclasses import replace

import numpy as np
import pytest

from bids_app.catalog.templates import load_template
from bids_app.errors import BadDataError, RegistrationError
from bids_app.preprocess.anatomical import Anatomy, PreparedT1w
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.registration import bold_to_t1w as module
from bids_app.preprocess.registration.alignment import noise_masks
from bids_app.preprocess.registration.ants import dice
from bids_app.preprocess.registration.bbr import Refinement
from bids_app.preprocess.registration.bold_to_t1w import coregister, search
from bids_app.preprocess.registration.bold_to_template import epi_like, normalise_boldref
from bids_app.preprocess.registration.boldref import mask_boldref
from bids_app.preprocess.registration.checks import failed_checks
from bids_app.preprocess.registration.transforms import Chain, apply_matrix, grid_points, linear, resample_to, rigid

BOLDREF_TO_T1W = rigid(np.radians((6, -3, 4)), (6, -8, 10), (0, -20, 10))
GOOD = {"coreg_stands_out": 0.3, "coreg_dice": 0.95, "coreg_brain_seen": 0.9}


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory) -> Anatomy:
    """The template as a T1w that is aligned with itself."""
    folder = tmp_path_factory.mktemp("anatomy")
    target = load_template("MNI152NLin2009aSym")

    def save(name, data):
        return save_image(folder / name, data, target.affine)

    image = save("sub-01_T1w.nii.gz", target.t1w)
    tissues = np.stack([target.gm, target.wm, target.csf], axis=-1)
    identity = Chain().save(folder / "identity.npz")
    return Anatomy(
        source=image,
        template=target.name,
        image=image,
        bias=image,
        mask=save("mask.nii.gz", target.mask.astype(np.uint8)),
        tissues=save("tissues.nii.gz", np.round(tissues * 255).astype(np.uint8)),
        dseg=image,
        chain=identity,
        inverse=identity,
        to_template=image,
        from_template=image,
        in_template=image,
    )


@pytest.fixture
def boldref(head, tmp_path):
    """A boldref in another pose than the T1w, on oblique 4 mm voxels of a slab without the top and bottom."""
    affine = rigid((0.2, 0, 0.05), (0, 0, 0)) @ np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (90, -108, -56)
    shape = (44, 52, 28)
    image = resample_to(head.epi, head.affine, shape, affine, linear(BOLDREF_TO_T1W))
    noise = np.random.default_rng(0).normal(0, 15, shape)
    return save_image(tmp_path / "boldref.nii.gz", np.abs(image + noise).astype(np.float32), affine)


def test_a_slab_is_aligned_with_the_t1w(head, anatomy, boldref, tmp_path):
    reference = mask_boldref(tmp_path / "sub-01_bold.nii.gz", boldref, tmp_path)
    found = coregister(reference, anatomy, tmp_path)
    mask, affine = read_volume(found.brain_mask)
    truth = resample_to(head.brain.astype(np.float32), head.affine, mask.shape, affine, linear(BOLDREF_TO_T1W)) > 0.5
    assert dice(mask > 0.5, truth) > 0.95
    points = grid_points(head.brain.shape, head.affine, head.brain)[::9]
    in_boldref = Chain.load(found.chain)(points)
    assert np.linalg.norm(apply_matrix(BOLDREF_TO_T1W, in_boldref) - points, axis=1).max() < 0.8
    assert found.route == "t1w"
    assert found.warnings == ()
    assert found.quality["coreg_brain_seen"] < 0.95
    assert found.quality["bbr_cost"] <= found.quality["bbr_cost_start"]
    dseg, _ = read_volume(found.dseg)
    assert set(np.unique(dseg)) == {0, 1, 2, 3}
    assert not dseg[mask == 0].any()
    assert sorted(p.name for p in tmp_path.glob("*.h5")) == []


def test_the_alignment_may_be_searched_before_the_tissues_are_known(anatomy, boldref, tmp_path, monkeypatch):
    reference = mask_boldref(tmp_path / "sub-01_bold.nii.gz", boldref, tmp_path)
    prepared = PreparedT1w(anatomy.source, anatomy.image, anatomy.bias, brain=anatomy.mask)
    monkeypatch.setattr(module, "_best_rigid", lambda *args: BOLDREF_TO_T1W)
    start = search(reference, prepared, tmp_path)
    assert search(reference, replace(prepared, brain=None), tmp_path) is None
    monkeypatch.setattr(module, "_best_rigid", refuse)
    assert search(reference, prepared, tmp_path) is None
    monkeypatch.setattr(module, "refine", lambda *args: None)
    monkeypatch.setattr(module, "compare", lambda *args: {})
    monkeypatch.setattr(module, "signs_of_error", lambda quality: [])
    found = coregister(reference, anatomy, tmp_path, start=start)
    np.testing.assert_allclose(Chain.load(found.chain).steps[0].matrix, np.linalg.inv(BOLDREF_TO_T1W))


def refuse(*_):
    raise RegistrationError("ANTs failed.")


def test_a_refinement_that_fails_the_checks_is_not_used(anatomy, boldref, tmp_path, monkeypatch):
    def refine(boundary, image, start):
        return Refinement(start @ rigid((0, 0, 0), (0, 30, 0)), 1.0, 0.5, 30.0, accepted=True)

    monkeypatch.setattr(module, "refine", refine)
    monkeypatch.setattr(module, "_best_rigid", lambda *args: BOLDREF_TO_T1W)
    reference = mask_boldref(tmp_path / "sub-01_bold.nii.gz", boldref, tmp_path)
    found = coregister(reference, anatomy, tmp_path)
    assert found.quality["bbr_used"] == 0
    assert found.quality["bbr_cost"] == found.quality["bbr_cost_start"] == 1.0
    np.testing.assert_allclose(Chain.load(found.chain).steps[0].matrix, np.linalg.inv(BOLDREF_TO_T1W))


def test_an_image_of_something_else_is_refused_by_name(anatomy, boldref, tmp_path):
    image, affine = read_volume(boldref)
    bottle = np.random.default_rng(0).normal(0, 10, image.shape).astype(np.float32) + 20
    bottle[16:28, 4:48, 8:20] += 1000
    save_image(boldref, bottle, affine)
    reference = mask_boldref(tmp_path / "sub-01_bold.nii.gz", boldref, tmp_path)
    with pytest.raises(RegistrationError, match=r"sub-01_bold.nii.gz: could not be aligned with sub-01_T1w") as error:
        coregister(reference, anatomy, tmp_path)
    assert "same person" in error.value.hint


def test_a_boldref_without_a_brain_is_refused_by_name(tmp_path):
    image = np.zeros((20, 20, 20), np.float32)
    image[9:12, 9:12, 9:12] = 1000
    image += np.random.default_rng(0).uniform(0, 1, image.shape).astype(np.float32)
    path = save_image(tmp_path / "boldref.nii.gz", image, np.diag([4.0, 4.0, 4.0, 1.0]))
    with pytest.raises(BadDataError, match=r"sub-01_bold.nii.gz: no brain"):
        mask_boldref(tmp_path / "sub-01_bold.nii.gz", path, tmp_path)


@pytest.mark.parametrize(
    ("figure", "value", "words"),
    [
        ("coreg_stands_out", -0.1, "8 mm or 8 degrees away"),
        ("coreg_dice", 0.5, "brain masks is 0.50"),
        ("coreg_brain_seen", 0.2, "only 20%"),
        ("norm_scale_max", 2.0, "scaled by"),
        ("norm_brain_ml", 3000.0, "3000 mL"),
    ],
)
def test_failed_checks_name_measure_and_value(figure, value, words):
    assert failed_checks(GOOD) == []
    given = {**GOOD, "norm_scale_min": 0.9, "norm_scale_max": 1.1, figure: value}
    assert words in failed_checks(given)[0]


def test_noise_masks_exclude_neighbours_of_grey_matter(head):
    template = load_template("MNI152NLin2009aSym")
    maps = np.stack(
        [
            resample_to(m, template.affine, head.brain.shape, head.affine)
            for m in (template.gm, template.wm, template.csf)
        ],
        -1,
    )
    wm, csf = noise_masks(maps, head.brain, head.affine)
    grey = maps[..., 0] > 0.5
    for mask in (wm, csf):
        assert mask.sum() >= 20
        assert not (mask & grey).any()
        assert not (mask & ~head.brain).any()
    assert not (wm & csf).any()


def test_the_template_in_epi_contrast():
    template = load_template()
    image = epi_like(template)
    ventricle = tuple(np.round(apply_matrix(np.linalg.inv(template.affine), np.array([4, 8, 14]))).astype(int))
    deep_white = tuple(np.round(apply_matrix(np.linalg.inv(template.affine), np.array([26, -20, 30]))).astype(int))
    assert image[ventricle] > image[deep_white]
    assert image[~template.mask].mean() < 0.05


@pytest.mark.slow
def test_a_boldref_is_aligned_with_the_template_without_a_t1w(head, boldref, tmp_path):
    reference = mask_boldref(tmp_path / "sub-01_bold.nii.gz", boldref, tmp_path)
    found = normalise_boldref(reference, tmp_path, "MNI152NLin2009aSym")
    points = grid_points(head.brain.shape, head.affine, head.brain)[::9]
    in_boldref = Chain.load(found.chain)(points)
    error = np.linalg.norm(apply_matrix(BOLDREF_TO_T1W, in_boldref) - points, axis=1)
    assert np.median(error) < 3.0
    assert found.route == "direct"
    assert found.to_template is not None
    assert found.to_template.exists()
