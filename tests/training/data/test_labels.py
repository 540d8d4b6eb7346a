"""Labels of participants, sessions, scans and events."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.training.data.labels import EventRule, Target, check_values, clips_at_onsets, find_segments, read_table


def make_scans(*names: str, sessions: int = 1) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(participant=n, session=f"{s + 1}" if sessions > 1 else "", labels={})
        for n in names
        for s in range(sessions)
    ]


def test_labels_are_read_from_tables_by_participant_and_session(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-a\tF\nsub-b\tn/a\n")
    (tmp_path / "sessions.tsv").write_text("participant_id\tsession_id\tmood\nsub-a\tses-1\tlow\nsub-a\tses-2\thigh\n")
    scans = make_scans("a", "b", sessions=2)
    assert Target.parse("participants.tsv:sex", tmp_path).read_values(scans) == ["F", "F", None, None]
    assert Target.parse(f"{tmp_path}/sessions.tsv:mood", tmp_path).read_values(scans) == ["low", "high", None, None]


def test_labels_are_read_from_the_store(tmp_path):
    scans = make_scans("a", "b")
    scans[0].labels["state"] = "rest"
    assert Target.parse("scan:state", tmp_path).read_values(scans) == ["rest", None]


AGES = [*map(str, range(20, 40)), "inf", "4O"]


@pytest.mark.parametrize(("task", "hint"), [(None, "--task classification"), ("regression", "n/a")])
def test_numbers_that_are_infinite_or_mistyped_are_named_with_column_and_row(task, hint):
    people = [f"{k:02d}" for k in range(len(AGES))]
    with pytest.raises(BadDataError, match=r'"age".*"inf" in the row of sub-20, "4O" in the row of sub-21') as error:
        check_values("age", AGES, people, task)
    assert hint in error.value.hint
    assert check_values("age", AGES[:20], people[:20], task) == ()
    assert check_values("age", AGES, people, "classification") == ()
    assert check_values("group", ["1", "2", "patient"], ["a", "b", "c"]) == ()


def test_classes_that_differ_only_by_case_or_spaces_are_warned_of():
    (warning,) = check_values("sex", ["Male", "male", "female", "Male "], list("abcd"))
    assert '"sex"' in warning
    assert "'Male', 'Male ', 'male'" in warning
    assert check_values("sex", ["male", "female"], ["a", "b"]) == ()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("sex", UsageError, "TABLE.tsv:COLUMN"),
        ("missing.tsv:sex", UsageError, "missing.tsv"),
        ("participants.tsv:age", BadDataError, "age"),
        ("scan:state", NoMatchError, "No scan"),
    ],
)
def test_invalid_targets_raise(tmp_path, text, error, message):
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-a\tF\n")
    with pytest.raises(error, match=message):
        Target.parse(text, tmp_path).read_values(make_scans("a"))


def test_sessions_tables_are_read_for_each_participant(tmp_path):
    for label, moods in (("a", ("low", "high")), ("b", ("n/a", "low"))):
        (tmp_path / f"sub-{label}").mkdir()
        rows = "".join(f"ses-{k + 1}\t{mood}\n" for k, mood in enumerate(moods))
        (tmp_path / f"sub-{label}" / f"sub-{label}_sessions.tsv").write_text("session_id\tmood\n" + rows)
    target = Target.parse("sessions.tsv:mood", tmp_path)
    assert target.read_values(make_scans("a", "b", sessions=2)) == ["low", "high", None, "low"]


def test_tables_are_found_in_the_raw_dataset(tmp_path):
    raw, out = tmp_path / "raw data", tmp_path / "out"
    (raw / "phenotype").mkdir(parents=True)
    out.mkdir()
    (raw / "phenotype" / "test.tsv").write_text("participant_id\tscore\nsub-a\t3\n")
    (out / "dataset_description.json").write_text(json.dumps({"DatasetLinks": {"raw": raw.as_uri()}}))
    assert Target.parse("phenotype/test.tsv:score", out).read_values(make_scans("a", "b")) == ["3", None]
    (out / "dataset_description.json").unlink()
    with pytest.raises(UsageError, match="--raw"):
        Target.parse("phenotype/test.tsv:score", out)
    assert Target.parse("phenotype/test.tsv:score", out, raw).read_values(make_scans("a")) == ["3"]


def test_contradictory_rows_raise(tmp_path):
    (tmp_path / "t.tsv").write_text("participant_id\tsex\nsub-a\tF\nsub-a\tM\n")
    with pytest.raises(BadDataError, match="two values of sex: F and M"):
        read_table(tmp_path / "t.tsv", "sex")


def scan_of(n_vols: int, start: float = 0.0, clip_volumes: int = 20) -> SimpleNamespace:
    names = {"participant": "a", "session": "", "name": "sub-a_task-x"}
    return SimpleNamespace(n_vols=n_vols, start=start, clip_volumes=clip_volumes, **names)


def test_clips_get_the_label_of_the_block_that_covers_them_most():
    """Two blocks of 24 s with a pause: at least half of each clip (16 s) lies in one block."""
    events = [(8.0, 24.0, "left"), (40.0, 24.0, "right")]
    found = find_segments(events, scan_of(100), EventRule(delay=0.0, overlap=0.5))
    assert found == [(0, 20 + 30, "left"), (40, 20 + 30, "right")]
    whole = find_segments(events, scan_of(100), EventRule(delay=0.0, overlap=1.0))
    assert whole == [(10, 30, "left"), (50, 30, "right")]


def test_segments_and_clips_at_onsets_have_the_length_of_the_clips_of_the_encoder():
    events, rule = [(8.0, 24.0, "left"), (40.0, 24.0, "right")], EventRule(delay=0.0, overlap=1.0)
    assert find_segments(events, scan_of(100, clip_volumes=30), rule) == [(10, 30, "left"), (50, 30, "right")]
    assert find_segments(events, scan_of(100, clip_volumes=40), rule) == []
    assert clips_at_onsets(events, scan_of(95, clip_volumes=40), rule) == [(10, 40, "left"), (50, 40, "right")]


def test_segments_account_for_the_bold_delay_and_removed_volumes():
    events = [(8.0, 24.0, "left")]
    (no_delay,) = find_segments(events, scan_of(100), EventRule(delay=0.0, overlap=1.0))
    (delayed,) = find_segments(events, scan_of(100), EventRule(delay=4.0, overlap=1.0))
    (removed,) = find_segments(events, scan_of(100, start=1.6), EventRule(delay=4.0, overlap=1.0))
    assert (delayed[0] - no_delay[0], removed[0] - no_delay[0]) == (5, 3)


def test_short_events_give_no_segments():
    assert find_segments([(10.0, 6.0, "flash")], scan_of(100), EventRule(overlap=0.5)) == []
    assert find_segments([], scan_of(100), EventRule()) == []
    assert find_segments([(0.0, 99.0, "rest")], scan_of(19), EventRule()) == []


def test_image_clips_start_at_their_onsets():
    events = [(8.0, 3.0, "a.png"), (16.0, 3.0, "b.png"), (70.0, 3.0, "late.png")]
    found = clips_at_onsets(events, scan_of(100), EventRule(delay=0.0, at_onset=True))
    assert found == [(10, 20, "a.png"), (20, 20, "b.png")]


def test_events_of_the_raw_dataset_give_segments(tmp_path):
    raw = tmp_path / "raw"
    (raw / "sub-a" / "func").mkdir(parents=True)
    (raw / "task-x_events.tsv").write_text("onset\tduration\ttrial_type\n0\t40\trest\n40\t40\ttap\n")
    scan = scan_of(110)
    target = Target.parse("events.tsv:trial_type", tmp_path, raw, EventRule(delay=0.0, overlap=0.9))
    examples = target.read_examples([scan])
    assert [(e.first, e.n_vols, label) for e, label in examples] == [(0, 52, "rest"), (48, 54, "tap")]
    assert {e.participant for e, _ in examples} == {"a"}
    own = raw / "sub-a" / "func" / "sub-a_task-x_events.tsv"
    own.write_text("onset\tduration\ttrial_type\n0\t80\tsleep\n")
    assert {label for _, label in target.read_examples([scan])} == {"sleep"}
    own.write_text("onset\tduration\tname\n0\t80\tsleep\n")
    with pytest.raises(BadDataError, match="trial_type"):
        target.read_examples([scan])
