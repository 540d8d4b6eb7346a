"""Benchmarks: waiting times of pre-training, group differences, masks, comparison of outputs, decoding."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from tests.helpers.scripts import load_benchmark


class Slow:
    """Three batches that take 50 ms each."""

    steps = 3

    def epoch(self, number: int, first: int = 0):
        for k in range(first, self.steps):
            time.sleep(0.05)
            yield k


def test_waiting_time_is_separated_from_the_rest_of_a_step():
    watched = load_benchmark("pretraining").TimedBatches(Slow())
    batches = watched.epoch(0)
    for k in range(3):
        assert next(batches) == k
        time.sleep(0.02)
    batches.close()  # as the loop does after its last step
    assert [step.first for step in watched.measured] == [True, False, False]
    for step in watched.measured:
        assert step.waiting >= 0.05
        assert step.wall - step.waiting >= 0.02


@pytest.fixture
def two_outputs(tmp_path: Path) -> tuple[Path, Path]:
    """Two output folders with the same table, sidecar, image and transform."""
    folders = (tmp_path / "before", tmp_path / "after")
    for folder in folders:
        folder.mkdir()
        (folder / "x.tsv").write_text("clip\tvalue\tstate\n1\t0.5\trest\n2\tn/a\trest\n")
        (folder / "x.json").write_text('{"Units": "mm", "quality": {"fd_mean": 0.1}, "Description": "Two words"}')
        nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 2), np.eye(4)).to_filename(folder / "x.nii.gz")
        (folder / "x_xfm.txt").write_text("Transform: MatrixOffset\nParameters: 1 0 0 0.25\n")
    return folders


def test_equal_outputs_do_not_differ(two_outputs: tuple[Path, Path]) -> None:
    assert list(load_benchmark("compare_outputs").differences(*two_outputs, 1e-5)) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "differs"),
    [
        ("x.tsv", "0.5", "0.50001", True),
        ("x.tsv", "0.5", "0.5000001", False),
        ("x.tsv", "rest", "task", True),
        ("x.tsv", "n/a", "0.5", True),
        ("x.json", "0.1", "0.2", True),
        ("x.json", "mm", "cm", True),
        ("x.json", "fd_mean", "fd_max", True),
        ("x.json", "Two words", "Other words", False),
        ("x_xfm.txt", "0.25", "0.3", True),
    ],
)
def test_differences_in_outputs_are_found(two_outputs, file: str, old: str, new: str, differs: bool) -> None:
    path = two_outputs[1] / file
    path.write_text(path.read_text().replace(old, new, 1))
    found = list(load_benchmark("compare_outputs").differences(*two_outputs, 1e-5))
    assert [line.partition(":")[0] for line in found] == ([file] if differs else [])


def test_differences_in_images_and_missing_files_are_found(two_outputs: tuple[Path, Path]) -> None:
    nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 2) + 0.1, np.eye(4)).to_filename(two_outputs[1] / "x.nii.gz")
    (two_outputs[1] / "x.tsv").unlink()
    found = list(load_benchmark("compare_outputs").differences(*two_outputs, 1e-5))
    assert {line.partition(":")[0] for line in found} == {"x.nii.gz", "x.tsv"}


@pytest.mark.slow
def test_groups_of_the_masking_cohort_differ_in_the_variance_of_limbic_and_cerebellar_regions() -> None:
    module = load_benchmark("region_masking")
    networks = np.array(module.regions().networks)
    varied = np.isin(networks, ("limbic", "cerebellum"))

    def ratio(variance: float) -> np.ndarray:
        plan = replace(module.QUICK, clips=4, variance=variance)
        scans = [module.simulate(number, plan).series for number in (0, 1)]  # a control and a patient
        owners = module.labels()[scans[0].mask]
        spread = [
            [np.asarray(scan.values)[:, owners == k].mean(axis=1).std() for k in module.names()] for scan in scans
        ]
        return np.log(np.divide(spread[1], spread[0]))

    change = ratio(0.5) - ratio(0.0)
    assert change[varied].min() > 0.1  # 1 without noise and with grey matter alone
    assert abs(change[~varied]).max() < 0.1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_masks_are_compared_from_cohort_to_table(tmp_path, capsys):
    module = load_benchmark("region_masking")
    right, missed = module.run(tmp_path, module.QUICK)
    assert set(right) == {module.UNTRAINED, *module.MASKS, *module.BASELINES}
    assert set(missed) == set(module.MASKS)
    assert all(values.shape == (1, module.QUICK.labelled) for values in right.values())
    assert all(np.isfinite(values).any() for values in missed.values())
    module.report(right, missed)
    assert "| region masks |" in capsys.readouterr().out


def test_datasets_are_found_in_folders(tmp_path: Path) -> None:
    for name in ("one", "group/two", "group/three", "one/derivatives/four"):
        bold = tmp_path / name / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz"
        bold.parent.mkdir(parents=True)
        bold.touch()
        (tmp_path / name / "dataset_description.json").touch()
    texts = tmp_path / "group" / "texts"
    texts.mkdir()
    (texts / "dataset_description.json").touch()  # derivatives without images
    datasets_in = load_benchmark("real_scans").datasets_in
    assert [path.name for path in datasets_in([tmp_path / "one", tmp_path / "group"])] == ["one", "three", "two"]
    assert sorted(path.name for path in datasets_in([tmp_path])) == ["one", "three", "two"]


def test_an_alignment_is_compared_with_a_segmentation_that_does_not_know_it() -> None:
    from bids_app.catalog.templates import load_template
    from bids_app.preprocess.registration.ants import Image
    from bids_app.preprocess.registration.transforms import Chain, linear, rigid

    compare, template = load_benchmark("real_scans").compare_with_template, load_template()
    image = Image(template.t1w, template.affine)
    shifted, back = (linear(rigid((0, 0, 0), (shift, 0, 0))) for shift in (6, -6))
    right = compare(image, template.mask, template.name, Chain(), Chain())
    wrong = compare(image, template.mask, template.name, shifted, back)
    assert right["r"] > 0.999
    assert all(right[name] > wrong[name] + 0.1 for name in right)
    assert right["white"] > 0.8


def block_design(decode, n_blocks: int = 7, step: float = 0.8):
    """Volumes at 0.8 s of blocks of 20 s, each after 20 s of baseline; labels lag by 4 s."""
    times = step * (np.arange(round((40 * n_blocks + 24) / step)) + 0.5)
    onsets = 20 + 40 * np.arange(n_blocks)
    labels = np.any([(times >= on + 4) & (times < on + 24) for on in onsets], axis=0)
    return decode.Design(times, labels, decode.make_folds(times, onsets + 14.0, 20.0, 16.0))


def test_a_state_in_some_features_is_decoded_and_noise_is_not() -> None:
    decode = load_benchmark("decode")
    design = block_design(decode)
    noise = np.random.default_rng(0).normal(size=(len(design.times), 40))
    state = noise.copy()
    state[:, :3] += 1.0 * design.labels[:, None]
    others = decode.random_blocks(design.times, 7, 20.0, 200)
    found, chance = (decode.decode(features, design, others) for features in (state, noise))
    assert found.auc.shape == found.accuracy.shape == (7,)
    assert found.auc.mean() > 0.85
    assert found.accuracy.mean() > 0.75
    assert found.p < 0.02
    assert decode.interval(found.auc)[0] > 0.75
    assert abs(chance.auc.mean() - 0.5) < 0.1
    assert chance.p > 0.05


def test_slow_drift_is_not_taken_for_a_state() -> None:
    decode = load_benchmark("decode")
    design = block_design(decode)
    drift = np.stack([design.times, np.sin(design.times / 150)], axis=1)
    found = decode.decode(drift, design, decode.random_blocks(design.times, 7, 20.0, 200))
    assert found.auc.mean() < 0.65
    assert found.p > 0.05


def test_tested_examples_share_no_volume_with_training_examples() -> None:
    decode = load_benchmark("decode")
    design = block_design(decode)
    tested = np.zeros(len(design.times), int)
    for train, test in design.folds:
        gap = np.abs(design.times[train][:, None] - design.times[test]).min()
        assert gap >= decode.CLIP_SECONDS
        tested += test
    assert tested.max() == 1
    assert tested[design.labels].all()


def test_scores_are_those_of_a_ridge_regression() -> None:
    decode = load_benchmark("decode")
    features = np.random.default_rng(0).normal(3, 2, (30, 5))
    labels = np.arange(30) % 3 == 0
    train, test = np.arange(30) < 20, np.arange(30) >= 20
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    model = Ridge(alpha=5).fit((features[train] - mean) / std, np.where(labels[train], 1, -1))
    expected = model.predict((features[test] - mean) / std)
    found = decode.fit_and_score(features, train, test) @ np.where(labels[train], 1.0, -1.0)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_auc_and_balanced_accuracy_are_those_of_scikit_learn() -> None:
    decode = load_benchmark("decode")
    rng = np.random.default_rng(1)
    matrix, train, test = rng.normal(size=(12, 20)), np.arange(32) < 20, np.arange(32) >= 20
    labels = rng.random((4, 32)) < 0.4
    labels[3, test] = True
    auc, accuracy = decode.measure_blocks([(matrix, train, test)], labels)
    for k in range(3):
        scores = matrix @ np.where(labels[k, train], 1.0, -1.0)
        assert auc[0, k] == pytest.approx(roc_auc_score(labels[k, test], scores))
        assert accuracy[0, k] == pytest.approx(balanced_accuracy_score(labels[k, test], scores > 0))
    assert np.isnan(auc[0, 3])
    assert np.isnan(accuracy[0, 3])
