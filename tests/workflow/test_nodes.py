"""What is handed from a run to its judges."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bids_app.adapters.verdict import judge_scan
from bids_app.preprocess.ingest.orientation import EXCHANGED, UNTOLD
from bids_app.workflow.nodes import scan_facts


def run(**changes) -> SimpleNamespace:
    values = {"tr": 2.0, "n_volumes": 100, "n_dummy": 4, "offset": 0.0, "quality": {"tsnr": 50.0}, "parameters": {}}
    return SimpleNamespace(**(values | changes))


def test_a_runs_length_is_that_of_its_steady_volumes() -> None:
    assert scan_facts(run(), 0.9)["seconds"] == 192


@pytest.mark.parametrize(
    ("words", "exchanged", "level"),
    [("as in the template", False, "pass"), (EXCHANGED, True, "refuse"), (UNTOLD, None, "pass"), (None, None, "pass")],
)
def test_left_and_right_are_known_only_where_they_were_told(words, exchanged, level) -> None:
    facts = scan_facts(run(parameters={"LeftAndRight": words} if words else {}), 0.95)
    assert facts["exchanged"] is exchanged
    verdict = judge_scan(facts)
    assert verdict.level == level
    assert ("orientation" in verdict.unknown) is (exchanged is None)


def test_a_series_without_its_mean_image_is_told() -> None:
    assert scan_facts(run(), 0.9)["mean_removed"] is False
    assert scan_facts(run(offset=3.0, quality={}), 0.9)["mean_removed"] is True
    assert scan_facts(run(quality={"tsnr": 0.1}), 0.9)["mean_removed"] is True
    assert scan_facts(run(quality={}), 0.9)["mean_removed"] is None
