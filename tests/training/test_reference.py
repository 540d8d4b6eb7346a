"""What a cohort was like is read from tables, sidecars and figures of quality, as far as they tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bids_app.adapters.file import Adapter, AdapterCard
from bids_app.training.data.labels import Stretch
from bids_app.training.data.store import Scan
from bids_app.training.reference import figures_of, whole_scans, with_ranges


@pytest.fixture
def scans(tmp_path: Path) -> list[Scan]:
    """Four scans of four participants; of the last one nothing is known but its length."""
    found = []
    for person in range(4):
        name = f"sub-{person}_task-rest"
        bold = tmp_path / "func" / f"{name}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        bold.parent.mkdir(exist_ok=True)
        if person < 3:
            sidecar = {"RepetitionTime": 2.0 + person, "Manufacturer": "Acme", "MagneticFieldStrength": 3}
            bold.with_suffix("").with_suffix(".json").write_text(json.dumps(sidecar))
            figures = f"bids_name\tfd_mean\ttsnr\n{name}_bold\t0.{person + 1}\t{'n/a' if person else 40}\n"
            (bold.parent / f"{name}_desc-quality_metrics.tsv").write_text(figures)
        scan = Scan(tmp_path / name, f"{person}", "", 1.0, 0.0, 100 * (person + 1), source=str(bold))
        found.append(scan)
    return found


def card_of(scans: list[Scan], people: dict[str, dict[str, str]]) -> AdapterCard:
    card = AdapterCard("age", "regression", "age", "0" * 64, "voxel", cohort={"scans": 4})
    return with_ranges(Adapter(card, {"head.weight": torch.zeros(1, 2)}), scans, people).card


def test_ranges_are_those_of_the_scans_as_far_as_most_of_them_tell(scans: list[Scan]) -> None:
    people = {"0": {"age": "20"}, "1": {"age": "31.5"}, "2": {"age": "n/a"}, "9": {"age": "99"}}
    card = card_of(scans, people)
    assert card.ranges == {"tr": [2, 4], "duration": [80, 320], "fd_mean": [0.1, 0.3], "age": [20, 31.5]}
    assert card.cohort["ages"] == {"mean": 25.75, "range": [20, 31.5], "known": 2}


def test_sexes_sites_and_scanners_are_counted(scans: list[Scan]) -> None:
    people = {f"{k}": {"sex": "F" if k else "M", "site": "n/a" if k == 3 else "here"} for k in range(4)}
    cohort = card_of(scans, people).cohort
    assert cohort["scans"] == 4
    assert (cohort["sexes"], cohort["sites"]) == ({"F": 3, "M": 1}, {"here": 3})
    assert cohort["scanners"] == {"Acme 3 T": 3}
    assert "ages" not in cohort


def test_motion_comes_from_confounds_where_no_quality_is_told(scans: list[Scan]) -> None:
    plain = Scan(scans[3].folder, "3", "", 1.0, 0.0, 100, confounds={"framewise_displacement_mean": 0.25})
    assert figures_of(plain) == {"duration": 80, "fd_mean": 0.25}


def test_stretches_stand_for_their_scans(scans: list[Scan]) -> None:
    assert whole_scans([Stretch(scans[0], 0, 20), Stretch(scans[0], 20, 40), scans[1]]) == (scans[0], scans[1])
