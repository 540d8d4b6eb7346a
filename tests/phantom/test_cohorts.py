"""Simulated cohorts have effects of the specified location and size."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from bids_app.clips import CLIP_VOLUMES
from bids_app.phantom.cohorts import (
    BASELINE,
    Effects,
    Participant,
    block_design,
    image_activity,
    images_cohort,
    simulate,
    smooth_map,
    state_activity,
    states_cohort,
    traits_cohort,
    write_tables,
)

NOISELESS = Effects(network=0.0, noise=0.0)


def participant(**changes) -> Participant:
    return Participant(
        **{"label": "0", "age": 50.0, "sex": "F", "score": 100.0, "group": "control", "site": "a", **changes}
    )


def test_each_trait_changes_the_baseline_by_its_own_map():
    older, younger = (simulate(participant(age=50 + d), 1, 2, NOISELESS).values[0] for d in (17.3, -17.3))
    assert (older - younger) / BASELINE == pytest.approx(2 * NOISELESS.trait * smooth_map("age"), abs=1e-5)
    assert abs(np.corrcoef(smooth_map("age"), smooth_map("sex"))[0, 1]) < 0.6
    assert smooth_map("age").std() == pytest.approx(1.0, abs=1e-3)


def test_the_same_keys_give_the_same_scan_and_sessions_differ():
    first, again, later = (simulate(participant(), 1, 3, Effects(), s).values for s in ("1", "1", "2"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)


def test_activity_follows_its_events():
    events = block_design(1, participant(), 2)
    assert sorted(label for _, _, label in events[:4]) == ["language", "memory", "motor", "rest"]
    activity = state_activity(events, 240, NOISELESS)
    expected = NOISELESS.activity * smooth_map("state", events[1][2])
    assert activity[40] == pytest.approx(expected, abs=1e-6)  # 32 s: 28 s of design time
    assert (activity[:5] == 0).all()
    shown = image_activity([(0.0, 16.0, "a")], {"a": np.array([0.0, 1.0])}, 20, NOISELESS)
    assert shown[10] == pytest.approx(NOISELESS.activity * smooth_map("image", 1), abs=1e-6)


def test_tables_list_all_participants(tmp_path):
    people = [Participant.random(0, k) for k in range(3)]
    write_tables(tmp_path, people)
    with open(tmp_path / "participants.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["participant_id"] for row in rows] == ["sub-000", "sub-001", "sub-002"]
    assert float(rows[1]["age"]) == people[1].age


def test_a_cohort_lists_its_scans_and_simulates_them_on_demand(tmp_path):
    scans = traits_cohort(tmp_path, 2, sessions=2, clips=1)
    assert [scan.name for scan in scans] == [f"sub-00{p}_ses-{s}_task-x" for p in (0, 1) for s in (1, 2)]
    assert [(scan.participant, scan.session) for scan in scans[1:3]] == [("000", "2"), ("001", "1")]
    expected = simulate(Participant.random(0, 1), 0, CLIP_VOLUMES, Effects(), "1").values
    assert np.array_equal(scans[2].simulate().values, expected)


def test_a_block_design_cohort_follows_its_events(tmp_path):
    (scan,) = states_cohort(tmp_path, 1, blocks=1, effects=NOISELESS)
    with open(tmp_path / "sub-000" / "func" / "sub-000_task-x_events.tsv", newline="") as file:
        state = next(csv.DictReader(file, delimiter="\t"))["trial_type"]
    volumes = scan.simulate().values / BASELINE
    assert volumes[20] - volumes[0] == pytest.approx(NOISELESS.activity * smooth_map("state", state), abs=1e-5)


def test_images_of_a_cohort_have_vectors_of_length_one(tmp_path):
    (scan,) = images_cohort(tmp_path, 1, 3)
    with open(tmp_path / "images.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 3
    assert [sum(float(row[f"x{k}"]) ** 2 for k in range(6)) for row in rows] == pytest.approx([1, 1, 1])
    assert scan.simulate().n_vols == 3 * CLIP_VOLUMES + 5
