"""T1w: bias field, tissues, normalisation, and its quality checks."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bids_app.catalog.templates import load_template
from bids_app.errors import BadDataError, RegistrationError
from bids_app.phantom.dataset import DatasetPlan, Visit
from bids_app.phantom.protocol import anatomical_protocol_for
from bids_app.phantom.t1w import VARIANTS, simulate_t1w
from bids_app.phantom.tissues import TEMPLATE
from bids_app.preprocess import anatomical as anatomy
from bids_app.preprocess import anatomical as module
from bids_app.preprocess.anatomical import bias_field, find_t1w_brain, is_stripped, normalise_t1w, prepare_t1w, segment
from bids_app.preprocess.io.images import read_volume, save_image
from bids_app.preprocess.registration import diffeomorphic
from bids_app.preprocess.registration import t1w_to_template as normalisation
from bids_app.preprocess.registration.ants import Image, Registration, dice
from bids_app.preprocess.registration.spaces import chain_between
from bids_app.preprocess.registration.t1w_to_template import (
    align_with_template,
    check_normalisation,
    failed_checks,
    first_guess,
    without_neck,
)
from bids_app.preprocess.registration.transforms import (
    Chain,
    Warp,
    apply_matrix,
    grid_points,
    linear,
    resample_to,
    rigid,
)

GOOD = {
    "norm_correlation": 0.85,
    "norm_coverage": 1.0,
    "norm_dice": 0.99,
    "norm_scale_min": 0.9,
    "norm_scale_max": 1.1,
    "norm_brain_ml": 1500.0,
}


def test_bias_correction_makes_white_matter_uniform(head, tmp_path):
    template = load_template()
    places = grid_points(head.t1w.shape, head.affine)
    bias = (1 + 0.006 * places[:, 1] + 0.003 * places[:, 2]).clip(0.3, 2).reshape(head.t1w.shape)
    white = resample_to(template.wm, template.affine, head.t1w.shape, head.affine) > 0.9
    image = Image((head.t1w * bias).astype(np.float32), head.affine)
    found = bias_field(image, head.brain, tmp_path, shrink=3)
    assert not list(tmp_path.iterdir())
    before, after = (v[white].std() / v[white].mean() for v in (image.data, image.data / found))
    assert after < 0.5 * before
    assert np.isfinite(found).all()
    assert found.min() > 0


def test_a_strong_bias_field_is_estimated_again(head, tmp_path, monkeypatch):
    """Each call returns the square root of what is left."""
    rows = np.linspace(0, 1, head.t1w.shape[1])[None, :, None]
    left = [np.broadcast_to(400.0**rows, head.t1w.shape).astype(np.float32)]
    masks = []

    def half(image, where, out_dir, shrink=3):
        masks.append(where)
        left.append(np.sqrt(left[-1]))
        return left[-1]

    monkeypatch.setattr(module, "bias_field", half)
    found = module.estimate_bias(Image(head.t1w, head.affine), head.brain, head.brain, tmp_path)
    assert len(masks) == 1 + module.MAX_REPEATS
    remaining = module.field_ratio(left[0] / found, head.brain)
    assert remaining < 1.3 < module.field_ratio(left[0] / left[1], head.brain)
    left[:] = [np.broadcast_to(1.3**rows, head.t1w.shape).astype(np.float32)]
    masks.clear()
    module.estimate_bias(Image(head.t1w, head.affine), head.brain, head.brain, tmp_path)
    assert len(masks) == 1


def test_tissues_are_found_from_brightness_and_prior():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (20, 20, 20))
    data = np.choose(truth, [70.0, 110.0, 25.0]) + rng.normal(0, 6, truth.shape)
    prior = np.full((*truth.shape, 3), 0.2)
    np.put_along_axis(prior, ((truth + (rng.random(truth.shape) < 0.3)) % 3)[..., None], 0.6, axis=-1)
    mask = np.ones(truth.shape, bool)
    mask[0] = False
    found = segment(data, mask, prior)
    assert (found.argmax(axis=-1) == truth)[mask].mean() > 0.97
    np.testing.assert_allclose(found[mask].sum(axis=-1), 1, atol=1e-5)
    assert found[0].max() == 0


def test_first_guess_ignores_the_neck(head):
    fixed = Image(head.t1w, head.affine)
    affine = head.affine.copy()
    affine[2, 3] -= 160
    long = np.zeros((43, 52, 84), np.float32)
    long[..., 40:] = head.t1w
    long[12:31, 10:35, :45] = 60
    start = first_guess(fixed, Image(long, affine))
    assert np.abs(start[:3, 3]).max() < 25


@pytest.mark.parametrize(
    ("figure", "value", "words"),
    [
        ("norm_correlation", 0.2, "correlation with the template is 0.20"),
        ("norm_brain_ml", 2400.0, "brain volume is 2400 mL"),
        ("norm_brain_ml", 200.0, "brain volume is 200 mL"),
        ("norm_mask_dice", 0.6, "the extracted brain is 0.60"),
        ("norm_coverage", 0.5, "only 50%"),
        ("norm_dice", 0.4, "forward and inverse warp is 0.40"),
        ("norm_scale_max", 1.9, "scaled by 0.90 to 1.90"),
    ],
)
def test_failed_checks_name_measure_and_value(figure, value, words):
    assert failed_checks(GOOD) == []
    assert words in failed_checks({**GOOD, figure: value})[0]


def test_a_correct_alignment_passes_and_a_shifted_or_rotated_one_fails():
    template = load_template()
    moving = Image(template.t1w, template.affine)

    def checked(matrix):
        found = Registration(linear(matrix), linear(np.linalg.inv(matrix)), None, None)
        return failed_checks(check_normalisation(template, moving, found))

    assert checked(np.eye(4)) == []
    assert checked(rigid((0, 0, 0), (0, 30, 0))) != []
    assert checked(rigid(np.radians((60, 0, 0)), (0, 0, 0), (0, -20, 10))) != []


class FakeRegister:
    """A fake of the diffeomorphic registration: returns given matrices one after the other, and records its input."""

    def __init__(self, *matrices):
        self.matrices = list(matrices)
        self.starts = []
        self.moving = []
        self.fixed_masks = []
        self.masks = []

    def __call__(self, fixed, moving, mask, moving_mask, matrix, out_dir, **_):
        self.starts.append(matrix)
        self.fixed_masks.append(mask)
        self.masks.append(moving_mask)
        self.moving.append(moving)
        matrix = self.matrices.pop(0)
        return Registration(linear(matrix), linear(np.linalg.inv(matrix)), out_dir / "a.h5", out_dir / "b.h5")


@pytest.fixture
def unmasked(tmp_path):
    """The template itself as a participant's T1w, whose brain was not found."""
    template = load_template()
    path = save_image(tmp_path / "sub-01_T1w.nii.gz", template.t1w, template.affine)
    bias = save_image(tmp_path / "bias.nii.gz", np.ones_like(template.t1w), template.affine)
    return anatomy.PreparedT1w(path, path, bias)


@pytest.fixture
def prepared(unmasked, tmp_path):
    """The same with its brain mask."""
    template = load_template()
    return replace(
        unmasked, brain=save_image(tmp_path / "brain.nii.gz", template.mask.astype(np.uint8), template.affine)
    )


@pytest.mark.slow
def test_the_whole_head_is_registered_if_the_brain_alone_fails(prepared, tmp_path, monkeypatch):
    wrong = rigid((0, 0, 0), (0, 60, 0))
    registered = FakeRegister(wrong, wrong, np.eye(4))
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", registered)
    monkeypatch.setattr(normalisation, "best_start", lambda *args: np.eye(4))
    found = normalise_t1w(prepared, tmp_path)
    assert "by the whole head" in found.warnings[0]
    assert found.quality["norm_correlation"] > 0.99
    assert [image.data.min() for image in registered.moving] == [0, 0, registered.moving[2].data.min()]
    outside = ~load_template().mask
    assert registered.moving[0].data[outside].max() == 0  # only the brain
    assert registered.moving[2].data[outside].max() > 0


def test_the_mask_is_the_extracted_brain_or_else_that_of_the_template(prepared, unmasked, tmp_path, monkeypatch):
    template = load_template()
    own = template.mask.copy()
    own[:, :, : own.shape[2] // 4] = False
    save_image(prepared.brain, own.astype(np.uint8), template.affine)
    monkeypatch.setattr(normalisation, "best_start", lambda *args: np.eye(4))
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", FakeRegister(*[np.eye(4)] * 5))
    found = normalise_t1w(prepared, tmp_path)
    np.testing.assert_array_equal(read_volume(found.mask)[0] > 0.5, own)
    assert found.quality["norm_mask_dice"] == pytest.approx(dice(own, template.mask), abs=0.01)
    np.testing.assert_array_equal(read_volume(normalise_t1w(unmasked, tmp_path).mask)[0] > 0.5, template.mask)


def test_a_lesion_is_left_out_of_all_registrations(prepared, tmp_path, monkeypatch):
    template = load_template()
    lesion = np.zeros(template.mask.shape, np.uint8)
    lesion[20:30, 40:50, 40:50] = 1
    path = save_image(tmp_path / "sub-01_label-lesion_roi.nii.gz", lesion, template.affine)
    linear_masks = []
    monkeypatch.setattr(normalisation, "best_start", lambda *args: (linear_masks.append(args[-1]), np.eye(4))[1])
    registered = FakeRegister(np.eye(4))
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", registered)
    assert normalise_t1w(prepared, tmp_path, lesion=path).lesion == path
    for mask, brain in ((linear_masks[0], True), (registered.masks[0], template.mask)):
        distance = ndimage.distance_transform_edt(lesion == 0, 2.0)
        assert not mask[distance <= 7.9].any()
        np.testing.assert_array_equal(mask[distance > 8.1], (np.ones_like(template.mask) & brain)[distance > 8.1])
    assert len(linear_masks) == len(registered.masks) == 1


def test_brains_are_warped_by_what_is_within_both_masks(prepared, unmasked, tmp_path, monkeypatch):
    """The brain masks of T1w and template end at different distances from the cortex."""
    template = load_template()
    own = ndimage.binary_dilation(template.mask, iterations=2)
    save_image(prepared.brain, own.astype(np.uint8), template.affine)
    monkeypatch.setattr(normalisation, "best_start", lambda *args: np.eye(4))
    registered = FakeRegister(np.eye(4), np.eye(4))
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", registered)
    normalise_t1w(prepared, tmp_path)
    normalise_t1w(unmasked, tmp_path)
    np.testing.assert_array_equal(registered.fixed_masks[0], template.mask)
    np.testing.assert_array_equal(registered.masks[0], own)
    assert registered.fixed_masks[1].sum() > 1.2 * template.mask.sum()  # the head, with a margin
    assert registered.masks[1] is None


@pytest.mark.parametrize("inverted", [True, False])
def test_a_lesion_mask_that_is_empty_or_inverted_is_named(prepared, inverted, tmp_path):
    template = load_template()
    data = np.full(template.mask.shape, inverted, np.uint8)
    path = save_image(tmp_path / "sub-01_label-lesion_roi.nii.gz", data, template.affine)
    with pytest.raises(BadDataError, match=r"sub-01_label-lesion_roi\.nii\.gz: the lesion mask covers"):
        normalise_t1w(prepared, tmp_path, lesion=path)


def no_network(monkeypatch, error):
    def extract(image, name, threads):
        raise error

    monkeypatch.setattr(anatomy, "extract_brain", extract)


def test_without_an_extracted_brain_there_is_a_warning(head, monkeypatch):
    noise = np.random.default_rng(0).uniform(5, 40, head.t1w.shape)
    image = Image((head.t1w + noise).astype(np.float32), head.affine)
    no_network(monkeypatch, BadDataError("sub-01_T1w.nii.gz: brain extraction found no brain."))
    brain, stripped, warnings = find_t1w_brain(image, image, "sub-01_T1w.nii.gz")
    assert brain is None
    assert not stripped
    assert warnings == (
        "sub-01_T1w.nii.gz: brain extraction found no brain. The brain mask of the template was used instead.",
    )
    no_network(monkeypatch, ImportError("No module named 'fill_voids'"))
    assert (
        "needs deepbet, which could not be imported (No module named 'fill_voids')"
        in find_t1w_brain(image, image, "x")[2][0]
    )


def test_the_brain_of_a_skull_stripped_image_is_all_that_is_shown(head, monkeypatch):
    shown = ndimage.binary_dilation(head.brain)
    original = Image(np.maximum(head.t1w, 50) * shown, head.affine)
    image = replace(original, data=ndimage.gaussian_filter(original.data, 1))
    monkeypatch.setattr(anatomy, "extract_brain", lambda *args: head.brain)
    monkeypatch.setattr(anatomy, "MIN_STRIPPED_DICE", 0.5)
    brain, stripped, warnings = find_t1w_brain(image, original, "sub-01_T1w.nii.gz")
    assert stripped
    assert "skull-stripped" in warnings[0]
    np.testing.assert_array_equal(brain, shown)
    monkeypatch.setattr(anatomy, "MIN_STRIPPED_DICE", 0.999)  # a small head on an empty background
    brain, stripped, warnings = find_t1w_brain(image, original, "sub-01_T1w.nii.gz")
    assert (stripped, warnings) == (False, ())
    np.testing.assert_array_equal(brain, head.brain)


def test_a_second_attempt_is_made_and_reported(unmasked, tmp_path, monkeypatch):
    wrong = rigid((0, 0, 0), (0, 60, 0))
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", FakeRegister(wrong, np.eye(4)))
    monkeypatch.setattr(normalisation, "best_start", lambda *args: np.eye(4))
    found = normalise_t1w(unmasked, tmp_path)
    assert "second attempt" in found.warnings[0]
    brain = load_template().mask
    assert dice(read_volume(found.mask)[0] > 0.5, brain) > 0.99
    assert found.quality["norm_correlation"] > 0.99


def test_no_warp_is_tried_after_a_poor_linear_alignment(unmasked, tmp_path, monkeypatch):
    monkeypatch.setattr(normalisation, "likely_cause", lambda *args: " Likely cause: upside down?")
    registered = FakeRegister()
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", registered)
    monkeypatch.setattr(normalisation, "best_start", lambda *args: rigid((0, 0, 0), (0, 90, 0)))
    with pytest.raises(RegistrationError, match="before warping"):
        normalise_t1w(unmasked, tmp_path)
    assert registered.starts == []


def test_two_failed_attempts_name_the_file_and_the_check(unmasked, tmp_path, monkeypatch):
    monkeypatch.setattr(normalisation, "likely_cause", lambda *args: " Likely cause: upside down?")
    wrong = rigid((0, 0, 0), (0, 60, 0))
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", FakeRegister(wrong, wrong))
    monkeypatch.setattr(normalisation, "best_start", lambda *args: np.eye(4))
    with pytest.raises(RegistrationError, match=r"sub-01_T1w.nii.gz: could not be aligned .* correlation") as error:
        normalise_t1w(unmasked, tmp_path)
    assert error.value.exit_code == 65
    assert error.value.message.endswith("Likely cause: upside down?")
    assert error.value.hint


def test_skull_stripped_images_are_detected(head):
    bright = head.t1w / np.percentile(head.t1w, 95)
    around = np.linalg.norm(grid_points(head.t1w.shape, head.affine) * (1.0, 0.85, 0.9) - (0, -15, 5), axis=1) < 95
    whole = np.where(head.brain, bright, 0.3 * around.reshape(bright.shape)).astype(np.float32)
    noisy = np.abs(whole + np.random.default_rng(0).normal(0, 0.02, whole.shape)).astype(np.float32)
    defaced = noisy.copy()
    defaced[:, 40:, :15] = 0
    assert is_stripped(Image(bright * head.brain, head.affine))
    assert is_stripped(Image(bright * head.brain - 100, head.affine))  # an empty background need not be 0
    for image in (whole, noisy, defaced):
        assert not is_stripped(Image(image, head.affine))
    assert not is_stripped(Image((bright * head.brain)[:, :, :12], head.affine))  # no whole brain


def test_the_neck_is_removed_and_the_brain_is_kept(head):
    affine = head.affine.copy()
    affine[2, 3] -= 160
    long = np.zeros((43, 52, 84), np.float32)
    long[..., 40:] = head.t1w
    long[12:31, 10:35, :45] = 60
    cut = without_neck(Image(long, affine)).data
    brain = np.zeros(long.shape, bool)
    brain[..., 40:] = head.brain
    np.testing.assert_array_equal(cut[brain], long[brain])
    assert (cut[:, :, :25] == 0).all()


@pytest.mark.slow
def test_after_a_doubtful_alignment_the_better_of_two_is_kept(unmasked, tmp_path, monkeypatch):
    larger = np.diag([1.04, 1.04, 1.04, 1.0])
    monkeypatch.setattr(normalisation, "MIN_CORRELATION", 0.0)
    monkeypatch.setattr(normalisation, "best_start", lambda *args: np.eye(4))
    registered = FakeRegister(larger, np.eye(4))
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", registered)
    target, moving = load_template(), Image(*read_volume(unmasked.image))
    _, quality, warnings = align_with_template(target, moving, "sub-01_T1w.nii.gz", tmp_path, 1)
    assert len(registered.starts) == 2
    assert quality["norm_correlation"] > 0.99
    assert "second attempt" in warnings[0]
    monkeypatch.setattr(diffeomorphic, "register_diffeomorphically", FakeRegister(larger, larger))
    assert align_with_template(target, moving, "", tmp_path, 1)[2] == ()  # no better: the first stays


@pytest.mark.slow
@pytest.mark.parametrize("participant", [0, 1])
@pytest.mark.parametrize("variant", ["", *VARIANTS])
def test_heads_in_every_state_reach_the_template(participant, variant, tmp_path):
    visit = Visit(DatasetPlan(2, seed=1, states=("rest",)), participant, 0)
    person = visit.head_shape()
    scan = simulate_t1w(person, anatomical_protocol_for(participant), visit.keys, variant)
    path = save_image(tmp_path / "sub-02_T1w.nii.gz", np.round(scan.image).astype(np.int16), scan.affine)
    found = normalise_t1w(prepare_t1w(path, tmp_path), tmp_path)
    template = load_template()
    cortex = grid_points(template.gm.shape, template.affine, template.gm > 0.5)[::11]
    true = person.template_to_t1w(chain_between(template.name, TEMPLATE)(cortex))
    error = np.linalg.norm(Chain.load(found.chain)(cortex) - true, axis=1)
    assert np.median(error) < 1.5
    mask, affine = read_volume(found.mask)
    true_mask = resample_to(scan.brain_mask.astype(np.float32), scan.affine, mask.shape, affine) > 0.5
    assert dice(mask > 0.5, true_mask) > 0.97
    assert found.stripped == (variant == "stripped")


@pytest.mark.slow
def test_noise_is_refused(tmp_path):
    noise = np.random.default_rng(0).gamma(2, 50, (60, 60, 60)).astype(np.float32)
    path = save_image(tmp_path / "sub-01_T1w.nii.gz", noise, np.diag([3.0, 3.0, 3.0, 1.0]))
    with pytest.raises(RegistrationError, match=r"sub-01_T1w\.nii\.gz"):
        normalise_t1w(prepare_t1w(path, tmp_path), tmp_path)


@pytest.mark.slow
def test_a_warped_head_is_normalised(tmp_path):
    template = load_template()
    pose = rigid(np.radians((12, 5, -8)), (6, -20, 14), (0, -20, 10)) @ np.diag([1.08, 0.94, 1.05, 1.0])
    places = grid_points(template.t1w.shape, template.affine)
    waves = 3.0 * np.sin(places[:, [1, 2, 0]] / 25.0)
    chain = Chain((Warp(waves.reshape(*template.t1w.shape, 3).astype(np.float32), template.affine),)).then(linear(pose))
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (100, -150, -80)
    shape = (100, 120, 110)
    head = resample_to(template.t1w, template.affine, shape, affine, chain)
    brain = resample_to(template.mask.astype(np.float32), template.affine, shape, affine, chain) > 0.5
    path = save_image(tmp_path / "sub-01_T1w.nii.gz", head, affine)
    found = normalise_t1w(prepare_t1w(path, tmp_path), tmp_path)
    mask, mask_affine = read_volume(found.mask)
    true_mask = resample_to(brain.astype(np.float32), affine, mask.shape, mask_affine) > 0.5
    assert dice(mask > 0.5, true_mask) > 0.97
    inner = grid_points(mask.shape, mask_affine, true_mask)[::50]
    error = np.linalg.norm(Chain.load(found.inverse)(inner) - chain(inner), axis=1)
    assert np.median(error) < 1.5
    assert replace(found, quality={}).template == template.name
    there_and_back = Chain.load(found.chain)(Chain.load(found.inverse)(inner))
    assert np.median(np.linalg.norm(there_and_back - inner, axis=1)) < 0.5
    assert apply_matrix(np.eye(4), inner).shape == inner.shape
