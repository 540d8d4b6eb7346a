"""Brain extraction: checks of the mask's size and shape, errors, threads."""

import deepbet.bet
import nibabel as nib
import numpy as np
import pytest

from bids_app.catalog.templates import load_template
from bids_app.errors import BadDataError
from bids_app.preprocess.brain_extraction import extract_brain, failed_checks, measure_shape, torch_threads
from bids_app.preprocess.registration.ants import Image, dice
from bids_app.preprocess.registration.transforms import linear, resample_to, rigid

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def fake_network(monkeypatch, mask):
    """Replace deepbet's networks; ``mask`` is a mask, or an error that they raise."""

    class Network:
        def __init__(self, no_gpu):
            assert no_gpu

        def run(self, image):
            if isinstance(mask, Exception):
                raise mask
            return image, nib.Nifti1Image(mask.astype(np.uint8), image.affine), 0.0

    monkeypatch.setattr(deepbet.bet, "BrainExtraction", Network)


def test_the_shape_does_not_depend_on_size_position_and_rotation(head):
    first = measure_shape(head.brain, head.affine)
    pose = rigid(np.radians((40, 10, -20)), (5, -8, 4), (0, -20, 10)) @ np.diag([0.8, 0.8, 0.8, 1.0])
    shape, affine = (80, 80, 80), np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -120, -140, -110
    moved = resample_to(head.brain.astype(np.float32), head.affine, shape, affine, linear(pose)) > 0.5
    other = measure_shape(moved, affine)
    assert other.volume_ml == pytest.approx(first.volume_ml / 0.8**3, rel=0.03)
    assert other.compactness == pytest.approx(first.compactness, abs=0.02)
    assert other.elongation == pytest.approx(first.elongation, abs=0.05)
    assert failed_checks(first) == []


@pytest.mark.parametrize("scale", [0.6, 1.05])
def test_brains_of_infants_and_of_large_adults_pass(head, scale):
    assert failed_checks(measure_shape(head.brain, np.diag([4 * scale] * 3 + [1.0]))) == []


def test_masks_that_are_no_brain_are_refused_with_the_reason(head):
    third = int(np.quantile(np.argwhere(head.brain)[:, 2], 0.35))
    without_top, without_base, with_neck = (
        head.brain.copy(),
        head.brain.copy(),
        np.pad(head.brain, [(0, 0)] * 2 + [(40, 0)]),
    )
    without_base[..., :third] = False
    without_top[..., -third:] = False
    middle = with_neck.shape[0] // 2
    with_neck[middle - 6 : middle + 6, 10:22, :50] = True
    assert "times as long as wide" in failed_checks(measure_shape(without_base, head.affine))[0]
    assert any("ellipsoid" in words for words in failed_checks(measure_shape(with_neck, head.affine)))
    assert "below" not in failed_checks(measure_shape(head.brain, 1.3 * head.affine))[0]
    assert "mL" in failed_checks(measure_shape(head.brain, 0.5 * head.affine))[0]
    assert failed_checks(measure_shape(np.zeros((5, 5, 5), bool), AFFINE)) != []


@pytest.mark.parametrize("error", [AssertionError("Not enough foreground"), ValueError("argmax of an empty sequence")])
def test_an_image_without_a_brain_is_named(head, monkeypatch, error):
    fake_network(monkeypatch, error)
    with pytest.raises(BadDataError, match=r"sub-01_T1w\.nii\.gz: brain extraction found no brain"):
        extract_brain(Image(head.t1w, head.affine), "sub-01_T1w.nii.gz")


def test_a_mask_of_the_head_is_refused(head, monkeypatch):
    fake_network(monkeypatch, np.ones(head.t1w.shape, bool))
    with pytest.raises(BadDataError, match=r"sub-01_T1w\.nii\.gz: brain extraction failed: a volume of"):
        extract_brain(Image(head.t1w, head.affine), "sub-01_T1w.nii.gz")


def test_the_number_of_threads_is_restored():
    import torch

    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_the_brain_of_a_whole_head_is_found_and_threads_do_not_change_it():
    template = load_template("MNI152NLin6Asym")
    image = Image(template.t1w, template.affine)
    found = extract_brain(image, "template", threads=1)
    assert dice(found, template.mask) > 0.94
    np.testing.assert_array_equal(found, extract_brain(image, "template", threads=2))
