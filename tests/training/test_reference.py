"""Description of a cohort from tables, sidecars and image quality metrics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bids_app.adapters.cohort_ranges import COHORT_RULES
from bids_app.adapters.file import Adapter, AdapterCard
from bids_app.adapters.reconstruction import measure_reconstruction
from bids_app.adapters.verdict import PASS, judge_prediction
from bids_app.clips import ClipReader
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import read_checkpoint, save_encoder
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.training.data.labels import Segment
from bids_app.training.data.scan import Scan
from bids_app.training.reference import add_ranges, add_reconstruction, rounded_range, scan_properties, unique_scans


@pytest.fixture
def scans(tmp_path: Path) -> list[Scan]:
    """Return four scans of four participants; the last one has no sidecar and no image quality metrics."""
    found = []
    for person in range(4):
        name = f"sub-{person}_task-rest"
        bold = tmp_path / "func" / f"{name}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
        bold.parent.mkdir(exist_ok=True)
        if person < 3:
            sidecar = {"RepetitionTime": 2.0 + person, "Manufacturer": "Acme", "MagneticFieldStrength": 3}
            bold.with_suffix("").with_suffix(".json").write_text(json.dumps(sidecar))
            metrics = f"bids_name\tfd_mean\ttsnr\n{name}_bold\t0.{person + 1}\t{'n/a' if person else 40}\n"
            (bold.parent / f"{name}_desc-quality_metrics.tsv").write_text(metrics)
        scan = Scan(tmp_path / name, f"{person}", "", 1.0, 0.0, 100 * (person + 1), source=str(bold))
        found.append(scan)
    return found


def card_of(scans: list[Scan], participants: dict[str, dict[str, str]]) -> AdapterCard:
    card = AdapterCard("age", "regression", "age", "0" * 64, "voxel", cohort={"scans": 4})
    return add_ranges(Adapter(card, {"head.weight": torch.zeros(1, 2)}), scans, participants).card


def test_ranges_require_values_for_at_least_half_of_the_scans(scans: list[Scan]) -> None:
    participants = {"0": {"age": "20"}, "1": {"age": "31.5"}, "2": {"age": "n/a"}, "9": {"age": "99"}}
    card = card_of(scans, participants)
    assert card.ranges == {"tr": [2, 4], "duration": [80, 320], "fd_mean": [0.1, 0.3], "age": [20, 31.5]}
    assert card.cohort["ages"] == {"mean": 25.75, "range": [20, 31.5], "known": 2}


def autoencoder(folder: Path, normalisation: str = "global", decoder: bool = True) -> Model:
    """Return the encoder of a random autoencoder, whose file says how it was trained."""
    torch.manual_seed(0)
    config = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
    model = MaskedAutoencoder(config)
    info = {"mask": {"spatial": "random", "temporal": "tube", "ratio": 0.5}, "normalisation": normalisation}
    state = model.decoder_state() if decoder else None
    path = folder / "model.safetensors"
    return load_model(save_encoder(path, config, model.encoder.state_dict(), "m", decoder=state, info=info))


def test_the_range_of_reconstruction_errors_is_that_of_new_scans_of_the_cohort(
    tmp_path: Path, make_store, invented_series
) -> None:
    store = make_store(2, 25)
    model = autoencoder(tmp_path)
    adapter = Adapter(AdapterCard("age", "regression", "age", "0" * 64, "global"), {"head.weight": torch.zeros(1, 2)})
    low, high = add_reconstruction(adapter, model, list(store)).card.ranges["reconstruction"]
    assert low < high
    checkpoint = read_checkpoint(model.path)
    for seed, side in ((0, -1), (1, 1), (2, -1), (3, 1)):
        reader = ClipReader(invented_series(seed, 25, 60.0, side))
        found = measure_reconstruction(checkpoint, reader)
        assert low * 0.98 <= found.dynamics <= high * 1.02
        facts = {"reconstruction_dynamics": found.dynamics}
        card = replace(adapter.card, ranges={"reconstruction": [low, high]})
        verdict = judge_prediction(facts, card, {}, "warn")
        assert {check.level for check in verdict.checks if check.name == "reconstruction"} == {PASS}


@pytest.mark.parametrize("wrong", [{"normalisation": "voxel"}, {"decoder": False}])
def test_reconstruction_errors_need_a_decoder_trained_with_the_normalisation(
    tmp_path: Path, make_store, wrong: dict
) -> None:
    adapter = Adapter(AdapterCard("age", "regression", "age", "0" * 64, "global"), {"head.weight": torch.zeros(1, 2)})
    assert add_reconstruction(adapter, autoencoder(tmp_path, **wrong), list(make_store(2))) == adapter


def test_sexes_sites_and_scanners_are_counted(scans: list[Scan]) -> None:
    participants = {f"{k}": {"sex": "F" if k else "M", "site": "n/a" if k == 3 else "here"} for k in range(4)}
    cohort = card_of(scans, participants).cohort
    assert cohort["scans"] == 4
    assert (cohort["sexes"], cohort["sites"]) == ({"F": 3, "M": 1}, {"here": 3})
    assert cohort["scanners"] == {"Acme 3 T": 3}
    assert "ages" not in cohort


def test_motion_is_taken_from_confounds_without_quality_metrics(scans: list[Scan]) -> None:
    plain = Scan(scans[3].folder, "3", "", 1.0, 0.0, 100, confounds={"framewise_displacement_mean": 0.25})
    assert scan_properties(plain) == {"duration": 80, "fd_mean": 0.25}
    measured = replace(plain, quality={"tr": 0.72, "tsnr": 40.0, "fd_mean": 0.3, "snr": 5.0}, source="bids:raw:x")
    assert scan_properties(measured) == {"duration": 80, "fd_mean": 0.3, "tr": 0.72, "tsnr": 40.0}


def test_segments_are_replaced_by_their_scans(scans: list[Scan]) -> None:
    assert unique_scans([Segment(scans[0], 0, 20), Segment(scans[0], 20, 40), scans[1]]) == (scans[0], scans[1])


@given(st.lists(st.floats(0, 1e6) | st.integers(0, 150), min_size=1))
@example([0.44333])
@example([0.44325, 0.44335])
@example([5e-324, 1.7976931348623157e308])
def test_every_value_is_within_its_stored_range(values: list[float]) -> None:
    low, high = json.loads(json.dumps(rounded_range(values)))
    assert all(low <= value <= high for value in values)
    assert high - low <= max(values) - min(values) + 2.1e-4 or max(values) > 1e6


@given(st.floats(1e-3, 1e3))
@example(0.44333)
@example(0.4433)
def test_a_training_scan_passes_all_checks_of_its_own_cohort(value: float) -> None:
    ranges = {name: list(rounded_range([value])) for name in COHORT_RULES}
    card = AdapterCard("age", "regression", "age", "0" * 64, "voxel", ranges=ranges)
    written = float(f"{value:.8g}")  # as in a table of confounds
    for measured in (value, written):
        of_cohort = [
            check
            for check in judge_prediction(
                {rule.figure: measured for rule in COHORT_RULES.values()}, card, {}, "warn"
            ).checks
            if check.limits.endswith("cohort")
        ]
        assert of_cohort
        assert all(check.level == PASS for check in of_cohort)


def test_a_scan_above_the_range_of_the_cohort_is_reported() -> None:
    card = AdapterCard("age", "regression", "age", "0" * 64, "voxel", ranges={"age": list(rounded_range([20, 30.5]))})
    verdict = judge_prediction({"age": 30.501}, card, {}, "warn")
    assert any("age of the participant" in reason for reason in verdict.reasons)


def test_a_damaged_sidecar_does_not_prevent_the_description(scans: list[Scan]) -> None:
    Path(scans[0].source).with_suffix("").with_suffix(".json").write_text("{")
    assert card_of(scans, {}).ranges["tr"] == [3, 4]
