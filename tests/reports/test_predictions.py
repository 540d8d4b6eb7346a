"""What the page says of an answer: its set or interval, its verdict, and what other views of the run say."""

import csv
import json
import re

import pandas as pd
import pytest

from bids_app.bids.writer import write_tsv
from bids_app.outputs.schema import PredictionSidecar, Uncertainty, Verdict
from bids_app.reports.participant import build_participant_report
from bids_app.reports.predictions import WITHHELD, read_prediction, show_uncertainty, show_verdict

CHECKS = [
    {"Check": "tr", "Level": "pass", "Value": 2.0, "Limits": "0.5 to 3 s", "Message": ""},
    {"Check": "fd_mean", "Level": "warn", "Value": 0.71, "Limits": "at most 0.55 mm", "Message": "It moved a lot."},
    {"Check": "orientation", "Level": "refuse", "Value": "mirrored", "Limits": "", "Message": "Sides are exchanged."},
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


def spoil(out, card, run=1, ending="predictions"):
    """Give a run's sidecar more keys, and make the page."""
    path = next(out.glob(f"sub-01/func/*run-{run}*_{ending}.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | card))
    return build_participant_report(out, "01")


def words(path):
    text = re.sub(r"<(style|script)>.*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", text).split())


def test_a_value_has_its_interval_and_unit(tmp_path):
    card = {"Unit": "years", "Uncertainty": UNCERTAINTY | {"Interval": [23.06, 31.2], "CalibrationScans": 120}}
    found = predicted(tmp_path, card, value=[27.0, 26.0, 28.0])
    assert found.answer == "27 years"
    assert (found.uncertainty.name, found.uncertainty.span) == ("90 % interval", "23.06 to 31.2 years")
    assert found.spread == pytest.approx(2**0.5)
    assert found.uncertainty.calibration == "calibrated on 120 scans"


def test_a_label_has_its_set_which_may_be_empty():
    card = UNCERTAINTY | {"LabelSet": ["a", "b"], "LabelSetByClass": [], "Calibration": "temperature"}
    found = uncertainty(card | {"CalibrationScans": 120, "CalibrationSource": "site A"})
    assert (found.name, found.span, found.by_class) == ("90 % set", "a or b", "none of the labels")
    assert found.calibration == "calibrated by temperature on 120 scans (site A)"


def test_without_calibration_there_is_no_interval():
    found = uncertainty(UNCERTAINTY | {"LabelSet": None})
    assert (found.span, found.lack[0]) == ("", "not calibrated")
    found = uncertainty(UNCERTAINTY | {"LabelSet": None, "Calibration": "temperature", "CalibrationScans": 5})
    assert (found.span, found.lack[0]) == ("", "no promise")


def test_what_is_not_there_is_not_shown():
    assert show_verdict(None) is None
    assert show_uncertainty(None) is None
    assert uncertainty({"StandardError": float("nan")}).standard_error is None


@pytest.mark.parametrize("verdict", [{"Level": "perhaps"}, {"Level": "refuse", "Checks": ["x", 1]}, {}, "refuse"])
def test_an_answer_whose_verdict_cannot_be_read_is_not_shown(out, verdict):
    page = words(spoil(out, {"Verdict": verdict}))
    assert page.count("clips say left hand") == 1  # of the other run
    assert "demostate_predictions.json: Verdict" in page
    assert "run-1_desc-demostatepredictions" not in page


def uncertainty(content):
    return show_uncertainty(Uncertainty.from_json(content))


def test_the_worst_reason_comes_first_and_what_is_not_known_is_named():
    content = {"Level": "refuse", "Checks": CHECKS, "NotKnown": {"age": "No age is known."}}
    found = show_verdict(Verdict.from_json(content))
    assert found.reasons == ("Sides are exchanged.", "It moved a lot.")
    assert [check.value for check in found.checks] == ["2", "0.71", "mirrored", "n/a"]
    assert (found.checks[-1].level, found.checks[-1].message) == ("not known", "No age is known.")


def test_a_refused_answer_is_withheld_whatever_the_table_holds(tmp_path):
    card = {"Verdict": {"Level": "refuse", "Checks": CHECKS}}
    for value in (["n/a"] * 3, [27.0, 26.0, 28.0]):
        found = predicted(tmp_path, card, value=value)
        assert (found.answer, found.withheld, found.spread) == (WITHHELD, True, None)


def test_a_table_without_a_verdict_must_hold_its_numbers(tmp_path):
    with pytest.raises(ValueError, match="n/a"):
        predicted(tmp_path, {}, value=["n/a"] * 3)
    (tmp_path / "sub-01_desc-x_predictions.tsv").write_text("clip\n")
    with pytest.raises((StopIteration, csv.Error)):
        read_prediction(tmp_path / "sub-01_desc-x_predictions.tsv", "", PredictionSidecar())


def test_the_first_screen_tells_answer_set_verdict_and_what_the_mean_image_gives(out):
    verdict = {"Level": "warn", "Checks": CHECKS[:2]}
    card = {"Verdict": verdict, "Uncertainty": UNCERTAINTY | {"LabelSet": ["left hand", "rest"]}, "Views": VIEWS}
    page = words(spoil(out, card))
    summary = page[: page.index("Anatomy sub-01")]
    assert "left hand warn It moved a lot. 90 % set: left hand or rest" in summary
    assert "The other normalisation says rest. 12 % comes from the mean image alone." in summary
    assert "task-rest, run-1 state: left hand 90 % set: left hand or rest warn It moved a lot." in summary
    details = page[page.index("Predictions task-rest, run-1") :]
    assert "Its 9 clips are worth 4.2 independent ones, which leaves a standard error of 0.03." in details
    assert "The other normalisation (global) rest 61 %" in details
    assert "The mean image alone, without dynamics rest 40 %" in details
    assert "Repetition time (s) 2 0.5 to 3 s pass" in details
    assert "Mean framewise displacement (mm) 0.71 at most 0.55 mm warn It moved a lot." in details


def test_an_adapter_that_was_not_calibrated_says_so(out):
    assert "not calibrated No interval can be promised" in words(spoil(out, {"Uncertainty": UNCERTAINTY}))


def test_outputs_of_an_earlier_version_say_nothing_of_verdict_and_calibration(derivatives):
    page = words(build_participant_report(derivatives.out, "01"))
    assert "not calibrated" not in page
    assert "Checks of this verdict" not in page


def test_nothing_of_a_refused_answer_is_shown(out):
    table = next(out.glob("sub-01/func/*run-1*_predictions.tsv"))
    regions = table.with_name("sub-01_task-rest_run-1_seg-AAL3_desc-demostate_attribution.tsv")
    regions.write_text("name\tattribution\tstd\tvoxels\ttokens\nThalamus\t1.5\t0.1\t10\t2\n")
    assert "Thalamus" in words(spoil(out, {}))
    path = spoil(out, {"Verdict": {"Level": "refuse", "Checks": CHECKS}})
    page = words(path)
    assert "withheld refused No answer is given: Sides are exchanged. 1 more" in page
    assert page.count("clips say left hand") == 1  # of the other run
    assert "Thalamus" not in page
    assert "run-1_desc-demostatepredictions" not in path.read_text()
    assert "run-2_desc-demostatepredictions" in path.read_text()


def test_split_half_correlations_are_a_table_of_runs(out):
    page = words(spoil(out, {"SplitHalf": {"global": 0.981, "voxel": 0.6}}, ending="embeddings"))
    assert "Run global normalisation voxel normalisation task-rest, run-1 0.98 0.60" in page


def test_the_halves_of_a_run_stand_beside_its_answer(out):
    told = {"Answer": "rest", "Probabilities": {"rest": 0.726}}
    page = words(spoil(out, {"SplitHalf": {"Odd": told, "Even": told | {"Answer": "visual"}, "Difference": 0.2}}))
    assert "Its odd clips alone rest 73 % Its even clips alone visual" in page


def test_views_stand_beside_an_answer_that_is_not_calibrated_either(out):
    own = {"Answer": "left hand", "Probabilities": {"left hand": 0.991}}
    card = {"Uncertainty": UNCERTAINTY | {"Calibration": "temperature"}, "Views": VIEWS | {"Own": own}}
    page = words(spoil(out, card))
    assert "The answer before calibration (voxel normalisation) left hand 99 %" in page


def test_vectors_are_named_with_their_verdict(out):
    table = next(out.glob("sub-01/func/*run-1*_predictions.tsv"))
    path = table.with_name(table.name.replace("demostate_predictions", "who_vectors"))
    write_tsv(path, pd.DataFrame({"clip": ["mean", 0], "onset": 0, "duration": 16, "e0000": 0.6, "e0001": 0.8}))
    path.with_suffix(".json").write_text(json.dumps({"Target": "person", "Verdict": {"Level": "pass", "Checks": []}}))
    assert "person a vector of 2 numbers, to be compared with others pass" in words(build_participant_report(out, "01"))


def test_the_card_of_each_model_and_adapter_is_in_the_page(out):
    page = words(spoil(out, {"Limits": "Adults only.", "EncoderSHA256": "0123abcd"}))
    cards = page[page.index("Model cards What") :]
    assert "Model demo Not a medical device." in cards
    assert "Adapter demostate Not a medical device." in cards
    assert "Limits Adults only." in cards
    assert "Encoder, SHA-256 of the weights: 0123abcd" in cards


def test_a_head_for_a_diagnosis_is_marked(out):
    assert "research only, not a diagnosis" in words(spoil(out, {"ResearchOnly": True}))
