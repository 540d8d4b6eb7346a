"""Query of raw BIDS datasets: runs, their files, and errors without a match."""

import gzip
import json
import logging
import os
import pickle
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.query import check_dataset, find_runs, list_participants
from bids_app.errors import BadDataError, InputOutputError, InvalidBIDSError, NoInputError, NoMatchError, UsageError
from bids_app.settings import QuerySettings
from bids_app.workflow.plan import without_new_database
from tests.helpers.odd_files import ODD_FILES

DESCRIPTION = {"Name": "test", "BIDSVersion": "1.10.0"}


def image_bytes(voxel_mm=3.0, shape=(2, 2, 2)):
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1])
    return gzip.compress(nib.Nifti1Image(np.zeros(shape, np.uint8), affine).to_bytes(), mtime=0)


IMAGE = image_bytes()


@pytest.fixture
def make_dataset(tmp_path):
    """Return a function that creates a dataset; a dict becomes JSON, None an image, bytes and text stay as they are."""

    def make(*images, description=DESCRIPTION, **files):
        root = tmp_path / "dataset"
        contents = {**dict.fromkeys(images), **{k.replace("__", "/"): v for k, v in files.items()}}
        if description is not None:
            contents["dataset_description.json"] = description
        root.mkdir(exist_ok=True)
        for name, content in contents.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = IMAGE if content is None else json.dumps(content) if isinstance(content, dict) else content
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return root

    return make


REST = "sub-01/func/sub-01_task-rest_bold.nii.gz"
T1W = "sub-01/anat/sub-01_T1w.nii.gz"


def only_run(root, **settings):
    (run,) = find_runs(root, QuerySettings(**settings))
    return run


def test_run_has_t1w_sidecar_and_events(make_dataset):
    root = make_dataset(
        REST, T1W, **{
            "sub-01/func/sub-01_task-rest_bold.json": {"RepetitionTime": 2.0},
            "sub-01/func/sub-01_task-rest_events.tsv": "onset\tduration\n1\t2\n",
        }
    )  # fmt: skip
    run = only_run(root)
    assert run.bold == root / REST
    assert run.t1w == root / T1W
    assert run.entities == {"sub": "01", "task": "rest"}
    assert run.metadata == {"RepetitionTime": 2.0}
    assert run.events == root / "sub-01/func/sub-01_task-rest_events.tsv"
    assert run.notes == ()
    assert run.problem is None
    assert (run.stem, run.folder, run.participant) == ("sub-01_task-rest", "sub-01/func", "01")


def test_stem_and_folder_include_session_and_run(make_dataset):
    root = make_dataset("sub-01/ses-a/func/sub-01_ses-a_task-rest_dir-AP_run-02_bold.nii")
    run = only_run(root)
    assert run.stem == "sub-01_ses-a_task-rest_dir-AP_run-02"
    assert run.folder == "sub-01/ses-a/func"


def test_runs_are_in_natural_order(make_dataset):
    root = make_dataset(*(f"sub-{n}/func/sub-{n}_task-rest_bold.nii.gz" for n in (10, 2, 1)))
    assert [run.participant for run in find_runs(root, QuerySettings())] == ["1", "2", "10"]
    assert list_participants(root) == ["1", "2", "10"]


def test_runs_can_be_pickled(make_dataset):
    run = only_run(make_dataset(REST))
    assert pickle.loads(pickle.dumps(run)) == run


def test_sidecars_of_four_levels_are_merged_and_the_most_specific_wins(make_dataset):
    folder = "sub-01/ses-a/func/"
    root = make_dataset(
        folder + "sub-01_ses-a_task-rest_run-1_bold.nii.gz",
        **{
            "task-rest_bold.json": {"A": 1, "B": 1, "C": 1, "D": 1},
            "sub-01/sub-01_task-rest_bold.json": {"B": 2, "C": 2, "D": 2},
            "sub-01/ses-a/sub-01_ses-a_task-rest_bold.json": {"C": 3, "D": 3},
            folder + "sub-01_ses-a_task-rest_run-1_bold.json": {"D": 4},
            "task-motor_bold.json": {"A": "another task"},
            folder + "sub-01_ses-a_task-rest_run-2_bold.json": {"D": "another run"},
            folder + "sub-01_ses-a_task-rest_run-1_sbref.json": {"D": "another suffix"},
        },
    )
    assert only_run(root).metadata == {"A": 1, "B": 2, "C": 3, "D": 4}


def test_a_run_has_the_sidecars_whose_values_it_has(make_dataset):
    echoes = {f"sub-01__func__sub-01_task-rest_echo-{n}_bold.json": {"EchoTime": n / 80} for n in (1, 2, 3)}
    images = [name.replace("__", "/").replace(".json", ".nii.gz") for name in echoes]
    root = make_dataset(
        *images, REST.replace("rest", "nback"), **echoes, **{"task-rest_bold.json": {"RepetitionTime": 2}}
    )
    rest, nback = sorted(find_runs(root, QuerySettings()), key=lambda run: run.stem, reverse=True)
    names = [path.relative_to(root).as_posix() for path in rest.sidecars]
    assert names == ["task-rest_bold.json", *(name.replace("__", "/") for name in echoes)]
    assert nback.sidecars == ()


def test_events_are_inherited_from_the_root(make_dataset):
    root = make_dataset(REST, **{"task-rest_events.tsv": "onset\tduration\n", "task-motor_events.tsv": "onset\n"})
    assert only_run(root).events == root / "task-rest_events.tsv"


def echoes(times) -> dict:
    files = {}
    for echo, echo_time in enumerate(times, start=1):
        files[f"sub-01/func/sub-01_task-rest_echo-{echo}_bold.nii.gz"] = None
        files[f"sub-01/func/sub-01_task-rest_echo-{echo}_bold.json"] = {"EchoTime": echo_time}
    return files


@pytest.mark.parametrize("times", [(0.012, 0.028, 0.044), (12, 29, 46), (0.044, 0.012, 0.028)])
def test_three_echoes_are_combined_in_order_of_their_echo_times(make_dataset, times):
    run = only_run(make_dataset(**echoes(times)))
    order = [times.index(time) + 1 for time in sorted(times)]
    assert [path.name for path in run.echoes] == [f"sub-01_task-rest_echo-{n}_bold.nii.gz" for n in order]
    assert run.bold == run.echoes[0]
    assert run.echo_times == pytest.approx([t / 1000 if t > 1 else t for t in sorted(times)])
    assert run.stem == "sub-01_task-rest"
    assert "3 echoes were combined" in run.notes[0]


def test_of_two_echoes_that_nearest_30_ms_is_used_with_a_note(make_dataset):
    run = only_run(make_dataset(**echoes((0.03, 0.05))))
    assert "_echo-1_" in run.bold.name
    assert not run.echoes
    assert "Echo 1 of 2" in run.notes[0]
    assert "requires 3 echoes" in run.notes[0]
    assert run.metadata["EchoTime"] == 0.03


def test_a_single_echo_is_used_on_request(make_dataset):
    root = make_dataset(**echoes((0.012, 0.028, 0.044)))
    run = only_run(root, echo=3)
    assert "_echo-3_" in run.bold.name
    assert not run.echoes
    problem = only_run(root, echo=4).problem
    assert "no echo 4" in problem.message
    assert "--echo-idx" in problem.hint


TWO_SESSIONS = [
    f"sub-01/ses-{session}/{kind}/sub-01_ses-{session}_{suffix}.nii.gz"
    for session in ("a", "b")
    for kind, suffix in (("anat", "T1w"), ("func", "task-rest_bold"))
]


@pytest.mark.parametrize(
    ("reference", "t1ws", "repeats"),
    [("sessionwise", ["a", "b"], [[], []]), ("first", ["a", "a"], [[], []]), ("average", ["a", "a"], [["b"], ["b"]])],
)
def test_the_anatomical_reference_of_sessions(make_dataset, reference, t1ws, repeats):
    runs = find_runs(make_dataset(*TWO_SESSIONS), QuerySettings(anatomical_reference=reference))
    assert [run.t1w.name for run in runs] == [f"sub-01_ses-{session}_T1w.nii.gz" for session in t1ws]
    found = [[path.name for path in run.t1w_repeats] for run in runs]
    assert found == [[f"sub-01_ses-{session}_T1w.nii.gz" for session in sessions] for sessions in repeats]


def test_second_echo_is_used_without_echo_times(make_dataset):
    run = only_run(make_dataset(*(f"sub-01/func/sub-01_task-rest_echo-{n}_bold.nii.gz" for n in (1, 2, 3))))
    assert "_echo-2_" in run.bold.name
    assert "EchoTime is missing" in run.notes[0]


def test_echoes_with_the_same_echo_time_or_one_without_are_not_combined(make_dataset):
    run = only_run(make_dataset(**echoes((0.03, 0.03, 0.03))))
    assert not run.echoes
    assert "echo times are equal" in run.notes[0]
    run = only_run(make_dataset(**echoes((0.012, "0.03", 0.044))))
    assert not run.echoes
    assert "no number for sub-01_task-rest_echo-2_bold.nii.gz" in run.notes[0]


def test_the_sbref_of_a_run_has_its_entities(make_dataset):
    start = "sub-01/func/sub-01_task-rest"
    root = make_dataset(f"{start}_run-1_bold.nii.gz", f"{start}_run-1_sbref.nii.gz", f"{start}_run-2_bold.nii.gz")
    first, second = find_runs(root, QuerySettings())
    assert first.sbref == root / f"{start}_run-1_sbref.nii.gz"
    assert second.sbref is None


def test_phase_images_and_sbrefs_are_not_runs(make_dataset):
    start = "sub-01/func/sub-01_task-rest"
    names = ("part-mag_bold", "part-phase_bold", "sbref", "cbv")
    run = only_run(make_dataset(*(f"{start}_{name}.nii.gz" for name in names), "sub-01/fmap/sub-01_dir-AP_epi.nii.gz"))
    assert run.bold.name == "sub-01_task-rest_part-mag_bold.nii.gz"
    assert run.stem == "sub-01_task-rest"


def test_duplicate_image_is_one_run_with_a_note(make_dataset):
    run = only_run(make_dataset(REST, REST.removesuffix(".gz")))
    assert run.bold.name.endswith(".nii.gz")
    assert "instead of" in run.notes[0]


def test_images_with_derived_entities_are_not_raw_runs(make_dataset):
    root = make_dataset(REST, "sub-01/func/sub-01_task-rest_space-MNI_desc-preproc_bold.nii.gz")
    assert only_run(root).bold == root / REST


def test_nested_derivatives_and_sourcedata_are_ignored(make_dataset):
    root = make_dataset(REST, f"derivatives/fmriprep/{REST}", f"sourcedata/{REST}", f"code/{REST}", f".hidden/{REST}")
    assert only_run(root).bold == root / REST


def test_t1w_of_the_same_session_is_preferred(make_dataset):
    root = make_dataset(
        *(f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" for s in "ab"),
        "sub-01/ses-b/func/sub-01_ses-b_task-rest_bold.nii.gz",
    )
    run = only_run(root)
    assert run.t1w.name == "sub-01_ses-b_T1w.nii.gz"
    assert run.notes == ()


def test_t1w_of_another_session_is_used_with_a_note(make_dataset):
    root = make_dataset(
        *(f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" for s in ("2", "10")),
        "sub-01/ses-11/func/sub-01_ses-11_task-rest_bold.nii.gz",
    )
    run = only_run(root, sessions=("11",))
    assert run.t1w.name == "sub-01_ses-2_T1w.nii.gz"
    assert "ses-11 has no T1w image" in run.notes[0]


def test_t1w_of_another_participant_is_not_used(make_dataset):
    root = make_dataset(REST, "sub-02/anat/sub-02_T1w.nii.gz", "sub-010/anat/sub-010_T1w.nii.gz")
    run = only_run(root)
    assert run.t1w is None


def test_t1w_with_smallest_voxels_and_no_contrast_agent_is_used(make_dataset):
    folder = "sub-01/anat/sub-01_"
    root = make_dataset(
        REST, **{
            folder + "acq-fine_ce-gad_T1w.nii.gz": image_bytes(0.5),
            folder + "acq-inplane_T1w.nii.gz": image_bytes(2.0),
            folder + "run-1_T1w.nii.gz": image_bytes(1.0),
            folder + "run-2_T1w.nii.gz": image_bytes(1.0),
            folder + "acq-broken_T1w.nii.gz": b"not an image",
        }
    )  # fmt: skip
    run = only_run(root)
    assert run.t1w.name == "sub-01_run-1_T1w.nii.gz"
    assert "out of 5 T1w images" in run.notes[0]
    assert [path.name for path in run.t1w_repeats] == ["sub-01_run-2_T1w.nii.gz"]
    assert "was averaged with sub-01_run-2_T1w.nii.gz" in run.notes[1]


def test_only_repeats_with_content_are_averaged(make_dataset):
    root = make_dataset(
        "sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz", **{
            f"sub-01/ses-{name}_T1w.nii.gz": content
            for name, content in {
                "a/anat/sub-01_ses-a_run-1": image_bytes(1.0),
                "a/anat/sub-01_ses-a_rec-norm_run-1": image_bytes(1.0),
                "a/anat/sub-01_ses-a_run-2": b"/annex/objects/MD5E-s1--0.nii.gz",
                "a/anat/sub-01_ses-a_run-3": image_bytes(1.0),
                "b/anat/sub-01_ses-b_run-1": image_bytes(1.0),
            }.items()
        }
    )  # fmt: skip
    run = only_run(root)
    assert {run.t1w.name, *(path.name for path in run.t1w_repeats)} in (
        {"sub-01_ses-a_run-1_T1w.nii.gz", "sub-01_ses-a_run-3_T1w.nii.gz"},
        {"sub-01_ses-a_rec-norm_run-1_T1w.nii.gz"},
    )


def test_participants_sessions_and_tasks_are_selected(make_dataset):
    root = make_dataset(
        *(
            f"sub-{p}/ses-{s}/func/sub-{p}_ses-{s}_task-{t}_bold.nii.gz"
            for p in ("01", "02") for s in ("a", "b") for t in ("rest", "nback")
        )
    )  # fmt: skip
    settings = QuerySettings(participants=("02",), sessions=("b",), tasks=("rest",))
    assert [run.stem for run in find_runs(root, settings)] == ["sub-02_ses-b_task-rest"]
    assert len(find_runs(root, QuerySettings())) == 8


FILTERED = tuple(f"sub-01/func/sub-01_task-rest{x}_bold.nii.gz" for x in ("", "_acq-hi", "_acq-lo", "_run-01"))


@pytest.mark.parametrize(
    ("filters", "stems"),
    [
        ({"acquisition": "hi"}, ["_acq-hi"]),
        ({"acquisition": ["hi", "lo"]}, ["_acq-hi", "_acq-lo"]),
        ({"acquisition": "*"}, ["_acq-hi", "_acq-lo"]),
        ({"acquisition": None}, ["", "_run-01"]),
        ({"acquisition": None, "run": None}, [""]),
        ({"acquisition": ["hi", None], "run": None}, ["", "_acq-hi"]),
        ({"run": 1}, ["_run-01"]),
        ({"acquisition": "h.*", "regex_search": True}, ["_acq-hi"]),
        ({}, ["", "_acq-hi", "_acq-lo", "_run-01"]),
    ],
)
def test_filter_files_select_as_pybids_does(make_dataset, filters, stems):
    runs = find_runs(make_dataset(*FILTERED), QuerySettings(filters={"bold": filters}))
    assert {run.stem for run in runs} == {"sub-01_task-rest" + stem for stem in stems}


def test_filters_for_other_apps_are_ignored(make_dataset):
    filters = {name: {"session": "x"} for name in ("flair", "t2w", "dwi")}
    assert only_run(make_dataset(REST, T1W), filters=filters).t1w.name == "sub-01_T1w.nii.gz"


def test_the_t1w_can_be_filtered(make_dataset):
    root = make_dataset(REST, *(f"sub-01/anat/sub-01_acq-{a}_T1w.nii.gz" for a in ("mprage", "mp2rage")))
    assert only_run(root, filters={"t1w": {"acquisition": "mprage"}}).t1w.name == "sub-01_acq-mprage_T1w.nii.gz"


def test_the_sbref_and_the_lesion_mask_can_be_filtered(make_dataset):
    sbref, lesion = "sub-01/func/sub-01_task-rest_sbref.nii.gz", "sub-01/anat/sub-01_label-lesion_roi.nii.gz"
    root = make_dataset(REST, T1W, sbref, lesion)
    run = only_run(root)
    assert (run.sbref, run.lesion) == (root / sbref, root / lesion)
    for kind in ("sbref", "roi"):
        run = only_run(root, filters={kind: {"session": "x"}})
        assert (run.sbref is None, run.lesion is None) == (kind == "sbref", kind == "roi")


def test_a_filter_with_an_unknown_entity_is_a_usage_error(make_dataset):
    with pytest.raises(UsageError, match="'sesion' is not a recognized entity"):
        find_runs(make_dataset(REST), QuerySettings(filters={"bold": {"sesion": "a"}}))


def test_filters_without_a_match_raise(make_dataset):
    with pytest.raises(NoMatchError, match="matches the filters") as caught:
        find_runs(make_dataset(REST), QuerySettings(filters={"bold": {"acquisition": "x"}}))
    assert caught.value.exit_code == 18


def test_missing_dataset_raises(tmp_path):
    with pytest.raises(NoInputError, match="no such folder"):
        find_runs(tmp_path / "nowhere", QuerySettings())


def test_file_as_dataset_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NoInputError, match="is a file"):
        find_runs(tmp_path / "file", QuerySettings())


def test_missing_description_hints_at_a_nearby_root(make_dataset):
    root = make_dataset(REST)
    with pytest.raises(InvalidBIDSError, match=r"no dataset_description\.json") as caught:
        find_runs(root / "sub-01", QuerySettings())
    assert f"There is one in {root}" in caught.value.hint
    assert caught.value.exit_code == 16


def test_missing_description_hints_at_its_content(make_dataset):
    with pytest.raises(InvalidBIDSError) as caught:
        find_runs(make_dataset(REST, description=None), QuerySettings())
    assert "BIDSVersion" in caught.value.hint


@pytest.mark.parametrize("content", ['{"Name": ', b'{"Name": "\xe9"}', "[]", ""])
def test_broken_description_raises(make_dataset, content):
    with pytest.raises(InvalidBIDSError, match=r"dataset_description\.json"):
        find_runs(make_dataset(REST, description=content), QuerySettings())


@pytest.mark.parametrize("content", [None, '{"Name": ', "[]"])
def test_skipped_validation_accepts_a_missing_description(make_dataset, content, caplog):
    root = make_dataset(REST, description=content)
    (run,) = find_runs(root, QuerySettings(skip_bids_validation=True))
    assert run.stem == "sub-01_task-rest"
    assert "--skip-bids-validation" in caplog.text


def test_skipped_validation_still_requires_participants(tmp_path):
    with pytest.raises(InvalidBIDSError, match="no participants"):
        find_runs(tmp_path, QuerySettings(skip_bids_validation=True))


def test_description_with_a_byte_order_mark_is_read(make_dataset):
    root = make_dataset(REST, description=b"\xef\xbb\xbf" + json.dumps(DESCRIPTION).encode())
    assert check_dataset(root) == DESCRIPTION
    assert only_run(root).stem == "sub-01_task-rest"


def test_description_without_name_and_version_is_enough(make_dataset):
    assert only_run(make_dataset(REST, description={"Authors": []})).stem == "sub-01_task-rest"


def test_unusable_derivatives_raise(make_dataset):
    with pytest.raises(InvalidBIDSError, match="derivative") as caught:
        find_runs(make_dataset(REST, description={**DESCRIPTION, "DatasetType": "derivative"}), QuerySettings())
    assert "--derivatives" in caught.value.hint


def test_dataset_without_participants_raises(make_dataset):
    with pytest.raises(InvalidBIDSError, match="no participants"):
        find_runs(make_dataset("participants.tsv"), QuerySettings())


def test_missing_participants_raise(make_dataset):
    with pytest.raises(NoMatchError, match="no folder for sub-07, sub-08") as caught:
        find_runs(make_dataset(REST), QuerySettings(participants=("01", "07", "08")))
    assert "sub-01" in caught.value.hint


@pytest.mark.parametrize("path", ["sub-01/pet/sub-01_pet.nii.gz", "sub-01/eeg/sub-01_task-rest_eeg.edf", T1W])
def test_dataset_without_bold_raises(make_dataset, path):
    with pytest.raises(NoMatchError, match="no BOLD image of sub-01"):
        find_runs(make_dataset(path), QuerySettings())


@pytest.mark.parametrize(("settings", "name"), [({"sessions": ("z",)}, "ses-z"), ({"tasks": ("z",)}, "task-z")])
def test_missing_sessions_and_tasks_raise(make_dataset, settings, name):
    with pytest.raises(NoMatchError, match=name):
        find_runs(make_dataset(REST), QuerySettings(**settings))


def test_one_missing_task_of_two_raises(make_dataset):
    with pytest.raises(NoMatchError, match="task-nback") as caught:
        find_runs(make_dataset(REST), QuerySettings(tasks=("rest", "nback")))
    assert "task-rest" in caught.value.hint


def test_requested_participant_without_bold_raises(make_dataset):
    root = make_dataset(REST, "sub-02/anat/sub-02_T1w.nii.gz")
    with pytest.raises(NoMatchError, match="sub-02"):
        find_runs(root, QuerySettings(participants=("01", "02")))


def test_participant_without_bold_is_skipped_with_a_warning(make_dataset, caplog):
    with caplog.at_level(logging.WARNING):
        run = only_run(make_dataset(REST, "sub-02/anat/sub-02_T1w.nii.gz"))
    assert run.participant == "01"
    assert "sub-02" in caplog.text


def test_content_not_fetched_by_datalad_is_a_problem(make_dataset):
    root = make_dataset(T1W)
    (root / "sub-01/func").mkdir()
    (root / REST).symlink_to("../../.git/annex/objects/xx/SHA256E-s1.nii.gz")
    with pytest.raises(NoInputError, match=r"sub-01_task-rest_bold\.nii\.gz") as caught:
        raise only_run(root).problem
    assert "datalad get" in caught.value.hint
    assert caught.value.exit_code == 66


def test_annex_pointer_is_a_problem(make_dataset):
    root = make_dataset(**{REST: b"/annex/objects/SHA256E-s9--0123.nii.gz\n"})
    with pytest.raises(NoInputError, match="has not been fetched"):
        raise only_run(root).problem


def test_missing_run_does_not_affect_other_runs(make_dataset):
    root = make_dataset(REST)
    (root / "sub-01/func/sub-01_task-nback_bold.nii.gz").symlink_to("nowhere")
    lost, kept = find_runs(root, QuerySettings())
    assert isinstance(lost.problem, NoInputError)
    assert kept.problem is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"TaskName": "caf\xe9"}', r"not UTF-8 \(byte 17 is 0xe9\)"),
        ('{"TaskName": "rest",}', "not valid JSON"),
        ("[1, 2]", "a JSON list instead of an object"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_sidecar_is_a_problem_of_its_run_only(make_dataset, content, message):
    sidecar = "sub-01/func/sub-01_task-rest_bold.json"
    root = make_dataset(REST, "sub-02/func/sub-02_task-rest_bold.nii.gz", **{sidecar: content})
    broken, whole = find_runs(root, QuerySettings())
    assert isinstance(broken.problem, BadDataError)
    assert sidecar in broken.problem.message
    with pytest.raises(BadDataError, match=message):
        raise broken.problem
    assert whole.problem is None


def test_file_in_the_wrong_folder_is_a_problem(make_dataset):
    wrong = "sub-01/func/sub-02_task-rest_bold.nii.gz"
    with pytest.raises(InvalidBIDSError, match="does not start with sub-01_"):
        raise only_run(make_dataset(wrong)).problem


def test_folders_with_invalid_labels_are_skipped_with_a_warning(make_dataset, caplog):
    root = make_dataset(REST, "sub-01_old/func/sub-01_old_task-rest_bold.nii.gz", "sub-Jürg/func/x_bold.nii.gz")
    with caplog.at_level(logging.WARNING):
        assert only_run(root).bold == root / REST
    assert "sub-01_old" in caplog.text
    assert "sub-Jürg" in caplog.text


@pytest.mark.parametrize(
    "place", ["sub-99 données #1 (ü)", "sub-99/ses-x/anat/raw", "run-5_task-b/func/_acq-x_bold.nii"]
)
def test_a_dataset_in_a_folder_with_any_name_is_read(make_dataset, tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    root = make_dataset(REST, T1W).rename(tmp_path / place)
    filters = {"bold": {"task": "rest", "session": None, "run": None, "acquisition": None}}
    run = only_run(root, participants=("01",), filters=filters)
    assert run.participant == "01"
    assert run.t1w is not None


def test_file_name_that_is_not_utf8_raises(make_dataset):
    root = make_dataset(REST)
    with open(os.fsencode(root / "sub-01/func") + b"/sub-01_task-\xff_bold.nii.gz", "wb") as file:
        file.write(IMAGE)
    with pytest.raises(InvalidBIDSError, match="not valid UTF-8"):
        find_runs(root, QuerySettings())


def test_loops_of_links_are_ignored(make_dataset):
    root = make_dataset(REST)
    (root / "sub-01/func/loop").symlink_to("..")
    assert only_run(root).bold == root / REST


def test_session_linked_to_its_participant_is_a_problem(make_dataset):
    root = make_dataset(REST)
    (root / "sub-01/ses-loop").symlink_to(".")
    whole, looped = find_runs(root, QuerySettings())
    assert whole.problem is None
    assert isinstance(looped.problem, InvalidBIDSError)


def test_a_dataset_of_links_is_read(make_dataset, tmp_path):
    root = make_dataset(REST, T1W)
    (tmp_path / "linked").mkdir()
    for entry in root.iterdir():
        (tmp_path / "linked" / entry.name).symlink_to(entry)
    assert only_run(tmp_path / "linked").bold == tmp_path / "linked" / REST


def test_relative_paths_become_absolute(make_dataset, monkeypatch):
    root = make_dataset(REST)
    monkeypatch.chdir(root.parent)
    assert only_run(Path("dataset")).bold == root / REST


def test_database_covers_every_participant(make_dataset, tmp_path):
    root = make_dataset(REST, "sub-02/func/sub-02_task-rest_bold.nii.gz", "sub-03/anat/sub-03_T1w.nii.gz")
    for label in ("01", "02"):
        assert only_run(root, participants=(label,), database_dir=tmp_path / "database").participant == label


def test_broken_database_raises(make_dataset, tmp_path):
    (tmp_path / "layout_index.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(InputOutputError, match="cannot be used as the dataset's index"):
        find_runs(make_dataset(REST), QuerySettings(database_dir=tmp_path))


def test_a_database_of_another_dataset_or_path_is_refused_by_name(make_dataset, tmp_path):
    root, database = make_dataset(REST), tmp_path / "database"
    find_runs(root, QuerySettings(database_dir=database))
    for other in (tmp_path / "moved", tmp_path / "link"):
        shutil.copytree(root, other) if other.name == "moved" else other.symlink_to(root)
        with pytest.raises(UsageError, match=f"database: is the index of {root}, not of {other}"):
            find_runs(other, QuerySettings(database_dir=database))
        find_runs(other, QuerySettings(database_dir=tmp_path / f"database of {other.name}"))


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_database_that_is_no_regular_file_is_named(make_dataset, tmp_path, kind):
    make, words = ODD_FILES[kind]
    make(tmp_path / "layout_index.sqlite")
    with pytest.raises(NoInputError, match=rf"layout_index\.sqlite: .*{words}"):
        find_runs(make_dataset(REST), QuerySettings(database_dir=tmp_path))


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a loop of links"])
def test_a_database_folder_that_is_no_folder_is_named(make_dataset, tmp_path, kind):
    make, _ = ODD_FILES[kind]
    make(tmp_path / "database")
    query = QuerySettings(database_dir=tmp_path / "database")
    assert without_new_database(query) == query  # --check names it, too
    with pytest.raises(NoInputError, match="database: is no folder"):
        find_runs(make_dataset(REST), query)


def test_one_of_a_thousand_participants_is_found_quickly(make_dataset):
    root = make_dataset(*(f"sub-{n:04}/func/sub-{n:04}_task-rest_bold.nii.gz" for n in range(1000)))
    find_runs(root, QuerySettings(participants=("0001",)))  # imports pybids
    start = time.perf_counter()
    assert only_run(root, participants=("0500",)).participant == "0500"
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "name", ["sub-01_label-lesion_roi", "sub-01_T1w_label-lesion_roi", "sub-01_desc-lesion_roi", "sub-01_lesion_roi"]
)
def test_the_lesion_mask_next_to_the_t1w_is_found(make_dataset, name):
    run = only_run(make_dataset(REST, T1W, f"sub-01/anat/{name}.nii.gz"))
    assert run.lesion.name == f"{name}.nii.gz"
    assert any(run.lesion.name in note for note in run.notes)


def test_rois_and_lesions_of_other_images_are_no_lesion_of_the_t1w(make_dataset):
    others = ("label-tumour_roi", "acq-highres_label-lesion_roi", "label-lesion_mask")
    run = only_run(make_dataset(REST, T1W, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in others)))
    assert run.lesion is None


def test_the_lesion_mask_with_the_entities_of_the_t1w_is_preferred(make_dataset):
    t1w = "sub-01/anat/sub-01_acq-highres_T1w.nii.gz"
    masks = [f"sub-01/anat/sub-01_{name}label-lesion_roi.nii.gz" for name in ("", "acq-highres_")]
    assert only_run(make_dataset(REST, t1w, *masks)).lesion.name == "sub-01_acq-highres_label-lesion_roi.nii.gz"
