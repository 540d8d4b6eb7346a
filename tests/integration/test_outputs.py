"""Outputs of a simulated participant as other programs use them: transforms, headers, sources, denoised series."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker
from nitransforms.linear import Affine
from nitransforms.manip import TransformChain
from nitransforms.resampling import apply
from scipy.signal import detrend

from bids_app.cli.neurostorm import main
from bids_app.phantom.dataset import DatasetPlan, write_dataset
from bids_app.preprocess.registration.ants import correlation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEM = "sub-01_task-rest"
MNI_SPACES = ("MNI152NLin6Asym", "MNI152NLin2009aSym")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "raw"
    write_dataset(folder, DatasetPlan(participants=1, seed=5, states=("rest",), size="small"))
    return folder


@pytest.fixture(scope="module")
def out(raw: Path, tmp_path_factory) -> Path:
    """Output folder of a run with a T1w image, in all spaces, denoised."""
    folder = tmp_path_factory.mktemp("outputs")
    command = [str(raw), str(folder / "out"), "participant", "-w", str(folder / "work"), "--nprocs", "2"]
    spaces = ["--output-spaces", *MNI_SPACES, "T1w", "func"]
    by_region = ["--timeseries", str(save_slabs(folder / "slabs.nii.gz"))]
    options = ["--denoise", "simple", "--provenance", "--level", "minimal", "--model", "demo"]
    assert main([*command, *spaces, *by_region, *options]) == 0
    return folder / "out"


def save_slabs(path: Path) -> Path:
    """Make an atlas of slabs of 16 mm from back to front in the middle of the head, at 2 mm."""
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    labels = np.zeros((91, 109, 91), np.int16)
    labels[25:66, :, 30:60] = (1 + np.arange(109) // 8)[None, :, None]
    nib.Nifti1Image(labels, affine).to_filename(path)
    return path


def mean_in(out: Path, labels: str, folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Return the mean series with some entities as a file and an array, and its brain mask."""
    series = nib.load(out / "sub-01" / "func" / f"{STEM}_{labels}desc-preproc_bold.nii.gz")
    mask = nib.load(out / "sub-01" / "func" / f"{STEM}_{labels}desc-brain_mask.nii.gz").get_fdata() > 0
    mean = series.get_fdata().mean(axis=3).astype(np.float32)
    path = folder / "mean.nii.gz"
    nib.Nifti1Image(mean, series.affine).to_filename(path)
    return path, mean, mask


def transforms_to(out: Path, space: str) -> list[Path]:
    """Return the files that bring the boldref to a space, in the order of antsApplyTransforms."""
    coreg = out / "sub-01" / "func" / f"{STEM}_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt"
    if space == "T1w":
        return [coreg]
    return [out / "sub-01" / "anat" / f"sub-01_from-T1w_to-{space}_mode-image_xfm.h5", coreg]


def boldref_of(out: Path) -> Path:
    return out / "sub-01" / "func" / f"{STEM}_desc-hmc_boldref.nii.gz"


@pytest.mark.parametrize("space", [*MNI_SPACES, "T1w"])
def test_antspyx_reproduces_the_series_with_the_published_transforms(out: Path, space: str, tmp_path: Path) -> None:
    labels = f"space-{space}_" if space == "T1w" else f"space-{space}_res-2_"
    path, mean, mask = mean_in(out, labels, tmp_path)
    import ants

    files = [str(file) for file in transforms_to(out, space)]
    found = ants.apply_transforms(
        ants.image_read(str(path)), ants.image_read(str(boldref_of(out))), files, interpolator="bSpline"
    )
    assert correlation(found.numpy()[mask], mean[mask]) >= 0.999


@pytest.mark.parametrize("space", [*MNI_SPACES, "T1w"])
def test_nitransforms_reproduces_the_series_with_the_published_transforms(
    out: Path, space: str, tmp_path: Path
) -> None:
    labels = f"space-{space}_" if space == "T1w" else f"space-{space}_res-2_"
    path, mean, mask = mean_in(out, labels, tmp_path)
    steps = []
    for file in transforms_to(out, space):
        if file.suffix == ".h5":
            steps += TransformChain.from_filename(file, fmt="itk").transforms
        else:
            steps.append(Affine.from_filename(file, fmt="itk"))
    found = apply(TransformChain(steps), nib.load(boldref_of(out)), reference=nib.load(path), order=3)
    assert correlation(found.get_fdata()[mask], mean[mask]) >= 0.999


def test_transforms_lead_there_and_back(out: Path) -> None:
    import ants

    image = nib.load(out / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz")
    voxels = np.argwhere(image.get_fdata() > 0)[::5000]
    points = nib.affines.apply_affine(image.affine, voxels) * [-1, -1, 1]  # LPS
    for space in MNI_SPACES:
        there, back = (
            ants.read_transform(str(out / "sub-01" / "anat" / f"sub-01_from-{a}_to-{b}_mode-image_xfm.h5"))
            for a, b in ((space, "T1w"), ("T1w", space))
        )
        ends = np.array([back.apply_to_point(there.apply_to_point(point)) for point in points])
        assert np.median(np.linalg.norm(ends - points, axis=1)) < 0.3


def test_every_image_has_codes_and_units(out: Path) -> None:
    images = sorted(out.rglob("*.nii.gz"))
    assert len(images) >= 15
    for path in images:
        header = nib.load(path).header
        code = 4 if "space-MNI" in path.name else 1
        assert (header["qform_code"], header["sform_code"]) == (code, code), path.name
        assert header.get_xyzt_units() == ("mm", "sec"), path.name
        np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)


def test_sources_and_references_exist(out: Path, raw: Path) -> None:
    roots = {"": out, "raw": raw}
    for path in out.glob("sub-01/[af]*/*.json"):
        sidecar = json.loads(path.read_text())
        uris = [*sidecar.get("Sources", []), *sidecar.get("RawSources", []), sidecar.get("SpatialReference", "")]
        for uri in filter(lambda uri: uri.startswith("bids:"), uris):
            _, dataset, name = uri.split(":", 2)
            assert (roots[dataset] / name).is_file(), f"{path.name}: {uri}"


def test_images_in_a_space_name_their_sources_and_their_reference(out: Path) -> None:
    func = out / "sub-01" / "func"
    series = {
        labels: json.loads((func / f"{STEM}_{labels}desc-preproc_bold.json").read_text())
        for labels in ("", "space-T1w_", *(f"space-{space}_res-2_" for space in MNI_SPACES))
    }
    assert [len(sidecar["Sources"]) for sidecar in series.values()] == [2, 3, 4, 4]
    assert series[""]["SpatialReference"] == f"bids::sub-01/func/{STEM}_desc-hmc_boldref.nii.gz"
    assert series["space-T1w_"]["SpatialReference"] == "bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
    assert series["space-MNI152NLin6Asym_res-2_"]["SpatialReference"].endswith("tpl-MNI152NLin6Asym_res-02_T1w.nii.gz")
    for space in MNI_SPACES:
        sidecar = series[f"space-{space}_res-2_"]
        assert sidecar["Sources"][-1] == f"bids::sub-01/anat/sub-01_from-T1w_to-{space}_mode-image_xfm.h5"
        assert sidecar["Template"] == "MNI152NLin6Asym"


def test_the_denoised_series_has_no_confounds(out: Path) -> None:
    func = out / "sub-01" / "func"
    for labels in ("", "space-T1w_", "space-MNI152NLin6Asym_res-2_"):
        path = func / f"{STEM}_{labels}desc-denoised_bold.nii.gz"
        sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
        plain = func / f"{STEM}_{labels}desc-preproc_bold.nii.gz"
        confounds, kept = load_confounds_strategy(str(plain), denoise_strategy="simple")
        assert sidecar["DenoisingStrategy"] == "simple"
        assert sidecar["ConfoundColumns"] == list(confounds.columns)
        assert kept is None  # no volume is left out
        assert sidecar["VolumesLeftOut"] == []
        mask = nib.load(func / f"{STEM}_{labels}desc-brain_mask.nii.gz").get_fdata() > 0
        values = nib.load(path).get_fdata()[mask]
        assert values.shape[1] == sidecar["NumberOfVolumes"] == len(confounds)
        signal = detrend(values.mean(axis=0))
        for name in ("white_matter", "csf", "trans_x", "rot_y"):
            assert abs(np.corrcoef(signal, detrend(confounds[name]))[0, 1]) < 0.05


def test_series_of_regions_equal_those_of_the_published_series(out: Path) -> None:
    func, space = out / "sub-01" / "func", "space-MNI152NLin6Asym_"
    tables = {
        kind: pd.read_csv(func / f"{STEM}_{space}seg-slabs_stat-{kind}.tsv", sep="\t", na_values="n/a")
        for kind in ("mean_timeseries", "pearsoncorrelation_relmat", "coverage_bold")
    }
    published = nib.load(func / f"{STEM}_{space}res-2_desc-denoised_bold.nii.gz")
    masker = NiftiLabelsMasker(
        out.parent / "slabs.nii.gz", mask_img=func / f"{STEM}_{space}res-2_desc-brain_mask.nii.gz", standardize=None
    )
    wanted = pd.DataFrame(masker.fit_transform(published), columns=[f"region_{n}" for n in masker.labels_ if n])
    covered = tables["coverage_bold"].set_index("name")["coverage"] >= 0.5
    assert covered.sum() >= 5
    found = tables["mean_timeseries"].loc[:, covered[covered].index]
    assert len(found) == published.shape[3]
    assert not found.isna().any().any()
    assert tables["mean_timeseries"].loc[:, covered[~covered].index].isna().all().all()
    for name in found:
        assert np.corrcoef(found[name], wanted[name])[0, 1] > 0.9999
    matrix = tables["pearsoncorrelation_relmat"].set_index("Node").loc[found.columns, found.columns]
    np.testing.assert_allclose(matrix, wanted[found.columns].corr(), atol=0.005)


def test_every_output_names_an_activity_of_its_record_and_its_checksum(out: Path) -> None:
    records = [json.loads(path.read_text()) for path in (out / "prov").glob("prov-*/*_act.json")]
    known = {activity["Id"] for record in records for activity in record["Activities"]}
    sidecars = [path for path in (out / "sub-01").rglob("*.json") if path.parent.name in ("anat", "func")]
    assert len(sidecars) > 20
    for path in sidecars:
        content = json.loads(path.read_text())
        assert content["GeneratedBy"] in known, path.name
        digests = {sha256(other.read_bytes()).hexdigest() for other in path.parent.glob(f"{path.stem}.[!j]*")}
        assert content["Digest"]["SHA-256"] in digests, path.name
    assert known == {json.loads(path.read_text())["GeneratedBy"] for path in sidecars}
