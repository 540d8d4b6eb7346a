"""Adaptation: trained parameters of each strategy, heads, and saved adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from bids_app.adapters.file import STRATEGIES, AdaptedModel, load_adapter, save_adapter, to_predictions
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import load_model
from bids_app.model.checkpoint import save_encoder
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.mae import MaskedAutoencoder
from bids_app.model.masking import MaskSettings
from bids_app.training.adapt import AdaptSettings, LabelledScans, Learner, adapt
from bids_app.training.data.loader import ClipBatches
from bids_app.training.head import StandardisedHead, compute_embeddings, solve_head
from bids_app.training.low_rank import PROJECTIONS
from bids_app.training.optimiser import LoopSettings
from bids_app.training.pretrain import PretrainSettings, pretrain
from bids_app.training.tasks import Task

SMALL = EncoderConfig(img_size=(8, 8, 8, 20), patch_size=(2, 2, 2, 1), embed_dim=8, depths=(1,))
QUICK = LoopSettings(epochs=2, learning_rate=1e-3)


def labelled(store) -> LabelledScans:
    scans = tuple(store)
    return LabelledScans(scans, tuple(scan.labels["side"] for scan in scans))


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "linear"])
def test_a_strategy_trains_its_parameters_and_the_saved_adapter_predicts(
    strategy, make_store, tiny_model, tmp_path, tiny_config
):
    if strategy == "lora":
        pytest.importorskip("peft")
    data = labelled(make_store(2))
    task = Task.from_values("side", data.values)
    settings = AdaptSettings(strategy, prompt_len=3, batch_size=4, loop=QUICK)
    adapter, rows = adapt(tiny_model, task, data, None, settings, "global", "side")
    names = set(adapter.encoder)
    own = {n for n, _ in Encoder(replace(tiny_config, prompt_len=3)).named_parameters()}
    parts = {"prompt": {n for n in own if n.endswith(".prompt")}, "ln": {n for n in own if "norm" in n}}
    parts["prompt_ln"] = parts["prompt"] | parts["ln"]
    parts["full"] = own - parts["prompt"]
    updated = {n.removesuffix(".weight") for n in own if n.split(".")[-2] in PROJECTIONS and n.endswith(".weight")}
    parts["lora"] = {f"{layer}.lora_{factor}.default.weight" for layer in updated for factor in "AB"}
    assert names == parts[strategy]
    before = tiny_model.encoder.state_dict()
    added = strategy in ("prompt", "lora")
    assert added or any(not torch.equal(adapter.encoder[n], before[n]) for n in names if n in before)
    assert adapter.head["head.weight"].abs().max() > 0
    saved = load_adapter(save_adapter(tmp_path / "a.safetensors", adapter))
    predictions = to_predictions(saved.card, AdaptedModel(tiny_model, saved)(data.scans[0].clip(0)[None]))
    assert predictions.sum().item() == pytest.approx(1.0)
    assert rows[0]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), rel=0.2)


def test_adapters_of_demonstration_encoders_are_marked(make_store, tmp_path, tiny_config):
    data = labelled(make_store(2))
    task = Task.from_values("side", data.values)
    for demonstration in (True, False):
        path = tmp_path / "tiny.safetensors"
        save_encoder(path, tiny_config, Encoder(tiny_config).state_dict(), "tiny", demonstration=demonstration)
        adapter, _ = adapt(load_model(path), task, data, None, AdaptSettings("linear", batch_size=2), "global", "side")
        assert load_adapter(save_adapter(tmp_path / "a.safetensors", adapter)).card.demonstration is demonstration


def test_a_metric_that_a_validation_of_one_class_lacks_is_null_in_the_card(make_store, tiny_model):
    data = labelled(make_store(3))
    one_class = data.pick([i for i, value in enumerate(data.values) if value == "left"])
    settings = AdaptSettings("linear", batch_size=2)
    adapter, _ = adapt(tiny_model, Task.from_values("side", data.values), data, one_class, settings, "global", "side")
    assert adapter.card.metrics["validation"]["auroc"] is None
    assert "null" in json.dumps(adapter.card.metrics, allow_nan=False)


def test_a_linear_adapter_classifies_sides(make_store, tiny_model, tmp_path):
    data = labelled(make_store(4))
    task = Task.from_values("side", data.values)
    settings = AdaptSettings("linear", batch_size=2)
    adapter, rows = adapt(tiny_model, task, data.pick(range(4)), data.pick(range(4, 8)), settings, "global", "side")
    assert rows[0]["accuracy"] == 1.0
    assert adapter.encoder == {}
    metrics = {"accuracy": 1.0, "balanced_accuracy": 1.0, "auroc": 1.0}
    assert adapter.card.metrics == {"validation": {**metrics, "scans": 4}}
    assert adapter.card.cohort == {"participants": 2, "scans": 4, "scans_of_each": {"left": 2, "right": 2}}
    model = AdaptedModel(tiny_model, load_adapter(save_adapter(tmp_path / "a.safetensors", adapter)))
    predictions = to_predictions(adapter.card, model(torch.stack([s.clip(0) for s in data.scans[4:]])))
    assert [adapter.card.labels[k] for k in predictions.argmax(1)] == list(data.values[4:])


def test_the_head_of_a_regression_is_the_ridge_solution():
    torch.manual_seed(0)
    task = Task("value", "regression", (), 0.0, 1.0)
    embeddings = torch.randn(50, 4) * torch.tensor([1.0, 10.0, 0.1, 5.0]) + 3
    targets = embeddings @ torch.tensor([1.0, 0.1, -2.0, 0.0]) + 0.3 * torch.randn(50)
    head = solve_head(task, embeddings, targets, ridge=0.05)
    mean, std = embeddings.mean(0), embeddings.std(0, correction=0)
    x = (embeddings - mean) / std
    weight = torch.linalg.solve(x.T @ x / 50 + 0.05 * torch.eye(4), x.T @ (targets - targets.mean()) / 50)
    assert torch.allclose(head.head.weight[0], weight / std, rtol=1e-3, atol=1e-4)
    assert torch.allclose(head.from_embedding(embeddings).mean(), targets.mean(), atol=1e-3)


def test_prompts_are_initialised_reproducibly(tiny_model, tiny_config):
    from bids_app.model.heads import LinearHead

    settings = AdaptSettings("prompt", prompt_len=4)
    first, second = (
        Learner(tiny_model, LinearHead(tiny_config.n_features, 1), settings).trained_parameters() for _ in range(2)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_a_standardised_head_equals_its_linear_head():
    torch.manual_seed(0)
    head = StandardisedHead(6, 2, momentum=0.1)
    torch.nn.init.normal_(head.head.weight)
    torch.nn.init.normal_(head.head.bias)
    batches = 5 + torch.randn(40, 8, 6, 1, 1, 1, 2) * torch.arange(1, 7).reshape(6, 1, 1, 1, 1)
    for batch in batches:
        head.train()(batch)
    features = batches[0]
    assert torch.allclose(head.to_linear_head()(features), head.eval()(features), atol=1e-5)
    pooled = batches.mean(dim=(3, 4, 5, 6)).reshape(-1, 6)
    assert torch.allclose(head.mean, pooled.mean(0), rtol=0.2)
    assert torch.allclose(head.variance, pooled.var(0), rtol=0.4)


def test_a_standardised_head_trains_the_layers_below_it():
    """Embeddings that differ by a thousandth of their mean are classified after a few steps."""
    torch.manual_seed(0)
    below = torch.nn.Linear(4, 4)
    head = StandardisedHead(4, 1)
    x = torch.randn(64, 4)
    truth = (x[:, :1] > 0).float()
    optimiser = torch.optim.AdamW([*below.parameters(), *head.parameters()], lr=0.02)
    for _ in range(60):
        features = (1000 + below(x))[..., None, None, None, None]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(features), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert ((head(features) > 0) == (truth > 0)).float().mean() > 0.95
    assert loss < 0.3


def test_too_few_clips_for_standardisation_raise(make_store, tiny_model):
    data = labelled(make_store(1))
    with pytest.raises(BadDataError, match="2 clips"):
        adapt(tiny_model, Task.from_values("side", data.values), data, None, AdaptSettings("ln"), "global", "side")
    with pytest.raises(UsageError, match="--batch-size 2"):
        AdaptSettings("ln", batch_size=2)


def test_an_unknown_strategy_lists_the_known_ones():
    with pytest.raises(UsageError, match="prompt_ln"):
        AdaptSettings("magic")


def test_pretraining_reduces_the_loss_and_removes_its_dropout():
    torch.manual_seed(0)
    model = MaskedAutoencoder(SMALL)
    batches = ClipBatches((SmallScan(0, 1), SmallScan(1, 1)), 2)
    settings = PretrainSettings(MaskSettings("random", "tube", 0.5), (3, 3), LoopSettings(3, learning_rate=3e-3), None)
    rows = pretrain(model, batches, settings)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(block.token_dropout is None for stage in model.encoder.layers for block in stage.blocks)


@dataclass(frozen=True)
class SmallScan:
    """A clip source of noise with 8 x 8 x 8 voxels and an offset."""

    seed: int
    shade: int
    n_vols: int = 40
    n_clips: int = 2
    clip_volumes: int = 20
    stamp: str = ""

    @property
    def participant(self) -> str:
        return str(self.seed)

    @property
    def name(self) -> str:
        return f"sub-{self.seed}"

    def clip(self, start: int) -> torch.Tensor:
        values = torch.randn(1, 8, 8, 8, self.n_vols, generator=torch.Generator().manual_seed(self.seed))
        return (values + self.shade)[..., start : start + 20]


@pytest.fixture
def small_model(tmp_path):
    torch.manual_seed(0)
    return load_model(save_encoder(tmp_path / "small.safetensors", SMALL, Encoder(SMALL).state_dict(), "small"))


@pytest.mark.parametrize("strategy", ["linear", "ln"])
@pytest.mark.parametrize("is_given", [True, False])
def test_embeddings_are_learned_with_and_without_image_vectors(strategy, is_given, small_model):
    scans = tuple(SmallScan(k, k % 4) for k in range(16))
    data = LabelledScans(scans, tuple("abcd") * 4)
    images = dict(zip("abcd", 2 + np.eye(4, 5, dtype=np.float32), strict=True))
    given = images if is_given else None
    task = Task.from_values("shade", data.values, "embedding", 4, images=given)
    settings = AdaptSettings(strategy, ridge=1e-4, loop=LoopSettings(epochs=10, learning_rate=3e-2))
    adapter, rows = adapt(small_model, task, data, data, settings, "global", "shade", images=given)
    assert max(row[task.main_metric] for row in rows) > 0.9
    assert adapter.card.dimensions == (5 if is_given else 4)


def test_a_saved_embedding_adapter_predicts_unit_vectors(small_model, tmp_path):
    scans = tuple(SmallScan(k, k % 4) for k in range(8))
    data = LabelledScans(scans, tuple("abcd") * 2)
    task = Task.from_values("shade", data.values, "embedding", dimensions=4)
    adapter, _ = adapt(small_model, task, data, None, AdaptSettings("linear", ridge=1e-4), "global", "shade")
    assert (adapter.card.task, adapter.card.dimensions, adapter.card.labels) == ("embedding", 4, ())
    saved = load_adapter(save_adapter(tmp_path / "a.safetensors", adapter))
    vectors = to_predictions(saved.card, AdaptedModel(small_model, saved)(torch.stack([s.clip(0) for s in scans])))
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0] * 8)
    similarity = vectors @ vectors.T
    assert all(similarity[k, k + 4] > similarity[k, (k + 1) % 4] for k in range(4))


def test_embeddings_are_computed_once(make_store, tiny_model):
    scans = tuple(make_store(2, n_vols=44))
    first, owners = compute_embeddings(tiny_model, scans, 3)
    assert owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    tiny_model.encode = None  # further calls must use the cache
    again, _ = compute_embeddings(tiny_model, scans, 3)
    assert torch.equal(first, again)
    part, owners = compute_embeddings(tiny_model, scans[2:], 3)
    assert torch.equal(part, first[4:])
    assert owners.tolist() == [0, 0, 1, 1]
