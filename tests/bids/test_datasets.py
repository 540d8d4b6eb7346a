"""Query of derivatives by fMRIPrep, XCP-D and HCP's pipelines: selection and matching to raw runs."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.datasets import input_datasets, main_dataset
from bids_app.bids.derivatives import check_pipeline_version, pipeline_of, run_key
from bids_app.bids.hcp import folder_entities, run_entities
from bids_app.bids.query import find_runs
from bids_app.errors import InvalidBIDSError, NoInputError, NoMatchError, UsageError
from bids_app.settings import QuerySettings

RAW = {"Name": "Study", "BIDSVersion": "1.10.0"}
FMRIPREP = {
    "Name": "fMRIPrep",
    "BIDSVersion": "1.4.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}],
}
XCPD = {**FMRIPREP, "GeneratedBy": [{"Name": "xcp_d", "Version": "0.10.1"}]}
STEM = "sub-01/func/sub-01_task-rest"
ASYM6, ASYM2009 = "space-MNI152NLin6Asym", "space-MNI152NLin2009cAsym"
BOLD = f"{STEM}_{ASYM6}_res-2_desc-preproc_bold.nii.gz"


@pytest.fixture
def dataset(tmp_path):
    """Return a function that creates a dataset of empty images, or of files with the given content."""

    def make(name, *images, description=FMRIPREP, contents=()):
        root = tmp_path / name
        files = dict.fromkeys(images, "") | dict(contents)
        if description:
            files["dataset_description.json"] = description
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(json.dumps(content) if isinstance(content, dict) else content)
        return root

    return make


def only(root, **settings):
    (run,) = find_runs(root, QuerySettings(**settings))
    return run


def test_fmriprep_run_has_mask_boldref_t1w_and_confounds(dataset):
    root = dataset(
        "fmriprep",
        BOLD,
        f"{STEM}_{ASYM6}_res-2_desc-brain_mask.nii.gz",
        f"{STEM}_{ASYM6}_res-2_boldref.nii.gz",
        f"{STEM}_desc-confounds_timeseries.tsv",
        f"{STEM}_desc-brain_mask.nii.gz",
        f"sub-01/anat/sub-01_{ASYM6}_res-2_desc-preproc_T1w.nii.gz",
        f"sub-01/anat/sub-01_{ASYM2009}_desc-preproc_T1w.nii.gz",
        contents={
            f"{STEM}_{ASYM6}_res-2_desc-preproc_bold.json": {
                "RepetitionTime": 2.0, "StartTime": 1.0, "SkullStripped": False, "SliceTiming": [0, 1],
                "ManufacturersModelName": "Prisma",
            },
            f"{STEM}_desc-confounds_timeseries.json": {},
        },
    )  # fmt: skip
    run = only(root)
    assert run.stem == "sub-01_task-rest"
    assert run.bold == run.derived.bold == root / BOLD
    valid = {"RepetitionTime": 2.0, "StartTime": 1.0, "SkullStripped": False, "ManufacturersModelName": "Prisma"}
    assert run.metadata == valid
    derived = run.derived
    assert derived.mask.name == f"sub-01_task-rest_{ASYM6}_res-2_desc-brain_mask.nii.gz"
    assert derived.boldref.name == f"sub-01_task-rest_{ASYM6}_res-2_boldref.nii.gz"
    assert derived.t1w.name == f"sub-01_{ASYM6}_res-2_desc-preproc_T1w.nii.gz"
    assert derived.confounds.name == "sub-01_task-rest_desc-confounds_timeseries.tsv"
    assert derived.confounds_meta.name == "sub-01_task-rest_desc-confounds_timeseries.json"
    assert (derived.space, derived.pipeline, derived.denoised) == ("MNI152NLin6Asym", "fMRIPrep 23.2.1", False)
    assert run.t1w is None
    assert any("fMRIPrep 23.2.1" in note for note in run.notes)


CHOICES = [
    ("6Asym before 2009c", [f"{ASYM2009}_res-2", f"{ASYM6}"], f"{ASYM6}"),
    ("2 mm before native", [f"{ASYM6}", f"{ASYM6}_res-2"], f"{ASYM6}_res-2"),
    ("zero-padded resolution", [f"{ASYM6}_res-01", f"{ASYM6}_res-02"], f"{ASYM6}_res-02"),
    ("native before 1 mm", [f"{ASYM6}_res-1", f"{ASYM6}"], f"{ASYM6}"),
    ("2009c alone", [f"{ASYM2009}", "space-T1w", "space-MNIPediatricAsym_cohort-2_res-2"], f"{ASYM2009}"),
]


@pytest.mark.parametrize(("available", "expected"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES])
def test_model_space_is_preferred_with_a_note(dataset, available, expected):
    root = dataset("fmriprep", *(f"{STEM}_{space}_desc-preproc_bold.nii.gz" for space in available))
    run = only(root)
    assert run.bold.name == f"sub-01_task-rest_{expected}_desc-preproc_bold.nii.gz"
    usable = [space for space in available if space.startswith((ASYM6, ASYM2009))]
    assert any("was used" in note for note in run.notes) == (len(usable) > 1)


@pytest.mark.parametrize(
    ("description", "table", "name"),
    [
        ({**FMRIPREP, "GeneratedBy": [{"Name": "fMRIPrep", "Version": "20.2.7"}]}, "desc-confounds_timeseries", "20.2"),
        ({"Name": "x", "PipelineDescription": {"Name": "fMRIPrep", "Version": "20.2.0"}}, "desc-confounds_regressors",
         "20.2"),
        ({**FMRIPREP, "GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.1.4"}]}, "desc-confounds_timeseries", "25.1"),
    ],
)  # fmt: skip
def test_file_names_of_supported_fmriprep_versions_are_found(dataset, description, table, name):
    run = only(dataset("fmriprep", BOLD, f"{STEM}_{table}.tsv", description=description))
    assert name in run.derived.pipeline
    assert run.derived.confounds.name == f"sub-01_task-rest_{table}.tsv"
    assert not any("not a tested version" in note for note in run.notes)


def test_other_fmriprep_versions_give_a_note():
    assert check_pipeline_version("fMRIPrep 1.5.8")
    assert check_pipeline_version("fMRIPrep 26.0.0")
    assert not check_pipeline_version("fMRIPrep 20.2.7")
    assert not check_pipeline_version("xcp_d 0.4")
    assert pipeline_of({}) == "an unnamed pipeline"


def test_xcpd_run_is_marked_as_denoised(dataset):
    stem = f"{STEM}_{ASYM2009}_res-2"
    run = only(dataset("xcpd", f"{stem}_desc-denoised_bold.nii.gz", f"{stem}_desc-denoisedSmoothed_bold.nii.gz",
                       f"{STEM}_motion.tsv", description=XCPD))  # fmt: skip
    assert run.derived.denoised
    assert run.bold.name.endswith("_desc-denoised_bold.nii.gz")
    assert run.derived.confounds.name == "sub-01_task-rest_motion.tsv"


def test_t1w_mask_is_used_if_the_run_has_none(dataset):
    anatomical = f"sub-01/anat/sub-01_{ASYM6}_res-2_desc-brain_mask.nii.gz"
    run = only(dataset("fmriprep", BOLD, anatomical))
    assert run.derived.mask.name == Path(anatomical).name
    assert any("has no brain mask" in note for note in run.notes)


def test_sessions_share_a_t1w_without_session(dataset):
    names = [f"sub-01/ses-{s}/func/sub-01_ses-{s}_task-rest_{ASYM6}_res-2_desc-preproc_bold.nii.gz" for s in ("a", "b")]
    root = dataset("fmriprep", *names, f"sub-01/anat/sub-01_{ASYM6}_res-2_desc-preproc_T1w.nii.gz")
    one, two = find_runs(root, QuerySettings())
    assert (one.stem, two.stem) == ("sub-01_ses-a_task-rest", "sub-01_ses-b_task-rest")
    assert one.derived.t1w == two.derived.t1w == root / f"sub-01/anat/sub-01_{ASYM6}_res-2_desc-preproc_T1w.nii.gz"
    assert only(root, sessions=("b",)).stem == two.stem
    with pytest.raises(NoMatchError, match="ses-z"):
        find_runs(root, QuerySettings(sessions=("z",)))


def test_filters_and_participants_apply_to_derivatives(dataset):
    names = [BOLD.replace("01", label) for label in ("01", "02")] + [BOLD.replace("rest", "nback")]
    root = dataset("fmriprep", *names)
    assert only(root, participants=("02",)).participant == "02"
    assert only(root, filters={"bold": {"task": "nback"}}).stem == "sub-01_task-nback"
    with pytest.raises(NoMatchError, match="sub-09"):
        find_runs(root, QuerySettings(participants=("09",)))


def test_missing_content_of_a_mask_is_a_problem_of_the_run(dataset):
    root = dataset("fmriprep", BOLD)
    (root / f"{STEM}_{ASYM6}_res-2_desc-brain_mask.nii.gz").symlink_to("nowhere")
    run = only(root)
    assert "desc-brain_mask" in run.problem.message


def test_derivatives_without_a_supported_space_raise_with_the_file_found(dataset):
    with pytest.raises(InvalidBIDSError, match="space-T1w") as caught:
        find_runs(dataset("fmriprep", f"{STEM}_space-T1w_desc-preproc_bold.nii.gz"), QuerySettings())
    assert "MNI152NLin6Asym" in caught.value.hint


# --- raw data with derivatives -------------------------------------------------------------------------------------


@pytest.fixture
def raw(dataset):
    return dataset(
        "raw",
        "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz",
        "sub-01/func/sub-01_task-nback_bold.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz",
        description=RAW,
        contents={
            "task-rest_bold.json": {"RepetitionTime": 1.5, "SliceTiming": [0, 0.7]},
            "task-nback_bold.json": {"RepetitionTime": 2.5},
            "sub-01/func/sub-01_task-rest_run-1_events.tsv": "onset\tduration\n1\t2\n",
        },
    )


def test_runs_without_derivatives_use_raw_data(dataset, raw):
    derived = dataset("fmriprep", f"{STEM}_run-01_{ASYM6}_res-2_desc-preproc_bold.nii.gz")
    nback, rest = find_runs(raw, QuerySettings(derivatives={"fmriprep": derived}))
    assert rest.stem == "sub-01_task-rest_run-1"
    assert rest.bold.is_relative_to(derived)
    assert rest.metadata == {"RepetitionTime": 1.5}
    assert rest.events.is_relative_to(raw)
    assert nback.bold.is_relative_to(raw)
    assert nback.derived is None
    assert nback.t1w is not None
    assert any("'fmriprep' do not contain this run" in note and "raw" in note for note in nback.notes)


def test_run_in_another_space_uses_raw_data_with_a_note(dataset, raw):
    derived = dataset("fmriprep", f"{STEM}_run-1_space-T1w_desc-preproc_bold.nii.gz")
    _, rest = find_runs(raw, QuerySettings(derivatives={"fmriprep": derived}))
    assert rest.derived is None
    assert any("space-T1w" in note for note in rest.notes)


def test_first_derivatives_dataset_has_precedence(dataset, raw):
    name = f"{STEM}_run-1_{ASYM6}_res-2_desc-preproc_bold.nii.gz"
    one, two = (
        dataset("one", name),
        dataset("two", name, f"sub-01/func/sub-01_task-nback_{ASYM6}_desc-preproc_bold.nii"),
    )
    nback, rest = find_runs(raw, QuerySettings(derivatives={"one": one, "two": two}))
    assert (rest.derived.bold, nback.derived.bold.parent) == (one / name, two / "sub-01/func")
    assert not any("raw data" in note for note in nback.notes)


def test_missing_raw_content_is_ignored_if_derivatives_are_used(dataset, raw):
    bold = raw / "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz"
    bold.unlink()
    bold.symlink_to("nowhere")
    derived = dataset("fmriprep", f"{STEM}_run-1_{ASYM6}_res-2_desc-preproc_bold.nii.gz")
    _, rest = find_runs(raw, QuerySettings(derivatives={"fmriprep": derived}))
    assert rest.problem is None


def test_folders_without_derivatives_raise(dataset, raw, tmp_path):
    with pytest.raises(NoInputError, match="no such folder"):
        find_runs(raw, QuerySettings(derivatives={"x": tmp_path / "nowhere"}))
    with pytest.raises(InvalidBIDSError, match="no usable derivatives"):
        find_runs(raw, QuerySettings(derivatives={"x": tmp_path}))
    derived = dataset("fmriprep", BOLD)
    with pytest.raises(UsageError, match="--derivatives"):
        find_runs(derived, QuerySettings(derivatives={"x": derived}))


def test_input_datasets_have_names_for_dataset_links(dataset, raw, tmp_path):
    derived = dataset("fmriprep", BOLD)
    assert input_datasets(raw, {"prep": derived}) == {"raw": raw, "prep": derived}
    assert input_datasets(derived, {}) == {"fMRIPrep": derived}
    assert main_dataset(tmp_path / "nowhere") == "raw"


def test_run_key_ignores_variants_of_one_run():
    one = {"sub": "01", "task": "rest", "run": "01", "echo": "2", "space": "T1w"}
    assert run_key(one) == run_key({"task": "rest", "run": "1", "sub": "01"})
    assert run_key(one) != run_key({**one, "run": "2"})


# --- HCP -----------------------------------------------------------------------------------------------------------


def hcp_image(path, tr, unit):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.int16), np.eye(4))
    image.header["pixdim"][4] = tr
    image.header.set_xyzt_units("mm", unit)
    image.to_filename(path)


@pytest.fixture
def hcp(tmp_path):
    """Two participants with a resting-state run, a task run and unrelated files."""
    root = tmp_path / "hcp"
    for folder in ("100307", "HCA6002236_V1_MR"):
        results = root / folder / "MNINonLinear" / "Results"
        for name in ("rfMRI_REST1_LR", "tfMRI_MOTOR_RL"):
            hcp_image(results / name / f"{name}.nii.gz", 0.72, "sec")
            (results / name / f"{name}_hp2000_clean.nii.gz").touch()
            (results / name / "brainmask_fs.2.nii.gz").touch()
            (results / name / "Movement_Regressors.txt").touch()
        (results / "rfMRI_REST").mkdir()
        (root / folder / "MNINonLinear" / "T1w_restore.2.nii.gz").touch()
    (root / "release-notes").mkdir()
    return root


def test_hcp_folders_are_runs_with_entities(hcp):
    runs = find_runs(hcp, QuerySettings())
    assert [run.stem for run in runs] == [
        "sub-100307_task-REST_dir-LR_run-1",
        "sub-100307_task-MOTOR_dir-RL",
        "sub-HCA6002236_ses-V1_task-REST_dir-LR_run-1",
        "sub-HCA6002236_ses-V1_task-MOTOR_dir-RL",
    ]
    derived = runs[0].derived
    assert derived.bold.name == "rfMRI_REST1_LR.nii.gz"
    assert derived.space == "MNI152NLin6Asym"
    assert (derived.mask.name, derived.t1w.name) == ("brainmask_fs.2.nii.gz", "T1w_restore.2.nii.gz")
    assert derived.confounds.name == "Movement_Regressors.txt"
    assert runs[0].metadata == {}
    assert only(hcp, participants=("100307",), tasks=("MOTOR",)).stem == runs[1].stem
    assert main_dataset(hcp) == "hcp"


def test_header_without_time_unit_is_read_in_seconds_with_a_note(hcp):
    hcp_image(hcp / "100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR.nii.gz", 0.72, "unknown")
    run = only(hcp, participants=("100307",), tasks=("REST",))
    assert run.metadata == {"RepetitionTime": pytest.approx(0.72)}
    assert any("no unit" in note for note in run.notes)


@pytest.mark.parametrize(
    ("name", "entities"),
    [
        ("rfMRI_REST2_RL", {"task": "REST", "dir": "RL", "run": "2"}),
        ("tfMRI_WM_LR", {"task": "WM", "dir": "LR"}),
        ("rfMRI_REST1_7T_PA", {"task": "REST", "acq": "7T", "dir": "PA", "run": "1"}),
        ("tfMRI_MOVIE3_7T_PA", {"task": "MOVIE", "acq": "7T", "dir": "PA", "run": "3"}),
        ("rfMRI_REST", {"task": "REST"}),
    ],
)
def test_hcp_run_names_become_entities(name, entities):
    assert run_entities(name) == entities


def test_hcp_folder_names_become_entities():
    assert folder_entities("100307") == {"sub": "100307"}
    assert folder_entities("HCD0001305_V1_MR") == {"sub": "HCD0001305", "ses": "V1"}


MINIMAL_FILES = {
    "anat/{}_desc-preproc_T1w": ("nii.gz", "json"),
    "anat/{}_desc-brain_mask": ("nii.gz", "json"),
    "anat/{}_from-T1w_to-MNI152NLin6Asym_mode-image_xfm": ("h5",),
    "anat/{}_from-T1w_to-fsnative_mode-image_xfm": ("txt",),
    "anat/{}_hemi-L_space-fsLR_desc-msmsulc_sphere.surf": ("gii",),
    "anat/{}_desc-ribbon_mask": ("nii.gz", "json"),
    "func/{}_task-flicker_dir-AP_run-01_desc-hmc_boldref": ("nii.gz", "json"),
    "func/{}_task-flicker_dir-AP_run-01_desc-coreg_boldref": ("nii.gz", "json"),
    "func/{}_task-flicker_dir-AP_run-01_from-orig_to-boldref_mode-image_desc-hmc_xfm": ("txt", "json"),
    "func/{}_task-flicker_dir-AP_run-01_from-boldref_to-T1w_mode-image_desc-coreg_xfm": ("txt", "json"),
    "func/{}_task-flicker_dir-PA_run-01_desc-hmc_boldref": ("nii.gz", "json"),
}
"""Outputs of fMRIPrep 23.2 with --level minimal, of a session."""


@pytest.fixture
def minimal(dataset):
    """fMRIPrep's output at its minimal level, with two runs."""
    label = "sub-03_ses-scan1"
    names = [f"sub-03/ses-scan1/{name.format(label)}.{end}" for name, ends in MINIMAL_FILES.items() for end in ends]
    sidecars = {name: {"RawSources": [f"/data/sub-03/{label}_bold.nii.gz"]} for name in names if name.endswith(".json")}
    return dataset("fmriprep", *names, contents=sidecars.items())


def test_the_minimal_level_is_named_with_what_to_run_instead(minimal):
    with pytest.raises(InvalidBIDSError, match=r"2 runs of fMRIPrep 23\.2\.1, .*--level minimal") as error:
        find_runs(minimal, QuerySettings())
    assert "\n" not in error.value.message
    assert "--level full --output-spaces MNI152NLin6Asym:res-2" in error.value.hint
    assert "raw dataset" in error.value.hint


def test_with_derivatives_at_the_minimal_level_a_run_is_preprocessed_and_the_reason_is_noted(minimal, dataset):
    bold = "sub-03/ses-scan1/func/sub-03_ses-scan1_task-flicker_dir-AP_run-1_bold.nii.gz"
    raw = dataset("raw", bold, description=RAW)
    (raw / bold).write_bytes(b"image")
    run = only(raw, derivatives={"fmriprep": minimal})
    assert run.derived is None
    assert [note for note in run.notes if "'fmriprep' contain this run only as a boldref" in note]


def test_a_boldref_of_a_run_with_a_series_is_no_minimal_level(dataset):
    root = dataset("fmriprep", BOLD, f"{STEM}_desc-coreg_boldref.nii.gz")
    assert only(root).derived.bold.name == Path(BOLD).name
