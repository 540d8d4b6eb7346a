"""Facts of a run for its verdict."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bids_app.adapters.verdict import judge_scan
from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.workflow.nodes import scan_facts


def run(**changes) -> SimpleNamespace:
    values = {"tr": 2.0, "n_volumes": 100, "n_dummy": 4, "offset": 0.0, "quality": {"tsnr": 50.0}}
    values["orientation"] = Orientation()
    return SimpleNamespace(**(values | changes))


def test_the_length_of_a_run_excludes_dummy_scans() -> None:
    assert scan_facts(run(), 0.9)["seconds"] == 192


@pytest.mark.parametrize(
    ("left_right", "level", "is_known"),
    [
        (LeftRight.AS_STORED, "pass", True),
        (LeftRight.FLIPPED, "refuse", True),
        (LeftRight.UNKNOWN, "pass", False),
        (LeftRight.NOT_CHECKED, "pass", False),
    ],
)
def test_left_and_right_are_judged_only_if_the_image_shows_them(left_right, level, is_known) -> None:
    verdict = judge_scan(scan_facts(run(orientation=Orientation(left_right)), 0.95))
    assert verdict.level == level
    assert ("orientation" not in verdict.unknown) is is_known


def test_a_series_without_its_mean_image_is_detected() -> None:
    assert scan_facts(run(), 0.9)["mean_removed"] is False
    assert scan_facts(run(offset=3.0, quality={}), 0.9)["mean_removed"] is True
    assert scan_facts(run(quality={"tsnr": 0.1}), 0.9)["mean_removed"] is True
    assert scan_facts(run(quality={}), 0.9)["mean_removed"] is None
