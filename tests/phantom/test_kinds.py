"""Kinds of participants and protocols are complete, reproducible, and written as their vendors write them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bids_app.cli.phantom import main, parser
from bids_app.phantom.geometry import rng_for
from bids_app.phantom.head_shape import random_head_shape
from bids_app.phantom.kinds import HEADERS, KINDS, resized, small_t1w, vary
from bids_app.phantom.whole_head import Person


def test_kinds_cover_vendors_sequences_headers_and_slabs():
    kinds = KINDS.values()
    assert {kind.vendor for kind in kinds} == {"Siemens", "GE", "Philips"}
    assert {"mprage", "flash", "mp2rage"} <= {kind.t1w.sequence for kind in kinds}
    assert {kind.header for kind in kinds} == set(HEADERS)
    assert {kind.t1w.removed for kind in kinds} == {None, "face", "skull"}
    assert min(kind.bold.matrix[2] * kind.bold.voxel_mm[2] for kind in kinds) < 80
    assert max(kind.t1w.coil for kind in kinds) >= 5


def test_the_command_lists_all_kinds():
    text = parser().format_help().replace("\n", " ")
    assert all(name in text for name in KINDS)


def test_participants_of_a_kind_differ_and_are_reproducible():
    one, again, other = (vary(Person(), 1, name) for name in ("a", "a", "b"))
    assert one == again != other


def test_a_smaller_head_is_scaled_about_its_brain():
    own = random_head_shape(1, "a")
    small = resized(own, 0.9)
    points = rng_for(1).uniform(-50, 50, (200, 3))
    spread = [np.linalg.norm(shape.template_to_head(points).std(axis=0)) for shape in (own, small)]
    assert spread[1] / spread[0] == pytest.approx(0.9, abs=0.02)


def test_small_scans_cover_the_same_field_of_view():
    for kind in KINDS.values():
        usual, small = kind.t1w.protocol, small_t1w(kind.t1w).protocol
        assert np.multiply(small.matrix, small.voxel_mm) == pytest.approx(
            np.multiply(usual.matrix, usual.voxel_mm), abs=2
        )
        assert min(small.voxel_mm) >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--kind", "martian"], "martian"), (["--kind", "adult", "--fieldmaps", "pepolar"], "cannot be combined")],
)
def test_unknown_kinds_and_combinations_are_refused(tmp_path, capsys, arguments, message):
    assert main([str(tmp_path / "a"), *arguments]) == 64
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_dataset_of_kinds_has_their_headers_sidecars_and_truth(tmp_path):
    out = tmp_path / "data"
    names = ["child", "thick", "wrapped"]
    arguments = ["--kind", *names, "--states", "rest", "--size", "small", "--volumes", "6", "--nprocs", "1"]
    assert main([str(out), *arguments]) == 0
    for number, name in enumerate(names, 1):
        kind, label = KINDS[name], f"sub-{number:02d}"
        for path in (f"anat/{label}_T1w", f"func/{label}_task-rest_bold"):
            header = nib.load(out / label / f"{path}.nii.gz").header
            assert (header["qform_code"], header["sform_code"]) == HEADERS[kind.header]
            assert json.loads((out / label / f"{path}.json").read_text())["Manufacturer"] == kind.vendor
        t1w = nib.load(out / label / f"anat/{label}_T1w.nii.gz")
        mask = nib.load(out / f"derivatives/truth/{label}/anat/{label}_desc-brain_mask.nii.gz")
        assert t1w.shape == mask.shape
        volume_ml = np.asarray(mask.dataobj).sum() * np.prod(mask.header.get_zooms()) / 1e3
        assert 900 < volume_ml < 2000
    sidecar = json.loads((out / "sub-02/func/sub-02_task-rest_bold.json").read_text())
    assert sidecar["SpacingBetweenSlices"] > sidecar["SliceThickness"]
