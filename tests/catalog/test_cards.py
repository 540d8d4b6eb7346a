"""Model cards: intended use, cohort, metrics, limits and licence, and missing facts."""

import re

import pytest

from bids_app.catalog.cards import SECTIONS, card_markdown, describe_model, known_facts, plain
from bids_app.catalog.models import Entry, catalog
from bids_app.reports import markdown

ADAPTER = {
    "Adapter": "age",
    "Task": "regression",
    "Target": "age",
    "Unit": "years",
    "Labels": [],
    "Normalisation": "global",
    "TrainingCohort": {"participants": 200, "ages": {"mean": 30.1, "range": [18, 65]}, "sexes": {"F": 101, "M": 99}},
    "Ranges": {"tr": [0.72, 2.0], "age": [18, 65]},
    "AdapterCalibration": {"Method": "none", "Scans": 120, "Source": "site A"},
    "Metrics": {"validation": {"mae": 4.2}},
    "IntendedUse": "Research.",
    "License": "MIT",
    "EncoderSHA256": "0123",
    "ResearchOnly": False,
    "Demonstration": False,
}


def section(card, name):
    return re.search(rf"^## {name}\n\n(.*?)(?=\n\n## |\Z)", card, re.MULTILINE | re.DOTALL)[1].strip()


@pytest.mark.parametrize("name", catalog("models"))
def test_every_model_has_a_complete_card_without_its_file(name):
    card = card_markdown(describe_model(catalog("models")[name]))
    assert card.startswith(f"# Model {name}\n\n**Not a medical device.**")
    assert re.findall("^## (.*)$", card, re.MULTILINE) == list(SECTIONS)
    for part in ("Intended use", "Limits", "Licence", "Inputs and ranges"):
        assert name == "demo" or section(card, part) != "Not known."


def test_facts_belong_to_models_of_the_catalog():
    assert set(known_facts()) <= set(catalog("models"))


def test_diagnosis_is_for_research_on_groups_only():
    card = card_markdown(describe_model(catalog("models")["abide-diagnosis"]) | {"ResearchOnly": True})
    assert "For research on groups only" in card
    assert "never a diagnosis of a person" in section(card, "Intended use")


def test_adapter_card_has_cohort_ranges_and_calibration():
    card = card_markdown(ADAPTER)
    assert "- Ages: mean: 30.1; range: 18, 65" in section(card, "Training cohort")
    assert "- Scanners: not known" in section(card, "Training cohort")
    assert "- Training range of repetition time: 0.72 to 2 s" in section(card, "Inputs and ranges")
    assert section(card, "Calibration") == "- Method: none\n- Scans: 120\n- Source: site A"
    assert section(card, "Limits") == "Not known."
    assert section(card, "Metrics") == "- validation: mae: 4.2"


def test_adapter_without_calibration_has_no_intervals():
    assert "no prediction intervals or sets" in section(
        card_markdown(ADAPTER | {"AdapterCalibration": {}}), "Calibration"
    )
    older = {key: value for key, value in ADAPTER.items() if key != "AdapterCalibration"}
    assert section(card_markdown(older), "Calibration") == "Not known."


def test_metadata_of_the_file_overrides_the_catalog():
    own = Entry("mine", "a file of your own", "/x/mine.safetensors", own=True)
    facts = describe_model(own, {"cohort": "12 people", "licence": "CC0", "intended_use": "tests"})
    assert (facts["TrainingCohort"], facts["License"]) == ({"description": "12 people"}, "CC0")
    assert "Limits" not in facts
    named_alike = Entry("neurostorm-5ds", "", "/x/neurostorm-5ds.ckpt", own=True)
    assert "TrainingCohort" not in describe_model(named_alike)


def test_value_cannot_start_a_heading_or_a_new_line():
    card = card_markdown(ADAPTER | {"Limits": "one\n\n# Safe\n\n<b>two</b>", "Adapter": "x\n# y"})
    assert len(re.findall("^#", card, re.MULTILINE)) == 1 + len(SECTIONS)
    assert "<li>one # Safe &lt;b&gt;two&lt;/b&gt;</li>" in markdown.to_html(card)


def test_values_are_formatted_without_braces_and_quotes():
    card = {"n": 20, "accuracy": 0.95123, "by": ["a", "b"], "real": False, "note": None}
    assert plain(card) == "n: 20; accuracy: 0.9512; by: a, b; real: no; note: n/a"
