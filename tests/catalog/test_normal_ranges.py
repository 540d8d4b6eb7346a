"""Ranges of good scans: their origin is stated, and the scans that they come from are within them."""

from __future__ import annotations

import json

import pytest

from bids_app.catalog.normal_ranges import PATH, normal_ranges, parse_ranges
from bids_app.errors import BadDataError

CONTENT = json.loads(PATH.read_text(encoding="utf-8"))


def test_the_origin_names_number_and_scanners_of_the_scans() -> None:
    reference = normal_ranges().reference
    assert reference.startswith(f"normal_ranges.json, version {CONTENT['version']}: {len(CONTENT['real'])} real runs (")
    assert "Siemens TrioTim, 3 T" in reference
    assert "8 simulated" in reference


@pytest.mark.parametrize("name", CONTENT["measures"])
def test_the_scans_of_origin_are_within_the_limits(name: str) -> None:
    entry, limits = CONTENT["measures"][name], normal_ranges().measures[name]
    for found, n_runs in ((entry["real"], len(CONTENT["real"])), (entry["simulated"], CONTENT["simulated"]["runs"])):
        if found is not None:
            assert found["runs"] <= n_runs
            assert limits.low is None or limits.low < found["minimum"]
            assert limits.high is None or found["maximum"] < limits.high


@pytest.mark.parametrize(
    "change",
    [{"measures": None}, {"real": [{}]}, {"simulated": {}}, {"measures": {"tsnr": {"low": 2, "high": 1}}}],
)
def test_damaged_ranges_are_named(change: dict) -> None:
    with pytest.raises(BadDataError, match=r"normal_ranges\.json"):
        parse_ranges(CONTENT | change)
