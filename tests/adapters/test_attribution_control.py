"""Controls show what a map looks like without what the model learned; permuted-label heads are those of a refit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_app.adapters import attribution
from bids_app.adapters.attribution import Regions, attribute, reconstruction_errors
from bids_app.adapters.attribution_control import (
    N_HEADS,
    PERMUTED,
    RANDOM,
    RIDGE,
    Control,
    check_permuted,
    draw_heads,
    permute_labels,
)
from bids_app.adapters.domain import Domain
from bids_app.adapters.file import AdaptedModel, Adapter, AdapterCard
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader, GridSeries
from bids_app.errors import UsageError
from bids_app.model.api import Model
from bids_app.model.encoder import EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.training.adapt import AdaptSettings
from bids_app.training.head import solve_head
from bids_app.training.tasks import Task
from tests.helpers.models import linear_head, random_model

CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
N_CLIPS_OF_SCAN = 4


@pytest.fixture(scope="module")
def reader() -> ClipReader:
    rng = np.random.default_rng(0)
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[30:66, 30:66, 30:66] = True
    return ClipReader(GridSeries(500 + 20 * rng.standard_normal((45, int(mask.sum()))).astype(np.float32), mask, 0.8))


@pytest.fixture(scope="module")
def cubes() -> Regions:
    """Cubes of 48 mm that cover the grid."""
    number = np.arange(4)
    labels = 1 + number[:, None, None] * 16 + number[:, None] * 4 + number
    return Regions("cubes", np.kron(labels, np.ones((24, 24, 24), int)), {})


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Model:
    return random_model(tmp_path_factory.mktemp("model"), CONFIG)


def cohort(n_features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, Domain]]:
    """Embeddings of clips (N, C), their scans, and reference statistics of 80 participants."""
    rng = np.random.default_rng(seed)
    mixing = (np.eye(n_features) + 0.3 * rng.standard_normal((n_features, n_features))) * np.geomspace(
        1, 10, n_features
    )
    scans = rng.standard_normal((80, n_features)) @ mixing
    clips = scans[:, None] + 0.5 * rng.standard_normal((80, N_CLIPS_OF_SCAN, n_features))
    names = [str(i) for i in range(80)]
    domains = {"embedding": Domain.fit(clips.mean(axis=1), names), "clips": Domain.fit(list(clips), names)}
    return clips.reshape(-1, n_features), np.repeat(np.arange(80), N_CLIPS_OF_SCAN), domains


def adapter_of(model: Model, outputs: int = 1, **parts) -> Adapter:
    labels = ("a", "b", "c")[: max(outputs, 2)]
    card = AdapterCard("x", "classification", "t", model.weights_sha256, "voxel", labels)
    return Adapter(card, linear_head(model.config.n_features, outputs), **parts).with_domains(
        cohort(model.config.n_features)[2]
    )


@pytest.mark.parametrize("labels", [(), ("a", "b"), ("a", "b", "c")])
def test_drawn_heads_are_spread_as_heads_refitted_to_permuted_labels(labels) -> None:
    embeddings, scans, domains = cohort(6)
    task, rng = Task("t", "classification" if labels else "regression", labels), np.random.default_rng(1)
    values = torch.arange(80) % len(labels) if labels else torch.linspace(-3, 3, 80).div(1.73)
    refitted = []
    for _ in range(120):
        targets = values[rng.permutation(80)][scans]
        head = solve_head(task, torch.from_numpy(embeddings).float(), targets, RIDGE)
        refitted.append(head.head.weight.detach().numpy())
    drawn, biases = draw_heads(domains, len(labels), 499, 2)
    spreads = [np.sqrt((heads[:, 0] ** 2).mean(axis=0)) for heads in (np.stack(refitted).astype(float), drawn)]
    assert np.allclose(spreads[0], spreads[1], rtol=0.25)
    assert spreads[0].max() > 3 * spreads[0].min()
    assert np.allclose(drawn @ domains["clips"].mean + biases, 0)


def test_the_penalty_is_the_default_of_the_training() -> None:
    assert AdaptSettings().ridge == RIDGE


def test_p_values_are_corrected_for_the_number_of_regions() -> None:
    rng = np.random.default_rng(0)
    energy = np.geomspace(0.01, 1, 50)  # regions with more signal contribute more with any head
    heads = rng.standard_normal((N_HEADS, 50)) * energy
    control = Control(PERMUTED, heads[0], np.zeros(1), heads)
    every = np.ones(50, bool)
    false = [control.p_values(rng.standard_normal(50) * energy, every).min() <= 0.05 for _ in range(400)]
    assert 0.02 <= np.mean(false) <= 0.09
    learned = rng.standard_normal(50) * energy
    learned[0] = 6 * energy[0]  # small beside the contributions of other regions
    assert control.p_values(learned, every)[0] < 0.01
    assert control.z_values(learned, every)[0] == pytest.approx(6, rel=0.15)


def test_a_region_without_a_token_has_no_p_value_and_does_not_count_in_the_correction() -> None:
    rng = np.random.default_rng(0)
    heads = rng.standard_normal((N_HEADS, 3))
    heads[:, 2] = 1e-12 * rng.standard_cauchy(N_HEADS)  # its largest z is far above that of the others
    control, tested = Control(PERMUTED, heads[0], np.zeros(1), heads), np.array([True, True, False])
    own = np.array([3.5, 0.1, 1.0])
    assert np.isnan(control.p_values(own, tested)).tolist() == [False, False, True]
    assert np.isnan(control.z_values(own, tested)).tolist() == [False, False, True]
    assert control.p_values(own, tested)[0] < 0.01
    assert np.isnan(control.p_values(own, ~(tested | True))).all()


def test_the_map_of_a_permuted_head_is_that_of_its_own_prediction(small, reader, cubes) -> None:
    model = AdaptedModel(small, adapter_of(small, 3))
    found = attribute(model, reader, cubes, 1, n_clips=1, control=PERMUTED, seed=5)
    assert found.control.heads.shape == (N_HEADS, 64)
    drawn = permute_labels(model, N_HEADS, 5)
    weights, biases = drawn.weight[0].clone(), drawn.bias[0].clone()
    first = replace(adapter_of(small, 3), head={"head.weight": weights, "head.bias": biases})
    alone = attribute(AdaptedModel(small, first), reader, cubes, 1, n_clips=1)
    assert np.allclose(found.control.values, alone.mean, atol=1e-5)
    assert np.allclose(found.control.image, alone.image, atol=1e-5)
    table = found.columns()
    assert list(table)[-3:] == ["control", "z", "p"]
    tested = [v > 0 and n > 0 for v, n in zip(table["voxels"], table["tokens"], strict=True)]
    assert 0 < sum(tested) < 64
    for p, is_tested in zip(table["p"], tested, strict=True):
        assert 1 / (N_HEADS + 1) <= p <= 1 if is_tested else np.isnan(p)


def test_by_gradients_one_permuted_head_is_analysed(small, reader, cubes, monkeypatch) -> None:
    monkeypatch.setattr(attribution, "STEPS", 2)
    model = AdaptedModel(small, adapter_of(small))
    found = attribute(model, reader, cubes, 1, "gradients", 1, PERMUTED)
    assert found.control.heads.shape == (0, 64)
    assert list(found.columns())[-1] == "control"
    assert found.control.image.shape == MODEL_GRID_SHAPE


def test_random_weights_leave_the_model_as_it_is(small, reader, cubes) -> None:
    model = AdaptedModel(small, adapter_of(small))
    plain = attribute(model, reader, cubes, 1, n_clips=1)
    found = attribute(model, reader, cubes, 1, n_clips=1, control=RANDOM, seed=1)
    again = attribute(model, reader, cubes, 1, n_clips=1, control=RANDOM, seed=1)
    assert np.array_equal(found.clips, plain.clips)
    assert np.array_equal(found.control.values, again.control.values)
    assert not np.allclose(found.control.values, found.mean)
    signed, unsigned = found.control.correlations(found.mean, found.n_voxels > 0)
    assert max(abs(signed), abs(unsigned)) <= 1
    assert found.control.correlations(found.control.values, found.n_voxels > 0) == pytest.approx((1, 1))


def test_reconstructions_are_compared_with_random_weights_only(reader) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(CONFIG).eval()
    labels = np.zeros(MODEL_GRID_SHAPE, int)
    labels[48:66, 48:66, 48:66], labels[30:40, 30:40, 30:40] = 3, 7
    found = reconstruction_errors(
        model, reader, Regions("two", labels, {}), "random", n_clips=1, control=RANDOM, seed=1
    )
    assert np.isfinite(found.control.values).all()
    assert not np.allclose(found.control.values, found.mean)
    with pytest.raises(UsageError, match="no labels"):
        reconstruction_errors(model, reader, Regions("two", labels, {}), "random", control=PERMUTED)


def test_adapters_whose_labels_cannot_be_permuted_are_named_with_the_way_out(small, reader, cubes) -> None:
    adapter = adapter_of(small)
    check_permuted(adapter)
    cases = {
        "changes the encoder": replace(adapter, encoder={"norm.weight": torch.ones(1)}),
        "no reference statistics": replace(adapter, reference={}),
        "not linear": replace(adapter, head=_two_layers(small.config.n_features)),
    }
    for reason, wrong in cases.items():
        with pytest.raises(UsageError, match=reason) as caught:
            check_permuted(wrong)
        assert "--attribution-control random" in caught.value.hint
    with pytest.raises(UsageError, match="astrology"):
        attribute(AdaptedModel(small, adapter), reader, cubes, 0, control="astrology")


def _two_layers(n_features: int) -> dict[str, torch.Tensor]:
    return {
        "hidden.weight": torch.zeros(4 * n_features, n_features), "hidden.bias": torch.zeros(4 * n_features),
        "head.weight": torch.zeros(1, 4 * n_features), "head.bias": torch.zeros(1),
    }  # fmt: skip
