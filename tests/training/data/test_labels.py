"""Labels: of participants, of sessions, of scans, and of what went on in them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from bids_app.errors import BadDataError, NoMatchError, UsageError
from bids_app.training.data.labels import EventRule, Target, clips_at_onsets, read_table, stretches


def people(*names: str, sessions: int = 1) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(participant=n, session=f"{s + 1}" if sessions > 1 else "", labels={})
        for n in names
        for s in range(sessions)
    ]


def test_labels_come_from_tables_by_participant_and_session(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-a\tF\nsub-b\tn/a\n")
    (tmp_path / "sessions.tsv").write_text("participant_id\tsession_id\tmood\nsub-a\tses-1\tlow\nsub-a\tses-2\thigh\n")
    scans = people("a", "b", sessions=2)
    assert Target.parse("participants.tsv:sex", tmp_path).of(scans) == ["F", "F", None, None]
    assert Target.parse(f"{tmp_path}/sessions.tsv:mood", tmp_path).of(scans) == ["low", "high", None, None]


def test_labels_come_from_the_scans_themselves(tmp_path):
    scans = people("a", "b")
    scans[0].labels["state"] = "rest"
    assert Target.parse("scan:state", tmp_path).of(scans) == ["rest", None]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("sex", UsageError, "TABLE.tsv:COLUMN"),
        ("missing.tsv:sex", UsageError, "missing.tsv"),
        ("participants.tsv:age", BadDataError, "age"),
        ("scan:state", NoMatchError, "No scan"),
    ],
)
def test_targets_that_do_not_exist_are_named(tmp_path, text, error, message):
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-a\tF\n")
    with pytest.raises(error, match=message):
        Target.parse(text, tmp_path).of(people("a"))


def test_a_session_table_of_each_participant_is_read(tmp_path):
    for person, moods in (("a", ("low", "high")), ("b", ("n/a", "low"))):
        (tmp_path / f"sub-{person}").mkdir()
        rows = "".join(f"ses-{k + 1}\t{mood}\n" for k, mood in enumerate(moods))
        (tmp_path / f"sub-{person}" / f"sub-{person}_sessions.tsv").write_text("session_id\tmood\n" + rows)
    target = Target.parse("sessions.tsv:mood", tmp_path)
    assert target.of(people("a", "b", sessions=2)) == ["low", "high", None, "low"]


def test_tables_are_found_in_the_raw_dataset_that_derivatives_name(tmp_path):
    raw, out = tmp_path / "raw data", tmp_path / "out"
    (raw / "phenotype").mkdir(parents=True)
    out.mkdir()
    (raw / "phenotype" / "test.tsv").write_text("participant_id\tscore\nsub-a\t3\n")
    (out / "dataset_description.json").write_text(json.dumps({"DatasetLinks": {"raw": raw.as_uri()}}))
    assert Target.parse("phenotype/test.tsv:score", out).of(people("a", "b")) == ["3", None]
    (out / "dataset_description.json").unlink()
    with pytest.raises(UsageError, match="--raw"):
        Target.parse("phenotype/test.tsv:score", out)
    assert Target.parse("phenotype/test.tsv:score", out, raw).of(people("a")) == ["3"]


def test_contradictory_rows_are_refused(tmp_path):
    (tmp_path / "t.tsv").write_text("participant_id\tsex\nsub-a\tF\nsub-a\tM\n")
    with pytest.raises(BadDataError, match="both F and M"):
        read_table(tmp_path / "t.tsv", "sex")


def scan_of(n_vols: int, start: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(n_vols=n_vols, start=start, participant="a", session="", name="sub-a_task-x")


def test_clips_are_named_by_the_block_that_fills_them_most():
    """Two blocks of 24 s with a pause: starts at which at least half of 16 s lie in one of them."""
    events = [(8.0, 24.0, "left"), (40.0, 24.0, "right")]
    found = stretches(events, scan_of(100), EventRule(delay=0.0, overlap=0.5))
    assert found == [(0, 20 + 30, "left"), (40, 20 + 30, "right")]
    whole = stretches(events, scan_of(100), EventRule(delay=0.0, overlap=1.0))
    assert whole == [(10, 30, "left"), (50, 30, "right")]


def test_the_response_lags_behind_events_and_dropped_volumes_count():
    events = [(8.0, 24.0, "left")]
    (at_first,) = stretches(events, scan_of(100), EventRule(delay=0.0, overlap=1.0))
    (later,) = stretches(events, scan_of(100), EventRule(delay=4.0, overlap=1.0))
    (dropped,) = stretches(events, scan_of(100, start=1.6), EventRule(delay=4.0, overlap=1.0))
    assert (later[0] - at_first[0], dropped[0] - at_first[0]) == (5, 3)


def test_events_that_fill_no_clip_name_none():
    assert stretches([(10.0, 6.0, "flash")], scan_of(100), EventRule(overlap=0.5)) == []
    assert stretches([], scan_of(100), EventRule()) == []
    assert stretches([(0.0, 99.0, "rest")], scan_of(19), EventRule()) == []


def test_images_are_shown_at_the_start_of_their_clips():
    events = [(8.0, 3.0, "a.png"), (16.0, 3.0, "b.png"), (70.0, 3.0, "late.png")]
    found = clips_at_onsets(events, scan_of(100), EventRule(delay=0.0, at_onset=True))
    assert found == [(10, 20, "a.png"), (20, 20, "b.png")]


def test_events_of_the_raw_dataset_name_stretches_of_scans(tmp_path):
    raw = tmp_path / "raw"
    (raw / "sub-a" / "func").mkdir(parents=True)
    (raw / "task-x_events.tsv").write_text("onset\tduration\ttrial_type\n0\t40\trest\n40\t40\ttap\n")
    scan = scan_of(110)
    target = Target.parse("events.tsv:trial_type", tmp_path, raw, EventRule(delay=0.0, overlap=0.9))
    examples = target.examples([scan])
    assert [(e.first, e.n_vols, label) for e, label in examples] == [(0, 52, "rest"), (48, 54, "tap")]
    assert {e.participant for e, _ in examples} == {"a"}
    own = raw / "sub-a" / "func" / "sub-a_task-x_events.tsv"
    own.write_text("onset\tduration\ttrial_type\n0\t80\tsleep\n")
    assert {label for _, label in target.examples([scan])} == {"sleep"}
    own.write_text("onset\tduration\tname\n0\t80\tsleep\n")
    with pytest.raises(BadDataError, match="trial_type"):
        target.examples([scan])
