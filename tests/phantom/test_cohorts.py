"""Simulated cohorts: effects are where and as large as they are said to be."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from bids_app.phantom.cohorts import (
    BASELINE,
    Effects,
    Person,
    block_design,
    image_activity,
    simulate,
    smooth_map,
    state_activity,
    write_tables,
)

STILL = Effects(network=0.0, noise=0.0)


def person(**changes) -> Person:
    return Person(**{"label": "0", "age": 50.0, "sex": "F", "score": 100.0, "group": "control", "site": "a", **changes})


def test_a_trait_changes_the_baseline_by_its_own_map():
    older, younger = (simulate(person(age=50 + d), 1, 2, STILL).values[0] for d in (17.3, -17.3))
    assert (older - younger) / BASELINE == pytest.approx(2 * STILL.trait * smooth_map("age"), abs=1e-5)
    assert abs(np.corrcoef(smooth_map("age"), smooth_map("sex"))[0, 1]) < 0.6
    assert smooth_map("age").std() == pytest.approx(1.0, abs=1e-3)


def test_the_same_keys_give_the_same_scan_and_sessions_differ():
    first, again, later = (simulate(person(), 1, 3, Effects(), s).values for s in ("1", "1", "2"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)


def test_activity_follows_its_events():
    events = block_design(1, person(), 2)
    assert sorted(label for _, _, label in events[:4]) == ["language", "memory", "motor", "rest"]
    activity = state_activity(events, 240, STILL)
    expected = STILL.activity * smooth_map("state", events[1][2])
    assert activity[40] == pytest.approx(expected, abs=1e-6)  # 32 s: 28 s of design time
    assert (activity[:5] == 0).all()
    shown = image_activity([(0.0, 16.0, "a")], {"a": np.array([0.0, 1.0])}, 20, STILL)
    assert shown[10] == pytest.approx(STILL.activity * smooth_map("image", 1), abs=1e-6)


def test_tables_name_everybody(tmp_path):
    people = [Person.draw(0, k) for k in range(3)]
    write_tables(tmp_path, people)
    with open(tmp_path / "participants.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["participant_id"] for row in rows] == ["sub-000", "sub-001", "sub-002"]
    assert float(rows[1]["age"]) == people[1].age
