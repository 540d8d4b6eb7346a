"""Predictions in the participant report: interval or set, verdict, and other views of the run."""

import csv
import json
import re

import pandas as pd
import pytest

from bids_app.bids.writer import write_tsv
from bids_app.outputs.schema import PredictionSidecar, Uncertainty, VerdictRecord
from bids_app.reports.participant import build_participant_report
from bids_app.reports.predictions import EMPTY, WITHHELD, format_uncertainty, format_verdict, read_prediction

CHECKS = [
    {"Check": "tr", "Level": "pass", "Value": 2.0, "Limits": "0.5 to 3 s", "Message": ""},
    {"Check": "fd_mean", "Level": "warn", "Value": 0.71, "Limits": "at most 0.55 mm", "Message": "It moved a lot."},
    {
        "Check": "orientation",
        "Level": "refuse",
        "Value": "mirrored",
        "Limits": "",
        "Message": "Left-right flipped.",
    },
]
UNCERTAINTY = {"EffectiveClips": 4.2, "StandardError": 0.03, "Level": 0.9, "Calibration": "none"}
VIEWS = {
    "Normalisation": "voxel",
    "Other": {"Normalisation": "global", "Answer": "rest", "Probabilities": {"rest": 0.61, "left hand": 0.39}},
    "MeanImageOnly": {"Answer": "rest", "Probabilities": {"rest": 0.4}},
    "FromMeanImage": 0.125,
}


def predicted(tmp_path, card, **columns):
    path = tmp_path / "sub-01_task-rest_desc-age_predictions.tsv"
    write_tsv(path, pd.DataFrame({"clip": ["mean", 0, 1], "onset": [0, 0, 16], "duration": [32, 16, 16]} | columns))
    return read_prediction(path, "url", PredictionSidecar.from_json(card))


def add_keys(out, card, run=1, ending="predictions"):
    """Add keys to a run's sidecar and build the page."""
    path = next(out.glob(f"sub-01/func/*run-{run}*_{ending}.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | card))
    return build_participant_report(out, "01")


def words(path):
    text = re.sub(r"<(style|script)>.*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", text).split())


def test_a_value_has_an_interval_and_a_unit(tmp_path):
    card = {"Unit": "years", "Uncertainty": UNCERTAINTY | {"Interval": [23.06, 31.2], "CalibrationScans": 120}}
    found = predicted(tmp_path, card, value=[27.0, 26.0, 28.0])
    assert found.text == "27 years"
    assert (found.uncertainty.name, found.uncertainty.span) == ("90 % prediction interval", "23.06 to 31.2 years")
    assert found.spread == pytest.approx(2**0.5)
    assert found.uncertainty.calibration == "calibrated on 120 scans"


def test_a_label_has_a_prediction_set_that_may_be_empty():
    card = UNCERTAINTY | {"LabelSet": ["a", "b"], "LabelSetByClass": [], "Calibration": "temperature"}
    found = uncertainty(card | {"CalibrationScans": 120, "CalibrationParticipants": 40, "CalibrationSource": "site A"})
    assert (found.name, found.span, found.by_class) == ("90 % prediction set", "a or b", EMPTY)
    assert found.calibration == "calibrated by temperature scaling on 120 scans of 40 participants (site A)"


def test_no_interval_without_calibration():
    found = uncertainty(UNCERTAINTY | {"LabelSet": None})
    assert (found.span, found.missing_reason[0]) == ("", "not calibrated")
    found = uncertainty(UNCERTAINTY | {"LabelSet": None, "Calibration": "temperature", "CalibrationScans": 5})
    assert (found.span, found.missing_reason[0]) == ("", "no coverage promised")


def test_a_missing_promise_is_shown_with_its_reason(out):
    reason = "Coverage unknown here: the site B is not in the calibration (A)."
    made = UNCERTAINTY | {"LabelSet": None, "Calibration": "temperature", "CalibrationScans": 90, "Coverage": reason}
    assert uncertainty(made).missing_reason == ("coverage unknown", reason)
    page = words(add_keys(out, {"Uncertainty": made}))
    assert "coverage unknown" in page
    assert reason in page


def test_an_empty_set_is_shown_as_empty(out):
    made = UNCERTAINTY | {"LabelSet": [], "Calibration": "temperature", "CalibrationScans": 90}
    assert "90 % prediction set: empty (no label is probable enough)" in words(add_keys(out, {"Uncertainty": made}))


def test_missing_verdict_and_uncertainty_are_none():
    assert format_verdict(None) is None
    assert format_uncertainty(None) is None
    assert uncertainty({"StandardError": float("nan")}).standard_error is None


@pytest.mark.parametrize("verdict", [{"Level": "perhaps"}, {"Level": "refuse", "Checks": ["x", 1]}, {}, "refuse"])
def test_a_prediction_with_an_unreadable_verdict_is_not_shown(out, verdict):
    page = words(add_keys(out, {"Verdict": verdict}))
    assert page.count("clips predict left hand") == 1  # of the other run
    assert "demostate_predictions.json: Verdict" in page
    assert "run-1_desc-demostatepredictions" not in page


def uncertainty(content):
    return format_uncertainty(Uncertainty.from_json(content))


def test_reasons_are_sorted_by_severity_and_unknown_checks_are_listed():
    content = {"Level": "refuse", "Checks": CHECKS, "NotKnown": {"age": "No age is known."}}
    found = format_verdict(VerdictRecord.from_json(content))
    assert found.reasons == ("Left-right flipped.", "It moved a lot.")
    assert [check.value for check in found.checks] == ["2", "0.71", "mirrored", "n/a"]
    assert (found.checks[-1].level, found.checks[-1].message) == ("unknown", "No age is known.")


def test_a_refused_prediction_is_withheld_regardless_of_the_table(tmp_path):
    card = {"Verdict": {"Level": "refuse", "Checks": CHECKS}}
    for value in (["n/a"] * 3, [27.0, 26.0, 28.0]):
        found = predicted(tmp_path, card, value=value)
        assert (found.text, found.withheld, found.spread) == (WITHHELD, True, None)


def test_missing_values_without_a_verdict_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="n/a"):
        predicted(tmp_path, {}, value=["n/a"] * 3)
    (tmp_path / "sub-01_desc-x_predictions.tsv").write_text("clip\n")
    with pytest.raises((StopIteration, csv.Error)):
        read_prediction(tmp_path / "sub-01_desc-x_predictions.tsv", "", PredictionSidecar())


def test_the_summary_shows_prediction_set_verdict_and_mean_image_baseline(out):
    verdict = {"Level": "warn", "Checks": CHECKS[:2]}
    card = {"Verdict": verdict, "Uncertainty": UNCERTAINTY | {"LabelSet": ["left hand", "rest"]}, "Views": VIEWS}
    page = words(add_keys(out, card))
    summary = page[: page.index("Anatomy sub-01")]
    assert "left hand Trust in this prediction: warn It moved a lot. 90 % prediction set: left hand or rest" in summary
    assert "The other normalisation predicts rest. 12 % of the prediction comes from the mean image." in summary
    assert "task-rest, run-1 state: left hand 90 % prediction set: left hand or rest warn It moved a lot." in summary
    details = page[page.index("Predictions task-rest, run-1") :]
    assert "Effective number of clips: 4.2 of 9; standard error: 0.03." in details
    assert "Whole run, global normalisation rest 61 %" in details
    assert "Mean image only (no dynamics) rest 40 %" in details
    assert "Repetition time (s) 2 0.5 to 3 s pass" in details
    assert "Mean framewise displacement (mm) 0.71 at most 0.55 mm warn It moved a lot." in details


def test_an_uncalibrated_adapter_is_reported(out):
    assert "not calibrated This adapter was not calibrated" in words(add_keys(out, {"Uncertainty": UNCERTAINTY}))


def test_outputs_of_earlier_versions_have_no_verdict_and_calibration(derivatives):
    page = words(build_participant_report(derivatives.out, "01"))
    assert "not calibrated" not in page
    assert "Verdict checks" not in page


def test_a_refused_prediction_is_not_shown(out):
    table = next(out.glob("sub-01/func/*run-1*_predictions.tsv"))
    regions = table.with_name("sub-01_task-rest_run-1_seg-AAL3_desc-demostate_attribution.tsv")
    regions.write_text("name\tattribution\tstd\tvoxels\ttokens\nThalamus\t1.5\t0.1\t10\t2\n")
    assert "Thalamus" in words(add_keys(out, {}))
    path = add_keys(out, {"Verdict": {"Level": "refuse", "Checks": CHECKS}})
    page = words(path)
    assert "withheld Trust in this prediction: refused Prediction withheld: Left-right flipped. 1 more" in page
    assert page.count("clips predict left hand") == 1  # of the other run
    assert "Thalamus" not in page
    assert "run-1_desc-demostatepredictions" not in path.read_text()
    assert "run-2_desc-demostatepredictions" in path.read_text()


def test_split_half_correlations_are_shown_by_run(out):
    page = words(add_keys(out, {"SplitHalf": {"global": 0.981, "voxel": 0.6}}, ending="embeddings"))
    assert "Run global normalisation voxel normalisation task-rest, run-1 0.98 0.60" in page


def test_predictions_of_split_halves_are_shown(out):
    half = {"Answer": "rest", "Probabilities": {"rest": 0.726}}
    page = words(add_keys(out, {"SplitHalf": {"Odd": half, "Even": half | {"Answer": "visual"}, "Difference": 0.2}}))
    assert "Odd clips only rest 73 % Even clips only visual" in page


def test_views_are_compared_with_the_uncalibrated_prediction(out):
    own = {"Answer": "left hand", "Probabilities": {"left hand": 0.991}}
    card = {"Uncertainty": UNCERTAINTY | {"Calibration": "temperature"}, "Views": VIEWS | {"Own": own}}
    page = words(add_keys(out, card))
    assert "Whole run, voxel normalisation, before calibration left hand 99 %" in page


def test_vectors_are_shown_with_their_verdict(out):
    table = next(out.glob("sub-01/func/*run-1*_predictions.tsv"))
    path = table.with_name(table.name.replace("demostate_predictions", "who_vectors"))
    write_tsv(path, pd.DataFrame({"clip": ["mean", 0], "onset": 0, "duration": 16, "e0000": 0.6, "e0001": 0.8}))
    path.with_suffix(".json").write_text(json.dumps({"Target": "person", "Verdict": {"Level": "pass", "Checks": []}}))
    assert "person vector of 2 features Trust in this prediction: pass" in words(build_participant_report(out, "01"))


def test_model_and_adapter_cards_are_shown(out):
    page = words(add_keys(out, {"Limits": "Adults only.", "EncoderSHA256": "0123abcd"}))
    cards = page[page.index("Model cards Cards") :]
    assert "Model demo Not a medical device." in cards
    assert "Adapter demostate Not a medical device." in cards
    assert "Limits Adults only." in cards
    assert "Encoder, SHA-256 of the weights: 0123abcd" in cards


def test_a_research_only_adapter_is_marked(out):
    assert "research only, not a diagnosis" in words(add_keys(out, {"ResearchOnly": True}))


def region_table(out, rows: str, **keys):
    table = next(out.glob("sub-01/func/*run-1*_predictions.tsv"))
    regions = table.with_name("sub-01_task-rest_run-1_seg-AAL3_desc-demostate_attribution.tsv")
    regions.write_text(rows)
    regions.with_suffix(".json").write_text(json.dumps({"Method": "occlusion", "Measure": "log-odds"} | keys))
    return words(add_keys(out, {}))


def test_contributions_of_both_signs_are_shown_with_unresolved_regions(out):
    rows = [f"p{k}\t{9 - k}\t0.1\t10\t2\n" for k in range(9)] + ["Cuneus\t-7\t0.1\t10\t0\n", "Vermis\t-0.01\t0\t1\t1\n"]
    page = region_table(
        out, "name\tattribution\tstd\tvoxels\ttokens\n" + "".join(rows), Answer="rest", UnresolvedRegions=["Cuneus"]
    )
    assert "positive contributions support rest, negative ones speak against it" in page
    assert "Cuneus -7.000" in page
    assert "1 of 11 regions own no token" in page
    assert "Control (" not in page


def test_the_control_of_a_map_is_described_with_its_similarity(out):
    rows = "name\tattribution\tstd\tvoxels\ttokens\tcontrol\tz\tp\nThalamus\t1.5\t0.1\t10\t2\t-0.25\t5.5\t0.004\n"
    page = region_table(
        out, rows, Control="permuted", ControlDescription="Heads.", ControlHeads=499, ControlCorrelation=0.1,
        ControlCorrelationOfSizes=0.84,
    )  # fmt: skip
    assert "Control (permuted): Heads. Rank correlation of the map and its control over regions: 0.10" in page
    assert "of sizes without sign: 0.84" in page
    assert "1 of 1 regions contribute more than with permuted labels" in page
    assert "Thalamus 1.500 0.100 10 2 -0.250 5.500 0.004" in page


def test_the_scans_that_limits_come_from_are_named_once(out):
    checks = [
        {
            "Check": name,
            "Level": "pass",
            "Value": 1.0,
            "Limits": "at least 0.2",
            "Reference": "normal_ranges.json: 6 runs",
        }
        for name in ("fluctuation", "spectrum")
    ]
    page = words(add_keys(out, {"Verdict": {"Level": "pass", "Checks": checks}}))
    assert page.count("Limits of the measures of the signal: normal_ranges.json: 6 runs.") == 1
