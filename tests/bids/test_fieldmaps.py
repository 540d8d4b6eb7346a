"""Selection of fieldmaps, and notes about unused ones."""

import json
from pathlib import Path

import pytest

from bids_app.bids.fieldmaps import Fieldmap, opposite
from bids_app.bids.query import BoldRun, find_runs
from bids_app.bids.sidecars import read_direction
from bids_app.settings import QuerySettings

REST = "sub-01/func/sub-01_task-rest_bold"
AP, PA = "sub-01/fmap/sub-01_dir-AP_epi", "sub-01/fmap/sub-01_dir-PA_epi"


@pytest.fixture
def find(tmp_path: Path):
    """Return a function that writes images with sidecars (None: no JSON) and finds the runs."""

    def make(images: dict[str, dict | str | None], **settings) -> list[BoldRun]:
        (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
        for name, sidecar in images.items():
            path = tmp_path / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"not opened")
            if sidecar is not None:
                text = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
                path.with_name(path.name.replace(".nii.gz", ".json")).write_text(text)
        return find_runs(tmp_path, QuerySettings(**settings))

    return make


def epi(direction: str, intended="func/sub-01_task-rest_bold.nii.gz", **more) -> dict:
    return {"PhaseEncodingDirection": direction, "IntendedFor": intended, "TotalReadoutTime": 0.05, **more}


def names(fieldmap: Fieldmap | None) -> list[str]:
    assert fieldmap is not None
    return [path.name.removesuffix(".nii.gz") for path in fieldmap.files]


@pytest.mark.parametrize(
    "intended",
    [
        "func/sub-01_task-rest_bold.nii.gz",
        "bids::sub-01/func/sub-01_task-rest_bold.nii.gz",
        "bids:raw:sub-01/func/sub-01_task-rest_bold.nii.gz",
        ["func/sub-01_task-other_bold.nii.gz", "func/sub-01_task-rest_bold.nii.gz"],
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "func/sub-01_task-rest_bold.nii",
    ],
)
def test_epi_pair_is_found_by_intended_for(find, intended):
    (run,) = find({REST: {"PhaseEncodingDirection": "j-"}, AP: epi("j", intended), PA: epi("j-", intended)})
    assert run.fieldmap.kind == "pepolar"
    assert names(run.fieldmap) == [
        "sub-01_dir-PA_epi",
        "sub-01_dir-AP_epi",
    ]  # first the EPI with the run's phase encoding
    assert run.fieldmap.metadata[0]["PhaseEncodingDirection"] == "j-"
    assert run.notes == ()


def test_b0_identifiers_have_precedence_over_intended_for(find):
    bold = {"PhaseEncodingDirection": "j", "B0FieldSource": ["two", "three"]}
    images = {
        "sub-01/fmap/sub-01_acq-a_dir-AP_epi": epi("j", B0FieldIdentifier="one"),
        "sub-01/fmap/sub-01_acq-a_dir-PA_epi": epi("j-", B0FieldIdentifier="one"),
        "sub-01/fmap/sub-01_acq-b_dir-AP_epi": epi("j", [], B0FieldIdentifier="two"),
        "sub-01/fmap/sub-01_acq-b_dir-PA_epi": epi("j-", [], B0FieldIdentifier=["two", "x"]),
    }
    (run,) = find({REST: bold, **images})
    assert names(run.fieldmap) == ["sub-01_acq-b_dir-AP_epi", "sub-01_acq-b_dir-PA_epi"]


def test_shared_identifier_applies_within_a_session(find):
    images = {}
    for session in ("a", "b"):
        start = f"sub-01/ses-{session}/{{}}/sub-01_ses-{session}_"
        images[start.format("func") + "task-rest_bold"] = {"PhaseEncodingDirection": "j", "B0FieldSource": "f"}
        for direction, label in (("j", "AP"), ("j-", "PA")):
            images[start.format("fmap") + f"dir-{label}_epi"] = epi(direction, [], B0FieldIdentifier="f")
    for run in find(images):
        assert all(f"_ses-{run.entities['ses']}_" in name for name in names(run.fieldmap))


def test_epis_of_one_pair_have_the_same_run_label(find):
    images = {
        f"sub-01/fmap/sub-01_dir-{label}_run-{run}_epi": epi(direction)
        for run in (1, 2)
        for label, direction in (("AP", "j"), ("PA", "j-"))
    }
    (run,) = find({REST: {"PhaseEncodingDirection": "j-"}, **images})
    assert names(run.fieldmap) == ["sub-01_dir-PA_run-1_epi", "sub-01_dir-AP_run-1_epi"]


def test_single_epi_with_opposite_direction_is_used(find):
    (run,) = find({REST: {"PhaseEncodingDirection": "j-"}, AP: epi("j")})
    assert names(run.fieldmap) == ["sub-01_dir-AP_epi"]


def test_single_epi_with_the_same_direction_is_not_used(find):
    (run,) = find({REST: {"PhaseEncodingDirection": "j"}, AP: epi("j")})
    assert run.fieldmap is None
    assert "no EPI has the opposite direction (available: j; the run: j)" in " ".join(run.notes)


def test_intended_for_one_echo_applies_to_all_echoes(find):
    echoes = {f"sub-01/func/sub-01_task-rest_echo-{n}_bold": {"EchoTime": 0.01 * n} for n in (1, 2, 3)}
    intended = "func/sub-01_task-rest_echo-1_bold.nii.gz"
    (run,) = find({**echoes, AP: epi("j", intended), PA: epi("j-", intended)})
    assert [path.name for path in run.echoes] == [f"sub-01_task-rest_echo-{n}_bold.nii.gz" for n in (1, 2, 3)]
    assert len(run.fieldmap.files) == 2


@pytest.mark.parametrize(
    ("main", "companions", "kind"),
    [
        ("phasediff", ("magnitude1", "magnitude2"), "phasediff"),
        ("phasediff", ("magnitude1",), "phasediff"),
        ("phase1", ("phase2", "magnitude1", "magnitude2"), "phases"),
        ("fieldmap", ("magnitude",), "fieldmap"),
    ],
)
def test_measured_fields_have_their_companion_images(find, main, companions, kind):
    images = {f"sub-01/fmap/sub-01_{suffix}": None for suffix in companions}
    images[f"sub-01/fmap/sub-01_{main}"] = {"IntendedFor": "func/sub-01_task-rest_bold.nii.gz"}
    (run,) = find({REST: {}, **images})
    assert run.fieldmap.kind == kind
    assert names(run.fieldmap) == [f"sub-01_{suffix}" for suffix in (main, *companions)]


def test_phase_without_magnitude_is_not_used_with_a_note(find):
    (run,) = find({REST: {}, "sub-01/fmap/sub-01_phasediff": {"IntendedFor": "func/sub-01_task-rest_bold.nii.gz"}})
    assert run.fieldmap is None
    assert "sub-01_phasediff.nii.gz was not used: its magnitude1 image is missing." in run.notes


def test_fieldmaps_without_reference_to_the_run_give_a_note(find):
    (run,) = find({REST: {}, AP: {"PhaseEncodingDirection": "j"}, PA: {"PhaseEncodingDirection": "j-"}})
    assert run.fieldmap is None
    assert "No fieldmap refers to sub-01_task-rest_bold.nii.gz" in " ".join(run.notes)


def test_missing_phase_encoding_direction_gives_a_note(find):
    intended = "func/sub-01_task-rest_bold.nii.gz"
    (run,) = find({REST: {}, AP: {"IntendedFor": intended}, PA: epi("j")})
    assert "sub-01_dir-AP_epi.nii.gz was not used: its sidecar has no PhaseEncodingDirection." in run.notes


def test_broken_fieldmap_sidecar_is_no_problem_of_the_run(find):
    (run,) = find({REST: {}, AP: "{", PA: epi("j")})
    assert run.problem is None
    assert any("sub-01_dir-AP_epi" in note for note in run.notes)


def test_filters_apply_to_fieldmaps(find):
    images = {
        f"sub-01/fmap/sub-01_acq-{acq}_dir-{label}_epi": epi(direction)
        for acq in ("a", "b")
        for label, direction in (("AP", "j"), ("PA", "j-"))
    }
    (run,) = find({REST: {}, **images}, filters={"fmap": {"acquisition": "b"}})
    assert all("acq-b" in name for name in names(run.fieldmap))


def test_run_without_fieldmap_gives_no_note(find):
    (run,) = find({REST: {}})
    assert run.fieldmap is None
    assert run.notes == ()


def test_opposite_directions():
    assert [opposite(d) for d in ("j", "j-", "i")] == ["j-", "j", "i-"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("i", (0, 1.0)), ("j-", (1, -1.0)), ("k", (2, 1.0)), ("y", None), ("j--", None), (["j"], None)],
)
def test_direction_is_an_axis_and_a_sign(value, expected):
    assert read_direction(value) == expected
