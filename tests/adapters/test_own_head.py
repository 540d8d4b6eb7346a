"""The head of a fine-tuned file is applied without conversion, with a card and a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_app.adapters.file import AdaptedModel, AdapterCard, to_predictions
from bids_app.adapters.own_head import judge_card, own_head, read_any_adapter, without_last_layer
from bids_app.adapters.predict import encode_run
from bids_app.adapters.verdict import Verdict
from bids_app.catalog.models import catalog, find_model
from bids_app.catalog.references import FileFacts, write_facts
from bids_app.clips import MODEL_GRID_SHAPE, ClipReader, GridSeries
from bids_app.errors import BadDataError
from bids_app.model.api import load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.heads import HEADS, build_head, pool
from bids_app.outputs.cards import describe_adapter
from tests.helpers.models import lightning_content

CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
N_FEATURES, N_TOKENS = 8, 2 * 2 * 2 * 20
SEX = {"downstream_task_type": "classification", "task_name": "sex", "num_classes": 2}
AGE = {"downstream_task_type": "regression", "task_name": "age", "label_scaling_method": "standardization"}


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(CONFIG)


@pytest.fixture
def reader() -> ClipReader:
    """60 volumes at 0.8 s: three clips."""
    mask = np.zeros(MODEL_GRID_SHAPE, bool)
    mask[30:60, 30:60, 30:60] = True
    values = np.random.default_rng(0).normal(100, 10, (60, int(mask.sum()))).astype(np.float32)
    return ClipReader(GridSeries(values, mask, 0.8))


def head_state(version: str = "v1", outputs: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = HEADS[version](N_FEATURES, outputs, N_TOKENS, *((2,) if version.startswith("v3") else ())).state_dict()
    return {key: value + 0.3 * torch.randn_like(value) for key, value in state.items()}


def write(folder: Path, encoder: Encoder, state: dict[str, torch.Tensor], **hyper: object) -> Path:
    path = folder / "fine-tuned.ckpt"
    torch.save(lightning_content(encoder, state, **hyper), path)
    return path


def adapted(path: Path) -> AdaptedModel:
    return AdaptedModel(load_model(path, with_head=False), read_any_adapter(path, find_model(str(path))))


@pytest.mark.parametrize("version", HEADS)
@pytest.mark.parametrize("outputs", [1, 7])
def test_each_published_version_gives_its_own_outputs(encoder, tmp_path, version, outputs):
    state = head_state(version, outputs)
    hyper = {"downstream_task_type": "classification", "task_name": "state", "num_classes": max(outputs, 2)}
    path = write(tmp_path, encoder, state, **hyper)
    clips = torch.randn(2, 1, 96, 96, 96, 20)
    head, _ = build_head(state)
    torch.testing.assert_close(adapted(path)(clips), head(load_model(path).encode(clips)))
    card = own_head(find_model(str(path))).card
    assert (card.name, card.task, card.target, card.normalisation) == ("finetuned", "classification", "state", "global")
    assert (card.strategy, len(card.labels)) == ("own", max(outputs, 2))


def test_the_run_has_the_mean_logit_over_clips_and_the_sidecar_says_so(encoder, reader, tmp_path):
    with torch.no_grad():
        embeddings = torch.cat([pool(encoder.eval()(reader.clip(k, "global")[None])) for k in range(3)])
    weight = head_state()["head.weight"]
    weight = weight / (embeddings @ weight.T).std()  # untrained clips are alike
    state = {"head.weight": weight, "head.bias": 0.5 - (embeddings @ weight.T).mean()[None]}
    path = write(tmp_path, encoder, state, **SEX)
    model = load_model(path)
    _, (prediction,) = encode_run(model, [adapted(path)], reader, ())
    logits = torch.cat([model(reader.clip(k, "global")[None]) for k in range(3)])
    expected = torch.sigmoid(logits.mean()).item()
    assert prediction.values[1] == pytest.approx(expected, abs=1e-4)
    assert abs(torch.sigmoid(logits).mean().item() - expected) > 1e-3
    odd_clips = torch.sigmoid(logits[::2].mean()).item()
    assert prediction.average(slice(0, None, 2))[1] == pytest.approx(odd_clips, abs=1e-4)
    assert describe_adapter(prediction.card).to_json()["ClipAverage"] == "mean logit over clips, as published"


def test_a_regression_without_its_scaling_is_in_standard_deviations(encoder, tmp_path):
    path = write(tmp_path, encoder, head_state(), **AGE)
    card = own_head(find_model(str(path))).card
    assert (card.task, card.target) == ("regression", "age")
    assert card.unit == "standard deviations from the mean of the training cohort"
    assert "scaling" in card.limits


def test_scaling_labels_and_ranges_are_those_of_the_catalog(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path))
    for name, state, hyper in (("hcpya-age", head_state(), AGE), ("hcpya-sex", head_state(), SEX)):
        entry = find_model(name)
        entry.path.parent.mkdir(parents=True)
        write(tmp_path, encoder, state, **hyper).rename(entry.path)
    age, sex = own_head(find_model("hcpya-age")), own_head(find_model("hcpya-sex"))
    assert (age.card.name, age.card.unit, age.card.value_mean) == ("hcpyaage", "years", 28.7593)
    assert to_predictions(age.card, torch.zeros(1, 1))[0] == pytest.approx(28.7593)
    assert sex.card.labels == ("female", "male")
    assert sex.card.ranges == {"age": [22, 37]}
    assert sex.card.cohort["description"] == "HCP Young Adult"
    assert "Research" in sex.card.intended_use


@pytest.mark.parametrize("task", ["sex", "age"])
def test_older_files_name_the_task_by_its_target(encoder, tmp_path, task):
    path = write(tmp_path, encoder, head_state(), downstream_task=task, downstream_task_type="default")
    assert own_head(find_model(str(path))).card.task == {"sex": "classification", "age": "regression"}[task]


def test_older_heads_are_not_nested_and_have_an_unused_norm(encoder, tmp_path):
    state = head_state() | {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}
    content = lightning_content(encoder, state, **SEX)
    renamed = {key.replace("output_head.head.", "output_head."): value for key, value in content["state_dict"].items()}
    torch.save(content | {"state_dict": renamed}, tmp_path / "old.ckpt")
    nested = write(tmp_path, encoder, state, **SEX)
    clips = torch.randn(1, 1, 96, 96, 96, 20)
    torch.testing.assert_close(adapted(tmp_path / "old.ckpt")(clips), adapted(nested)(clips), rtol=0, atol=0)


def test_a_converted_file_has_the_same_head(encoder, tmp_path):
    path = write(tmp_path, encoder, head_state("v3", 3), downstream_task_type="classification", task_name="state")
    model = load_model(path)
    info = {"hyper_parameters": model.info}
    weights = model.encoder.state_dict()
    ours = save_encoder(tmp_path / "ours.safetensors", CONFIG, weights, "ours", model.head.state_dict(), info=info)
    clips = torch.randn(1, 1, 96, 96, 96, 20)
    torch.testing.assert_close(adapted(ours)(clips), adapted(path)(clips), rtol=0, atol=0)


def test_classes_without_names_are_numbered_and_the_card_says_so(encoder, tmp_path):
    path = write(tmp_path, encoder, head_state(outputs=3), downstream_task_type="classification", task_name="state")
    card = own_head(find_model(str(path))).card
    assert card.labels == ("class0", "class1", "class2")
    assert "order of its outputs" in card.limits


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_reidentification_gives_the_vector_that_the_last_layer_reads(encoder, reader, tmp_path, version):
    hyper = {"downstream_task_type": "classification", "task_name": "fmri_reid", "num_classes": 5}
    state = head_state(version, 5)
    model = adapted(write(tmp_path, encoder, state, **hyper))
    assert (model.card.task, model.card.dimensions) == ("embedding", 32 if version == "v2" else 8)
    clips = reader.clip(0, "global")[None]
    last = build_head(state)[0]
    logits = torch.nn.functional.linear(model(clips), last.head.weight, last.head.bias)
    torch.testing.assert_close(logits, last(model.encoder(clips)))
    assert set(without_last_layer(state)) <= set(state)


def test_a_diagnosis_requires_acknowledgement(encoder, tmp_path):
    path = write(tmp_path, encoder, head_state(), downstream_task_type="classification", task_name="diagnosis")
    assert own_head(find_model(str(path))).card.research_only


def test_a_given_target_does_not_hide_a_diagnosis(encoder, tmp_path, monkeypatch):
    path = write(tmp_path, encoder, head_state(), downstream_task_type="classification", task_name="diagnosis")
    write_facts(path, FileFacts(head={"target": "group_1"}))
    card = own_head(find_model(str(path))).card
    assert (card.target, card.research_only) == ("group_1", True)
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    for name, expected in (("task3/cobre_diagnosis.ckpt", True), ("task3/cobre.ckpt", False)):
        entry = find_model(f"hf:lab/model@{'1' * 40}:{name}")
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path, encoder, head_state(), **SEX).rename(entry.path)
        assert own_head(entry).card.research_only is expected


def test_a_file_without_a_head_has_none(encoder, tmp_path):
    assert own_head(find_model(str(write(tmp_path, encoder, {})))) is None


@pytest.mark.parametrize(
    ("state", "hyper", "reason"),
    [
        ({"fc1.weight": torch.zeros(4, 8), "bn1.weight": torch.zeros(4)}, SEX, r"unknown kind.*fc1\.weight"),
        (head_state(), {}, "classification or regression"),
        (head_state(outputs=7), SEX, "7 outputs, but num_classes is 2"),
        (head_state(outputs=2), {"downstream_task_type": "classification"}, "two outputs"),
        (head_state(outputs=3), AGE, "3 outputs instead of one"),
        (head_state(), AGE | {"label_scaling_method": "ranks"}, "'ranks'"),
        (head_state() | {"extra.weight": torch.zeros(1)}, SEX, r"extra\.weight"),
    ],
)
def test_a_head_that_is_not_understood_is_an_error_that_names_file_and_reason(encoder, tmp_path, state, hyper, reason):
    path = write(tmp_path, encoder, state, **hyper)
    with pytest.raises(BadDataError, match=reason) as caught:
        own_head(find_model(str(path)))
    assert (str(path) in caught.value.message, caught.value.exit_code) == (True, 65)


def card(**changes) -> AdapterCard:
    return AdapterCard("age", "regression", "age", "0" * 64, "global", **changes)


def test_a_constant_head_is_refused_with_the_reason(encoder, tmp_path):
    path = write(tmp_path, encoder, head_state("v3-2025"), **AGE)
    found = judge_card(Verdict(()), own_head(find_model(str(path))).card)
    assert found.level == "refuse"
    assert "same for every scan" in found.reasons[0]


@pytest.mark.parametrize(
    ("cohort", "level", "is_known"),
    [
        ({"orientation": "LAS", "template": "MNI152NLin6Asym"}, "pass", True),
        ({"orientation": "RAS", "template": "MNI152NLin6Asym"}, "warn", True),
        ({"template": "MNI152NLin2009cAsym"}, "warn", True),
        ({"orientation": "not published", "template": "not published"}, "pass", False),
    ],
)
def test_the_verdict_tells_of_another_orientation_or_template_in_training(cohort, level, is_known):
    found = judge_card(Verdict(()), card(cohort=cohort))
    assert found.level == level
    assert ("training_input" not in found.unknown) is is_known
    assert judge_card(Verdict(()), card()) == Verdict(())


def test_the_catalog_states_the_orientation_and_template_of_each_fine_tuned_model():
    for entry in catalog().values():
        assert not entry.head or {"orientation", "template"} <= set(entry.head)


def test_a_prediction_that_averages_outputs_requires_them(encoder, reader, tmp_path):
    model = adapted(write(tmp_path, encoder, head_state(), **SEX))
    _, (prediction,) = encode_run(load_model(model.where, with_head=False), [model], reader, ())
    with pytest.raises(ValueError, match="outputs"):
        replace(prediction, outputs=None)
