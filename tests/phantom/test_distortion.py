"""Susceptibility distortion of simulated scans, and the fieldmaps that measure it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.cli.phantom import main
from bids_app.phantom.bold import build_static_head, distortion_of, read_distorted
from bids_app.phantom.distortion import Distortion, phase_axis, phase_direction, random_inhomogeneity
from bids_app.phantom.fieldmaps import ECHO_TIMES, PHASE_STEPS, simulate_epi_pair, simulate_phase_difference
from bids_app.phantom.geometry import apply, grid_affine, grid_points, sample
from bids_app.phantom.head_shape import random_head_shape
from bids_app.phantom.protocol import Protocol
from bids_app.phantom.truth import PointField

PROTOCOL = replace(
    Protocol(voxel_mm=(4.5,) * 3, matrix=(42, 48, 34), orientation="LPI", oblique_deg=(8.0, 0, 0)), distortion=8.0
)
HEAD_SHAPE = random_head_shape(1, "sub-01")
FIELD = random_inhomogeneity(PROTOCOL.peak_hz, 1, "sub-01")
IN_T1W = np.eye(4)


@pytest.fixture(scope="module")
def distortion() -> Distortion:
    found = distortion_of(HEAD_SHAPE, IN_T1W, PROTOCOL, FIELD)
    assert found is not None
    return found


def brain_points() -> np.ndarray:
    head = build_static_head(HEAD_SHAPE, IN_T1W, PROTOCOL)
    return apply(head.affine, np.argwhere(head.brain > 0.5)[::5].astype(float))


def test_the_largest_displacement_in_the_brain_is_the_requested_one(distortion):
    points = brain_points()
    moves = np.linalg.norm(distortion.measured(points) - points, axis=1)
    assert moves.max() == pytest.approx(8.0, abs=0.3)
    assert 0.5 < np.median(moves) < 5.0


def test_forward_and_backward_displacements_are_inverse(distortion):
    points = brain_points()
    seen = distortion.measured(points)
    back = seen + sample(distortion.backward, distortion.affine, seen)[:, None] * distortion.direction
    assert np.abs(back - points).max() < 0.2
    assert distortion.brightness.min() > 0.2


def test_distortion_preserves_the_total_signal(distortion):
    head = build_static_head(HEAD_SHAPE, IN_T1W, PROTOCOL)
    shape, affine = PROTOCOL.grid()
    seen = read_distorted(head.brain, head.affine, distortion, np.eye(4), shape, affine)
    true = sample(head.brain, head.affine, grid_points(shape, affine))
    assert np.abs(seen - true).max() > 0.5
    assert seen.sum() == pytest.approx(true.sum(), rel=0.01)


def test_a_protocol_without_distortion_has_no_distortion():
    assert distortion_of(HEAD_SHAPE, IN_T1W, replace(PROTOCOL, distortion=0.0), FIELD) is None


@pytest.mark.parametrize(("orientation", "name"), [("RAS", "j-"), ("LPI", "j"), ("PSR", "i"), ("SRA", "k-")])
def test_the_bids_code_of_phase_encoding_follows_the_grid(orientation, name):
    _, affine = grid_affine((8, 8, 8), (3.0, 3.0, 3.0), np.zeros(3), orientation, np.array(PROTOCOL.oblique_deg))
    assert phase_axis(affine, phase_direction(PROTOCOL)) == name
    assert phase_axis(affine, phase_direction(PROTOCOL, "PA")) == (name[:-1] if "-" in name else name + "-")


def test_the_epi_pair_is_distorted_in_opposite_directions():
    pair = simulate_epi_pair(HEAD_SHAPE, PROTOCOL, FIELD, (1, "sub-01"), IN_T1W)
    one, other = (series.mean(axis=-1) for series in pair.values())
    plain = simulate_epi_pair(HEAD_SHAPE, PROTOCOL, replace(FIELD, peak_hz=0.0), (1, "sub-01"), IN_T1W)
    alone = np.corrcoef(plain["AP"].mean(axis=-1).ravel(), plain["PA"].mean(axis=-1).ravel())[0, 1]
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < alone
    assert np.abs(one - other).max() > 0.5 * np.percentile(one, 95)


def test_the_phase_difference_measures_the_field_up_to_wraps():
    scan = simulate_phase_difference(HEAD_SHAPE, PROTOCOL, FIELD, (1, "sub-01"), IN_T1W)
    bright = scan.magnitudes[0] > np.percentile(scan.magnitudes[0], 80)
    turns = scan.phase[bright] / (2 * PHASE_STEPS)
    hz = turns / (ECHO_TIMES[1] - ECHO_TIMES[0])
    assert np.abs(hz).max() > 50
    assert np.median(np.abs(np.diff(hz))) < 10  # neighbours are alike


@pytest.mark.parametrize("kind", [pytest.param("pepolar", marks=pytest.mark.slow), "phasediff"])
def test_fieldmaps_are_valid_bids_and_linked_to_their_runs(tmp_path: Path, kind: str):
    out = tmp_path / "data"
    arguments = ["--participants", "1", "--states", "rest", "--size", "small", "--volumes", "5", "--nprocs", "1"]
    assert main([str(out), *arguments, "--no-t1w", "--fieldmaps", kind]) == 0
    bold = json.loads((out / "sub-01/func/sub-01_task-rest_bold.json").read_text())
    assert bold["PhaseEncodingDirection"] == "j-"
    assert bold["TotalReadoutTime"] > 0
    if kind == "pepolar":
        ap, pa = (json.loads((out / f"sub-01/fmap/sub-01_dir-{d}_epi.json").read_text()) for d in ("AP", "PA"))
        assert ap["IntendedFor"] == pa["IntendedFor"] == ["bids::sub-01/func/sub-01_task-rest_bold.nii.gz"]
        assert (ap["PhaseEncodingDirection"], pa["PhaseEncodingDirection"]) == ("j-", "j")
    else:
        sidecar = json.loads((out / "sub-01/fmap/sub-01_phasediff.json").read_text())
        assert sidecar["B0FieldIdentifier"] == bold["B0FieldSource"]
        assert nib.load(out / "sub-01/fmap/sub-01_magnitude2.nii.gz").shape
    truth = out / "derivatives/truth/sub-01/func/sub-01_task-rest_from-boldref_to-distorted_mode-points_xfm.nii.gz"
    moves = PointField.load(truth).displacement
    assert 7.8 < np.linalg.norm(moves, axis=-1).max() < 30.0
    program = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    if program is not None:
        result = subprocess.run([program, str(out), "--json"], capture_output=True, text=True, check=False)
        issues = json.loads(result.stdout)["issues"]["issues"]
        assert [i for i in issues if i["severity"] == "error"] == []


def test_fieldmaps_require_a_distortion(tmp_path: Path, capsys):
    assert main([str(tmp_path / "a"), "--fieldmaps", "pepolar", "--distortion", "0"]) == 64
    assert "--distortion" in capsys.readouterr().err
