"""Simulated datasets on disk are valid BIDS, reproducible, and described by their ground truth."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.sidecars import is_simulated
from bids_app.cli.phantom import main
from bids_app.phantom.geometry import apply, grid_points, sample
from bids_app.phantom.tissues import TEMPLATE, template_tissues
from bids_app.phantom.truth import PointField

SMALL = ("--size", "small", "--volumes", "8", "--seed", "4", "--nprocs", "1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "data"
    assert main([str(out), "--participants", "2", "--states", "rest", "lefthand", *SMALL]) == 0
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_bids_validator_reports_no_error(dataset):
    program = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("bids-validator-deno is not installed")
    result = subprocess.run([program, str(dataset), "--json"], capture_output=True, text=True, check=False)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []
    assert result.returncode == 0


def test_files_have_bids_names(dataset):
    names = {n for n in files_of(dataset) if n.startswith("sub-01")}
    stems = [f"sub-01/func/sub-01_task-{t}" for t in ("rest", "lefthand")]
    expected = {f"{s}_bold.{e}" for s in stems for e in ("nii.gz", "json")}
    expected |= {"sub-01/func/sub-01_task-lefthand_events.tsv"}
    expected |= {"sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.json"}
    assert names == expected


def test_images_are_scaled_integers_in_their_own_orientations(dataset):
    orientations = set()
    for label in ("01", "02"):
        image = nib.load(dataset / f"sub-{label}/func/sub-{label}_task-rest_bold.nii.gz")
        assert image.get_data_dtype() == np.int16
        assert image.dataobj.slope not in (0.0, 1.0)
        assert 300 < np.median(image.get_fdata()[image.get_fdata() > 300]) < 2000
        sidecar = json.loads((dataset / f"sub-{label}/func/sub-{label}_task-rest_bold.json").read_text())
        assert image.header.get_zooms()[3] == pytest.approx(sidecar["RepetitionTime"])
        assert is_simulated(sidecar)
        orientations.add("".join(nib.aff2axcodes(image.affine)))
    assert orientations == {"RAS", "LAS"}


def test_true_transforms_map_bold_to_template_and_back(dataset):
    folder = dataset / "derivatives/truth/sub-02"
    mask = nib.load(folder / "func/sub-02_task-rest_desc-brain_mask.nii.gz")
    to_t1w = np.loadtxt(folder / "func/sub-02_task-rest_from-boldref_to-T1w_mode-points_xfm.txt")
    to_template = PointField.load(folder / f"anat/sub-02_from-T1w_to-{TEMPLATE}_mode-points_xfm.nii.gz")
    to_native = PointField.load(folder / f"anat/sub-02_from-{TEMPLATE}_to-T1w_mode-points_xfm.nii.gz")
    points = grid_points(mask.shape, mask.affine).astype(float)
    in_t1w = apply(to_t1w, points)
    brain = template_tissues(2)
    expected = sample(brain.brain, brain.affine, to_template(in_t1w)) >= 0.5
    found = np.asarray(mask.dataobj) > 0
    assert 2 * (expected & found).sum() / (expected.sum() + found.sum()) > 0.98
    there_and_back = to_native(to_template(in_t1w[found]))
    assert np.linalg.norm(there_and_back - in_t1w[found], axis=1).max() < 0.2


def test_truth_lists_each_runs_state_and_motion(dataset):
    rows = (dataset / "derivatives/truth/states.tsv").read_text().splitlines()
    columns = rows[0].split("\t")
    table = [dict(zip(columns, row.split("\t"), strict=True)) for row in rows[1:]]
    assert [r["state"] for r in table] == ["rest", "lefthand"] * 2
    for row in table:
        image = nib.load(dataset / row["filename"])
        stem = Path(row["filename"]).name.removesuffix("_bold.nii.gz")
        motion = np.load(dataset / "derivatives/truth" / row["participant_id"] / "func" / f"{stem}_desc-motion_xfm.npy")
        assert motion.shape == (image.shape[3], 4, 4)
        assert motion[int(row["nonsteady_volumes"])] == pytest.approx(np.eye(4))


def test_events_agree_with_the_truth(dataset):
    folder = dataset / "sub-01/func"
    rows = (folder / "sub-01_task-lefthand_events.tsv").read_text().splitlines()
    truth = json.loads((dataset / "derivatives/truth/sub-01/func/sub-01_task-lefthand_desc-truth.json").read_text())
    assert rows[0].split("\t") == ["onset", "duration", "trial_type"]
    assert [r.split("\t") for r in rows[1:]] == [[str(v) for v in e.values()] for e in truth["Events"]]


def test_the_same_seed_gives_the_same_bytes_with_any_other_options(dataset, tmp_path):
    assert main([str(tmp_path / "a"), "--participants", "1", "--states", "lefthand", *SMALL[:-1], "2"]) == 0
    again, before = files_of(tmp_path / "a"), files_of(dataset)
    scans = [name for name in again if "sub-01" in name]
    assert len(scans) > 8
    assert all(again[name] == before[name] for name in scans)


def test_another_seed_gives_different_heads(dataset, tmp_path):
    assert main([str(tmp_path / "a"), "--participants", "1", "--states", "rest", "--seed", "5", *SMALL[:4]]) == 0
    name = "sub-01/anat/sub-01_T1w.nii.gz"
    assert (tmp_path / "a" / name).read_bytes() != (dataset / name).read_bytes()


def test_sessions_and_runs_are_in_file_names_and_t1w_is_optional(tmp_path):
    arguments = ["--participants", "1", "--states", "rest", "--sessions", "2", "--runs", "2", "--no-t1w", *SMALL]
    assert main([str(tmp_path / "a"), *arguments]) == 0
    names = set(files_of(tmp_path / "a"))
    for session in ("01", "02"):
        for run in ("01", "02"):
            stem = f"sub-01/ses-{session}/func/sub-01_ses-{session}_task-rest_run-{run}_bold.nii.gz"
            assert stem in names
    assert not any("T1w.nii" in n or "T1w.json" in n for n in names if not n.startswith("derivatives"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--participants", "0"], "--participants is 0"),
        (["--states", "rest", "footwork"], "footwork"),
        (["--volumes", "2"], "Give 5 or more"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_invalid_options_are_rejected(tmp_path, capsys, arguments, message):
    assert main([str(tmp_path / "a"), *arguments]) == 64
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_folder_with_files_is_rejected(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert main([str(tmp_path)]) == 73
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
