"""Adapter files: cards, their validation, and the encoder that they belong to."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bids_app.adapters.file import (
    AdaptedModel,
    Adapter,
    AdapterCard,
    is_diagnosis,
    load_adapter,
    save_adapter,
    to_predictions,
)
from bids_app.errors import BadDataError
from bids_app.model.api import Model
from bids_app.model.checkpoint import write_safetensors
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.heads import pool
from tests.helpers.models import random_model

CONFIG = EncoderConfig(img_size=(24, 24, 24, 4), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 2))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return random_model(tmp_path, CONFIG)


def card(model: Model, **changes) -> AdapterCard:
    values = {
        "name": "state",
        "task": "classification",
        "target": "state",
        "encoder_sha256": model.weights_sha256,
        "normalisation": "voxel",
        "labels": ("rest", "left", "right"),
    }
    return AdapterCard(**(values | changes))


def adapter(model: Model, n_outputs: int = 3, **changes) -> Adapter:
    torch.manual_seed(1)
    head = {"head.weight": torch.randn(n_outputs, 8), "head.bias": torch.randn(n_outputs)}
    return Adapter(card(model, **changes), head)


def clips(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 1, 24, 24, 24, 4, generator=torch.Generator().manual_seed(2))


def test_an_adapter_survives_writing_and_reading(model: Model, tmp_path: Path) -> None:
    written = adapter(model, cohort={"n": 40}, demonstration=True)
    read = load_adapter(save_adapter(tmp_path / "a.safetensors", written))
    assert read.card == written.card
    assert all(torch.equal(read.head[key], value) for key, value in written.head.items())


def test_the_same_adapter_gives_the_same_bytes(model: Model, tmp_path: Path) -> None:
    first, second = (save_adapter(tmp_path / name, adapter(model)).read_bytes() for name in ("a", "b"))
    assert first == second


def test_an_adapter_with_a_head_only_shares_the_encoder(model: Model) -> None:
    adapted = AdaptedModel(model, adapter(model))
    assert adapted.shares_encoder
    expected = pool(model.encode(clips())) @ adapter(model).head["head.weight"].T + adapter(model).head["head.bias"]
    torch.testing.assert_close(adapted(clips()), expected)


def test_prompts_change_the_prediction_but_not_the_model(model: Model) -> None:
    before = model.encode(clips())
    prompted = Encoder(replace(CONFIG, prompt_len=3))
    prompts = {key: value for key, value in prompted.state_dict().items() if key.endswith(".prompt")}
    assert len(prompts) == 2
    plain = adapter(model)
    adapted = AdaptedModel(model, Adapter(replace(plain.card, prompt_len=3, strategy="prompt"), plain.head, prompts))
    assert not adapted.shares_encoder
    assert not torch.allclose(adapted(clips()), AdaptedModel(model, plain)(clips()))
    assert torch.equal(model.encode(clips()), before)


def test_an_adapter_of_another_encoder_is_rejected(model: Model) -> None:
    with pytest.raises(BadDataError, match="belongs to an encoder"):
        AdaptedModel(model, adapter(model, encoder_sha256="0" * 64))


def test_a_head_that_does_not_fit_its_labels_is_rejected(model: Model) -> None:
    with pytest.raises(BadDataError, match="2 outputs"):
        AdaptedModel(model, adapter(model, n_outputs=2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "my-adapter"}, "name"),
        ({"task": "horoscope"}, "task"),
        ({"normalisation": "none"}, "normalisation"),
        ({"encoder_sha256": "abc"}, "encoder_sha256"),
        ({"labels": ("rest",)}, "labels"),
        ({"labels": ("rest", "rest")}, "labels"),
        ({"labels": ["rest", "left"]}, "labels"),
        ({"task": "regression"}, "labels"),
        ({"value_std": 0.0}, "value_std"),
        ({"prompt_len": -1}, "prompt_len"),
        ({"prompt_len": 1.5}, "prompt_len"),
        ({"rank": 2}, "rank"),
        ({"strategy": "lora", "lora_alpha": 2.0, "lora_targets": ("fc",)}, "rank"),
        ({"strategy": "lora", "rank": 2, "lora_targets": ("fc",)}, "lora_alpha"),
        ({"strategy": "lora", "rank": 2, "lora_alpha": 2.0}, "lora_targets"),
        ({"lora_targets": ("fc",)}, "lora_targets"),
        ({"demonstration": "yes"}, "demonstration"),
        ({"cohort": None}, "cohort"),
        ({"dimensions": 3}, "dimensions"),
        ({"task": "embedding", "labels": ()}, "dimensions"),
        ({"task": "embedding", "dimensions": 3}, "labels"),
    ],
)
def test_an_invalid_card_names_the_wrong_field(model: Model, change: dict, words: str) -> None:
    with pytest.raises(BadDataError, match=words):
        card(model, **change)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"unknown": 1}'])
def test_the_error_for_an_invalid_card_names_the_file(model: Model, tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.safetensors"
    write_safetensors(path, adapter(model).head, {"format": "neurostorm-adapter", "version": "1", "card": text})
    with pytest.raises(BadDataError, match=r"broken\.safetensors"):
        load_adapter(path)


def test_a_later_format_version_requires_a_newer_program(model: Model, tmp_path: Path) -> None:
    metadata = {"format": "neurostorm-adapter", "version": "6", "card": json.dumps(asdict(card(model)))}
    path = write_safetensors(tmp_path / "later.safetensors", {}, metadata)
    with pytest.raises(BadDataError, match="newer neurostorm"):
        load_adapter(path)


def test_an_encoder_file_is_rejected_as_an_adapter(model: Model, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="format"):
        load_adapter(tmp_path / "tiny.safetensors")


def test_two_classes_are_one_logit_of_the_second_label(model: Model) -> None:
    two = card(model, labels=("f", "m"))
    probabilities = to_predictions(two, torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.5], [0.1192029, 0.8807971]]))


def test_several_classes_use_a_softmax(model: Model) -> None:
    probabilities = to_predictions(card(model), torch.tensor([[0.0, 0.0, 0.0]]))
    torch.testing.assert_close(probabilities, torch.full((1, 3), 1 / 3))


def test_a_regression_is_scaled_back(model: Model) -> None:
    age = card(model, task="regression", labels=(), value_mean=28.7593, value_std=3.6815)
    torch.testing.assert_close(to_predictions(age, torch.tensor([[1.0]])), torch.tensor([[32.4408]]))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("diagnosis", True), ("Group", True), ("dx_code", True), ("is_patient", True), ("ASD", True),
        ("age", False), ("age_group", False), ("sex", False), ("state", False), ("anxiety_score", False),
    ],
)  # fmt: skip
def test_diagnosis_columns_are_recognised_by_name(target: str, expected: bool) -> None:
    assert is_diagnosis(target) is expected


def test_a_card_with_an_invalid_calibration_or_twin_is_rejected(model: Model, tmp_path: Path) -> None:
    for wrong in ({"calibration": {"n_scans": -1}}, {"twin": {"normalisation": "voxel"}}):
        with pytest.raises(BadDataError, match="Not a valid"):
            card(model, **wrong)
    lost = adapter(model, twin={"normalisation": "global"})
    with pytest.raises(BadDataError, match="disagree about a twin"):
        load_adapter(save_adapter(tmp_path / "a.safetensors", lost))


@pytest.mark.parametrize(
    ("strategy", "prompt_len", "encoder", "words"),
    [
        ("prompt", 5, (), "prompts of length 5"),
        ("linear", 10**9, (), "prompts of length 1000000000"),
        ("prompt", 0, ("layers.0.prompt",), "prompts of length 0"),
        ("linear", 0, ("norm.weight",), "strategy 'linear'"),
        ("full", 0, (), "strategy 'full'"),
        ("ln", 0, (), "strategy 'ln'"),
        ("prompt_ln", 5, ("layers.0.prompt",), "strategy 'prompt_ln'"),
        ("prompt_ln", 5, ("layers.0.prompt", "norm.weight"), ""),
        ("full", 0, ("norm.weight",), ""),
    ],
)
def test_the_strategy_of_a_card_agrees_with_the_tensors(
    model: Model, tmp_path: Path, strategy: str, prompt_len: int, encoder: tuple[str, ...], words: str
) -> None:
    made = adapter(model, strategy=strategy, prompt_len=prompt_len)
    path = save_adapter(tmp_path / "a.safetensors", replace(made, encoder={name: torch.ones(1) for name in encoder}))
    if words:
        with pytest.raises(BadDataError, match=words):
            load_adapter(path)
    else:
        load_adapter(path)


A, B = torch.ones(2, 216), torch.ones(4, 2)
LAYER = "patch_embed.fc"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({f"{LAYER}.lora_B.default.weight": None}, "incomplete"),
        ({f"{LAYER}.lora_A.default.weight": None, f"{LAYER}.lora_B.default.weight": None}, "rank 2"),
        ({f"{LAYER}.lora_A.second.weight": A, f"{LAYER}.lora_B.second.weight": B}, "of several adapters"),
        ({f"{LAYER}.lora_A.default.weight": A[:1], f"{LAYER}.lora_B.default.weight": B[:, :1]}, "rank 2"),
        ({f"{LAYER}.lora_A.default.weight": torch.tensor(1.0)}, "rank 2"),
        ({"patch_embed.fc.bias": torch.ones(4)}, "strategy 'lora'"),
        ({f"{LAYER}.lora_A.default.weight": A[:, :5]}, "does not fit"),
        ({f"{LAYER}.lora_A.default.weight": A * torch.nan}, "low-rank updates"),
        ({f"{LAYER}2.lora_A.default.weight": A, f"{LAYER}2.lora_B.default.weight": B}, "incomplete"),
    ],
)
def test_low_rank_updates_that_do_not_fit_the_card_or_the_encoder_are_refused(
    model: Model, tmp_path: Path, changes: dict, words: str
) -> None:
    made = adapter(model, strategy="lora", rank=2, lora_alpha=4.0, lora_targets=("fc",))
    factors = {f"{LAYER}.lora_A.default.weight": A, f"{LAYER}.lora_B.default.weight": B} | changes
    factors = {name: value for name, value in factors.items() if value is not None}
    path = save_adapter(tmp_path / "a.safetensors", replace(made, encoder=factors))
    if words:
        with pytest.raises(BadDataError, match=words) as caught:
            AdaptedModel(model, load_adapter(path))
        assert str(path) in caught.value.message
    else:
        adapted = AdaptedModel(model, load_adapter(path))
        expected = model.encoder.patch_embed.fc.weight + 4.0
        torch.testing.assert_close(adapted.encoder.patch_embed.fc.weight, expected)
