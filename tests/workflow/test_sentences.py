"""Sentences of the methods text about adapters, their calibration and verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_app.adapters.calibration import Calibration
from bids_app.adapters.domain import Domain
from bids_app.adapters.file import AdapterCard
from bids_app.bids.fieldmaps import DIRECT, PAIR, PHASE_DIFFERENCE, TWO_PHASES
from bids_app.outputs.boilerplate import as_markdown, compose
from bids_app.preprocess.sdc.choice import SYN
from bids_app.workflow import sentences
from bids_app.workflow.sentences import describe_cohort

CARD = AdapterCard("state", "classification", "state", 64 * "0", "voxel", ("rest", "move"))
CALIBRATION = Calibration(120, "temperature", 1.3, limits={"0.9": 0.4}, source="site A", n_participants=40).as_dict()


def text_of(card: AdapterCard, on_out_of_domain: str = "warn", domain: Domain | None = None) -> str:
    told = sentences.adapter(card, domain.limit[1] if domain else None, on_out_of_domain)
    return " ".join(as_markdown(compose(told)).split())


def test_an_uncalibrated_adapter_has_no_intervals() -> None:
    text = text_of(CARD)
    assert "The adapter state (trained on a cohort that is not described in its card) predicted state;" in text
    assert "The adapter state was not calibrated" in text
    assert "were flagged with a warning." in text
    assert "Guo" not in text
    assert "Mahalanobis" not in text


def test_calibration_is_described_with_its_participants_and_citations() -> None:
    text = text_of(replace(CARD, calibration=CALIBRATION))
    assert "by temperature scaling (Guo et al., 2017) on 120 scans of 40 participants (site A)." in text
    assert "Sets of labels of the adapter state contain the true value with a probability of 90 %" in text
    assert "from each participant (Dunn et al., 2023)" in text
    assert "and a second set calibrated within each class (Vovk, 2012)" in text
    assert "it is unknown at other sites" in text


def test_a_regression_has_intervals() -> None:
    made = Calibration(50, limits={"0.9": 6.1}, n_participants=50).as_dict()
    text = text_of(AdapterCard("age", "regression", "age", 64 * "0", "global", unit="years", calibration=made))
    assert "Intervals of the adapter age contain the true value with a probability of 90 %" in text
    assert "mean-image baseline" in text
    assert "within each class" not in text


@pytest.mark.parametrize("n", [0, 9])
def test_without_a_promise_the_methods_say_why(n: int) -> None:
    text = text_of(replace(CARD, calibration=CALIBRATION | {"n_participants": n}))
    assert "have neither intervals nor label sets. No coverage is promised" in text
    assert "contain the true value" not in text


def test_out_of_distribution_detection_is_described_if_available() -> None:
    people = [f"{i}" for i in range(30)]
    domain = Domain.fit(np.random.default_rng(0).normal(size=(30, 4)), people)
    assert "Mahalanobis distance" in text_of(CARD, domain=domain)
    assert "exceeds that of 96.8 % of scans" in text_of(CARD, domain=domain)


@pytest.mark.parametrize(("rule", "word"), [("warn", "flagged with a warning"), ("refuse", "refused")])
def test_the_action_on_out_of_distribution_scans_is_described(rule: str, word: str) -> None:
    assert f"training cohort of the adapter were {word}." in text_of(CARD, rule)


def test_twins_and_diagnoses_are_described() -> None:
    text = text_of(replace(CARD, twin={"normalisation": "global"}, research_only=True))
    assert "under the other normalisation (global), by a second head of the adapter state" in text
    assert "research use had been acknowledged" in text


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (PAIR, ["distortion", "distortion_pair"]),
        (PHASE_DIFFERENCE, ["distortion", "distortion_phases"]),
        (TWO_PHASES, ["distortion", "distortion_phases"]),
        (DIRECT, ["distortion"]),
        (SYN, ["distortion_syn"]),
    ],
)
def test_each_distortion_correction_has_its_description(method: str, names: list[str]) -> None:
    assert [sentence.name for sentence in sentences.distortion(method)] == names


def test_a_cohort_is_described_by_its_name_and_size() -> None:
    assert describe_cohort({"description": "ABIDE", "participants": 20}) == "ABIDE, 20 participants"
    assert describe_cohort({"scans": 3}) == "3 scans"
    assert describe_cohort({}) == "a cohort that is not described in its card"
