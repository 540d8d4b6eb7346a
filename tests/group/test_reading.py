"""Reader of the derivatives: complete records, and broken files as faults."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from bids_app.group.cohort import read_phenotypes
from bids_app.group.reading import UNREADABLE, RunRecord, mean_rows, read_participant, read_participants
from bids_app.outputs.publish import write_manifest
from bids_app.outputs.schema import FileStamp, Manifest, manifest_path
from tests.helpers.odd_files import ODD_FILES


def truncate(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def embeddings_of(group, label):
    return next((group.out / f"sub-{label}").rglob("*_embeddings.tsv"))


def only(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_mean_vectors_equal_the_table(make_group):
    group = make_group(participants=1, sessions=1)
    path = embeddings_of(group, "01")
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    expected = {line[0]: np.array(line[4:], np.float32) for line in lines if line[1] == "mean"}
    (run,) = read_participant(group.out / "sub-01").runs
    assert {name for _, name in run.vectors} == {"global", "voxel"}
    for (_, name), vector in run.vectors.items():
        np.testing.assert_array_equal(vector.values, expected[name])
        assert vector.duration == 16.0 * group.study.clips
        assert vector.split_half == 0.95


def test_a_table_without_its_last_clip_is_truncated(make_group):
    group = make_group(participants=1, sessions=1)
    text = embeddings_of(group, "01").read_bytes()
    mean_rows(text)
    with pytest.raises(ValueError, match="truncated"):
        mean_rows(text[: text[:-1].rindex(b"\n") + 1])
    with pytest.raises(ValueError, match="truncated"):
        mean_rows(text[:-1])
    with pytest.raises(ValueError, match="truncated"):
        mean_rows(b"")


def test_a_label_named_mean_is_not_a_mean_row():
    table = b"clip\tonset\tduration\tlabel\tp_mean\tp_x\nmean\t0.0\t32.0\tmean\t0.9\t0.1\n"
    table += b"0\t0.0\t16.0\tmean\t0.9\t0.1\n1\t16.0\t16.0\tmean\t0.9\t0.1\n"
    _, rows = mean_rows(table)
    assert [row[0] for row in rows] == ["mean"]


def test_cells_may_be_quoted_and_lines_may_end_as_on_windows():
    table = b'clip\tonset\tduration\t"a ""label"""\r\nmean\t0.0\t16.0\t"x\ty"\r\n0\t0.0\t16.0\tx\r\n'
    assert mean_rows(table) == (["clip", "onset", "duration", 'a "label"'], [["mean", "0.0", "16.0", "x\ty"]])


def test_broken_files_are_listed_and_others_are_kept(make_group, section_text):
    group = make_group(participants=4, sessions=1)
    truncate(embeddings_of(group, "01"))
    next((group.out / "sub-02").rglob("*_metrics.json")).write_text('{"quality": ')
    next((group.out / "sub-03").rglob("*_predictions.json")).unlink()
    cohort = group.write_tables()
    rows = {row["participant_id"]: row for row in group.rows("group_runs.tsv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "sub-01": "unreadable", "sub-02": "unreadable", "sub-03": "unreadable", "sub-04": "ok",
    }  # fmt: skip
    assert "sub-01_task-rest_desc-made_embeddings.tsv: file is truncated" in rows["sub-01"]["reason"]
    assert "sub-02_task-rest_desc-quality_metrics.json" in rows["sub-02"]["reason"]
    assert rows["sub-03"]["reason"].endswith("desc-madeage_predictions.tsv: No such file or directory")
    assert [row["participant_id"] for row in group.rows("group_bold.tsv")] == ["sub-01", "sub-03", "sub-04"]
    assert {row["participant_id"] for row in group.rows("group_embeddings.tsv")} == {"sub-02", "sub-03", "sub-04"}
    ages = group.rows("phenotype/neurostorm_madeage.tsv")
    assert [row["participant_id"] for row in ages] == ["sub-01", "sub-02", "sub-04"]
    assert "file is truncated" in section_text(cohort)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
@pytest.mark.parametrize(
    "name",
    [
        "func/*_desc-made_embeddings.tsv",
        "func/*_desc-made_embeddings.json",
        "func/*_metrics.json",
        "func/*_predictions.tsv",
        "log/*/summary.json",
        "log/manifests/*_model.json",
    ],
)
def test_an_odd_file_among_outputs_is_named_and_others_are_read(make_group, section_text, name, kind):
    group = make_group(participants=2, sessions=1)
    write_manifests(group, "01")
    path = next((group.out / "sub-01").glob(name))
    path.unlink()
    make, words = ODD_FILES[kind]
    make(path)
    cohort = group.write_tables()
    assert words in section_text(cohort)
    assert {row["participant_id"] for row in group.rows("group_embeddings.tsv")} >= {"sub-02"}


def test_the_most_recent_log_gives_the_status_of_a_run(make_group):
    group = make_group(participants=2, sessions=1)
    stem = "sub-01_task-rest"
    failed = {"stem": stem, "status": "failed", "reason": "No brain.", "hint": "Look.", "exit_code": 65}
    group.study.write_log(group.out, "01", [failed], when="20250101-000000")
    assert {run.status for run in read_participant(group.out / "sub-01").runs} == {"ok"}
    group.study.write_log(group.out, "01", [failed], when="20270101-000000")
    (run,) = read_participant(group.out / "sub-01").runs
    assert (run.status, run.reason, run.hint, run.exit_code) == ("failed", "No brain.", "Look.", 65)


def test_an_unreadable_log_is_reported_and_runs_are_kept(make_group, section_text):
    group = make_group(participants=2, sessions=1)
    next(group.out.glob("sub-01/log/*/summary.json")).write_text("{")
    cohort = group.write_tables()
    assert len(group.rows("group_runs.tsv")) == 2
    assert "sub-01/log/" in section_text(cohort)


def test_a_run_with_removed_outputs_is_missing(make_group):
    group = make_group(participants=2, sessions=1)
    for path in (group.out / "sub-01" / "func").iterdir():
        path.unlink()
    group.write_tables()
    (row,) = only(group.rows("group_runs.tsv"), participant_id="sub-01")
    assert row["status"] == "missing"
    assert "log reports success" in row["reason"]


def test_unprocessed_runs_of_the_dataset_are_missing(make_group, section_text):
    group = make_group(participants=2, sessions=1)
    func = group.raw / "sub-02" / "func"
    for name in ("task-film_echo-1", "task-film_echo-2", "task-film_part-phase"):
        (func / f"sub-02_{name}_bold.nii.gz").touch()
    cohort = group.write_tables()
    (row,) = only(group.rows("group_runs.tsv"), status="missing")
    assert row["run"] == "sub-02_task-film"
    assert "1 run is missing" in section_text(cohort)


def test_the_raw_dataset_is_optional(make_group):
    group = make_group(participants=3, sessions=1)
    group.raw.rename(group.raw.with_name("elsewhere"))
    cohort = group.write_tables()
    assert len(cohort.runs) == 3
    assert "participants.tsv: file not found" in " ".join(cohort.notes)


def test_a_withheld_prediction_stays_withheld(make_group, section_text):
    group = make_group(participants=9, sessions=1)
    path = next((group.out / "sub-01").rglob("*_predictions.tsv"))
    header, mean, *clips = path.read_text().splitlines()
    lines = ["\t".join([*line.split("\t")[:3], "n/a"]) for line in (mean, *clips)]
    path.write_text(
        "\n".join([header + "\tverdict", lines[0] + "\trefuse", *(f"{line}\tn/a" for line in lines[1:])]) + "\n"
    )
    card = json.loads(path.with_suffix(".json").read_text())
    card["Verdict"] = {
        "Level": "refuse",
        "Checks": [{"Check": "orientation", "Level": "refuse", "Message": "Mirrored."}],
    }
    del card["Uncertainty"]
    path.with_suffix(".json").write_text(json.dumps(card))
    cohort = group.write_tables()
    (row,) = only(group.rows("phenotype/neurostorm_madeage.tsv"), participant_id="sub-01")
    assert (row["value"], row["verdict"], row["verdict_reasons"]) == ("n/a", "refuse", "orientation")
    (row,) = only(group.rows("group_runs.tsv"), participant_id="sub-01")
    assert (row["status"], row["verdict"]) == ("ok", "refuse")
    assert "Predictions withheld for 1 run; most frequent failed check: Left-right orientation" in section_text(cohort)


def test_checks_of_withheld_predictions_are_not_counted_as_warnings(make_group, section_text):
    group = make_group(participants=3, sessions=1)
    for label, level, check in (("01", "refuse", "orientation"), ("02", "warn", "fd_mean")):
        path = next((group.out / f"sub-{label}").rglob("*_predictions.tsv"))
        header, mean, *clips = path.read_text().splitlines()
        rows = [f"{header}\tverdict", f"{mean}\t{level}", *(f"{line}\tn/a" for line in clips)]
        path.write_text("\n".join(rows) + "\n")
        card = json.loads(path.with_suffix(".json").read_text())
        card["Verdict"] = {"Level": level, "Checks": [{"Check": check, "Level": level, "Message": "x"}]}
        path.with_suffix(".json").write_text(json.dumps(card))
    (said,) = re.findall(r"1 run with warnings; most frequent: [^.]*", section_text(group.write_tables()))
    assert said.count("(1)") == 1
    assert "orientation" not in said


@pytest.mark.parametrize(("labels", "cell"), [([], "empty"), (["a", "b"], "a, b"), (None, "n/a")])
def test_an_empty_prediction_set_is_not_a_missing_one(make_group, labels, cell):
    group = make_group(participants=2, sessions=1)
    for path in group.out.rglob("*_predictions.json"):
        card = json.loads(path.read_text())
        uncertainty = {key: value for key, value in card["Uncertainty"].items() if key != "Interval"}
        path.write_text(json.dumps(card | {"Uncertainty": uncertainty | {"LabelSet": ["a"]}}))
    path = next((group.out / "sub-01").rglob("*_predictions.json"))
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"Uncertainty": card["Uncertainty"] | {"LabelSet": labels}}))
    group.write_tables()
    (row,) = only(group.rows("phenotype/neurostorm_madeage.tsv"), participant_id="sub-01")
    assert row["label_set"] == cell


def test_outputs_without_verdicts_are_read_and_reported(make_group, section_text):
    group = make_group(participants=3, sessions=1, verdicts=False)
    cohort = group.write_tables()
    assert {row["verdict"] for row in group.rows("group_runs.tsv")} == {"n/a"}
    assert "The outputs contain no verdicts" in section_text(cohort)


def test_parallel_reading_gives_the_same_records(make_group, monkeypatch):
    group = make_group(participants=6)
    folders = sorted(group.out.glob("sub-*"))
    alone = list(read_participants(folders, 1))
    monkeypatch.setattr("bids_app.group.reading.MAX_SERIAL", 2)
    together = list(read_participants(folders, 2))
    assert [record.participant for record in together] == [record.participant for record in alone]
    for one, other in zip(alone, together, strict=True):
        assert [run.quality for run in one.runs] == [run.quality for run in other.runs]
        assert [run.predictions for run in one.runs] == [run.predictions for run in other.runs]


def test_an_unreadable_folder_is_reported_and_others_are_read(make_group, monkeypatch, section_text):
    group = make_group(participants=3, sessions=1)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub-02"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("bids_app.group.reading.os.scandir", refusing)
    cohort = group.write_tables()
    assert cohort.faults == ("sub-02: Permission denied",)
    assert {run.stem: run.status for run in cohort.runs}["sub-02_task-rest"] == "missing"
    assert "sub-02: Permission denied" in section_text(cohort)


def write_manifests(group, label, configuration="aaaa1111", **changes):
    """Write the manifests of the run of a participant, with all files that it has."""
    stem = f"sub-{label}_task-rest"
    options = {"version": "1", "dummy_scans": configuration}
    named = {path.relative_to(group.out).as_posix() for path in (group.out / f"sub-{label}" / "func").iterdir()}
    preprocessed = {name for name in named if "quality" in name}
    for part, files in (("preprocessing", preprocessed), ("model", named - preprocessed)):
        stamps = {name: FileStamp(size=0, sha256="") for name in files}
        own = changes.get(part, {})
        values = {"configuration": configuration, "options": options, "source": "x", "complete": True, "files": stamps}
        write_manifest(group.out, stem, part, Manifest(**values | own))
    for path in (group.out / f"sub-{label}" / "func").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ConfigurationHash": configuration}))


def adapters_of(group, label):
    (run,) = read_participant(group.out / f"sub-{label}").runs
    return set(run.predictions)


def test_tables_that_the_last_invocation_did_not_make_are_left_out(make_group, section_text):
    group = make_group(participants=2, sessions=1)
    write_manifests(group, "01")
    write_manifests(group, "02")
    for path in (group.out / "sub-01" / "func").glob("*_desc-madeage_predictions.*"):
        shutil.copy(path, path.with_name(path.name.replace("madeage", "old")))
    assert "old" not in adapters_of(group, "01")
    cohort = group.write_tables()
    assert not (group.out / "phenotype" / "neurostorm_old.tsv").exists()
    assert [row["n_not_used"] for row in group.rows("group_runs.tsv")] == ["1", "0"]
    assert "1 run with tables of an earlier invocation" in section_text(cohort)


def test_the_phenotype_table_of_an_adapter_without_predictions_is_removed(make_group):
    group = make_group(participants=2, sessions=1)
    old = [group.out / "phenotype" / f"neurostorm_old.{ending}" for ending in ("tsv", "json")]
    other = group.out / "phenotype" / "questionnaire.tsv"
    other.parent.mkdir()
    for path in (*old, other):
        path.write_text("x")
    assert group.run() == 0
    assert not any(path.exists() for path in old)
    assert other.exists()
    assert (group.out / "phenotype" / "neurostorm_madeage.tsv").exists()


@pytest.mark.parametrize(
    "pattern", ["*_desc-quality_metrics.json", "*_embeddings.tsv", "*_desc-madeage_predictions.tsv"]
)
def test_a_run_without_a_table_that_it_wrote_is_missing_and_does_not_pass(make_group, pattern):
    group = make_group(participants=2, sessions=1)
    for label in ("01", "02"):
        write_manifests(group, label)
    (lost,) = (group.out / "sub-01" / "func").glob(pattern)
    lost.unlink()
    found = {
        run.participant: run for label in ("01", "02") for run in read_participant(group.out / f"sub-{label}").runs
    }
    assert {name: run.status for name, run in found.items()} == {"sub-01": "missing", "sub-02": "ok"}
    assert lost.name in found["sub-01"].reason
    assert found["sub-01"].worst_verdict != "pass"


def test_a_deleted_file_of_an_invocation_that_failed_later_is_not_asked_for(make_group):
    group = make_group(participants=1, sessions=1)
    write_manifests(group, "01")
    next((group.out / "sub-01").rglob("*_embeddings.tsv")).unlink()
    failed = {"stem": "sub-01_task-rest", "status": "failed", "reason": "No memory.", "hint": "", "exit_code": 71}
    group.study.write_log(group.out, "01", [failed], when="20270101-000000")
    (run,) = read_participant(group.out / "sub-01").runs
    assert (run.status, run.reason, run.lost) == ("failed", "No memory.", [])


@pytest.mark.parametrize("cells", [("7", "0.1"), ("-0.2", "1.2"), ("0.5", "0.1"), ("nan", "0.5")])
def test_probabilities_that_are_none_are_named_and_not_shown(make_group, cells):
    group = make_group(participants=2, sessions=1)
    path = next((group.out / "sub-01").rglob("*_predictions.tsv"))
    header, *rows = path.read_text().splitlines()
    columns = [line.split("\t")[:3] for line in (header, *rows)]
    lines = [[*columns[0], "label", "p_a", "p_b"], *([*column, "a", *cells] for column in columns[1:])]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    (run,) = read_participant(group.out / "sub-01").runs
    assert run.status == "unreadable"
    assert path.name in run.reason
    assert f"p_a {cells[0]}" in run.reason


def test_predictions_of_another_preprocessing_are_left_out_and_reported(make_group):
    group = make_group(participants=2, sessions=1)
    write_manifests(group, "01", model={"source": "before"})
    (run,) = read_participant(group.out / "sub-01").runs
    assert (run.status, run.predictions, run.vectors) == ("unreadable", {}, {})
    assert "of another preprocessing" in run.reason
    assert run.quality


def test_an_interrupted_publication_is_reported_and_its_files_are_not_used(make_group):
    group = make_group(participants=2, sessions=1)
    write_manifests(group, "01", preprocessing={"complete": False})
    (run,) = read_participant(group.out / "sub-01").runs
    assert (run.status, run.predictions, run.vectors, run.quality) == ("unreadable", {}, {}, {})
    assert "interrupted" in run.reason


@pytest.mark.parametrize("with_manifests", [True, False])
def test_outputs_of_an_invocation_before_a_failure_are_left_out(make_group, with_manifests):
    group = make_group(participants=2, sessions=1)
    if with_manifests:
        write_manifests(group, "01")
    stem = "sub-01_task-rest"
    failed = {"stem": stem, "status": "failed", "outputs": [f"sub-01/func/{stem}_desc-quality_metrics.json"]}
    group.study.write_log(group.out, "01", [failed], when="20270101-000000")
    (run,) = read_participant(group.out / "sub-01").runs
    assert run.quality  # the failed invocation wrote it
    assert (run.status, run.predictions, run.vectors) == ("failed", {}, {})


def test_several_configurations_are_reported_with_what_differs(make_group, section_text):
    group = make_group(participants=3, sessions=1)
    for label, configuration in (("01", "aaaa1111"), ("02", "aaaa1111"), ("03", "bbbb2222")):
        write_manifests(group, label, configuration)
    text = section_text(group.write_tables())
    assert "made with 2 configurations or versions, and may not be comparable: they differ in dummy_scans." in text
    assert [row["configuration"] for row in group.rows("group_runs.tsv")] == ["aaaa1111", "aaaa1111", "bbbb2222"]


def test_outputs_of_versions_without_configurations_are_told_from_others(make_group, section_text):
    group = make_group(participants=2, sessions=1)
    assert "configurations" not in section_text(group.write_tables())
    write_manifests(group, "01")
    assert "not recorded" in section_text(group.write_tables())


def test_one_configuration_is_no_finding(make_group, section_text):
    group = make_group(participants=2, sessions=1)
    for label in ("01", "02"):
        write_manifests(group, label)
    assert "configurations" not in section_text(group.write_tables())


def test_a_damaged_manifest_is_reported(make_group):
    group = make_group(participants=2, sessions=1)
    write_manifests(group, "01")
    manifest_path(group.out, "sub-01_task-rest", "model").write_text("{")
    (run,) = read_participant(group.out / "sub-01").runs
    assert (run.status, run.predictions) == ("unreadable", {})
    assert "sub-01_task-rest_model.json" in run.reason


@pytest.mark.parametrize(
    ("name", "value"),
    [("fd_mean", "0.1"), ("fd_mean", 1e308), ("tsnr", []), ("tsnr", True), ("coverage", -3), ("coverage", 1.2)],
)
def test_a_metric_that_is_no_measurement_is_named_and_not_shown(make_group, name, value):
    group = make_group()
    path = next(group.out.glob("sub-01/**/*_desc-quality_metrics.json"))
    content = json.loads(path.read_text())
    content["quality"][name] = value
    path.write_text(json.dumps(content))
    run = read_participant(group.out / "sub-01").runs[0]
    assert run.status == UNREADABLE
    assert name in run.reason
    assert name not in run.quality


def test_no_run_with_a_lost_file_has_the_verdict_pass():
    run = RunRecord("sub-01_task-rest", {"sub": "01"}, verdict="pass")
    assert run.worst_verdict == "pass"
    run.faults.append("sub-01/func/sub-01_task-rest_desc-x_predictions.tsv: damaged")
    assert run.worst_verdict == ""
    run.verdict = "warn"
    assert run.worst_verdict == "warn"


def test_a_participant_in_several_rows_is_named(tmp_path) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-01\tF\nsub-02\tF\n01\tM\n")
    rows, (note,) = read_phenotypes(tmp_path)
    assert rows == {"sub-01": {"sex": "M"}, "sub-02": {"sex": "F"}}
    assert "sub-01 in several rows" in note
