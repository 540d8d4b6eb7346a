"""Reliability of predictions, and withheld predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_app.adapters.calibration import Calibration
from bids_app.adapters.calibration_fit import People, calibrate_classes, calibrate_values
from bids_app.adapters.domain import Distance
from bids_app.adapters.file import AdaptedModel, Adapter, AdapterCard
from bids_app.adapters.predict import Embeddings, Prediction, encode_run
from bids_app.adapters.verdict import judge_prediction
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader, GridSeries
from bids_app.model.api import Model
from bids_app.model.encoder import EncoderConfig
from bids_app.outputs.reliability import (
    describe_embedding_halves,
    describe_halves,
    describe_uncertainty,
    describe_views,
)
from tests.helpers.models import linear_head, random_model

CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
ONSETS = 16.0 * np.arange(6)
CLIPS = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.7, 0.3], [0.9, 0.1], [0.6, 0.4]])


def card(**changes) -> AdapterCard:
    values = {"task": "classification", "labels": ("f", "m"), "encoder_sha256": "0" * 64, "normalisation": "global"}
    return AdapterCard("x", target="x", **(values | changes))


def age_card(**changes) -> AdapterCard:
    return card(task="regression", labels=(), unit="years", value_mean=40.0, value_std=10.0, **changes)


def singles(n: int) -> People:
    return People([f"{k}" for k in range(n)])


def classes(**changes) -> Prediction:
    return Prediction(card(**changes), CLIPS, ONSETS, 16.0)


def ages(values: list[float], **changes) -> Prediction:
    return Prediction(age_card(**changes), np.array(values)[:, None], ONSETS[: len(values)], 16.0)


def test_without_calibration_there_are_no_intervals() -> None:
    told = describe_uncertainty(classes())
    assert (told.labels.label_set, told.labels.by_class, told.method) == (None, None, "none")
    assert 1 <= told.effective_clips <= 6
    assert 0 < told.standard_error < 0.2
    assert describe_uncertainty(ages([30.0])).standard_error is None
    assert describe_uncertainty(ages([30.0])).interval is None


def test_a_calibrated_label_has_a_prediction_set() -> None:
    rng = np.random.default_rng(0)
    raw = rng.dirichlet([2, 2], 300)
    truth = ["f" if rng.random() < 0.5 + 0.3 * (row[0] - 0.5) else "m" for row in raw]  # far too sure of itself
    made = calibrate_classes(raw, truth, ("f", "m"), singles(300), source="site A")
    prediction = classes(calibration=made.as_dict())
    mean, first, *_ = prediction.rows()
    assert 0.5 < mean["p_f"] < CLIPS.mean(axis=0)[0]
    assert first["p_f"] == pytest.approx(0.9)
    told = describe_uncertainty(prediction)
    assert set(told.labels.label_set) == {"f", "m"}
    assert (told.method, told.participants, told.scans, told.source) == ("temperature", 300, 300, "site A")
    assert told.coverage.startswith("The coverage holds for new participants like those of the calibration")


def test_without_a_promise_there_is_neither_set_nor_interval_but_the_reason() -> None:
    few = calibrate_values(np.zeros(40), np.arange(40.0), People([f"{k % 4}" for k in range(40)])).as_dict()
    told = describe_uncertainty(ages([28.0, 32.0], calibration=few))
    assert told.interval is None
    assert told.coverage.startswith("No coverage is promised: the calibration has 4 participants")
    assert (told.participants, told.scans) == (4, 40)
    made = calibrate_values(np.zeros(40), np.arange(40.0), replace(singles(40), sites=["A"] * 40)).as_dict()
    told = describe_uncertainty(replace(ages([28.0, 32.0], calibration=made), site="B"))
    assert told.interval is None
    assert told.coverage.startswith("Coverage unknown here: the site B is not in the calibration (A).")
    assert describe_uncertainty(replace(ages([28.0], calibration=made), site="A")).interval is not None


def test_the_certainty_is_that_of_the_model_and_not_of_the_average_with_the_cohort() -> None:
    made = Calibration(50, limits={"0.9": 0.4}, class_limits={"f": {"0.9": 0.4}, "m": {"0.9": 0.4}}, n_participants=50)
    near, far = (replace(classes(calibration=made.as_dict()), range_evidence=weight) for weight in (1.0, 0.1))
    assert far.reported.max() < near.reported.max()
    assert far.certainty == near.certainty is not None


def test_an_empty_label_set_is_empty_in_the_sidecar() -> None:
    made = Calibration(
        50, limits={"0.9": 0.05}, class_limits={"f": {"0.9": 0.05}, "m": {"0.9": 0.05}}, n_participants=50
    )
    content = describe_uncertainty(classes(calibration=made.as_dict())).to_json()
    assert (content["LabelSet"], content["LabelSetByClass"]) == ([], [])


def test_a_calibrated_value_has_an_interval_in_table_and_sidecar() -> None:
    errors = np.arange(1.0, 100.0)
    made = calibrate_values(np.zeros(99), errors, singles(99)).as_dict()
    prediction = ages([28.0, 32.0], calibration=made)
    mean, clip, *_ = prediction.rows()
    assert (mean["lower"], mean["upper"]) == pytest.approx((30.0 - 90, 30.0 + 90))
    assert "lower" not in clip
    assert describe_uncertainty(prediction).interval == pytest.approx((-60.0, 120.0))


def test_out_of_distribution_no_coverage_is_claimed() -> None:
    made = calibrate_values(np.zeros(99), np.arange(1.0, 100.0), singles(99)).as_dict()
    near, far = Distance(1.0, 2.0, 0.5), Distance(9.0, 2.0, 0.001)
    prediction = ages([28.0, 32.0], calibration=made)
    told = [describe_uncertainty(replace(prediction, distances={"embedding": one})).coverage for one in (near, far)]
    assert told[0].startswith("The coverage holds")
    assert told[1].startswith("Coverage unknown here: the scan is out of distribution")


def test_a_refused_prediction_is_not_in_the_table() -> None:
    made = calibrate_values(np.zeros(99), np.arange(99.0), singles(99)).as_dict()
    for prediction in (classes(), ages([28.0, 32.0], calibration=made)):
        verdict = judge_prediction({"coverage": 0.1}, prediction.card, {"embedding": Distance(1, 2, 0.01)}, "warn")
        refused = replace(prediction, verdict=verdict)
        assert refused.is_refused
        mean, *clips = refused.rows()
        assert mean["verdict"] == "refuse"
        kept = {"clip", "onset", "duration", "verdict"}
        assert all(value is None for row in (mean, *clips) for key, value in row.items() if key not in kept)
        assert set(mean) > kept


@pytest.mark.parametrize(("still", "share"), [(40.0, 0.0), (45.0, 0.5), (50.0, 1.0), (70.0, 1.0), (30.0, 0.0)])
def test_the_mean_image_share_of_a_regression_is_relative_to_the_cohort_mean(still, share) -> None:
    prediction = replace(ages([48.0, 52.0]), mean_image_only=np.array([still]))
    views = describe_views(prediction)
    assert views.from_mean_image == pytest.approx(share)
    assert views.mean_image_only.value == still


def test_a_prediction_at_chance_has_no_mean_image_share() -> None:
    assert describe_views(replace(ages([40.1]), mean_image_only=np.array([60.0]))).from_mean_image is None


def test_the_mean_image_share_of_a_classification_is_relative_to_chance() -> None:
    clips = np.array([[0.9, 0.1], [0.9, 0.1]])
    prediction = Prediction(card(), clips, ONSETS[:2], 16.0, mean_image_only=np.array([0.7, 0.3]))
    assert describe_views(prediction).from_mean_image == pytest.approx(0.5)


def test_halves_are_the_odd_and_the_even_clips() -> None:
    told = describe_halves(ages([20.0, 40.0, 30.0, 60.0]))
    assert told is not None
    assert (told.odd.value, told.even.value, told.difference) == (25.0, 50.0, 25.0)
    assert describe_halves(ages([20.0])) is None
    rng = np.random.default_rng(0)
    own = rng.normal(size=50)
    values = {"voxel": own + 0.1 * rng.normal(size=(6, 50)), "global": rng.normal(size=(1, 50))}
    halves = describe_embedding_halves(Embeddings(values, ONSETS, 16.0))
    assert halves["global"] is None
    r = halves["voxel"].correlation
    assert 0.95 < r < 1
    assert halves["voxel"].spearman_brown == pytest.approx(2 * r / (1 + r))
    assert halves["voxel"].clips == (3, 3)


@pytest.fixture
def model(tmp_path) -> Model:
    return random_model(tmp_path, CONFIG)


@pytest.fixture
def reader() -> ClipReader:
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[30:60, 30:60, 30:60] = True
    rng = np.random.default_rng(0)
    values = rng.normal(100, 20, int(mask.sum())) + rng.normal(0, 10, (40, int(mask.sum())))
    return ClipReader(GridSeries(values.astype(np.float32), mask, 0.8))


def test_a_run_without_dynamics_shows_its_mean_image_in_each_volume(reader: ClipReader) -> None:
    still = reader.mean_image_clip("global")
    assert still.shape == reader.clip(0).shape
    assert torch.equal(still[..., 0], still[..., 19])
    both = torch.cat([reader.clip(0, "global"), reader.clip(1, "global")], dim=-1)
    np.testing.assert_allclose(still[0, ..., 0], both[0].mean(dim=-1), atol=1e-4)
    voxel = reader.mean_image_clip("voxel")
    assert voxel[0, 30:60, 30:60, 30:60].abs().max() < 1e-5


def test_the_mean_image_baseline_exists_if_the_normalisation_keeps_the_mean(model: Model, reader: ClipReader) -> None:
    cards = {name: card(encoder_sha256=model.weights_sha256, normalisation=name) for name in ("global", "voxel")}
    norms = {k: v for k, v in model.encoder.state_dict().items() if "norm1" in k}
    adapters = [Adapter(c, linear_head(8)) for c in cards.values()] + [Adapter(cards["global"], linear_head(8), norms)]
    _, (kept, lost, own) = encode_run(model, [AdaptedModel(model, a) for a in adapters], reader, ())
    expected = torch.sigmoid(AdaptedModel(model, adapters[0])(reader.mean_image_clip("global")[None]))[0, 0]
    assert kept.mean_image_only[1] == pytest.approx(float(expected), abs=1e-6)
    np.testing.assert_allclose(own.mean_image_only, kept.mean_image_only, atol=1e-6)
    assert lost.mean_image_only is None
    assert describe_views(lost).mean_image_only is None
    assert "0 everywhere" in describe_views(lost).note


def test_a_twin_predicts_under_the_other_normalisation(model: Model, reader: ClipReader) -> None:
    twin = {"normalisation": "global", "metrics": {}}
    head, other_head = linear_head(8), linear_head(8, seed=2)
    own_card = card(encoder_sha256=model.weights_sha256, normalisation="voxel", twin=twin)
    both = Adapter(own_card, head, twin=other_head)
    other = Adapter(card(encoder_sha256=model.weights_sha256, normalisation="global"), other_head)
    adapted = [AdaptedModel(model, adapter) for adapter in (both, other)]
    _, (first, second) = encode_run(model, adapted, reader, ("voxel",))
    np.testing.assert_allclose(first.other, second.values, atol=1e-6)
    views = describe_views(first)
    assert views.other.normalisation == "global"
    assert views.other.probabilities["f"] == pytest.approx(float(second.values[0]), abs=1e-5)
    assert second.other is None
    assert describe_views(second).other is None


def test_out_of_distribution_the_probabilities_go_to_the_proportions_of_the_cohort() -> None:
    near, beyond, far = ({"embedding": Distance(value, 1.0, 0.01, tail=0.5)} for value in (0.5, 1.5, 50.0))
    counts = {"scans_of_each": dict(zip(card().labels, (30, 10), strict=True))}
    shown = [replace(classes(cohort=counts), distances=distances).reported for distances in (near, beyond, far)]
    assert shown[0] == pytest.approx(classes().values)
    assert shown[1] == pytest.approx(np.exp(-1) * shown[0] + (1 - np.exp(-1)) * np.array([0.75, 0.25]))
    assert shown[2] == pytest.approx([0.75, 0.25])
    assert replace(classes(), distances=far).reported == pytest.approx([0.5, 0.5])


def test_outside_a_range_of_the_cohort_the_set_grows_to_all_labels_and_probabilities_go_to_the_prior() -> None:
    limits = {"0.9": 0.3}
    made = Calibration(50, limits=limits, class_limits={"f": limits, "m": limits}, n_participants=50)
    sure = Prediction(card(calibration=made.as_dict()), np.array([[0.97, 0.03]]), ONSETS[:1], 16.0)
    told = [describe_uncertainty(replace(sure, range_evidence=weight)) for weight in (1.0, 0.9, 0.3, 0.0)]
    assert [one.labels.label_set for one in told] == [("f",), ("f",), ("f", "m"), ("f", "m")]
    assert [one.labels.by_class for one in told] == [("f",), ("f",), ("f", "m"), ("f", "m")]
    assert [one.coverage.startswith("Coverage unknown here") for one in told] == [False, True, True, True]
    assert replace(sure, range_evidence=0.0).reported == pytest.approx([0.5, 0.5])
    assert replace(sure, range_evidence=0.3).reported == pytest.approx([0.3 * 0.97 + 0.35, 0.3 * 0.03 + 0.35])


def test_the_set_is_empty_if_and_only_if_the_certainty_is_too_low() -> None:
    limits = {"0.9": 0.2, "0.95": 0.4}
    made = Calibration(50, limits=limits, class_limits={"f": limits, "m": limits}, n_participants=50)
    for top, level, labels in ((0.85, 0.9, ("f",)), (0.7, 0.95, ("f",)), (0.55, 0.9, ())):
        found = Prediction(card(calibration=made.as_dict()), np.array([[top, 1 - top]]), ONSETS[:1], 16.0)
        told = describe_uncertainty(found)
        assert (told.level, told.labels.label_set) == (level, labels)
        verdict = judge_prediction({}, found.card, {}, "warn", found.certainty)
        assert (verdict.level == "warn") == (not labels)


def test_out_of_distribution_no_label_is_excluded_and_intervals_widen() -> None:
    rng = np.random.default_rng(0)
    raw = rng.dirichlet([2, 2], 300)
    truth = [card().labels[int(rng.random() < p)] for p in raw[:, 1]]
    calibration = calibrate_classes(raw, truth, card().labels, singles(300)).as_dict()
    sure = Prediction(card(calibration=calibration), np.array([[0.999, 0.001]]), ONSETS[:1], 16.0)
    beyond = {"clips": Distance(1.5, 1.0, 0.01, tail=0.5)}
    assert describe_uncertainty(sure).labels.label_set == (card().labels[0],)
    hardly_beyond = {"clips": Distance(1.02, 1.0, 0.01, tail=0.5)}  # the probabilities hardly change
    for distances in (beyond, hardly_beyond):
        labels = describe_uncertainty(replace(sure, distances=distances)).labels
        assert labels.label_set == labels.by_class == card().labels

    errors = rng.normal(size=300)
    interval = calibrate_values(errors, np.zeros(300), singles(300)).as_dict()
    found = ages([30.0], calibration=interval)
    near, wide = found.interval, replace(found, distances=beyond).interval
    assert near is not None
    assert wide is not None
    rest = 1 - np.exp(-1)  # towards 40 years, plus and minus two standard deviations
    assert wide == pytest.approx((near[0] + rest * (20 - near[0]), near[1] + rest * (60 - near[1])))
