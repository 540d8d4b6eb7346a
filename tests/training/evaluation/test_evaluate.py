"""Evaluation: folds without leakage, detection of true effects only, and baselines in the same folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bids_app.clips import MODEL_GRID_SHAPE
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.training.adapt import AdaptSettings, LabelledScans
from bids_app.training.data.examples import Examples
from bids_app.training.data.labels import Segment
from bids_app.training.evaluation import baselines, workers
from bids_app.training.evaluation import run as running
from bids_app.training.evaluation.comparison import ENCODER
from bids_app.training.evaluation.evaluate import evaluate
from bids_app.training.evaluation.folds import describe_limits, make_folds
from bids_app.training.evaluation.report import write_report
from bids_app.training.evaluation.run import EvaluateSettings
from bids_app.training.optimiser import LoopSettings
from bids_app.training.tasks import Task

LINEAR = AdaptSettings("linear")


def make_examples(values: list[str], participants: list[str], families=None, sites=(), known_sites=()) -> Examples:
    scans = tuple(
        SimpleNamespace(participant=p, session="", n_clips=1, n_vols=20, name=f"{p}{i}", confounds={})
        for i, p in enumerate(participants)
    )
    return Examples(LabelledScans(scans, tuple(values)), families or {}, tuple(sites), tuple(known_sites))


@pytest.fixture
def with_embeddings(monkeypatch, tmp_path):
    """Return a function that evaluates given embeddings and features (N, C), one clip per example."""
    torch.manual_seed(0)
    config = EncoderConfig(img_size=(4, 4, 4, 20), patch_size=(2, 2, 2, 1), embed_dim=4, depths=(1,))
    path = save_encoder(tmp_path / "m.safetensors", config, Encoder(config).state_dict(), "m")
    model: Model = load_model(path)

    def run(task, examples, embeddings, features=None, images=None, **more):
        monkeypatch.setattr(
            running,
            "compute_embeddings",
            lambda *_: (torch.tensor(embeddings).float(), torch.arange(len(embeddings))),
        )
        given = features if isinstance(features, dict) else {} if features is None else {"mean": features}
        monkeypatch.setattr(running, "compute_features", lambda name, *_: given[name])
        names = tuple(given)
        settings = EvaluateSettings(LINEAR, baselines=names, **{"permutations": 0, "repeats": 3, **more})
        return evaluate(model, task, examples, settings, "voxel", images=images)

    return run


def cohort(n: int, scans: int = 2) -> tuple[list[str], list[str]]:
    participants = [f"{k:02d}" for k in range(n) for _ in range(scans)]
    return [("F", "M")[int(p) % 2] for p in participants], participants


def test_folds_keep_families_together_and_test_each_example_once():
    values, participants = cohort(30)
    families = {f"{k:02d}": f"f{k // 3}" for k in range(21)}
    folds = make_folds(Task.from_values("sex", values), make_examples(values, participants, families), 5, seed=1)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(60))
    for train, test in folds:
        of = [{families.get(participants[i], participants[i]) for i in part} for part in (train, test)]
        assert not of[0] & of[1]
        assert {values[i] for i in test} == {"F", "M"}


def test_small_classes_reduce_the_folds_and_single_participants_raise():
    values, participants = ["a"] * 8 + ["b"] * 3, [f"{k}" for k in range(11)]
    assert len(make_folds(Task.from_values("x", values), make_examples(values, participants), 5, 0)) == 3
    with pytest.raises(BadDataError, match='"b" has only one participant'):
        make_folds(Task.from_values("x", values[:9]), make_examples(values[:9], participants[:9]), 5, 0)
    numbers = [f"{k}" for k in range(8)]
    assert len(make_folds(Task("x", "regression"), make_examples(numbers, participants[:8]), 5, 0)) == 2
    many = [f"{k}" for k in range(30)]
    assert len(make_folds(Task("x", "regression"), make_examples(many, many), 5, 0)) == 5


def test_few_participants_are_warned_of_once_and_in_the_report(make_examples, evaluate_given) -> None:
    values = ["f"] * 2 + ["m"] * 8
    examples, task = make_examples(values, list("abcdefghij")), Task.from_values("sex", values)
    said: list[str] = []
    found = evaluate_given(task, examples, np.arange(30).reshape(10, 3), report=said.append)
    warnings = [line for line in said if line.startswith("Warning")]
    assert warnings == found.notes
    assert 'class "f" has only 2 participants' in warnings[0]
    assert "2 folds instead of 5" in warnings[1]
    numbers = make_examples([str(k) for k in range(12)], [str(k) for k in range(12)])
    (told,) = describe_limits(Task("x", "regression"), numbers, 5, 2)
    assert "2 folds instead of 5: there are 12 participants" in told
    assert (
        describe_limits(Task.from_values("x", ["a", "b"]), make_examples(["a", "b"] * 5, list("abcdefghij")), 5, 5)
        == []
    )


def test_no_warning_of_scikit_learn_reaches_the_user(make_examples, recwarn) -> None:
    numbers = [str(k % 3) for k in range(30)]  # ties make small strata
    make_folds(Task("x", "regression"), make_examples([*numbers, "9"], [str(k) for k in range(31)]), 5, 0)
    assert not recwarn.list


def test_leave_one_site_out_also_excludes_family_members_at_other_sites():
    values, participants = cohort(12, 1)
    families = {"00": "x", "11": "x"}
    examples = make_examples(values, participants, families, ["a"] * 6 + ["b"] * 6)
    folds = make_folds(Task.from_values("sex", values), examples, 5, seed=1)
    assert [test.tolist() for _, test in folds] == [list(range(6)), list(range(6, 12))]
    assert [train.tolist() for train, _ in folds] == [list(range(6, 11)), list(range(1, 6))]


def test_training_and_test_sets_share_no_images():
    values, participants = (
        [f"im{k}" for _ in range(6) for k in range(12)],
        [f"p{k}" for k in range(6) for _ in range(12)],
    )
    folds = make_folds(
        Task("im", "embedding", identities=("a", "b")), make_examples(values, participants), 3, 0, by_image=True
    )
    for train, test in folds:
        assert not {values[i] for i in train} & {values[i] for i in test}
        assert not {participants[i] for i in train} & {participants[i] for i in test}
        assert len(test)


def test_a_true_effect_is_detected_per_participant(with_embeddings):
    values, participants = cohort(24)
    rng = np.random.default_rng(0)
    effect = 2.0 * np.array([v == "M" for v in values])[:, None]
    found = with_embeddings(
        Task.from_values("sex", values),
        make_examples(values, participants),
        np.hstack([rng.normal(size=(48, 1)) + 3 * effect, rng.normal(size=(48, 5))]),
        rng.normal(size=(48, 6)),
        permutations=19,
    )
    own = found.methods[ENCODER]
    assert own.metrics["balanced_accuracy"] > 0.9
    assert own.intervals["balanced_accuracy"][0] > 0.75
    assert found.p_value == 0.05
    assert found.facts["Unit of analysis"] == "participant"
    assert len(found.table["truth"]) == 24
    assert found.methods["mean"].difference[1] > 0
    assert "The encoder is better than mean image" in found.summary()


def test_noise_gives_chance_performance(with_embeddings):
    values, participants = cohort(24)
    rng = np.random.default_rng(3)
    noise, strong = rng.normal(size=(48, 6)), rng.normal(size=(48, 6))
    strong[:, 0] += 5 * np.array([v == "M" for v in values])
    found = with_embeddings(
        Task.from_values("sex", values), make_examples(values, participants), noise, strong, permutations=19
    )
    low, high = found.methods[ENCODER].intervals["auroc"]
    assert low < 0.5 < high
    assert found.p_value > 0.05
    assert "is worse than mean image" in found.summary()


def test_regression_errors_are_in_units_of_the_target(with_embeddings):
    rng = np.random.default_rng(1)
    ages = rng.uniform(20, 80, 40)
    participants = [f"{k}" for k in range(40)]
    values = [f"{a:.2f}" for a in ages]
    embeddings = np.stack([ages + rng.normal(size=40), rng.normal(size=40)], axis=1)
    task = Task.from_values("age", values)
    found = with_embeddings(task, make_examples(values, participants), embeddings, rng.normal(size=(40, 3)))
    assert found.methods[ENCODER].metrics["r"] > 0.98
    assert found.methods[ENCODER].metrics["mae"] < 2
    assert found.methods["mean"].metrics["r"] < 0.5


def test_targets_that_vary_within_participants_are_evaluated_per_example(with_embeddings):
    participants = [f"{k}" for k in range(10) for _ in range(4)]
    values = ["rest", "task"] * 20
    embeddings = np.random.default_rng(0).normal(size=(40, 3)) + 4 * np.array([v == "task" for v in values])[:, None]
    found = with_embeddings(
        Task.from_values("state", values), make_examples(values, participants), embeddings, permutations=9
    )
    assert found.facts["Unit of analysis"] == "example"
    assert len(found.table["truth"]) == 40
    assert found.methods[ENCODER].metrics["accuracy"] == 1.0
    assert found.p_value == 0.1


def test_participants_are_reidentified(with_embeddings):
    rng = np.random.default_rng(0)
    participants = [f"{k:02d}" for k in range(20) for _ in range(2)]
    identity = np.repeat(rng.normal(size=(20, 6)), 2, axis=0)
    session = np.tile(
        10 * rng.normal(size=(2, 1)) * np.ones((1, 6)), (20, 1)
    )  # a session effect that the head must ignore
    embeddings = np.hstack([identity + 0.1 * rng.normal(size=(40, 6)), session])
    task = Task.from_values("participant", participants, "embedding", dimensions=5)
    found = with_embeddings(
        task,
        make_examples(participants, participants),
        embeddings,
        rng.normal(size=(40, 8)),
        permutations=19,
        repeats=1,
    )
    assert found.methods[ENCODER].metrics["rank1"] > 0.9
    assert found.methods["mean"].metrics["rank1"] < 0.5
    assert found.p_value == 0.05


def test_unseen_images_are_retrieved(with_embeddings):
    rng = np.random.default_rng(0)
    images = {f"im{k}": rng.normal(size=4).astype(np.float32) + 3 for k in range(60)}
    participants = [f"p{k}" for k in range(6) for _ in range(60)]
    values = [f"im{k}" for _ in range(6) for k in range(60)]
    seen = np.stack([images[v] for v in values])
    embeddings = seen @ rng.normal(size=(4, 10)) + 0.1 * rng.normal(size=(360, 10))
    task = Task.from_values("stim_file", values, images=images)
    found = with_embeddings(
        task, make_examples(values, participants), embeddings, rng.normal(size=(360, 3)), images=images, folds=3
    )
    assert found.facts["Images per pool"] == 20
    assert found.methods[ENCODER].metrics["top1"] > 0.5
    assert found.methods["mean"].metrics["top1"] < 0.25


def test_the_report_names_the_better_method_and_its_tables_are_complete(with_embeddings, tmp_path: Path):
    values, participants = cohort(12)
    embeddings = np.random.default_rng(0).normal(size=(24, 3)) + 6 * np.array([v == "M" for v in values])[:, None]
    noise = np.random.default_rng(1).normal(size=(24, 3))
    found = with_embeddings(Task.from_values("sex<", values), make_examples(values, participants), embeddings, noise)
    paths = {path.name: path.read_text() for path in write_report(found, tmp_path / "r")}
    assert "The encoder is better than mean image" in paths["report.md"]
    assert "| balanced accuracy |" in paths["report.md"]
    assert "sex&lt;" in paths["report.html"]
    assert "sex<" not in paths["report.html"]
    rows = paths["scores.tsv"].splitlines()
    assert rows[0] == "method\tscore\tvalue\tlow\thigh"
    assert len(rows) == 1 + 2 * 3
    assert len(paths["answers.tsv"].splitlines()) == 13


def test_confounds_that_predict_the_target_are_flagged_with_the_score_without_them(with_embeddings):
    """A group differs in motion, and the embeddings show motion and nothing else."""
    values, participants = cohort(30)
    rng = np.random.default_rng(0)
    motion = np.array([v == "M" for v in values])[:, None] + 0.3 * rng.normal(size=(60, 1))
    embeddings = np.hstack([motion + 0.05 * rng.normal(size=(60, 1)), rng.normal(size=(60, 4))])
    task, examples = Task.from_values("group", values), make_examples(values, participants)
    found = with_embeddings(task, examples, embeddings, {"confounds": motion})
    assert found.methods[ENCODER].metrics["balanced_accuracy"] > 0.8
    assert "RED FLAG: motion and confounds predicts group" in found.summary().splitlines()[0]
    low, high = found.conditional.intervals["balanced_accuracy"]
    assert low < 0.5 < high
    honest = np.hstack([embeddings, 3 * np.array([v == "M" for v in values])[:, None] + rng.normal(size=(60, 1))])
    other = with_embeddings(task, examples, honest, {"confounds": rng.normal(size=(60, 1))})
    assert not other.flags
    assert other.conditional is None


def test_an_effect_beyond_the_confounds_remains(with_embeddings):
    values, participants = cohort(40)
    rng = np.random.default_rng(1)
    group = np.array([v == "M" for v in values])[:, None]
    motion = group + 1.5 * rng.normal(size=(80, 1))
    own = 2.0 * group + 0.5 * rng.normal(size=(80, 1))
    task, examples = Task.from_values("group", values), make_examples(values, participants)
    found = with_embeddings(task, examples, own, {"confounds": motion}, repeats=5)
    assert found.flags
    assert found.conditional.intervals["balanced_accuracy"][0] > 0.6


def test_a_site_that_predicts_the_target_is_flagged(with_embeddings):
    values, participants = cohort(30)
    sites = ["A" if v == "M" else "B" for v in values]
    indicators = baselines.site_features(sites)
    examples = make_examples(values, participants, known_sites=sites)
    task = Task.from_values("group", values)
    found = with_embeddings(task, examples, np.random.default_rng(0).normal(size=(60, 4)), {"site": indicators})
    assert "RED FLAG: site predicts group" in found.summary()
    assert "The encoder is worse than site" in found.summary()


def test_a_baseline_is_beaten_only_if_the_encoder_exceeds_chance(with_embeddings):
    """The encoder is at chance and the baseline far below it: a difference, but no merit."""
    values, participants = cohort(24)
    rng = np.random.default_rng(2)
    task, examples = Task.from_values("sex", values), make_examples(values, participants)
    found = with_embeddings(task, examples, rng.normal(size=(48, 4)), rng.normal(size=(48, 4)))
    method = found.methods["mean"]
    method.difference, method.p_difference = (0.4, 0.3, 0.5), 0.001
    for p in (0.3, 0.03):  # below the 95 % interval, or within it
        found.methods[ENCODER].p_value = p
        assert found.relation("mean") == "does not clearly differ from"
    found.methods[ENCODER].p_value = 0.01
    assert found.relation("mean") == "is better than"
    method.p_difference = 0.06
    assert found.relation("mean") == "does not clearly differ from"
    method.difference, method.p_difference, method.p_value = (-0.4, -0.5, -0.3), 0.001, 0.2
    assert found.relation("mean") == "does not clearly differ from"
    method.p_value = 0.01
    assert found.relation("mean") == "is worse than"


def test_folds_are_repeated_with_other_partitions(with_embeddings):
    values, participants = cohort(20)
    embeddings = np.random.default_rng(0).normal(size=(40, 3))
    task, examples = Task.from_values("sex", values), make_examples(values, participants)
    found = with_embeddings(task, examples, embeddings, repeats=4)
    assert found.facts["Folds"] == "5, by participant, repeated 4 times"
    once = with_embeddings(task, examples, embeddings, repeats=1)
    assert found.methods[ENCODER].metrics != once.methods[ENCODER].metrics


def test_harmonisation_requires_known_sites(with_embeddings):
    values, participants = cohort(12)
    task, embeddings = Task.from_values("sex", values), np.random.default_rng(0).normal(size=(24, 3))
    for sites in ((), ["A"] * 24):
        with pytest.raises(UsageError, match="--harmonise requires"):
            with_embeddings(task, make_examples(values, participants, known_sites=sites), embeddings, harmonise=True)


@dataclass(frozen=True)
class Shaded:
    """A clip source of noise with 4 x 4 x 4 voxels and an offset."""

    participant: str
    shade: float
    n_vols: int = 20
    n_clips: int = 1
    clip_volumes: int = 20
    session: str = ""
    name: str = "x"

    def clip(self, start: int) -> torch.Tensor:
        return torch.randn(1, 4, 4, 4, 20, generator=torch.Generator().manual_seed(int(self.participant))) + self.shade


def test_encoder_strategies_are_trained_in_each_fold(tmp_path):
    torch.manual_seed(0)
    config = EncoderConfig(img_size=(4, 4, 4, 20), patch_size=(2, 2, 2, 1), embed_dim=4, depths=(1,))
    model = load_model(save_encoder(tmp_path / "m.safetensors", config, Encoder(config).state_dict(), "m"))
    scans = tuple(Shaded(str(k), 2.0 * (k % 2)) for k in range(12))
    values = tuple("dl"[k % 2] for k in range(12))
    settings = AdaptSettings("ln", batch_size=4, loop=LoopSettings(epochs=6, learning_rate=3e-2))
    messages: list[str] = []
    found = evaluate(
        model,
        Task.from_values("shade", values),
        Examples(LabelledScans(scans, values), {}),
        EvaluateSettings(settings, folds=2, baselines=(), permutations=99),
        "voxel",
        report=messages.append,
    )
    assert found.methods[ENCODER].metrics["accuracy"] > 0.9
    assert found.p_value < 0.05
    assert "fold 2 of 2" in messages


def scan_with(tmp_path: Path, make, seed: int):
    from bids_app.training.data.store import ClipStore

    return ClipStore(tmp_path / "s", "voxel").add(f"sub-{seed}", make(seed=seed), str(seed))


def test_parcel_series_are_means_over_voxels(tmp_path, invented_series):
    scan = scan_with(tmp_path, invented_series, 1)
    labels = np.zeros(MODEL_GRID_SHAPE, np.int32)
    labels[:48], labels[48:, :48] = 1, 2
    series, voxels = baselines.parcel_series(scan, labels, 3)
    values, places = scan.rows()
    for k in (1, 2):
        own = labels.reshape(-1)[places] == k
        assert voxels[k - 1] == own.sum()
        assert series[:, k - 1] == pytest.approx(values[:, own].mean(axis=1), abs=1e-5)
    assert voxels[2] == 0
    assert (series[:, 2] == 0).all()


def test_of_a_segment_only_its_own_volumes_are_read(tmp_path, invented_series, monkeypatch):
    scan, labels = scan_with(tmp_path, invented_series, 1), baselines.cube_labels(12)
    whole, n = baselines.parcel_series(scan, labels, int(labels.max()))[0], []
    real = type(scan.arrays).codes
    monkeypatch.setattr(type(scan.arrays), "codes", lambda s, a, b, v: n.extend(range(a, b)) or real(s, a, b, v))
    part = baselines.parcel_series(Segment(scan, 4, 10), labels, int(labels.max()))[0]
    assert np.array_equal(part, whole[4:14])
    assert n == list(range(4, 14))


def test_baseline_features_have_one_row_per_scan(tmp_path, invented_series):
    scans = [scan_with(tmp_path, invented_series, k) for k in range(2)]
    pairs = baselines.connectivity_features(scans)
    assert pairs.shape[0] == 2
    assert np.abs(pairs).max() <= 1
    means = baselines.mean_image_features(scans)
    assert means.shape[0] == 2
    assert np.isfinite(means).all()
    with pytest.raises(BadDataError, match="confounds"):
        baselines.confound_features(scans)


def test_amplitudes_follow_the_fluctuations_of_regions(tmp_path, invented_series):
    scans = [scan_with(tmp_path, invented_series, k) for k in range(2)]
    found = baselines.amplitude_features(scans)
    assert found.shape[0] == 2
    assert np.isfinite(found).all()
    time = baselines.MODEL_TR * np.arange(400)
    slow, fast = np.sin(2 * np.pi * 0.04 * time), np.sin(2 * np.pi * 0.3 * time)
    low = baselines.low_frequency_amplitude(np.stack([slow, 2 * slow, fast], axis=1))
    assert low[1] == pytest.approx(2 * low[0])
    assert low[2] < 0.1 * low[0]
    assert np.isnan(baselines.low_frequency_amplitude(slow[:10, None])).all()


def test_one_site_is_no_baseline():
    with pytest.raises(BadDataError, match="Fewer than two sites"):
        baselines.site_features(["A"] * 6)
    assert baselines.site_features(["B", "A", "B"]).tolist() == [[0, 1], [1, 0], [0, 1]]


def given_split(n: int, n_test: int) -> dict[str, tuple[str, ...]]:
    names = [f"{k:02d}" for k in range(n)]
    return {"training": tuple(names[n_test:]), "test": tuple(names[:n_test])}


def test_a_given_split_is_evaluated_on_its_test_set_alone(with_embeddings, tmp_path: Path):
    """The effect of the training set is reversed in the test set: what is learned there is wrong here."""
    values, participants = cohort(40)
    rng = np.random.default_rng(0)
    is_tested = np.array([int(p) < 16 for p in participants])
    effect = 3 * np.where(np.array(values) == "M", 1, -1) * np.where(is_tested, -1, 1)
    embeddings = np.hstack([effect[:, None] + rng.normal(size=(80, 1)), rng.normal(size=(80, 4))])
    task, examples = Task.from_values("sex", values), make_examples(values, participants)
    more = {"repeats": None, "split": given_split(40, 16)}
    found = with_embeddings(task, examples, embeddings, **more)
    assert found.methods[ENCODER].metrics["balanced_accuracy"] < 0.1
    assert len(found.table["truth"]) == 16
    assert found.facts["Folds"] == "one split, as given"
    write_report(found, tmp_path)
    assert "Scores are of the test set of one split" in (tmp_path / "report.md").read_text()
    both = 5 * np.array([v == "M" for v in values])[:, None] + rng.normal(size=(80, 5))
    noise = rng.normal(size=(80, 5))
    learned = with_embeddings(task, examples, both, noise, **more, permutations=19)
    assert learned.methods[ENCODER].metrics["auroc"] > 0.99
    assert learned.p_value == 0.05
    assert "The encoder is better than mean image" in learned.summary()


def test_the_interval_of_a_test_set_is_that_of_its_participants(with_embeddings):
    """About 75 % of 64 participants are right: the interval is that of a proportion, whatever the number of scans."""
    values, participants = cohort(100, scans=3)
    rng = np.random.default_rng(4)
    is_wrong = rng.random(100) < 0.25
    shown = np.array([(v == "M") != is_wrong[int(p)] for v, p in zip(values, participants, strict=True)])
    embeddings = np.stack([shown, rng.normal(size=300)], axis=1)
    task, examples = Task.from_values("sex", values), make_examples(values, participants)
    found = with_embeddings(task, examples, embeddings, repeats=None, split=given_split(100, 64)).methods[ENCODER]
    low, high = found.intervals["accuracy"]
    error = np.sqrt(found.metrics["accuracy"] * (1 - found.metrics["accuracy"]) / 64)
    assert 0.6 < found.metrics["accuracy"] < 0.9
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.is_above_chance


def test_noise_on_a_test_set_does_not_exceed_chance(with_embeddings):
    values, participants = cohort(60)
    task, examples = Task.from_values("sex", values), make_examples(values, participants)
    above = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(120, 4))
        found = with_embeddings(task, examples, noise, repeats=None, split=given_split(60, 30))
        above.append(found.methods[ENCODER].is_above_chance)
    assert sum(above) <= 2


def test_a_split_excludes_folds_by_site_repeats_and_shares(with_embeddings):
    values, participants = cohort(12)
    task, rows = Task.from_values("sex", values), np.zeros((24, 2))
    sites = make_examples(values, participants, sites=["a"] * 24)
    with pytest.raises(UsageError, match="mutually exclusive"):
        with_embeddings(task, sites, rows, repeats=None, split=given_split(12, 4))
    for more in ({"repeats": 3}, {"repeats": None, "train_shares": (0.5,)}):
        with pytest.raises(UsageError, match="--split is one split"):
            with_embeddings(task, make_examples(values, participants), rows, split=given_split(12, 4), **more)


def test_the_epoch_of_the_validation_set_is_kept(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = EncoderConfig(img_size=(4, 4, 4, 20), patch_size=(2, 2, 2, 1), embed_dim=4, depths=(1,))
    model = load_model(save_encoder(tmp_path / "m.safetensors", config, Encoder(config).state_dict(), "m"))
    scans = tuple(Shaded(str(k), 2.0 * (k % 2)) for k in range(12))
    values = tuple("dl"[k % 2] for k in range(12))
    split = {
        name: tuple(map(str, range(a, b))) for name, a, b in (("training", 0, 6), ("validation", 6, 8), ("test", 8, 12))
    }
    seen, adapt = [], workers.adapt
    monkeypatch.setattr(workers, "adapt", lambda *given, **more: seen.append(given[2:4]) or adapt(*given, **more))
    settings = AdaptSettings("ln", batch_size=4, loop=LoopSettings(epochs=2, learning_rate=3e-2))
    found = evaluate(
        model,
        Task.from_values("shade", values),
        Examples(LabelledScans(scans, values), {}),
        EvaluateSettings(settings, baselines=(), permutations=0, split=split),
        "voxel",
    )
    assert [[scan.participant for scan in data.scans] for data in seen[0]] == [list("012345"), list("67")]
    assert len(found.table["truth"]) == 4
