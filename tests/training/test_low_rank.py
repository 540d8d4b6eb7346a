"""Low-rank updates: what is trained, its gradients, the file, and the merged weights at inference."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.func import functional_call

from bids_app.adapters.file import AdaptedModel, Adapter, AdapterCard, load_adapter, save_adapter
from bids_app.cli.train import main
from bids_app.errors import UsageError
from bids_app.model import fused
from bids_app.model.api import Model
from bids_app.model.checkpoint import weights_sha256
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.heads import LinearHead
from bids_app.model.lora import FACTOR, merge_low_rank_updates
from bids_app.training.adapt import AdaptSettings, LabelledScans, Learner, adapt, predict
from bids_app.training.calibrate import predict_scans
from bids_app.training.low_rank import PROJECTIONS, LowRankSettings, add_low_rank_updates, check_low_rank
from bids_app.training.optimiser import LoopSettings
from bids_app.training.tasks import Task
from tests.helpers.models import random_model, save_random_encoder

pytest.importorskip("peft")
CONFIG = EncoderConfig(img_size=(24, 24, 24, 4), embed_dim=8, depths=(1, 2), first_window_size=(2, 2, 2, 2))
CLIPS = torch.randn(2, 1, 24, 24, 24, 4, generator=torch.Generator().manual_seed(5))
LOOP = LoopSettings(epochs=8, learning_rate=3e-2)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return random_model(tmp_path, CONFIG)


def learner_with_updates(model: Model, settings: LowRankSettings, seed: int = 0) -> Learner:
    """Return encoder and head with updates of random values; untrained ones change nothing."""
    learner = Learner(model, LinearHead(model.config.n_features, 1), AdaptSettings("lora", low_rank=settings))
    torch.manual_seed(seed)
    for parameter in learner.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return learner.eval()


def adapter_of(model: Model, learner: Learner, settings: LowRankSettings) -> Adapter:
    """Return the adapter of a learner."""
    card = AdapterCard("a", "regression", "age", model.weights_sha256, "global", strategy="lora", **settings.facts())
    return Adapter(card, learner.head.state_dict(), learner.trained_parameters())


@dataclass(frozen=True)
class Scan:
    """Two clips of noise; one half of the grid is brighter."""

    seed: int
    side: str
    n_vols: int = 8
    n_clips: int = 2
    clip_volumes: int = 4
    stamp: str = ""

    @property
    def participant(self) -> str:
        return str(self.seed)

    @property
    def name(self) -> str:
        return f"sub-{self.seed}"

    def clip(self, start: int) -> torch.Tensor:
        values = torch.randn(1, 24, 24, 24, self.n_vols, generator=torch.Generator().manual_seed(self.seed))
        values[:, slice(12, 24) if self.side == "right" else slice(0, 12)] += 3.0
        return values[..., start : start + self.clip_volumes]


@pytest.fixture
def data() -> LabelledScans:
    scans = tuple(Scan(seed, ("left", "right")[seed % 2]) for seed in range(8))
    return LabelledScans(scans, tuple(scan.side for scan in scans))


def train(model: Model, data: LabelledScans, folder: Path | None = None, report: Callable | None = None, **settings):
    """Train an adapter of rank 2."""
    task = Task.from_values("side", data.values)
    chosen = AdaptSettings("lora", low_rank=LowRankSettings(2, 4.0), batch_size=8, loop=LOOP, **settings)
    return adapt(model, task, data, None, chosen, "global", "side", folder, report or print)


def test_training_reduces_the_loss_and_changes_updates_and_head_only(model, data, tmp_path):
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    file = model.path.read_bytes()
    adapter, rows = train(model, data, tmp_path / "training")
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    trained = torch.load(tmp_path / "training" / "state.pt", weights_only=True)["model"]
    own = {name.removeprefix("encoder."): value for name, value in trained.items() if name.startswith("encoder.")}
    base = {name.replace(".base_layer", ""): value for name, value in own.items() if not FACTOR.fullmatch(name)}
    assert base.keys() == before.keys()
    assert all(torch.equal(base[name], before[name]) for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert model.path.read_bytes() == file
    factors = {name: value for name, value in own.items() if FACTOR.fullmatch(name)}
    assert factors.keys() == adapter.encoder.keys()
    assert all(value.abs().max() > 0 for value in factors.values())  # B is zero before training
    assert adapter.head["head.weight"].abs().max() > 0


def test_the_file_holds_the_updates_the_head_and_the_settings(model, data, tmp_path):
    adapter, _ = train(model, data)
    path = save_adapter(tmp_path / "a.safetensors", adapter)
    layers = check_low_rank(model.encoder, LowRankSettings(2))
    assert {name.rpartition(".")[2] for name in layers} == set(PROJECTIONS)
    assert len(layers) == 5 * sum(model.config.depths)
    with safe_open(path, "pt") as file:
        factors = {f"encoder.{layer}.lora_{factor}.default.weight" for layer in layers for factor in "AB"}
        assert set(file.keys()) == factors | {"head.head.weight", "head.head.bias"}
    card = load_adapter(path).card
    assert (card.strategy, card.rank, card.lora_alpha, card.lora_targets) == ("lora", 2, 4.0, PROJECTIONS)


def test_gradients_equal_those_of_a_plain_forward_with_the_effective_weights(model, monkeypatch):
    """The plain forward has no `peft` and the reference scan: W + s B A is computed from leaves A and B."""
    settings = LowRankSettings(3, 6.0)
    learner = learner_with_updates(model, settings)
    learner.train()(CLIPS).square().sum().backward()
    found = {name: p.grad for name, p in learner.encoder.named_parameters() if p.requires_grad}
    monkeypatch.setenv("NEUROSTORM_SCAN", "reference")
    leaves = {name: value.requires_grad_() for name, value in learner.trained_parameters().items()}
    weights = model.encoder.state_dict()
    for layer in check_low_rank(model.encoder, settings):
        first, second = (leaves[f"{layer}.lora_{factor}.default.weight"] for factor in "AB")
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + 2.0 * second @ first
    learner.head(functional_call(Encoder(CONFIG), weights, (CLIPS,))).square().sum().backward()
    assert found.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert leaf.grad.abs().max() > 0
        torch.testing.assert_close(found[name], leaf.grad, rtol=1e-3, atol=1e-4 * leaf.grad.abs().max().item())


def test_merged_weights_equal_the_unmerged_forward_on_the_fast_path_too(model, tmp_path, monkeypatch):
    learner = learner_with_updates(model, LowRankSettings(3, 6.0))
    unmerged = learner(CLIPS)
    assert unmerged.requires_grad
    saved = load_adapter(save_adapter(tmp_path / "a.safetensors", adapter_of(model, learner, LowRankSettings(3, 6.0))))
    adapted, blocks = AdaptedModel(model, saved), []
    native_block = fused.block
    monkeypatch.setattr(fused, "block", lambda *given: blocks.append(1) or native_block(*given))
    with torch.inference_mode():
        merged, without_gradients, base = adapted(CLIPS), learner(CLIPS), learner.head(model.encode(CLIPS))
    assert len(blocks) == 2 * sum(CONFIG.depths)  # of the adapted and the unadapted encoder
    monkeypatch.setenv("NEUROSTORM_SCAN", "reference")
    for found in (merged, without_gradients, adapted(CLIPS)):
        torch.testing.assert_close(found, unmerged.detach(), rtol=0, atol=1e-5)
    assert (base - merged).abs().min() > 1e-2


def test_adapters_on_one_encoder_do_not_influence_each_other(model):
    some = LowRankSettings(2, 2.0, ("in_proj", "linear2"))
    learners = [learner_with_updates(model, LowRankSettings(3, 6.0), 1), learner_with_updates(model, some, 2)]
    made = [adapter_of(model, *pair) for pair in zip(learners, (LowRankSettings(3, 6.0), some), strict=True)]
    before = model.encode(CLIPS)
    alone = [AdaptedModel(model, adapter)(CLIPS) for adapter in made]
    together = [AdaptedModel(model, adapter) for adapter in made]
    for order in ((0, 1), (1, 0)):
        assert all(torch.equal(together[index](CLIPS), alone[index]) for index in order)
    assert not torch.allclose(*alone)
    assert torch.equal(model.encode(CLIPS), before)
    assert weights_sha256(model.encoder.state_dict()) == model.weights_sha256


def test_an_interrupted_training_gives_the_same_adapter(model, data, tmp_path):
    expected, _ = train(model, data)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, data, tmp_path / "training", interrupt)
    resumed, rows = train(model, data, tmp_path / "training")
    assert len(rows) == LOOP.epochs
    for part in ("encoder", "head"):
        one, other = getattr(resumed, part), getattr(expected, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_layers_are_chosen_by_the_end_of_their_name_or_a_pattern():
    encoder = Encoder(EncoderConfig(img_size=(24, 24, 24, 4), embed_dim=8, depths=(1, 2)))

    def chosen(*targets: str) -> list[str]:
        return sorted(check_low_rank(encoder, LowRankSettings(1, 1.0, targets)))

    assert chosen("out_proj", "layers.1.blocks.1.mlp.linear1") == [
        "layers.0.blocks.0.mamba.out_proj",
        "layers.1.blocks.0.mamba.out_proj",
        "layers.1.blocks.1.mamba.out_proj",
        "layers.1.blocks.1.mlp.linear1",
    ]
    assert chosen("layers.1.*.linear?", "fc") == [
        *(f"layers.1.blocks.{block}.mlp.linear{layer}" for block in (0, 1) for layer in (1, 2)),
        "patch_embed.fc",
    ]
    assert not any("dt_proj" in name for name in chosen("*"))


def test_each_chosen_layer_is_wrapped_and_no_other():
    encoder = Encoder(CONFIG)
    settings = LowRankSettings(1, 1.0, ("*",))
    expected = check_low_rank(encoder, settings)
    add_low_rank_updates(encoder, settings)
    wrapped = {name for name, module in encoder.named_modules() if hasattr(module, "base_layer")}
    assert wrapped == set(expected)
    assert len(expected) == 5 * 3 + 2  # blocks, patch embedding, patch merging


def test_updates_have_the_scale_of_alpha_over_the_rank(model):
    settings = LowRankSettings(4, 2.0, ("linear1",))
    learner = learner_with_updates(model, settings)
    before, factors, layer = model.encoder.state_dict(), learner.trained_parameters(), "layers.0.blocks.0.mlp.linear1"
    first, second = (factors[f"{layer}.lora_{factor}.default.weight"] for factor in "AB")
    expected = before[f"{layer}.weight"] + 0.5 * second @ first
    merged = merge_low_rank_updates(before | factors, {"lora_alpha": settings.alpha})
    torch.testing.assert_close(merged[f"{layer}.weight"], expected)
    tokens, wrapped = torch.randn(3, 8), learner.encoder.get_submodule(layer)
    torch.testing.assert_close(wrapped(tokens), tokens @ expected.T + before[f"{layer}.bias"])


@pytest.fixture
def options(tmp_path, tiny_config) -> list[str]:
    """Return the options of a command without a strategy; the smaller side of the smallest layer is 8."""
    encoder = save_random_encoder(tmp_path / "tiny.safetensors", tiny_config)
    output = ["--output", str(tmp_path / "a.safetensors"), "--batch-size", "4", "--epochs", "1"]
    return ["--model", str(encoder), "--target", "scan:side", "--normalisation", "global", *output]


REFUSED = {
    "rank 0": (["--strategy", "lora", "--rank", "0"], "--rank: 0"),
    "a rank beyond a layer": (["--strategy", "lora", "--rank", "9"], r"layers.0.blocks.0.mamba.in_proj (32 x 8)"),
    "alpha 0": (["--strategy", "lora", "--lora-alpha", "0"], "--lora-alpha: 0"),
    "alpha nan": (["--strategy", "lora", "--lora-alpha", "nan"], "--lora-alpha: nan"),
    "an unknown layer": (["--strategy", "lora", "--lora-targets", "fc3"], "no linear layer 'fc3'"),
    "the layer that the scan reads": (["--strategy", "lora", "--lora-targets", "dt_proj"], "'dt_proj'"),
    "a rank of prompts": (["--strategy", "prompt", "--rank", "8"], "--strategy lora"),
    "a rank of the default": (["--rank", "0"], "--strategy lora"),
    "targets of all weights": (["--strategy", "full", "--lora-targets", "in_proj"], "--strategy lora"),
    "alpha of a head": (["--strategy", "linear", "--lora-alpha", "3"], "--strategy lora"),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED)
def test_options_that_cannot_work_are_refused_before_anything_is_read_or_written(
    given, words, options, tmp_path, capsys
):
    before = sorted(tmp_path.rglob("*"))
    assert main(["adapt", str(tmp_path / "no_data"), *options, *given]) == 64
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_evaluate_refuses_a_rank_without_its_strategy(options, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "no_data"), *options, "--rank", "2"]) == 64
    assert "not linear" in capsys.readouterr().err


def test_another_rank_or_other_layers_do_not_continue_a_training(make_store, options, tmp_path, capsys):
    command = ["adapt", str(make_store(2).folder), *options, "--validation", "0", "--strategy", "lora", "--rank", "2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "Low-rank updates of 10 linear layers (in_proj, x_proj, out_proj, linear1, linear2), rank 2, alpha 2" in out
    assert load_adapter(tmp_path / "a.safetensors").card.rank == 2
    for change in (["--rank", "3"], ["--lora-alpha", "1"], ["--lora-targets", "in_proj"]):
        assert main([*command, *change]) == 64
        assert "has another recipe" in capsys.readouterr().err


def test_evaluation_and_calibration_apply_the_updates(model, data, tmp_path):
    task = Task.from_values("side", data.values)
    adapter, _ = train(model, data)
    adapted = AdaptedModel(model, load_adapter(save_adapter(tmp_path / "a.safetensors", adapter)))
    evaluated = predict(adapted, task, data.scans, 4)
    calibrated = predict_scans(model, adapted, data.scans, 4)
    assert evaluated == pytest.approx(calibrated, abs=1e-6)
    head_only = replace(adapter.card, strategy="linear", rank=0, lora_alpha=0.0, lora_targets=())
    without = predict_scans(model, AdaptedModel(model, Adapter(head_only, adapter.head)), data.scans, 4)
    assert np.abs(without - calibrated).max() > 0.05


def test_without_peft_the_extra_is_named_and_nothing_is_written(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(builtins, "__import__", import_without("peft"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["adapt", str(tmp_path / "no_data"), *options, "--strategy", "lora"]) == 64
    err = capsys.readouterr().err
    assert "needs the package peft" in err
    assert 'pip install "neurostorm[lora]"' in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_adapter_is_applied_without_peft(model, tmp_path, monkeypatch):
    settings = LowRankSettings(3, 6.0)
    made = adapter_of(model, learner_with_updates(model, settings), settings)
    expected = AdaptedModel(model, made)(CLIPS)
    path = save_adapter(tmp_path / "a.safetensors", made)
    monkeypatch.setattr(builtins, "__import__", import_without("peft"))
    assert torch.equal(AdaptedModel(model, load_adapter(path))(CLIPS), expected)


def import_without(missing: str) -> Callable:
    """Return an import function that lacks a package."""
    original = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {missing!r}")
        return original(name, *rest)

    return without


def test_the_card_of_training_is_json(model, data, tmp_path):
    adapter, _ = train(model, data)
    with safe_open(save_adapter(tmp_path / "a.safetensors", adapter), "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert (card["rank"], card["lora_targets"]) == (2, list(PROJECTIONS))


def test_settings_name_the_wrong_option():
    with pytest.raises(UsageError, match="--lora-targets"):
        LowRankSettings(1, 1.0, ())
