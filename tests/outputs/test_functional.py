"""Outputs of a T1w image: resolution, sources and skull-stripping; sources of the outputs of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.writer import RAW_DATASET
from bids_app.outputs.anatomical import anatomy_outputs
from bids_app.outputs.functional import plot_temporal_maps, run_outputs, temporal_statistics
from bids_app.outputs.names import RunName
from bids_app.preprocess.anatomical import Anatomy
from bids_app.preprocess.io.images import save_image
from bids_app.preprocess.preprocessed import OnGrid, PreprocessedRun
from bids_app.preprocess.registration.transforms import Chain, Linear
from bids_app.reports.figures import brains as figures

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two T1w images of one session, the second brighter."""
    folder = tmp_path / "raw" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    for run, level in (("1", 100.0), ("2", 300.0)):
        image = np.full((12, 14, 10), level, np.float32)
        image[0, 0, 0] = 0
        save_image(folder / f"sub-01_run-{run}_T1w.nii.gz", image, AFFINE)
    return tmp_path / "raw"


@pytest.fixture
def anatomy(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Anatomy:
    """T1w image whose bias field is 2 everywhere; figures are not plotted."""
    for name in ("plot_flicker", "plot_outlines"):
        monkeypatch.setattr(figures, name, lambda *args, **kwargs: None)
    first = raw / "sub-01" / "anat" / "sub-01_run-1_T1w.nii.gz"
    image = save_image(tmp_path / "image.nii.gz", np.ones((12, 14, 10), np.float32), AFFINE)
    bias = save_image(tmp_path / "bias.nii.gz", np.full((12, 14, 10), 2.0, np.float32), AFFINE)
    chain = Chain((Linear(np.eye(4)),)).save(tmp_path / "chain.npz")
    return Anatomy(
        source=first,
        template="MNI152NLin2009aSym",
        image=image,
        bias=bias,
        mask=image,
        tissues=image,
        dseg=image,
        chain=chain,
        inverse=chain,
        to_template=image,
        from_template=image,
        in_template=image,
        used=(first,),
    )


def written(anatomy: Anatomy, raw: Path, out_dir: Path) -> tuple[float, dict]:
    out_dir.mkdir()
    tree = anatomy_outputs(anatomy, {RAW_DATASET: raw}, (), out_dir)
    (path,) = tree.glob("sub-01/anat/*desc-preproc_T1w.nii.gz")
    sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
    return float(np.median(nib.load(path).get_fdata())), sidecar


def test_a_t1w_is_written_without_its_bias_field(anatomy, raw, tmp_path):
    level, sidecar = written(anatomy, raw, tmp_path / "out")
    assert level == pytest.approx(50, rel=1e-3)
    assert sidecar["SkullStripped"] is False
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_run-1_T1w.nii.gz"]


def test_transforms_lead_to_the_template_and_to_the_space_of_the_model_and_name_the_template(anatomy, raw, tmp_path):
    written(anatomy, raw, tmp_path / "out")
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out" / "tree").rglob("*_xfm.json")}
    ends = [("T1w", "MNI152NLin2009aSym"), ("T1w", "MNI152NLin6Asym")]
    names = {f"sub-01_run-1_from-{a}_to-{b}_mode-image_xfm.json" for x, y in ends for a, b in ((x, y), (y, x))}
    assert found.keys() == names
    for sidecar in found.values():
        assert sidecar["Template"] == "MNI152NLin2009aSym"
        assert sidecar["Sources"] == ["bids::sub-01/anat/sub-01_run-1_desc-preproc_T1w.nii.gz"]


def test_transforms_name_the_lesion_mask_that_was_left_out(anatomy, raw, tmp_path):
    lesion = anatomy.source.with_name("sub-01_label-lesion_roi.nii.gz")
    _, sidecar = written(replace(anatomy, lesion=lesion), raw, tmp_path / "out")
    own, mask = "bids::sub-01/anat/sub-01_run-1_desc-preproc_T1w.nii.gz", f"bids:raw:sub-01/anat/{lesion.name}"
    found = [json.loads(path.read_text())["Sources"] for path in (tmp_path / "out" / "tree").rglob("*_xfm.json")]
    assert found == [[own, mask]] * 4
    assert mask not in sidecar["Sources"]


@pytest.fixture
def run(raw: Path, tmp_path: Path) -> PreprocessedRun:
    """Run of three combined echoes, with a T2* map."""
    image = save_image(tmp_path / "image.nii.gz", np.ones((4, 4, 4), np.float32), AFFINE)
    table = tmp_path / "confounds.tsv"
    table.write_text("csf\n1\n")
    table.with_suffix(".json").write_text("{}")
    bolds = [raw / "sub-01" / "func" / f"sub-01_task-rest_echo-{n}_bold.nii.gz" for n in (1, 2, 3)]
    return PreprocessedRun(
        source=bolds[0], bold=image, tr=2.0, n_volumes=1, n_dummy=0, motion=None, chain=None,
        template="MNI152NLin6Asym", data_mask=image, boldref=image, brain_mask=image, dseg=None, confounds=table,
        confounds_meta=table.with_suffix(".json"), carpet=None, route="direct", quality={}, warnings=(), t2star=image,
        echoes=tuple(bolds[1:]),
    )  # fmt: skip


def sidecars_of(run: PreprocessedRun, raw: Path, out_dir: Path) -> dict[str, dict]:
    out_dir.mkdir()
    entities = {"sub": "01", "task": "rest"}
    tree = run_outputs(run, OnGrid(out_dir, 0.9), entities, {RAW_DATASET: raw}, (), (), None, 1, out_dir)
    return {path.stem.removeprefix("sub-01_task-rest_"): json.loads(path.read_text()) for path in tree.rglob("*.json")}


def test_images_of_combined_echoes_name_all_echoes(run, raw, tmp_path):
    found = sidecars_of(run, raw, tmp_path / "out")
    echoes = [f"bids:raw:sub-01/func/sub-01_task-rest_echo-{n}_bold.nii.gz" for n in (1, 2, 3)]
    for name in ("desc-hmc_boldref", "space-boldref_T2starmap"):
        assert found[name]["RawSources"] == echoes
        assert found[name]["Sources"][:3] == echoes


def test_a_boldref_made_from_an_sbref_names_it(run, raw, tmp_path):
    plain = sidecars_of(replace(run, echoes=()), raw, tmp_path / "plain")["desc-hmc_boldref"]
    bold = "bids:raw:sub-01/func/sub-01_task-rest_echo-1_bold.nii.gz"
    assert plain["Sources"] == [bold]
    sbref = run.source.with_name("sub-01_task-rest_sbref.nii.gz")
    found = sidecars_of(replace(run, echoes=(), sbref=sbref), raw, tmp_path / "out")["desc-hmc_boldref"]
    assert found["Sources"] == found["RawSources"] == [bold, f"bids:raw:sub-01/func/{sbref.name}"]
    assert "Single-band" in found["Description"] != plain["Description"]


def test_anatomical_images_have_codes_and_units(anatomy, raw, tmp_path):
    written(anatomy, raw, tmp_path / "out")
    images = list((tmp_path / "out" / "tree").rglob("*.nii.gz"))
    assert len(images) == 2
    for path in images:
        header = nib.load(path).header
        assert (header["qform_code"], header["sform_code"]) == (1, 1)
        assert header.get_xyzt_units() == ("mm", "sec")


def test_the_brain_mask_names_its_image(anatomy, raw, tmp_path):
    written(anatomy, raw, tmp_path / "out")
    (path,) = (tmp_path / "out" / "tree").rglob("*_mask.json")
    sidecar = json.loads(path.read_text())
    own = "bids::sub-01/anat/sub-01_run-1_desc-preproc_T1w.nii.gz"
    assert (sidecar["Sources"], sidecar["SpatialReference"]) == ([own], own)
    assert sidecar["RawSources"] == ["bids:raw:sub-01/anat/sub-01_run-1_T1w.nii.gz"]


def test_the_mean_of_repeats_is_written_in_place_of_one_and_names_all(anatomy, raw, tmp_path):
    merged = save_image(tmp_path / "merged.nii.gz", np.full((12, 14, 10), 200.0, np.float32), AFFINE)
    used = tuple(sorted((raw / "sub-01" / "anat").iterdir()))
    level, sidecar = written(replace(anatomy, merged=merged, used=used), raw, tmp_path / "out")
    assert level == pytest.approx(100, rel=1e-3)
    assert sidecar["Sources"] == [f"bids:raw:sub-01/anat/sub-01_run-{run}_T1w.nii.gz" for run in (1, 2)]
    assert "Mean of 2 aligned images" in sidecar["Description"]


def test_a_skull_stripped_t1w_is_described_as_such(anatomy, raw, tmp_path):
    _, sidecar = written(replace(anatomy, stripped=True), raw, tmp_path / "out")
    assert sidecar["SkullStripped"] is True


def test_maps_show_temporal_snr_and_standard_deviation_without_dummy_volumes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    mask = np.zeros((12, 14, 10), np.float32)
    mask[3:9, 3:11, 2:8] = 1
    n_voxels = int(mask.sum())
    values = (1000 + 20 * rng.normal(size=(400, n_voxels))).astype(np.float32)
    values[:2] = 5000  # dummy volumes
    values[:, 0] = 1000  # a voxel without any change
    np.save(tmp_path / "carpet.npy", values)
    run = SimpleNamespace(
        carpet=tmp_path / "carpet.npy", brain_mask=save_image(tmp_path / "mask.nii.gz", mask, AFFINE), n_dummy=2
    )
    shown = {}
    monkeypatch.setattr(figures, "plot_map", lambda image, _, path, **__: shown.update({path.stem: image}))
    plot_temporal_maps(run, RunName(tmp_path, {"sub": "01"}, ()))
    ratio, percent = (shown[f"sub-01_desc-{kind}_bold"].get_fdata()[mask > 0] for kind in ("tsnr", "stdev"))
    assert np.median(ratio) == pytest.approx(50, rel=0.05)
    assert np.median(percent) == pytest.approx(2, rel=0.05)
    assert ratio[0] == 0


def test_temporal_statistics_of_blocks_equal_those_of_the_whole():
    values = np.random.default_rng(0).normal(size=(30, 25))
    mean, deviation = temporal_statistics(values, block=7)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(deviation, values.std(axis=0))
