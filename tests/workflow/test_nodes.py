"""Facts of a run for its verdict, and T1w images that cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bids_app.adapters.calibration import Calibration
from bids_app.adapters.file import Adapter, AdapterCard, save_adapter
from bids_app.adapters.predict import Embeddings, Encoded, Prediction
from bids_app.adapters.verdict import judge_scan
from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE
from bids_app.clips.series import GridSeriesWriter
from bids_app.errors import BadDataError, RegistrationError
from bids_app.model.api import load_model
from bids_app.model.encoder import EncoderConfig
from bids_app.outputs.anatomical import anatomy_outputs
from bids_app.preprocess.anatomical import Anatomy, PreparedT1w, UnusableT1w
from bids_app.preprocess.hmc import MotionEstimate
from bids_app.preprocess.preprocessed import OnGrid
from bids_app.preprocess.registration.alignment import Alignment
from bids_app.preprocess.sdc.choice import SYN
from bids_app.workflow import encoding, nodes
from bids_app.workflow.nodes import scan_facts
from tests.helpers.models import linear_head, save_random_encoder

T1W = Path("sub-01_T1w.nii.gz")
UNUSABLE = UnusableT1w(T1W, "sub-01_T1w.nii.gz: could not be aligned.")
ANATOMY = Anatomy(T1W, "MNI152NLin6Asym", *[T1W] * 10, quality={"norm_correlation": 0.8}, warnings=("of the T1w",))


def run(**changes) -> SimpleNamespace:
    values = {"tr": 2.0, "n_volumes": 100, "n_dummy": 4, "offset": 0.0, "quality": {"tsnr": 50.0}}
    values |= {"orientation": Orientation(), "omitted": (), "doubts": ()}
    return SimpleNamespace(**(values | changes))


def grid(coverage: float, **signal: float) -> OnGrid:
    return OnGrid(Path("grid"), coverage, signal=signal)


def test_the_length_of_a_run_excludes_dummy_scans() -> None:
    assert scan_facts(run(), grid(0.9))["seconds"] == 192


@pytest.mark.parametrize(
    ("left_right", "level", "is_known"),
    [
        (LeftRight.AS_STORED, "pass", True),
        (LeftRight.FLIPPED, "refuse", True),
        (LeftRight.UNKNOWN, "pass", False),
        (LeftRight.NOT_CHECKED, "pass", False),
    ],
)
def test_left_and_right_are_judged_only_if_the_image_shows_them(left_right, level, is_known) -> None:
    verdict = judge_scan(scan_facts(run(orientation=Orientation(left_right)), grid(0.95)))
    assert verdict.level == level
    assert ("orientation" not in verdict.unknown) is is_known


def test_a_prediction_has_the_promise_of_the_site_of_its_participant(tmp_path: Path) -> None:
    made = Calibration(40, limits={"0.9": 3.0}, n_participants=40, sites={"A": 40}).as_dict()
    card = AdapterCard("age", "regression", "age", "0" * 64, "voxel", unit="years", calibration=made)
    prediction = Prediction(card, np.full((4, 1), 30.0), np.arange(4.0), 16.0)
    encoded = Encoded(Embeddings({}, np.arange(4.0), 16.0), (prediction,), None)  # type: ignore[arg-type]
    for site, interval in ((None, None), ("A", (27.0, 33.0)), ("B", None)):  # None: not known
        judged = nodes.judge(encoded, run(), grid(0.95), None, site, None, "warn", tmp_path)
        assert judged.predictions[0].interval == interval


@pytest.mark.parametrize("length", [40, 10])
def test_runs_are_encoded_in_clips_of_the_length_of_the_encoder_which_is_loaded_once(length, tmp_path) -> None:
    encoding.load_files.cache_clear()
    size = {"patch_size": (24, 24, 24, 1), "embed_dim": 4, "depths": (1, 1), "first_window_size": (2, 2, 2, 4)}
    config = EncoderConfig(img_size=(96, 96, 96, length), **size)
    model = load_model(save_random_encoder(tmp_path / "tiny.safetensors", config))
    card = AdapterCard("x", "classification", "t", model.weights_sha256, "voxel", ("a", "b"))
    adapter = save_adapter(tmp_path / "x.safetensors", Adapter(card, linear_head(8)))
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[30:60, 30:60, 30:60] = True
    with GridSeriesWriter(tmp_path / "grid", mask, tr=0.8, n_vols=90) as writer:
        writer.append(np.random.default_rng(0).normal(100, 10, (90, int(mask.sum()))).astype(np.float32))
    labels = np.zeros(MODEL_GRID_SHAPE, np.int16)
    labels[:48], labels[48:] = 1, 2
    nib.save(nib.Nifti1Image(labels, MODEL_GRID_AFFINE), tmp_path / "halves.nii.gz")

    ran, where = OnGrid(tmp_path / "grid", 0.9), str(tmp_path / "tiny.safetensors")
    encoded, _ = (encoding.encode(ran, where, [adapter], "cpu", 1, str(length), tmp_path) for _ in range(2))
    assert encoding.load_files.cache_info().hits == 1
    assert len(encoded.predictions[0].clips) == 90 // length
    assert encoded.embeddings.duration == pytest.approx(0.8 * length)
    atlas = str(tmp_path / "halves.nii.gz")
    found = nodes.attribute_run(ran, encoded, where, [adapter], "occlusion", "", 2, 1, atlas, "cpu", 1, "", tmp_path)
    assert found.found["x"].clip_numbers == (0, 90 // length - 1)


def test_a_series_without_its_mean_image_is_detected() -> None:
    assert scan_facts(run(), grid(0.9))["mean_removed"] is False
    assert scan_facts(run(offset=3.0, quality={}), grid(0.9))["mean_removed"] is True
    assert scan_facts(run(quality={"tsnr": 0.1}), grid(0.9))["mean_removed"] is True
    assert scan_facts(run(quality={}), grid(0.9))["mean_removed"] is None


def test_metrics_outside_the_limits_of_the_report_are_facts_of_the_scan_unless_they_have_a_check():
    quality = {"fd_perc": 24.0, "dvars_std": 1.2, "tsnr": 10.0, "gcor": float("nan"), "aor": None}
    assert scan_facts(run(quality=quality), grid(0.95))["unusual"] == "Volumes with FD above 0.5 mm 24.0 % (≤ 20 %)"
    assert scan_facts(run(quality={"dvars_std": 1.2}), grid(0.95))["unusual"] == ""


def test_a_series_without_its_mean_image_is_not_judged_by_measures_relative_to_it() -> None:
    facts = scan_facts(run(quality={"tsnr": 0.1, "fd_mean": 0.1}), grid(0.95, sd_percent=900.0, gm_wm_mean=-3.0))
    verdict = judge_scan(facts)
    assert "no mean image" in verdict.reasons[0]
    assert not {"tsnr", "fluctuation", "contrast"} & {check.name for check in verdict.checks}
    assert {"tsnr", "fluctuation", "contrast"} <= set(verdict.unknown)
    assert judge_scan(scan_facts(run(quality={"tsnr": 12.0}), grid(0.95))).reasons[0].endswith("the signal is weak.")


def test_a_scan_outside_the_ranges_of_the_cohort_has_the_proportions_of_the_cohort(tmp_path: Path) -> None:
    card = AdapterCard("sex", "classification", "sex", "0" * 64, "voxel", labels=("f", "m"), ranges={"age": [20, 40]})
    prediction = Prediction(card, np.array([[0.9, 0.1]]), np.zeros(1), 16.0)
    encoded = Encoded(None, (prediction,), None)
    for age, share in ((30.0, 0.9), (None, 0.9), (99.0, 0.5)):
        judged = nodes.judge(encoded, run(), grid(0.95), age, None, None, "warn", tmp_path).predictions[0]
        assert judged.reported[0] == pytest.approx(share, abs=1e-4)


def failing(error):
    def fail(*args):
        raise error

    return fail


def alignment(route) -> Alignment:
    return Alignment(route, "MNI152NLin6Asym", *[Path("x")] * 6)


@pytest.fixture
def direct(monkeypatch) -> None:
    monkeypatch.setattr(nodes, "normalise_boldref", lambda *args: alignment("direct"))


def test_a_t1w_that_cannot_be_read_or_aligned_is_left_out_unless_it_is_required(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(nodes, "prepare_t1w", failing(BadDataError("sub-01_T1w.nii.gz: empty.", "Convert it again.")))
    found = nodes.prepare_anatomy(T1W, (), 1, 1, False, "", tmp_path)
    assert found == UnusableT1w(T1W, "sub-01_T1w.nii.gz: empty.")
    assert nodes.normalise_anatomy(found, "MNI152NLin6Asym", 1, False, tmp_path) is found
    with pytest.raises(BadDataError, match="empty"):
        nodes.prepare_anatomy(T1W, (), 1, 1, True, "", tmp_path)
    monkeypatch.setattr(nodes, "normalise_t1w", failing(RegistrationError("sub-01_T1w.nii.gz: not aligned.")))
    prepared = PreparedT1w(T1W, T1W, T1W)
    assert nodes.normalise_anatomy(prepared, "x", 1, False, tmp_path) == UnusableT1w(
        T1W, "sub-01_T1w.nii.gz: not aligned."
    )
    with pytest.raises(RegistrationError, match="not aligned"):
        nodes.normalise_anatomy(prepared, "x", 1, True, tmp_path)


def test_a_run_with_an_unusable_t1w_is_registered_directly_to_the_template(direct, tmp_path) -> None:
    found = nodes.align(None, "MNI152NLin6Asym", 1, False, tmp_path, UNUSABLE)
    assert (found.route, found.t1w_problem) == ("direct", UNUSABLE.reason)
    assert nodes.align(None, "MNI152NLin6Asym", 1, False, tmp_path).t1w_problem == ""


def test_a_run_that_does_not_fit_its_t1w_is_registered_directly_unless_the_t1w_is_required(
    direct, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(nodes, "coregister", failing(RegistrationError("sub-01_bold.nii.gz: not aligned with it.")))
    found = nodes.align(None, "MNI152NLin6Asym", 1, False, tmp_path, ANATOMY)
    assert (found.route, found.t1w_problem) == ("direct", "sub-01_bold.nii.gz: not aligned with it.")
    with pytest.raises(RegistrationError, match="not aligned with it"):
        nodes.align(None, "MNI152NLin6Asym", 1, True, tmp_path, ANATOMY)
    monkeypatch.setattr(nodes, "normalise_boldref", failing(RegistrationError("Nor with the template.", "Look at it.")))
    with pytest.raises(RegistrationError, match=r"not aligned with it\. Nor with the template\.") as error:
        nodes.align(None, "MNI152NLin6Asym", 1, False, tmp_path, ANATOMY)
    assert error.value.hint == "Look at it."


@pytest.mark.parametrize(("route", "problem"), [("direct", UNUSABLE.reason), ("direct", ""), ("t1w", "")])
def test_a_t1w_that_was_not_used_is_in_the_warnings_and_in_the_verdict(route, problem, tmp_path) -> None:
    series = SimpleNamespace(
        source=Path("sub-01_bold.nii.gz"), path=None, tr=2.0, n_volumes=100, n_dummy=0, data_mask=None, warnings=(),
        slices=None, omitted=(),
    )  # fmt: skip
    motion = MotionEstimate(*[Path("x")] * 3, sbref=Path("sub-01_sbref.nii.gz"))
    confounds = SimpleNamespace(table=None, sidecar=None, carpet=None, quality={"tsnr": 50.0})
    anatomy = UNUSABLE if problem else ANATOMY
    echoes = (Path("sub-01_echo-2_bold.nii.gz"),)
    aligned = replace(alignment(route), t1w_problem=problem)
    found = nodes.collect(
        series, motion, SimpleNamespace(mask=None), aligned, confounds, 1, (), False, echoes, tmp_path, anatomy
    )
    assert (found.echoes, found.sbref) == (echoes, motion.sbref)
    assert (found.anatomy is ANATOMY) == (route == "t1w")
    assert ("of the T1w" in found.warnings) == (route == "t1w")
    assert any(UNUSABLE.reason in warning for warning in found.warnings) == bool(problem)
    checks = {check.name: check for check in judge_scan(scan_facts(found, grid(0.95))).checks}
    assert ("preprocessing" in checks) == bool(problem)
    if problem:
        assert checks["preprocessing"].level == "warn"
        assert UNUSABLE.reason in checks["preprocessing"].message


def test_corrections_that_were_left_out_are_in_the_warnings_and_in_the_verdict(tmp_path) -> None:
    series = SimpleNamespace(
        source=Path("sub-01_bold.nii.gz"), path=None, tr=2.0, n_volumes=100, n_dummy=0, data_mask=None, warnings=(),
        slices=None, omitted=("Slice times contradict.",),
    )  # fmt: skip
    motion = MotionEstimate(*[Path("x")] * 3, omitted=("No distortion correction.",))
    confounds = SimpleNamespace(table=None, sidecar=None, carpet=None, quality={"tsnr": 50.0})
    aligned = alignment("t1w")
    found = nodes.collect(
        series, motion, SimpleNamespace(mask=None), aligned, confounds, 1, (), False, tmp_path, ANATOMY
    )
    assert {"Slice times contradict.", "No distortion correction."} <= set(found.warnings)
    (check,) = (check for check in judge_scan(scan_facts(found, grid(0.95))).checks if check.name == "preprocessing")
    assert (check.level, check.message) == ("warn", "Slice times contradict. No distortion correction.")


@pytest.mark.parametrize("route", ["t1w", "direct"])
def test_doubts_about_an_alignment_are_in_the_warnings_and_in_the_verdict(route, tmp_path) -> None:
    series = SimpleNamespace(
        source=Path("sub-01_bold.nii.gz"), path=None, tr=2.0, n_volumes=100, n_dummy=0, data_mask=None, warnings=(),
        slices=None, omitted=(),
    )  # fmt: skip
    motion = MotionEstimate(*[Path("x")] * 3)
    confounds = SimpleNamespace(table=None, sidecar=None, carpet=None, quality={"tsnr": 50.0})
    anatomy = replace(ANATOMY, doubts=("Voxel size?",))
    aligned = replace(alignment(route), doubts=("Another person?",))
    found = nodes.collect(
        series, motion, SimpleNamespace(mask=None), aligned, confounds, 1, (), False, (), tmp_path, anatomy
    )
    expected = ("Voxel size?", "Another person?") if route == "t1w" else ("Another person?",)
    assert found.doubts == expected
    assert set(expected) <= set(found.warnings)
    (check,) = (check for check in judge_scan(scan_facts(found, grid(0.95))).checks if check.name == "alignment")
    assert (check.level, check.message) == ("warn", " ".join(expected))


def test_distortion_is_not_corrected_by_an_unusable_t1w(monkeypatch, tmp_path) -> None:
    motion, series = MotionEstimate(*[Path("x")] * 3), SimpleNamespace(source=Path("sub-01_bold.nii.gz"))
    found = nodes.correct_distortion(series, motion, {}, SYN, None, 1, "", tmp_path, UNUSABLE)
    assert replace(found, omitted=()) == motion
    assert "could not be used" in found.omitted[0]
    monkeypatch.setattr(nodes, "correct_by_anatomy", failing(RegistrationError("It was not aligned.")))
    found = nodes.correct_distortion(series, motion, {}, SYN, None, 1, "", tmp_path, ANATOMY)
    assert found.omitted == ("Susceptibility distortion was not corrected: It was not aligned.",)


def test_an_unusable_t1w_has_no_outputs(tmp_path) -> None:
    assert anatomy_outputs(UNUSABLE, {}, (), tmp_path) is None


@pytest.mark.parametrize(
    ("route", "quality", "expected"),
    [
        ("t1w", {"coreg_similarity": 0.2, "coreg_mirrored": 0.1}, LeftRight.AS_STORED),
        ("t1w", {"coreg_similarity": 0.1, "coreg_mirrored": 0.2}, LeftRight.NOT_CHECKED),
        ("t1w", {}, LeftRight.NOT_CHECKED),
        ("direct", {"coreg_similarity": 0.2, "coreg_mirrored": 0.1}, LeftRight.NOT_CHECKED),
    ],
)
def test_a_raw_run_has_the_orientation_of_its_t1w_if_it_fits_better_than_the_mirrored_one(
    route, quality, expected
) -> None:
    assert nodes.orientation_of(replace(alignment(route), quality=quality)).left_right == expected
