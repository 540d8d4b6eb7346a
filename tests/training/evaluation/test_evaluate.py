"""Evaluation: folds that leak nothing, scores that find what is there and nothing else, baselines in the same folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bids_app.clips import MODEL_GRID_SHAPE
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.training.adapt import AdaptSettings, Labelled
from bids_app.training.data.examples import Examples
from bids_app.training.evaluation import baselines
from bids_app.training.evaluation import evaluate as evaluating
from bids_app.training.evaluation.comparison import ENCODER
from bids_app.training.evaluation.evaluate import EvaluateSettings, evaluate
from bids_app.training.evaluation.folds import make_folds
from bids_app.training.evaluation.report import write_report
from bids_app.training.loop import LoopSettings
from bids_app.training.tasks import Question

LINEAR = AdaptSettings("linear")


def examples_of(values: list[str], people: list[str], families=None, sites=()) -> Examples:
    scans = tuple(
        SimpleNamespace(participant=p, session="", n_clips=1, n_vols=20, name=f"{p}{i}", confounds={})
        for i, p in enumerate(people)
    )
    return Examples(Labelled(scans, tuple(values)), families or {}, tuple(sites))


@pytest.fixture
def with_embeddings(monkeypatch, tmp_path):
    """Evaluate given embeddings and features, (N, C), one clip an example."""
    torch.manual_seed(0)
    config = EncoderConfig(img_size=(4, 4, 4, 20), patch_size=(2, 2, 2, 1), embed_dim=4, depths=(1,))
    path = save_encoder(tmp_path / "m.safetensors", config, Encoder(config).state_dict(), "m")
    model: Model = load_model(path)

    def run(question, examples, embeddings, features=None, images=None, **more):
        monkeypatch.setattr(
            evaluating, "embeddings_of", lambda *_: (torch.tensor(embeddings).float(), torch.arange(len(embeddings)))
        )
        monkeypatch.setattr(evaluating, "features_of", lambda *_: features)
        names = () if features is None else ("mean",)
        settings = EvaluateSettings(LINEAR, baselines=names, **{"permutations": 0, "draws": 200, **more})
        return evaluate(model, question, examples, settings, "voxel", images=images)

    return run


def cohort(n: int, scans: int = 2) -> tuple[list[str], list[str]]:
    people = [f"{k:02d}" for k in range(n) for _ in range(scans)]
    return [("F", "M")[int(p) % 2] for p in people], people


def test_folds_keep_families_together_and_test_everybody_once():
    values, people = cohort(30)
    families = {f"{k:02d}": f"f{k // 3}" for k in range(21)}
    folds = make_folds(Question.about("sex", values), examples_of(values, people, families), 5, seed=1)
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(60))
    for train, test in folds:
        of = [{families.get(people[i], people[i]) for i in part} for part in (train, test)]
        assert not of[0] & of[1]
        assert {values[i] for i in test} == {"F", "M"}


def test_small_classes_make_fewer_folds_and_single_ones_are_refused():
    values, people = ["a"] * 8 + ["b"] * 3, [f"{k}" for k in range(11)]
    assert len(make_folds(Question.about("x", values), examples_of(values, people), 5, 0)) == 3
    with pytest.raises(evaluating.BadDataError, match="one participant is b"):
        make_folds(Question.about("x", values[:9]), examples_of(values[:9], people[:9]), 5, 0)
    numbers = [f"{k}" for k in range(8)]
    assert len(make_folds(Question("x", "regression"), examples_of(numbers, people[:8]), 5, 0)) == 5


def test_one_site_is_left_out_and_its_families_elsewhere_too():
    values, people = cohort(12, 1)
    families = {"00": "x", "11": "x"}
    examples = examples_of(values, people, families, ["a"] * 6 + ["b"] * 6)
    folds = make_folds(Question.about("sex", values), examples, 5, seed=1)
    assert [test.tolist() for _, test in folds] == [list(range(6)), list(range(6, 12))]
    assert [train.tolist() for train, _ in folds] == [list(range(6, 11)), list(range(1, 6))]


def test_an_image_that_is_tested_was_not_trained_on():
    values, people = [f"im{k}" for _ in range(6) for k in range(12)], [f"p{k}" for k in range(6) for _ in range(12)]
    folds = make_folds(Question("im", "embedding", kinds=("a", "b")), examples_of(values, people), 3, 0, by_image=True)
    for train, test in folds:
        assert not {values[i] for i in train} & {values[i] for i in test}
        assert not {people[i] for i in train} & {people[i] for i in test}
        assert len(test)


def test_an_effect_is_found_and_scored_by_participant(with_embeddings):
    values, people = cohort(24)
    rng = np.random.default_rng(0)
    effect = 2.0 * np.array([v == "M" for v in values])[:, None]
    found = with_embeddings(
        Question.about("sex", values),
        examples_of(values, people),
        np.hstack([rng.normal(size=(48, 1)) + 3 * effect, rng.normal(size=(48, 5))]),
        rng.normal(size=(48, 6)),
        permutations=19,
    )
    own = found.methods[ENCODER]
    assert own.scores["balanced_accuracy"] > 0.9
    assert own.intervals["balanced_accuracy"][0] > 0.75
    assert found.p_value == 0.05
    assert found.facts["Scored by"] == "participant"
    assert len(found.table["truth"]) == 24
    assert found.methods["mean"].lead[1] > 0
    assert "The encoder beats mean image" in found.verdict()


def test_no_effect_is_not_found(with_embeddings):
    values, people = cohort(24)
    rng = np.random.default_rng(3)
    noise, strong = rng.normal(size=(48, 6)), rng.normal(size=(48, 6))
    strong[:, 0] += 5 * np.array([v == "M" for v in values])
    found = with_embeddings(Question.about("sex", values), examples_of(values, people), noise, strong, permutations=19)
    low, high = found.methods[ENCODER].intervals["auroc"]
    assert low < 0.5 < high
    assert found.p_value > 0.05
    assert "does worse than mean image" in found.verdict()


def test_a_number_and_its_errors_come_back_in_their_unit(with_embeddings):
    rng = np.random.default_rng(1)
    ages = rng.uniform(20, 80, 40)
    people = [f"{k}" for k in range(40)]
    values = [f"{a:.2f}" for a in ages]
    embeddings = np.stack([ages + rng.normal(size=40), rng.normal(size=40)], axis=1)
    question = Question.about("age", values)
    found = with_embeddings(question, examples_of(values, people), embeddings, rng.normal(size=(40, 3)))
    assert found.methods[ENCODER].scores["r"] > 0.98
    assert found.methods[ENCODER].scores["mae"] < 2
    assert found.methods["mean"].scores["r"] < 0.5


def test_states_of_one_participant_are_scored_one_by_one(with_embeddings):
    people = [f"{k}" for k in range(10) for _ in range(4)]
    values = ["rest", "task"] * 20
    embeddings = np.random.default_rng(0).normal(size=(40, 3)) + 4 * np.array([v == "task" for v in values])[:, None]
    found = with_embeddings(Question.about("state", values), examples_of(values, people), embeddings, permutations=9)
    assert found.facts["Scored by"] == "example"
    assert len(found.table["truth"]) == 40
    assert found.methods[ENCODER].scores["accuracy"] == 1.0
    assert found.p_value == 0.1


def test_people_are_found_again_among_others(with_embeddings):
    rng = np.random.default_rng(0)
    people = [f"{k:02d}" for k in range(20) for _ in range(2)]
    identity = np.repeat(rng.normal(size=(20, 6)), 2, axis=0)
    session = np.tile(10 * rng.normal(size=(2, 1)) * np.ones((1, 6)), (20, 1))  # what a head has to learn to ignore
    embeddings = np.hstack([identity + 0.1 * rng.normal(size=(40, 6)), session])
    question = Question.about("participant", people, "embedding", dimensions=5)
    found = with_embeddings(
        question, examples_of(people, people), embeddings, rng.normal(size=(40, 8)), permutations=19
    )
    assert found.methods[ENCODER].scores["rank1"] > 0.9
    assert found.methods["mean"].scores["rank1"] < 0.5
    assert found.p_value == 0.05


def test_images_are_found_that_were_never_trained_on(with_embeddings):
    rng = np.random.default_rng(0)
    images = {f"im{k}": rng.normal(size=4).astype(np.float32) + 3 for k in range(60)}
    people = [f"p{k}" for k in range(6) for _ in range(60)]
    values = [f"im{k}" for _ in range(6) for k in range(60)]
    seen = np.stack([images[v] for v in values])
    embeddings = seen @ rng.normal(size=(4, 10)) + 0.1 * rng.normal(size=(360, 10))
    question = Question.about("stim_file", values, images=images)
    found = with_embeddings(
        question, examples_of(values, people), embeddings, rng.normal(size=(360, 3)), images=images, folds=3
    )
    assert found.facts["Images of a pool"] == 20
    assert found.methods[ENCODER].scores["top1"] > 0.5
    assert found.methods["mean"].scores["top1"] < 0.25


def test_the_report_says_who_wins_and_keeps_the_numbers(with_embeddings, tmp_path: Path):
    values, people = cohort(12)
    embeddings = np.random.default_rng(0).normal(size=(24, 3)) + 6 * np.array([v == "M" for v in values])[:, None]
    noise = np.random.default_rng(1).normal(size=(24, 3))
    found = with_embeddings(Question.about("sex<", values), examples_of(values, people), embeddings, noise)
    paths = {path.name: path.read_text() for path in write_report(found, tmp_path / "r")}
    assert "The encoder beats mean image" in paths["report.md"]
    assert "| balanced accuracy |" in paths["report.md"]
    assert "sex&lt;" in paths["report.html"]
    assert "sex<" not in paths["report.html"]
    rows = paths["scores.tsv"].splitlines()
    assert rows[0] == "method\tscore\tvalue\tlow\thigh"
    assert len(rows) == 1 + 2 * 3
    assert len(paths["answers.tsv"].splitlines()) == 13


@dataclass(frozen=True)
class Shaded:
    """Noise of 4 x 4 x 4 voxels, brighter for some; read as a scan is."""

    participant: str
    shade: float
    n_vols: int = 20
    n_clips: int = 1
    session: str = ""
    name: str = "x"

    def clip(self, start: int) -> torch.Tensor:
        return torch.randn(1, 4, 4, 4, 20, generator=torch.Generator().manual_seed(int(self.participant))) + self.shade


def test_strategies_within_the_encoder_are_trained_in_each_fold(tmp_path):
    torch.manual_seed(0)
    config = EncoderConfig(img_size=(4, 4, 4, 20), patch_size=(2, 2, 2, 1), embed_dim=4, depths=(1,))
    model = load_model(save_encoder(tmp_path / "m.safetensors", config, Encoder(config).state_dict(), "m"))
    scans = tuple(Shaded(str(k), 2.0 * (k % 2)) for k in range(12))
    values = tuple("dl"[k % 2] for k in range(12))
    settings = AdaptSettings("ln", batch_size=4, loop=LoopSettings(epochs=6, learning_rate=3e-2))
    said: list[str] = []
    found = evaluate(
        model,
        Question.about("shade", values),
        Examples(Labelled(scans, values), {}),
        EvaluateSettings(settings, folds=2, baselines=(), permutations=99, draws=50),
        "voxel",
        say=said.append,
    )
    assert found.methods[ENCODER].scores["accuracy"] > 0.9
    assert found.p_value < 0.05
    assert "fold 2 of 2" in said


def scan_with(tmp_path: Path, make, seed: int):
    from bids_app.training.data.store import ClipStore

    return ClipStore(tmp_path / "s", "voxel").add(f"sub-{seed}", make(seed=seed), str(seed))


def test_parcels_are_means_of_their_voxels(tmp_path, invented_series):
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


def test_features_of_scans_have_one_row_each(tmp_path, invented_series):
    scans = [scan_with(tmp_path, invented_series, k) for k in range(2)]
    pairs = baselines.connectivity(scans)
    assert pairs.shape[0] == 2
    assert np.abs(pairs).max() <= 1
    means = baselines.mean_images(scans)
    assert means.shape[0] == 2
    assert np.isfinite(means).all()
    with pytest.raises(evaluating.BadDataError, match="confounds"):
        baselines.confounds(scans)
