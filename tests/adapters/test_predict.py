"""Embeddings and predictions of a run, from its clips."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_app.adapters import predict
from bids_app.adapters.file import AdaptedModel, Adapter, AdapterCard
from bids_app.adapters.predict import Prediction, encode_run
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader, GridSeries
from bids_app.errors import BadDataError
from bids_app.model.api import Model
from bids_app.model.encoder import EncoderConfig
from bids_app.model.heads import pool
from tests.helpers.models import linear_head, random_model

CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))


@pytest.fixture
def model(tmp_path) -> Model:
    return random_model(tmp_path, CONFIG)


@pytest.fixture
def reader() -> ClipReader:
    """50 volumes at 0.8 s: two clips and a remainder of 8 s."""
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[30:60, 30:60, 30:60] = True
    values = np.random.default_rng(0).normal(100, 10, (50, int(mask.sum()))).astype(np.float32)
    return ClipReader(GridSeries(values, mask, 0.8))


def card(model: Model, **changes) -> AdapterCard:
    values = {"name": "sex", "task": "classification", "target": "sex", "labels": ("f", "m"), "normalisation": "voxel"}
    return AdapterCard(encoder_sha256=model.weights_sha256, **(values | changes))


def test_each_clip_is_embedded_under_each_normalisation(model, reader) -> None:
    embeddings, _ = encode_run(model, [], reader, ("global", "voxel"))
    for name, values in embeddings.values.items():
        for index in range(2):
            expected = pool(model.encode(reader.clip(index, name).unsqueeze(0)))[0].numpy()
            np.testing.assert_allclose(values[index], expected, atol=1e-6)
    assert embeddings.dropped == pytest.approx(8.0)


def test_the_embeddings_table_has_the_mean_and_one_row_per_clip(model, reader) -> None:
    embeddings, _ = encode_run(model, [], reader, ("global", "voxel"))
    rows = list(embeddings.rows())
    assert [(row["normalisation"], row["clip"]) for row in rows] == [
        ("global", "mean"), ("global", 0), ("global", 1), ("voxel", "mean"), ("voxel", 0), ("voxel", 1),
    ]  # fmt: skip
    assert [row["onset"] for row in rows[:3]] == [0, 0, 16]
    assert rows[0]["e0003"] == pytest.approx((rows[1]["e0003"] + rows[2]["e0003"]) / 2)


def test_a_shared_encoder_and_a_copy_of_it_give_the_same_prediction(model, reader) -> None:
    shared = AdaptedModel(model, Adapter(card(model), linear_head(8)))
    norms = {k: v for k, v in model.encoder.state_dict().items() if "norm1" in k}
    copied = AdaptedModel(model, Adapter(card(model, name="copy", strategy="ln"), linear_head(8), norms))
    assert shared.shares_encoder
    assert not copied.shares_encoder
    _, (first, second) = encode_run(model, [shared, copied], reader, ())
    np.testing.assert_allclose(first.clips, second.clips, atol=1e-6)


def test_an_adapter_uses_its_own_normalisation(model, reader) -> None:
    adapter = Adapter(card(model), linear_head(8))
    other = replace(adapter, card=card(model, name="other", normalisation="global"))
    _, (first, second) = encode_run(model, [AdaptedModel(model, a) for a in (adapter, other)], reader, ())
    assert not np.allclose(first.clips, second.clips)
    expected = torch.sigmoid(AdaptedModel(model, other)(reader.clip(0, "global").unsqueeze(0)))[0, 0]
    assert second.clips[0, 1] == pytest.approx(float(expected), abs=1e-6)


def test_the_prediction_of_a_run_is_the_mean_over_its_clips(model) -> None:
    clips = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
    prediction = Prediction(card(model), clips, np.array([0.0, 16.0, 32.0]), 16.0)
    mean, first, second, _ = prediction.rows()
    assert mean["label"] == "f"
    assert mean["p_f"] == pytest.approx(0.7)
    assert mean["duration"] == 48
    assert (first["label"], second["label"]) == ("f", "m")
    assert prediction.agreement == pytest.approx(2 / 3)


def test_a_regression_has_values_and_no_labels(model) -> None:
    age = card(model, name="age", task="regression", labels=(), unit="years")
    prediction = Prediction(age, np.array([[30.0], [34.0]]), np.array([0.0, 16.0]), 16.0)
    mean, *_ = prediction.rows()
    assert mean["value"] == 32
    assert "label" not in mean
    assert prediction.agreement is None


def test_an_embedding_has_one_column_per_dimension_and_unit_length(model, reader) -> None:
    vector = card(model, name="who", task="embedding", labels=(), dimensions=3)
    _, (prediction,) = encode_run(model, [AdaptedModel(model, Adapter(vector, linear_head(8, 3)))], reader, ())
    assert prediction.agreement is None
    assert np.linalg.norm(prediction.clips, axis=1) == pytest.approx([1.0, 1.0])
    rows = list(prediction.rows())
    assert list(rows[0]) == ["clip", "onset", "duration", "e0000", "e0001", "e0002"]
    assert len(rows) == 3


def test_outputs_beyond_single_precision_are_refused(model, reader) -> None:
    huge = {"head.weight": torch.full((1, 8), 1e17), "head.bias": torch.full((1,), 1e17)}
    about = card(model, task="regression", labels=(), value_std=1e30)
    adapter = AdaptedModel(model, Adapter(about, huge, path=Path("huge.safetensors")))
    with pytest.raises(BadDataError, match=r"huge.safetensors: the predictions are infinite or NaN"):
        encode_run(model, [adapter], reader, ("voxel",))
    model.encoder.layers[-1].blocks[-1].norm2.weight.fill_(float("inf"))
    with pytest.raises(BadDataError, match=r"tiny.safetensors: the embeddings are infinite or NaN"):
        encode_run(model, [], reader, ("voxel",))


def test_each_clip_is_read_while_the_one_before_is_used() -> None:
    read: list[int] = []
    second = threading.Event()

    def clips() -> Iterator[torch.Tensor]:
        for number in range(3):
            read.append(number)
            if number == 1:
                second.set()
            yield torch.tensor([number])

    found = predict.read_ahead(clips())
    assert next(found) == 0
    assert second.wait(10)
    assert [int(clip) for clip in found] == [1, 2]
    assert read == [0, 1, 2]
