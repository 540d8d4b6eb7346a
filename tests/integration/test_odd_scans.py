"""Whole runs with two sessions, SBRefs that fit or do not, and a BOLD header centimetres away from the T1w image."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.cli.neurostorm import main
from bids_app.phantom.dataset import DatasetPlan, write_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def moved(path: Path, target: Path, mm: float, first_only: bool = False) -> None:
    """Write an image, or its first volume, with an origin that is farther back, without any other change."""
    image = nib.nifti1.Nifti1Image.from_filename(path)
    affine = image.affine.copy()
    affine[1, 3] -= mm
    data = np.asarray(image.dataobj)
    nib.nifti1.Nifti1Image(data[..., :1] if first_only else data, affine, image.header).to_filename(target)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Two sessions with a T1w image and a run each; SBRefs: of the first session as the run, of the second 9 cm away.

    The run of the second session is 6 cm away from its T1w image.
    """
    folder = tmp_path_factory.mktemp("odd") / "raw"
    write_dataset(folder, DatasetPlan(participants=1, seed=5, sessions=2, states=("rest",), size="small"))
    for session, sbref_mm, bold_mm in (("01", 0.0, 0.0), ("02", 90.0, 60.0)):
        (bold,) = folder.glob(f"sub-01/ses-{session}/func/*_bold.nii.gz")
        stem = bold.name.removesuffix("_bold.nii.gz")
        moved(bold, bold.with_name(f"{stem}_sbref.nii.gz"), sbref_mm, first_only=True)
        bold.with_name(f"{stem}_sbref.json").write_text(bold.with_name(f"{stem}_bold.json").read_text())
        if bold_mm:
            moved(bold, bold, bold_mm)
    return folder


def outputs(raw: Path, folder: Path, reference: str) -> tuple[Path, dict[str, dict]]:
    """Run the command with a value of ``--subject-anatomical-reference``; return its folder and runs by session."""
    out = folder / "out"
    command = [str(raw), str(out), "participant", "-w", str(folder / "work"), "--model", "demo", "--nprocs", "2"]
    assert main([*command, "--subject-anatomical-reference", reference, "--level", "minimal"]) == 0
    (summary,) = out.glob("sub-01/log/*/summary.json")
    runs = json.loads(summary.read_text())["runs"]
    return out, {run["stem"].partition("_ses-")[2][:2]: run for run in runs}


@pytest.mark.parametrize(
    ("reference", "t1w_of", "folders"),
    [
        ("first", {"01": "01", "02": "01"}, {"ses-01/anat"}),
        ("average", {"01": "01", "02": "01"}, {"anat"}),
        ("sessionwise", {"01": "01", "02": "02"}, {"ses-01/anat", "ses-02/anat"}),
    ],
)
def test_sessions_share_or_have_their_anatomy_and_odd_headers_go_through(
    raw: Path, tmp_path: Path, reference: str, t1w_of: dict[str, str], folders: set[str]
) -> None:
    out, runs = outputs(raw, tmp_path, reference)
    assert {session: run["status"] for session, run in runs.items()} == {"01": "ok", "02": "ok"}
    made = {str(path.parent.relative_to(out / "sub-01")) for path in out.glob("sub-01/**/*_desc-preproc_T1w.nii.gz")}
    assert made == folders
    for session in ("01", "02"):
        (metrics,) = out.glob(f"sub-01/ses-{session}/func/*_desc-quality_metrics.json")
        found = json.loads(metrics.read_text())
        assert found["route"] == "t1w"
        table = metrics.with_suffix(".tsv").read_text().splitlines()
        figures = dict(zip(*(line.split("\t") for line in table), strict=True))
        assert float(figures["coreg_dice"]) > 0.9
        (coreg,) = out.glob(f"sub-01/ses-{session}/func/*_from-boldref_to-T1w*_xfm.json")
        sources = json.loads(coreg.read_text())["Sources"]
        assert any(f"ses-{t1w_of[session]}" in name or reference == "average" for name in sources if "T1w" in name)
        (boldref,) = out.glob(f"sub-01/ses-{session}/func/*_desc-hmc_boldref.json")
        used = "sbref" in json.dumps(json.loads(boldref.read_text())["Sources"])
        assert used == (session == "01")
    said = json.loads(next(out.glob("sub-01/ses-02/func/*_desc-quality_metrics.json")).read_text())
    assert any("sbref" in warning for warning in said["warnings"])
