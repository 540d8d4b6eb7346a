"""Verdicts: checks pass, warn or refuse; checks without data are unknown."""

from __future__ import annotations

import pytest

from bids_app.adapters.calibration import Certainty
from bids_app.adapters.cohort_ranges import COHORT_RULES
from bids_app.adapters.domain import Distance
from bids_app.adapters.file import AdapterCard
from bids_app.adapters.verdict import COMPARED, PASS, REFUSE, RULES, WARN, Verdict, judge_prediction, judge_scan
from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.catalog.normal_ranges import normal_ranges
from bids_app.errors import BadDataError
from bids_app.reports.contents import spec

GOOD = {
    "tr": 2.0,
    "seconds": 300.0,
    "coreg_brain_seen": 0.98,
    "coverage": 0.97,
    "coreg_dice": 0.94,
    "fd_mean": 0.15,
    "tsnr": 60.0,
    "orientation": Orientation(LeftRight.AS_STORED),
    "mean_removed": False,
    "age": 30.0,
    "sd_percent": 1.2,
    "gm_wm_mean": 1.13,
    "neighbour_r": 0.1,
    "high_frequency": 0.7,
    "global_share": 0.3,
    "connectivity_p": 0.004,
    "order_p": 0.002,
    "reconstruction_error": 0.4,
}
NEAR, FAR = {"embedding": Distance(5.0, 9.0, 0.01)}, {"embedding": Distance(20.0, 9.0, 0.01)}


def card(**changes) -> AdapterCard:
    ranges = {"tr": [0.72, 2.2], "duration": [200, 900], "fd_mean": [0.05, 0.4], "tsnr": [30, 120], "age": [22, 37]}
    values = {"normalisation": "voxel", "ranges": ranges}
    return AdapterCard("age", "regression", "age", "0" * 64, **(values | changes))


def level(verdict: Verdict, name: str) -> str:
    (check,) = (check for check in verdict.checks if check.name == name)
    assert bool(check.message) == (check.level != PASS)
    return check.level


def test_a_good_scan_passes_every_check() -> None:
    verdict = judge_prediction(GOOD, card(), NEAR, "refuse")
    assert verdict.level == PASS
    assert not verdict.unknown
    assert {check.name for check in verdict.checks} == {
        "tr", "duration", "field_of_view", "coverage", "template_overlap", "orientation", "fd_mean", "tsnr",
        "normalisation", "age", "embedding", "connectivity", "temporal",
        "stillness", "fluctuation", "contrast", "smoothness", "spectrum", "global_signal",
        "reconstruction",
    }  # fmt: skip
    assert judge_scan(GOOD).level == PASS


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("tr", {"tr": 3.5}, WARN),
        ("tr", {"tr": 0.3}, WARN),
        ("duration", {"seconds": 40.0}, WARN),
        ("duration", {"seconds": 10.0}, REFUSE),
        ("field_of_view", {"coreg_brain_seen": 0.7}, WARN),
        ("coverage", {"coverage": 0.8}, WARN),
        ("coverage", {"coverage": 0.4}, REFUSE),
        ("template_overlap", {"coreg_dice": 0.85}, WARN),
        ("template_overlap", {"coreg_dice": 0.6}, REFUSE),
        ("template_overlap", {"coreg_dice": None, "place_similarity": 0.1}, REFUSE),
        ("orientation", {"orientation": Orientation(LeftRight.FLIPPED)}, REFUSE),
        ("fd_mean", {"fd_mean": 0.9}, WARN),
        ("tsnr", {"tsnr": 12.0}, WARN),
        ("stillness", {"fd_mean": 0.01}, WARN),
        ("fluctuation", {"sd_percent": 0.05}, WARN),
        ("contrast", {"gm_wm_mean": 0.8}, WARN),
        ("smoothness", {"neighbour_r": 0.6}, WARN),
        ("spectrum", {"high_frequency": 0.01}, WARN),
        ("global_signal", {"global_share": 0.0}, WARN),
        ("connectivity", {"connectivity_p": 0.2}, WARN),
        ("temporal", {"order_p": 0.2}, WARN),
        ("normalisation", {"mean_removed": True}, WARN),
        ("alignment", {"doubts": "sub-01_bold.nii.gz: the alignment may be wrong: T1w of another person?"}, WARN),
    ],
)
def test_the_limits_of_the_model(name: str, change: dict, expected: str) -> None:
    verdict = judge_scan(GOOD | change)
    assert level(verdict, name) == expected
    assert verdict.level == expected
    assert len(verdict.reasons) == 1


@pytest.mark.parametrize(
    ("name", "change"),
    [("age", {"age": 70.0}), ("tr", {"tr": 2.6}), ("duration", {"seconds": 150.0}), ("fd_mean", {"fd_mean": 0.5})],
)
def test_values_outside_the_cohorts_range_get_the_chosen_level(name: str, change: dict) -> None:
    for policy in (WARN, REFUSE):
        verdict = judge_prediction(GOOD | change, card(), NEAR, policy)
        assert level(verdict, name) == policy
    assert judge_scan(GOOD | change).level == PASS


def test_a_check_shows_the_limit_that_decided() -> None:
    def check(name: str, facts: dict, **changes):
        checks = judge_prediction(GOOD | facts, card(**changes), NEAR, WARN).checks
        return next(check for check in checks if check.name == name)

    assert check("tr", {}).limits == "0.5 to 3 s; 0.648 to 2.42 s by the adapter's cohort"
    beyond = check("tr", {"tr": 2.6})
    assert beyond.limits == "0.648 to 2.42 s by the adapter's cohort"
    assert "is 2.6 s, above 2.42 s (with a margin of 10%)" in beyond.message
    both = check("tr", {"tr": 4.0})
    assert "above 3 s" in both.message
    assert "above 2.42 s" in both.message
    refused = check("coverage", {"coverage": 0.453})
    assert "is 0.453, below 0.5" in refused.message
    assert refused.limits == "at least 0.9; refused below 0.5"
    assert "is 0.8, below 0.9" in check("coverage", {"coverage": 0.8}).message


def test_causes_come_before_what_follows_from_them() -> None:
    noise = GOOD | {"connectivity_p": 0.5, "order_p": 0.5, "global_share": 0.0, "seconds": 15.0}
    reasons = judge_scan(noise).reasons
    assert "as in noise" in reasons[0]
    assert "as in noise" in reasons[1]
    assert "as in noise or after removal of the global signal" in reasons[-1]
    misplaced = judge_scan(GOOD | {"coverage": 0.8, "coreg_dice": 0.85, "gm_wm_mean": 0.8}).reasons
    for words, reason in zip(("alignment may be wrong", "background", "contrast"), misplaced, strict=True):
        assert words in reason


def test_a_scan_better_than_the_cohorts_passes() -> None:
    assert (
        judge_prediction(GOOD | {"seconds": 5000.0, "fd_mean": 0.03, "tsnr": 300.0}, card(), NEAR, REFUSE).level == PASS
    )


def test_an_out_of_distribution_embedding_gets_the_chosen_level() -> None:
    assert level(judge_prediction(GOOD, card(), FAR, WARN), "embedding") == WARN
    verdict = judge_prediction(GOOD, card(), FAR, REFUSE)
    assert verdict.level == REFUSE
    assert "1.0%" in verdict.reasons[0]


def test_an_unusable_scan_is_refused_with_either_choice() -> None:
    for change in ({"orientation": Orientation(LeftRight.FLIPPED)}, {"coverage": 0.3}):
        assert judge_prediction(GOOD | change, card(), NEAR, WARN).level == REFUSE
    removed = GOOD | {"mean_removed": True}
    assert judge_prediction(removed, card(normalisation="global"), NEAR, WARN).level == REFUSE
    assert judge_prediction(removed, card(normalisation="voxel"), NEAR, WARN).level == PASS


def test_a_scan_that_fails_both_tests_of_its_signal_is_refused() -> None:
    verdict = judge_scan(GOOD | {"connectivity_p": 0.5, "order_p": 0.5})
    assert verdict.level == REFUSE
    assert len(verdict.reasons) == 2


@pytest.mark.parametrize(
    ("simulated", "cohort", "expected"),
    [
        (True, True, PASS),
        (False, True, REFUSE),
        (None, True, REFUSE),
        (True, False, REFUSE),
        (False, False, PASS),
        (None, False, PASS),
        (True, None, PASS),
        (False, None, PASS),
    ],
)
def test_simulated_and_real_scans_are_told_apart(simulated, cohort, expected) -> None:
    facts = GOOD | {"simulated": simulated}
    adapter = card(cohort={} if cohort is None else {"simulated": cohort})
    assert judge_prediction(facts, adapter, NEAR, WARN).level == expected
    assert judge_scan(facts).level == PASS


def test_checks_without_data_are_unknown() -> None:
    old = judge_prediction(GOOD, card(ranges={}), {}, REFUSE)
    assert set(old.unknown) == {"age", "embedding"}
    assert not {"age", "embedding"} & {check.name for check in old.checks}
    raw = GOOD | {"orientation": Orientation(), "age": None, "tsnr": float("nan")}
    verdict = judge_prediction(raw, card(), NEAR, REFUSE)
    assert set(verdict.unknown) == {"orientation", "age", "tsnr"}
    assert verdict.unknown["orientation"].startswith("Left and right: by the affine of the raw image")


def test_the_worst_check_decides_and_comes_first() -> None:
    verdict = judge_scan(GOOD | {"tsnr": 10.0, "coverage": 0.2})
    assert verdict.level == REFUSE
    assert verdict.reasons[0].startswith("The share of the model's brain")
    assert "signal is weak" in verdict.reasons[1]


def test_every_check_has_a_name_in_reports() -> None:
    checks = {rule.check for rule in RULES} | set(COHORT_RULES) | set(COMPARED)
    checks |= {"orientation", "preprocessing", "alignment", "normalisation", "metrics", "origin", "certainty"}
    of_brainmarks = {"weights", "tokens"}
    assert checks | {"head", "training_input"} | of_brainmarks == set(spec()["checks"])


def test_limits_of_checks_and_of_the_report_are_the_same() -> None:
    limits = {name: entry for name, entry in spec()["quality"].items() if {"minimum", "maximum"} & entry.keys()}
    own = [rule for rule in RULES if not rule.reference]  # ranges of good scans are not limits of the report
    found = {rule.figure: (rule.low, rule.high) for rule in own if rule.figure in limits}
    assert len(found) == 8
    assert found == {name: (limits[name].get("minimum"), limits[name].get("maximum")) for name in found}


def test_invalid_ranges_are_rejected() -> None:
    with pytest.raises(BadDataError, match="ranges"):
        card(ranges={"age": [30, 20]})


def test_metrics_outside_their_limits_concern_the_quality_of_the_scan_and_not_a_prediction() -> None:
    facts = GOOD | {"unusual": "Standardised DVARS 1.80 (≤ 1.5)"}
    verdict = judge_scan(facts)
    assert (level(verdict, "metrics"), verdict.level) == (WARN, WARN)
    assert "Standardised DVARS 1.80 (≤ 1.5)" in verdict.reasons[0]
    assert level(judge_scan(GOOD | {"unusual": ""}), "metrics") == PASS
    assert "metrics" not in {check.name for check in judge_prediction(facts, card(), NEAR, WARN).checks}


@pytest.mark.parametrize("policy", [WARN, REFUSE])
def test_a_prediction_of_low_confidence_gets_a_warning(policy: str) -> None:
    """Its conformal label set would be empty; this concerns the prediction, not the scan."""
    sure, unsure = (Certainty(p, 0.8, 0.95) for p in (0.9, 0.6))
    assert level(judge_prediction(GOOD, card(), NEAR, policy, sure), "certainty") == PASS
    verdict = judge_prediction(GOOD, card(), NEAR, policy, unsure)
    assert level(verdict, "certainty") == WARN
    assert "60%" in verdict.reasons[0] and "80%" in verdict.reasons[0]  # noqa: PT018


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("lefthand", "righthand"), WARN),
        (("rest", "Left", "right"), WARN),
        (("f", "m"), PASS),
        (("left", "rest"), PASS),
    ],
)
def test_an_unchecked_left_and_right_is_warned_of_where_it_could_reverse_the_prediction(labels, expected) -> None:
    adapter = AdapterCard("side", "classification", "side", "0" * 64, normalisation="voxel", labels=labels)
    facts = {key: value for key, value in GOOD.items() if key != "orientation"}
    assert judge_prediction(facts, adapter, NEAR, WARN).level == expected
    assert judge_prediction(GOOD, adapter, NEAR, WARN).level == PASS


def test_limits_of_good_scans_are_those_of_the_catalog_and_name_their_origin() -> None:
    ranges = normal_ranges()
    low = ranges.measures["high_frequency"].low
    passed, warned = (
        next(check for check in judge_scan({"high_frequency": value}).checks if check.name == "spectrum")
        for value in (low * 1.01, low * 0.99)
    )
    assert (passed.level, warned.level) == ("pass", "warn")
    assert passed.reference == warned.reference == ranges.reference
    (tr,) = (check for check in judge_scan({"tr": 2.0}).checks if check.name == "tr")
    assert not tr.reference


def test_an_encoder_that_reconstructs_no_better_than_the_mean_is_warned_of() -> None:
    facts = GOOD | {"reconstruction_dynamics": 1.0}
    assert level(judge_scan(facts | {"reconstruction_error": 0.4}), "reconstruction") == PASS
    assert level(judge_scan(facts | {"reconstruction_error": 1.01}), "reconstruction") == WARN


def test_reconstructions_are_compared_with_the_cohort_where_the_adapter_has_its_range() -> None:
    own = card(ranges={"reconstruction": [0.7, 0.9]})
    for value, expected in ((0.8, PASS), (1.2, REFUSE), (0.5, REFUSE)):
        facts = GOOD | {"reconstruction_error": 0.4, "reconstruction_dynamics": value}
        assert level(judge_prediction(facts, own, NEAR, "refuse"), "reconstruction") == expected
        (shown,) = (c for c in judge_prediction(facts, own, NEAR, "warn").checks if c.name == "reconstruction")
        assert (shown.value, shown.limits) == (value, "0.63 to 0.99 by the adapter's cohort")


def test_without_a_decoder_the_reason_is_given() -> None:
    facts = {name: value for name, value in GOOD.items() if name != "reconstruction_error"}
    facts["reconstruction_unknown"] = "No decoder."
    found = judge_prediction(facts, card(ranges={"reconstruction": [0.7, 0.9]}), NEAR, "warn")
    assert found.unknown["reconstruction"] == "No decoder."
