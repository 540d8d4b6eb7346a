"""Labels of participants and paths of files in an adapter's card are found before it is published."""

from __future__ import annotations

import pytest

from bids_app.adapters.file import AdapterCard
from bids_app.adapters.privacy import private_parts, require_publishable, without
from bids_app.errors import UsageError


def card(task: str = "classification", **changes) -> AdapterCard:
    labels = ("female", "male") if task == "classification" else ()
    facts = {"labels": labels, "target": "sex", "dimensions": 4 if task == "embedding" else 0, **changes}
    return AdapterCard(name="sex", task=task, encoder_sha256="0" * 64, normalisation="global", **facts)


CLEAN = {
    "cohort": {"participants": 70, "scans_of_each": {"female": 30, "male": 40}, "sites": {"NYU": 3}},
    "metrics": {"validation": {"accuracy": 0.8, "scans": 12}},
    "intended_use": "Research on sub-cortical activity; see https://example.org/a/b, pages 1/2 and/or doi:10.1/x.",
    "limits": "TR 0.7/0.8 s, n/a elsewhere.",
    "licence": "CC-BY-4.0",
}


def test_a_card_of_counts_and_texts_may_be_published():
    assert private_parts(card(**CLEAN)) == {}
    require_publishable(card(**CLEAN), "sex.safetensors", ["sub-01", "02"])


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"limits": "Without sub-012, who moved."}, "limits"),
        ({"cohort": {"scans_of_each": {"sub-anna": 2, "sub-bob": 1}}}, "cohort.scans_of_each"),
        ({"cohort": {"excluded": ["sub-01"]}}, "cohort.excluded"),
        ({"cohort": {"source": "/data/study/derivatives"}}, "cohort.source"),
        ({"cohort": {"source": "from ~/study"}}, "cohort.source"),
        ({"cohort": {"source": "in ../study"}}, "cohort.source"),
        ({"cohort": {"source": r"D:\study"}}, "cohort.source"),
        ({"cohort": {"source": r"\\server\share\study"}}, "cohort.source"),
        ({"cohort": {"source": "file:///data"}}, "cohort.source"),
        ({"cohort": {"source": "s3://bucket/x"}}, "cohort.source"),
        ({"cohort": {"source": "derivatives/a/bold.nii.gz"}}, "cohort.source"),
        (
            {"calibration": {"source": "/site2", "limits": {}, "n_scans": 1, "method": "none"}},
            "calibration.source",
        ),
        ({"metrics": {"/data/test": {"accuracy": 1.0}}}, "metrics"),
        ({"target": "participant"}, "cohort.scans_of_each"),
        ({"target": "participant"}, "labels"),
        ({"labels": ("sub-01", "sub-02")}, "labels"),
    ],
)
def test_labels_of_participants_and_paths_are_found_with_their_place(changes, place):
    assert place in private_parts(card(**CLEAN | changes))
    with pytest.raises(UsageError, match=place):
        require_publishable(card(**CLEAN | changes), "sex.safetensors")


def test_counts_by_participant_of_an_embedding_are_found():
    reidentification = card("embedding", target="participant", cohort={"scans_of_each": {"100307": 2}})
    assert list(private_parts(reidentification)) == ["cohort.scans_of_each"]


def test_labels_of_the_split_file_are_found_without_their_prefix():
    named = card(**CLEAN | {"cohort": {"best": "NDAR1"}})
    assert private_parts(named) == {}
    assert private_parts(named, ["sub-NDAR1"]) == {"cohort.best": "the label of a participant, NDAR1"}


@pytest.mark.parametrize("missing", ["intended_use", "licence"])
def test_a_card_without_intended_use_or_licence_is_not_published(missing):
    with pytest.raises(UsageError, match=missing.replace("_", " ")) as caught:
        require_publishable(card(**CLEAN | {missing: " "}), "sex.safetensors")
    assert f"--{missing.replace('_', '-')}" in caught.value.hint


def test_parts_can_be_left_out():
    found = card(**CLEAN | {"cohort": {"scans_of_each": {"sub-1": 1}, "scans": 3}, "limits": "not sub-1"})
    cleaned = without(found, ["cohort.scans_of_each", "limits"])
    assert (cleaned.cohort, cleaned.limits) == ({"scans": 3}, "")
    assert found.cohort["scans_of_each"] == {"sub-1": 1}
    assert private_parts(cleaned) == {}
    assert without(found, ["cohort"]).cohort == {}


@pytest.mark.parametrize("place", ["cohort.nothing", "nothing", "cohort.scans.x", "labels", "name", "strategy"])
def test_what_does_not_exist_or_is_needed_cannot_be_left_out(place):
    with pytest.raises(UsageError, match=f"--omit {place}"):
        without(card(**CLEAN), [place])
