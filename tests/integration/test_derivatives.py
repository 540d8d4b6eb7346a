"""From derivatives of other pipelines to embeddings and reports, through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bids_app.cli.neurostorm import main
from bids_app.model.encoder import EncoderConfig
from bids_app.training.data.examples import load_datasets
from tests.helpers.datasets import PreprocessedTree, write_hcp_run, write_ukb_run
from tests.helpers.models import save_random_encoder

pytestmark = [pytest.mark.timeout(600)]
CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))


@pytest.fixture(scope="module")
def neurostorm(tmp_path_factory) -> Callable[..., int]:
    """Run the participant level in this process with a tiny encoder, up to the embeddings."""
    weights = save_random_encoder(tmp_path_factory.mktemp("model") / "tiny.safetensors", CONFIG)

    def run(bids_dir: Path, out: Path, *options: str) -> int:
        fixed = ["--model", str(weights), "--nprocs", "1", "--mem", "8GB", "--level", "minimal"]
        return main([str(bids_dir), str(out), "participant", *fixed, "-w", str(out.with_name("work")), *options])

    return run


@pytest.fixture(scope="module")
def fmriprep(standard_brain, tmp_path_factory):
    """sub-01 is correct; sub-02 is flipped relative to its T1w image; sub-03 was cropped by index. Skull-stripped."""
    made = PreprocessedTree(tmp_path_factory.mktemp("study") / "fmriprep")
    image, mask, affine = standard_brain.image, standard_brain.mask, standard_brain.affine
    series = standard_brain.series()
    motion = {"framewise_displacement": np.concatenate([[np.nan], np.full(39, 0.2)]), "global_signal": np.ones(40)}
    made.write_run("01", series, mask, affine)
    made.write_confounds("01", motion)
    series = series * mask[..., None]
    made.write_run("02", series[::-1], mask[::-1], affine)
    made.write("02", "anat/{}_space-MNI152NLin6Asym_desc-preproc_T1w.nii.gz", image, affine)
    made.write_run("03", series[:, 3:], mask[:, 3:], affine)
    return made.root


@pytest.fixture(scope="module")
def finished(fmriprep, neurostorm):
    """Outputs of that dataset, and the exit code."""
    out = fmriprep.with_name("out")
    return out, neurostorm(fmriprep, out)


def metrics(out: Path, label: str) -> dict:
    (path,) = out.glob(f"sub-{label}/**/*_desc-quality_metrics.json")
    return json.loads(path.read_text())


def summary(out: Path, label: str) -> dict:
    (path,) = out.glob(f"sub-{label}/log/*/summary.json")
    return json.loads(path.read_text())


def test_runs_with_a_wrong_orientation_fail_and_the_others_succeed(finished) -> None:
    out, code = finished
    assert code == 65
    assert summary(out, "01")["status"] == "ok"
    assert "left-right flipped" in summary(out, "02")["runs"][0]["reason"]
    assert "12 mm posterior" in summary(out, "03")["runs"][0]["reason"]
    assert not list(out.glob("sub-0[23]/func/*"))
    assert "left-right flipped" in (out / "sub-02.html").read_text()


def test_outputs_of_an_ingested_run_are_complete(finished) -> None:
    out, _ = finished
    stem = "sub-01_task-rest"
    made = {path.name for path in out.glob("sub-01/func/*")}
    assert made == {
        f"{stem}_desc-confounds_timeseries.json",
        f"{stem}_desc-confounds_timeseries.tsv",
        f"{stem}_desc-quality_metrics.json",
        f"{stem}_desc-quality_metrics.tsv",
        f"{stem}_desc-tiny_embeddings.json",
        f"{stem}_desc-tiny_embeddings.tsv",
        f"{stem}_space-MNI152NLin6Asym_desc-brain_mask.json",
        f"{stem}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz",
        f"{stem}_space-MNI152NLin6Asym_desc-mean_boldref.json",
        f"{stem}_space-MNI152NLin6Asym_desc-mean_boldref.nii.gz",
    }
    found = metrics(out, "01")
    assert found["route"] == "derivatives"
    assert found["warnings"] == []
    assert found["quality"]["fd_mean"] == pytest.approx(0.2)
    assert found["quality"]["place_similarity"] > found["quality"]["place_mirrored"]
    assert found["Sources"][0].startswith("bids:fMRIPrep:sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym")


def test_links_and_methods_name_the_derivatives(finished, fmriprep) -> None:
    out, _ = finished
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"fMRIPrep": fmriprep.as_uri()}
    text = (out / "logs" / "CITATION.md").read_text()
    assert "preprocessed by fMRIPrep 23.2.1 (Esteban et al., 2019)" in text
    assert "Head motion was estimated" not in text


def test_the_report_shows_origin_and_orientation(finished) -> None:
    page = (finished[0] / "sub-01.html").read_text()
    assert "Preprocessed derivatives were ingested." in page
    assert "fMRIPrep 23.2.1" in page
    assert "Left and right: as in the template." in page
    assert "Similarity of the left-right flipped image with the template" in page


def test_the_plan_shows_ingested_and_raw_runs(fmriprep, neurostorm, tiny_dataset, capsys) -> None:
    tiny_dataset.write_bold("04")
    out = tiny_dataset.root.with_name("out")
    assert neurostorm(tiny_dataset.root, out, "--derivatives", f"prep={fmriprep}", "--check") == 0
    plan = capsys.readouterr().out
    assert "sub-01_task-rest: 40 volumes of 46 x 55 x 46 voxels (4 x 4 x 4 mm), TR 1 s; 2 clips; from fMRIPrep" in plan
    assert "ingested: MNI152NLin6Asym, the model's own space" in plan
    assert "The derivatives 'prep' do not contain this run; it was preprocessed from the raw data." in plan
    assert not out.exists()


def test_derivatives_are_not_written_into(fmriprep, neurostorm, tiny_dataset, capsys) -> None:
    assert neurostorm(tiny_dataset.root, fmriprep / "out", "--derivatives", f"prep={fmriprep}") == 64
    assert "inside the derivatives 'prep'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["raw", "a b", "a=b"])
def test_an_invalid_derivatives_name_is_refused(name, neurostorm, tiny_dataset, tmp_path) -> None:
    code = neurostorm(tiny_dataset.root, tmp_path / "out", "--derivatives", f"{name}={tmp_path}")
    assert code == (66 if name == "a=b" else 64)  # the path is then "b=..."


@pytest.mark.slow
def test_an_ingested_run_keeps_its_raw_name(standard_brain, neurostorm, tiny_dataset, tmp_path) -> None:
    made = PreprocessedTree(tmp_path / "fmriprep", version="20.2.7")
    made.write_run("01", standard_brain.series(), None, standard_brain.affine, space="MNI152NLin2009cAsym")
    out = tmp_path / "out"
    assert neurostorm(tiny_dataset.root, out, "-d", f"prep={made.root}") == 0
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": tiny_dataset.root.as_uri(), "prep": made.root.as_uri()}
    found = metrics(out, "01")
    assert found["Sources"][0].startswith("bids:prep:")
    assert any("affine matrix only" in warning for warning in found["warnings"])
    assert any("no brain mask" in warning for warning in found["warnings"])
    assert "MNI152NLin2009cAsym is mapped to the model" in (out / "sub-01.html").read_text()


@pytest.mark.slow
def test_hcp_folders_are_ingested(standard_brain, neurostorm, tmp_path) -> None:
    """Images are stored left to right, skull-stripped, without sidecars."""
    write_hcp_run(tmp_path / "hcp", standard_brain)
    out = tmp_path / "out"
    assert neurostorm(tmp_path / "hcp", out) == 0
    found = metrics(out, "100307")
    assert found["quality"]["spacing_tr"] == pytest.approx(0.72)
    assert found["quality"]["fd_mean"] > 0
    assert found["quality"]["place_shift_mm"] < 3
    assert found["Sources"][0].startswith("bids:hcp:100307/MNINonLinear")
    assert (out / "sub-100307" / "func" / "sub-100307_task-REST_dir-LR_run-1_desc-tiny_embeddings.tsv").exists()


@pytest.mark.slow
def test_uk_biobanks_folders_are_ingested_and_read_by_the_training(standard_brain, neurostorm, tmp_path) -> None:
    """The series is in the space of the scan; another one, without its transform, fails alone."""
    root, out = tmp_path / "ukb", tmp_path / "out"
    write_ukb_run(root, standard_brain)
    incomplete = write_ukb_run(root, standard_brain, "7654321_20227_2_0")
    (incomplete.parent / "reg" / "example_func2standard_warp.nii.gz").unlink()
    assert neurostorm(root, out, "--output-clips", "voxel") != 0
    found = metrics(out, "1234567")
    assert found["quality"]["spacing_tr"] == pytest.approx(0.735)
    assert found["quality"]["fd_mean"] > 0
    assert found["quality"]["place_shift_mm"] < 3
    assert "bids:ukb:1234567_20227_2_0/fMRI/rfMRI.ica/reg/example_func2standard_warp.nii.gz" in found["Sources"]
    failed = summary(out, "7654321")["runs"]
    assert "without its transform to the template" in json.dumps(failed)
    (dataset,) = load_datasets([out], tmp_path / "stores", "voxel")
    assert [scan.name for scan in dataset.scans] == ["sub-1234567_ses-2_task-rest"]
