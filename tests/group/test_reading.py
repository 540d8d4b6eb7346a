"""What participants left is read whole, and what is broken is named while the others go on."""

import json
import os

import numpy as np
import pytest

from bids_app.group.reading import mean_rows, read_participant, read_participants


def cut(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def embeddings_of(group, label):
    return next((group.out / f"sub-{label}").rglob("*_embeddings.tsv"))


def only(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_means_are_those_of_the_table(make_group):
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


def test_a_table_without_its_last_clip_is_cut_off(make_group):
    group = make_group(participants=1, sessions=1)
    text = embeddings_of(group, "01").read_bytes()
    mean_rows(text)
    with pytest.raises(ValueError, match="cut off"):
        mean_rows(text[: text[:-1].rindex(b"\n") + 1])
    with pytest.raises(ValueError, match="cut off"):
        mean_rows(text[:-1])
    with pytest.raises(ValueError, match="cut off"):
        mean_rows(b"")


def test_a_label_called_mean_is_no_mean_over_clips():
    table = b"clip\tonset\tduration\tlabel\tp_mean\tp_x\nmean\t0.0\t32.0\tmean\t0.9\t0.1\n"
    table += b"0\t0.0\t16.0\tmean\t0.9\t0.1\n1\t16.0\t16.0\tmean\t0.9\t0.1\n"
    _, rows = mean_rows(table)
    assert [row[0] for row in rows] == ["mean"]


def test_broken_files_are_named_and_nothing_else_is_lost(make_group, told):
    group = make_group(participants=4, sessions=1)
    cut(embeddings_of(group, "01"))
    next((group.out / "sub-02").rglob("*_metrics.json")).write_text('{"quality": ')
    next((group.out / "sub-03").rglob("*_predictions.json")).unlink()
    cohort = group.gather()
    rows = {row["participant_id"]: row for row in group.rows("group_runs.tsv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "sub-01": "unreadable", "sub-02": "unreadable", "sub-03": "unreadable", "sub-04": "ok",
    }  # fmt: skip
    assert "sub-01_task-rest_desc-made_embeddings.tsv: is cut off" in rows["sub-01"]["reason"]
    assert "sub-02_task-rest_desc-quality_metrics.json" in rows["sub-02"]["reason"]
    assert rows["sub-03"]["reason"].endswith("desc-madeage_predictions.tsv: No such file or directory")
    assert [row["participant_id"] for row in group.rows("group_bold.tsv")] == ["sub-01", "sub-03", "sub-04"]
    assert {row["participant_id"] for row in group.rows("group_embeddings.tsv")} == {"sub-02", "sub-03", "sub-04"}
    ages = group.rows("phenotype/neurostorm_madeage.tsv")
    assert [row["participant_id"] for row in ages] == ["sub-01", "sub-02", "sub-04"]
    assert "is cut off" in told(cohort)


def test_a_run_ends_as_its_newest_log_says(make_group):
    group = make_group(participants=2, sessions=1)
    stem = "sub-01_task-rest"
    failed = {"stem": stem, "status": "failed", "reason": "No brain.", "hint": "Look.", "exit_code": 65}
    group.study.write_log(group.out, "01", [failed], when="20250101-000000")
    assert {run.status for run in read_participant(group.out / "sub-01").runs} == {"ok"}
    group.study.write_log(group.out, "01", [failed], when="20270101-000000")
    (run,) = read_participant(group.out / "sub-01").runs
    assert (run.status, run.reason, run.hint, run.exit_code) == ("failed", "No brain.", "Look.", 65)


def test_a_log_that_cannot_be_read_is_told_and_runs_stay(make_group, told):
    group = make_group(participants=2, sessions=1)
    next(group.out.glob("sub-01/log/*/summary.json")).write_text("{")
    cohort = group.gather()
    assert len(group.rows("group_runs.tsv")) == 2
    assert "sub-01/log/" in told(cohort)


def test_a_run_whose_outputs_were_removed_is_missing(make_group):
    group = make_group(participants=2, sessions=1)
    for path in (group.out / "sub-01" / "func").iterdir():
        path.unlink()
    group.gather()
    (row,) = only(group.rows("group_runs.tsv"), participant_id="sub-01")
    assert row["status"] == "missing"
    assert "log says that it is done" in row["reason"]


def test_runs_of_the_dataset_that_were_never_worked_on_are_missing(make_group, told):
    group = make_group(participants=2, sessions=1)
    func = group.raw / "sub-02" / "func"
    for name in ("task-film_echo-1", "task-film_echo-2", "task-film_part-phase"):
        (func / f"sub-02_{name}_bold.nii.gz").touch()
    cohort = group.gather()
    (row,) = only(group.rows("group_runs.tsv"), status="missing")
    assert row["run"] == "sub-02_task-film"
    assert "1 run is missing" in told(cohort)


def test_without_the_dataset_the_rest_goes_on(make_group):
    group = make_group(participants=3, sessions=1)
    group.raw.rename(group.raw.with_name("elsewhere"))
    cohort = group.gather()
    assert len(cohort.runs) == 3
    assert "participants.tsv: not there" in " ".join(cohort.notes)


def test_a_withheld_answer_stays_withheld(make_group, told):
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
    cohort = group.gather()
    (row,) = only(group.rows("phenotype/neurostorm_madeage.tsv"), participant_id="sub-01")
    assert (row["value"], row["verdict"], row["verdict_reasons"]) == ("n/a", "refuse", "orientation")
    (row,) = only(group.rows("group_runs.tsv"), participant_id="sub-01")
    assert (row["status"], row["verdict"]) == ("ok", "refuse")
    assert "Answers are withheld for 1 run, most often for orientation" in told(cohort)


def test_outputs_without_verdicts_are_read_and_it_is_said(make_group, told):
    group = make_group(participants=3, sessions=1, verdicts=False)
    cohort = group.gather()
    assert {row["verdict"] for row in group.rows("group_runs.tsv")} == {"n/a"}
    assert "No verdicts are in these outputs" in told(cohort)


def test_several_processes_read_the_same(make_group, monkeypatch):
    group = make_group(participants=6)
    folders = sorted(group.out.glob("sub-*"))
    alone = list(read_participants(folders, 1))
    monkeypatch.setattr("bids_app.group.reading.FEW", 2)
    together = list(read_participants(folders, 2))
    assert [record.participant for record in together] == [record.participant for record in alone]
    for one, other in zip(alone, together, strict=True):
        assert [run.quality for run in one.runs] == [run.quality for run in other.runs]
        assert [run.predictions for run in one.runs] == [run.predictions for run in other.runs]


def test_a_folder_that_cannot_be_listed_is_told_and_the_others_go_on(make_group, monkeypatch, told):
    group = make_group(participants=3, sessions=1)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub-02"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("bids_app.group.reading.os.scandir", refusing)
    cohort = group.gather()
    assert cohort.faults == ("sub-02: Permission denied",)
    assert {run.stem: run.status for run in cohort.runs}["sub-02_task-rest"] == "missing"
    assert "sub-02: Permission denied" in told(cohort)
