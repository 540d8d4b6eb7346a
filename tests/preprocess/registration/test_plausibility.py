"""Signs that a coregistration is wrong although it passes its checks."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bids_app.phantom.dataset import DatasetPlan, write_dataset
from bids_app.phantom.spoiled import spoil
from bids_app.preprocess.anatomical import Anatomy, normalise_t1w, prepare_t1w
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.registration import plausibility as module
from bids_app.preprocess.registration.ants import Image
from bids_app.preprocess.registration.bbr import Boundary
from bids_app.preprocess.registration.bold_to_t1w import coregister
from bids_app.preprocess.registration.boldref import EpiView, mask_boldref
from bids_app.preprocess.registration.plausibility import (
    Pair,
    compare_with_mirror,
    describe,
    fit_scales,
    likely_cause,
    mirror,
    mirror_boundary,
    signs_of_error,
    similarity_ratio,
)

GOOD = {
    "coreg_similarity": 0.14,
    "coreg_mirrored": 0.07,
    "bbr_cost": 0.59,
    "bbr_cost_mirrored": 0.95,
    "coreg_scale_i": 1.0,
    "coreg_scale_j": 1.0,
    "coreg_scale_k": 1.08,
}
NO_BOUNDARY = Boundary(np.zeros((0, 3)), np.zeros((0, 3)))


@pytest.fixture(scope="module")
def folds(head) -> np.ndarray:
    """A pattern without left-right symmetry, 0.6 to 1.4."""
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=head.epi.shape), 1.5)
    return 1 + 0.4 * np.clip(noise / noise.std() / 2, -1, 1)


@pytest.fixture(scope="module")
def pair(head, folds) -> Pair:
    """BOLD and T1w of one head, aligned."""
    epi = Image((head.epi * folds).astype(np.float32), head.affine)
    brain = Image((head.t1w / folds * head.brain).astype(np.float32), head.affine)
    return Pair(EpiView(epi, head.brain), epi, brain, NO_BOUNDARY)


def crop(affine: np.ndarray, first: int) -> np.ndarray:
    """Return the affine of a grid without its first slices."""
    moved = affine.copy()
    moved[:3, 3] += first * affine[:3, 2]
    return moved


def test_an_image_is_mirrored_about_a_sagittal_plane():
    data = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
    image = Image(data, np.diag([2.0, 2.0, 2.0, 1.0]))
    centre = np.array([3.0, 1.0, 0.0])
    point = np.array([[4.0, 6.0, 2.0]])
    there = point * [-1, 1, 1] + [6, 0, 0]
    np.testing.assert_allclose(mirror(image, centre).at(there), image.at(point), rtol=1e-5)
    moved = mirror_boundary(Boundary(point, np.array([[1.0, 0.0, 0.0]])), centre)
    np.testing.assert_allclose(moved.points, there)
    np.testing.assert_allclose(moved.normals, [[-1, 0, 0]])


def test_the_mirrored_t1w_is_less_similar_unless_one_image_is_flipped(pair, head, tmp_path):
    right = compare_with_mirror(pair, np.eye(4), tmp_path)
    stored = {"coreg_similarity": pair.similarity(np.eye(4))}
    assert similarity_ratio(stored | right) < 0.7
    flipped = Pair(pair.epi, pair.boldref, Image(pair.brain.data[::-1], head.affine), NO_BOUNDARY)
    wrong = compare_with_mirror(flipped, np.eye(4), tmp_path)
    stored = {"coreg_similarity": flipped.similarity(np.eye(4))}
    assert similarity_ratio(stored | wrong) > 1.2
    assert "left and right flipped" in likely_cause(flipped, np.eye(4), stored | wrong, 1500.0, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_slice_gap_is_found_by_an_affine_fit(pair, tmp_path):
    lost = np.diag([1.0, 1.0, 0.8, 1.0])
    squeezed = [lost @ image.affine for image in (pair.epi.image, pair.boldref)]
    epi = EpiView(Image(pair.epi.image.data, squeezed[0]), pair.epi.mask)
    found = fit_scales(Pair(epi, Image(pair.boldref.data, squeezed[1]), pair.brain, NO_BOUNDARY), np.eye(4), tmp_path)
    assert found["coreg_scale_k"] == pytest.approx(1.25, abs=0.06)
    assert found["coreg_scale_i"] == pytest.approx(1.0, abs=0.06)
    assert found["coreg_scale_j"] == pytest.approx(1.0, abs=0.06)
    assert found["coreg_scale_gain"] > 1.12
    (sign,) = signs_of_error(GOOD | found)
    assert sign.startswith("an affine fit scales axis k of the BOLD image by 1.")


def test_the_affine_fit_starts_from_several_scales_along_the_slices(pair, tmp_path, monkeypatch):
    """In slabs, fits stay near the scale from which they start."""
    monkeypatch.setattr(Pair, "fit", lambda self, stage, start, out_dir, seed: start)
    lost = np.diag([1.0, 1.0, 0.8, 1.0])
    slab = slice(18, 30)
    epi = EpiView(
        Image(pair.epi.image.data[:, :, slab], lost @ crop(pair.epi.image.affine, 18)), pair.epi.mask[:, :, slab]
    )
    found = fit_scales(replace(pair, epi=epi), np.eye(4), tmp_path)
    assert [round(found[f"coreg_scale_{axis}"], 3) for axis in "ijk"] == [1.0, 1.0, 1.25]
    whole = EpiView(Image(epi.image.data, np.linalg.inv(lost) @ epi.image.affine), epi.mask)
    found = fit_scales(replace(pair, epi=whole), np.eye(4), tmp_path)
    assert [round(found[f"coreg_scale_{axis}"], 3) for axis in "ijk"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coreg_mirrored": 0.133, "bbr_cost": 0.87}, "mirrored left-right fits 0.92 times as well"),
        ({"coreg_scale_k": 1.3}, "scales axis k of the BOLD image by 1.30"),
        ({"bbr_used": 0.0, "bbr_moved_mm": 3.98}, "registration would move the image by 4.0 mm, above 3"),
        ({"coreg_scale_i": 0.7}, "scales axis i of the BOLD image by 0.70"),
    ],
)
def test_signs_name_measure_and_value(change, words):
    assert signs_of_error(GOOD) == []
    (sign,) = signs_of_error(GOOD | change)
    assert words in sign


def test_voxels_in_which_folds_are_invisible_are_not_compared_with_the_mirrored_t1w(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit_scales", lambda *args: {"coreg_scale_k": 1.0})
    monkeypatch.setattr(module, "compare_with_mirror", lambda *args: {"coreg_mirrored": 0.1})
    assert "coreg_mirrored" in module.compare(pair, np.eye(4), tmp_path)
    coarse = replace(pair, boldref=Image(pair.boldref.data, pair.boldref.affine @ np.diag([1, 1, 2.5, 1])))
    found = module.compare(coarse, np.eye(4), tmp_path)
    assert "coreg_mirrored" not in found
    unknown = {name: value for name, value in GOOD.items() if not name.endswith("mirrored")}
    assert signs_of_error(unknown) == []
    monkeypatch.setattr(module, "find_turn", lambda *args: ("left-right", 0.0))
    assert "voxel size" in likely_cause(pair, np.eye(4), unknown | {"coreg_scale_k": 1.4}, 1500.0, tmp_path)


def test_a_refinement_that_was_accepted_or_is_small_is_no_sign():
    assert signs_of_error(GOOD | {"bbr_used": 1.0, "bbr_moved_mm": 3.5}) == []
    assert signs_of_error(GOOD | {"bbr_used": 0.0, "bbr_moved_mm": 2.9}) == []


def test_scales_that_hardly_raise_the_similarity_are_no_sign():
    """A right alignment of a slab has an affine scale of 1.35 and a gain of 1.06."""
    assert signs_of_error(GOOD | {"coreg_scale_k": 1.35, "coreg_scale_gain": 1.06}) == []
    assert signs_of_error(GOOD | {"coreg_scale_k": 1.28, "coreg_scale_gain": 1.21}) != []


def test_a_slab_without_boundary_is_judged_by_similarity():
    slab = {name: value for name, value in GOOD.items() if not name.startswith("bbr")}
    assert signs_of_error(slab) == []
    (sign,) = signs_of_error(slab | {"coreg_mirrored": 0.135})
    assert "mirrored left-right fits 0.96 times as well" in sign


@pytest.mark.parametrize("change", [{"coreg_mirrored": 0.14}, {"bbr_cost": 1.0}])
def test_one_measure_without_contrast_is_no_sign(change):
    assert signs_of_error(GOOD | change) == []


@pytest.mark.parametrize(
    ("change", "turned", "brain_ml", "words"),
    [
        ({"coreg_mirrored": 0.2}, 0.1, 1500.0, "left and right flipped"),
        ({"bbr_cost": 0.95, "bbr_cost_mirrored": 0.6}, 0.1, 1500.0, "left and right flipped"),
        ({}, 0.3, 1500.0, "turned by 180 degrees about the left-right axis"),
        ({"coreg_scale_k": 1.3}, 0.1, 1500.0, "voxel size or slice gap"),
        ({"coreg_mirrored": 0.2}, 0.1, 9000.0, "voxel size or slice gap"),
        ({"coreg_mirrored": 0.2}, 0.1, 500.0, "voxel size or slice gap"),
        ({"coreg_mirrored": 0.2}, 0.1, 3200.0, "voxel size or slice gap"),
        ({"coreg_scale_k": 1.3, "coreg_mirrored": 0.14, "bbr_cost": 0.93}, 0.1, 1500.0, "Or T1w of another person"),
        ({}, 0.1, 1500.0, "T1w of another person, or left and right flipped"),
        ({"coreg_brain_seen": 0.36}, 0.1, 1500.0, "only 36% of the brain in the field of view"),
    ],
)
def test_the_likely_cause_is_named(pair, tmp_path, monkeypatch, change, turned, brain_ml, words):
    monkeypatch.setattr(module, "find_turn", lambda *args: ("left-right", turned))
    assert words in likely_cause(pair, np.eye(4), GOOD | change, brain_ml, tmp_path)


def test_a_doubt_names_both_files_signs_and_cause():
    sentence = describe(["a", "b"], "sub-01_bold.nii.gz", "sub-01_T1w.nii.gz", "T1w of another person?")
    assert sentence == (
        "sub-01_bold.nii.gz: the alignment with sub-01_T1w.nii.gz may be wrong: a; b. Likely cause: T1w of another "
        "person?"
    )


CAUSES = {"own": "", "other": "T1w of another person", "flipped": "left and right flipped", "gap-lost": "slice gap"}
"""Likely cause, by what is wrong with the BOLD of a simulated person."""


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> tuple[Anatomy, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The anatomy of a simulated whole head, and boldrefs: its own, another head's, and its own spoiled on purpose."""
    root = tmp_path_factory.mktemp("people")
    boldrefs = {}
    for name, seed in (("own", 5), ("other", 6)):
        plan = DatasetPlan(1, seed, states=("rest",), volumes=5, size="small", kinds=("adult",), t1w=name == "own")
        (bold,) = write_dataset(root / name, plan)
        series, affine = read_volume(bold)
        boldrefs[name] = np.median(series, axis=-1), affine
    boldrefs |= {name: spoil(name, *boldrefs["own"]) for name in ("flipped", "gap-lost")}
    folder = root / "anatomy"
    folder.mkdir()
    t1w = root / "own" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    return normalise_t1w(prepare_t1w(t1w, folder), folder), boldrefs


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("name", "cause"), CAUSES.items())
def test_spoiled_phantoms_are_doubted_with_their_cause(people, tmp_path, name, cause):
    anatomy, boldrefs = people
    assert anatomy.doubts == ()
    data, affine = boldrefs[name]
    path = save_image(tmp_path / "boldref.nii.gz", np.ascontiguousarray(data), affine)
    found = coregister(mask_boldref(tmp_path / "sub-01_bold.nii.gz", path, tmp_path), anatomy, tmp_path)
    assert len(found.doubts) == bool(cause), found.quality
    assert all(cause in doubt for doubt in found.doubts), found.doubts
