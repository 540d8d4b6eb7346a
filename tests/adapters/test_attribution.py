"""Attribution is exact on small encoders, correct on simulated brains, and changes with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from bids_app.adapters.attribution import (
    Regions,
    attribute,
    integrate_gradients,
    mean_over_time,
    occlude,
    reconstruction_errors,
    select_clips,
)
from bids_app.adapters.file import AdaptedModel, Adapter, AdapterCard, load_adapter
from bids_app.catalog.models import adapter_paths, find_model, weights_path
from bids_app.clips import MODEL_GRID_AFFINE, MODEL_GRID_SHAPE, ClipReader, GridSeries
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model, load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.patches import from_patches
from bids_app.phantom.grid_scans import simulated_series
from tests.helpers.models import random_model

CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))


@pytest.fixture(scope="module")
def reader() -> ClipReader:
    rng = np.random.default_rng(0)
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[30:66, 30:66, 30:66] = True
    values = 500 + 20 * rng.standard_normal((45, int(mask.sum()))).astype(np.float32)
    return ClipReader(GridSeries(values, mask, 0.8))


@pytest.fixture(scope="module")
def cubes() -> Regions:
    """Cubes of 32 mm that cover the grid."""
    number = np.arange(6)
    labels = 1 + number[:, None, None] * 36 + number[:, None] * 6 + number
    return Regions("cubes", np.kron(labels, np.ones((16, 16, 16), int)), {1: "first"})


@pytest.fixture
def small(tmp_path) -> Model:
    return random_model(tmp_path, CONFIG)


def adapted(model: Model, task: str = "classification", outputs: int = 3, **card) -> AdaptedModel:
    labels = ("a", "b", "c")[: max(outputs, 2)] if task == "classification" else ()
    torch.manual_seed(1)
    head = {"head.weight": torch.randn(outputs, model.config.n_features), "head.bias": torch.zeros(outputs)}
    return AdaptedModel(
        model, Adapter(AdapterCard("x", task, "t", model.weights_sha256, "voxel", labels, **card), head)
    )


def test_occlusion_equals_replacing_the_region_by_its_mean_over_time(small, reader, cubes) -> None:
    model, clip = adapted(small), reader.clip(0, "voxel")[None]
    found = occlude(model.encoder, lambda features: model.head(features)[:, 1:2], clip, cubes)[0]
    rows = [k for k in range(216) if cubes.sums(reader.series.mask)[k]]
    for k in (rows[0], rows[len(rows) // 2]):
        inside = torch.from_numpy(cubes.labels == cubes.index[k])
        occluded = torch.where(inside[None, None, ..., None], mean_over_time(clip), clip)
        with torch.no_grad():
            expected = (model(clip) - model(occluded))[0, 1].item()
        assert found[k] == pytest.approx(expected, abs=2e-5)
    assert np.abs(found).max() > 1e-4
    assert np.allclose(np.delete(found, rows), 0, atol=1e-6)


def test_integrated_gradients_sum_to_the_effect_of_the_dynamics(small, reader) -> None:
    model, clip = adapted(small), reader.clip(1, "voxel")[None]
    image = integrate_gradients(lambda clips: model(clips)[:, 0], clip)
    with torch.no_grad():
        change = (model(clip) - model(mean_over_time(clip)))[0, 0].item()
    assert image.sum() == pytest.approx(change, rel=0.05)
    assert not image[~reader.series.mask].any()


def test_attributions_are_in_the_unit_of_a_regression_and_antisymmetric_for_two_classes(small, reader, cubes) -> None:
    age = attribute(adapted(small, "regression", 1, unit="years", value_std=3.0), reader, cubes, 0)
    plain = attribute(adapted(small, "regression", 1), reader, cubes, 0)
    assert (age.measure, age.target) == ("years", "t")
    assert np.allclose(age.clips, 3 * plain.clips, atol=1e-5)
    first, second = (attribute(adapted(small, outputs=1), reader, cubes, k).clips for k in (0, 1))
    assert np.allclose(first, -second, atol=1e-5)


def test_the_table_is_sorted_by_sign_and_size_and_has_the_size_of_regions(small, reader, cubes) -> None:
    found = attribute(adapted(small), reader, cubes, 0, n_clips=9)
    table = found.columns()
    assert found.clip_numbers == (0, 1)
    values = np.array(table["attribution"])
    for_it, against, without = values[values > 0], values[values < 0], values[np.isnan(values)]
    assert min(map(len, (for_it, against, without))) > 1
    zeros = [0.0] * int((values == 0).sum())
    assert values[: -len(without)].tolist() == [*sorted(for_it, reverse=True), *sorted(against), *zeros]
    assert {n == 0 for n in table["voxels"][-len(without) :]} == {True}
    assert sum(table["voxels"]) == reader.series.mask.sum()
    assert set(table["tokens"]) == {0, 1}  # patches of 24 voxels belong to one of the cubes that they touch
    assert table["name"][table["index"].index(1)] == "first"
    assert found.image.shape == MODEL_GRID_SHAPE


def test_regions_without_a_token_are_named(small, reader) -> None:
    labels = np.zeros(MODEL_GRID_SHAPE, int)
    labels[24:72, 24:72, 24:72], labels[40:43, 40:43, 40:43] = 1, 2
    found = attribute(adapted(small), reader, Regions("two", labels, {1: "large", 2: "small"}), 0, n_clips=1)
    assert found.without_token == ("small",)


def test_regions_of_the_atlas_outside_the_brain_are_listed_without_a_contribution(small, reader) -> None:
    labels = np.zeros(MODEL_GRID_SHAPE, int)
    labels[24:72, 24:72, 24:72], labels[:3, :3, :3] = 1, 2
    regions = Regions("three", labels, {1: "inside", 2: "beside the brain", 9: "not on the grid"})
    found = attribute(adapted(small), reader, regions, 0, n_clips=1)
    table = found.columns()
    assert table["name"] == ["inside", "beside the brain", "not on the grid"]
    assert table["index"] == [1, 2, 9]
    assert np.isnan(table["attribution"]).tolist() == [False, True, True]
    assert table["voxels"][1:] == [0, 0]
    assert found.outside == ("beside the brain", "not on the grid")


def test_one_clip_has_no_standard_deviation(small, reader, cubes) -> None:
    one, two = (attribute(adapted(small), reader, cubes, 0, n_clips=n).columns()["std"] for n in (1, 2))
    assert np.isnan(one).all()
    assert np.isfinite(two).any()


def test_selected_clips_are_evenly_spaced() -> None:
    assert select_clips(10, 3) == (0, 4, 9)
    assert select_clips(1, 3) == (0,)


@pytest.mark.parametrize("spatial", ["random", "window", "atlas"])
def test_reconstruction_errors_cover_the_hidden_region_only(spatial, reader) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(CONFIG).eval()
    labels = np.zeros(MODEL_GRID_SHAPE, int)
    labels[48:66, 48:66, 48:66], labels[:10, :10, :10] = 3, 7
    found = reconstruction_errors(model, reader, Regions("two", labels, {}), spatial)
    assert found.mask_token == spatial
    clip = reader.clip(0, "global")[None]
    mask = torch.zeros(1, *CONFIG.grid(0))
    mask[0, 2, 2, 2] = 1
    with torch.no_grad():
        wrong = (from_patches(model(clip, mask, spatial), CONFIG.patch_size) - clip)[0, 0, 48:66, 48:66, 48:66]
    expected = wrong.square().mean() / clip[0, 0, 48:66, 48:66, 48:66].var(dim=-1, correction=0).mean()
    assert found.clips[0, 0] == pytest.approx(expected.item(), rel=1e-4)
    assert np.isnan(found.clips[0, 1])


def test_unknown_methods_and_empty_atlases_are_rejected(small, reader, cubes) -> None:
    with pytest.raises(UsageError, match="tea leaves"):
        attribute(adapted(small), reader, cubes, 0, "tea leaves")
    with pytest.raises(BadDataError, match="no region"):
        Regions("empty", np.zeros(MODEL_GRID_SHAPE, int), {})


@pytest.mark.parametrize("method", ["occlusion", pytest.param("gradients", marks=pytest.mark.slow)])
def test_hand_movement_is_attributed_to_the_contralateral_hemisphere_but_not_with_random_weights(
    method: str, hand: ClipReader, cubes: Regions, tmp_path
) -> None:
    entry = find_model("demo")
    adapter = load_adapter(adapter_paths(entry, ())[0])
    model = load_model(weights_path(entry))
    left = adapter.card.labels.index("lefthand")
    found = attribute(AdaptedModel(model, adapter), hand, cubes, left, method, n_clips=1)
    best = found.columns()["index"][:3]
    knob = np.rint(np.linalg.inv(MODEL_GRID_AFFINE) @ [38.0, -24.0, 57.0, 1.0])[:3].astype(int)
    assert cubes.labels[tuple(knob)] in best

    torch.manual_seed(0)
    state = Encoder(model.config).state_dict()
    at_random = load_model(save_encoder(tmp_path / "random.safetensors", model.config, state, "random"))
    object.__setattr__(adapter.card, "encoder_sha256", at_random.weights_sha256)
    other = attribute(AdaptedModel(at_random, adapter), hand, cubes, left, method, n_clips=1)
    seen = found.n_voxels > 0
    assert abs(spearmanr(found.clips[0, seen], other.clips[0, seen]).statistic) < 0.5


@pytest.fixture(scope="module")
def hand() -> ClipReader:
    return ClipReader(simulated_series("lefthand", 4711, "left"))
