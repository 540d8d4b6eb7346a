"""Fine-tuned checkpoints of the published code are converted to adapters with the same predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bids_app.adapters.convert import OutputMeaning, adapter_from_checkpoint
from bids_app.adapters.file import AdaptedModel, load_adapter, to_predictions
from bids_app.catalog.models import catalog
from bids_app.cli.models import main
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import load_model
from bids_app.model.encoder import Encoder, EncoderConfig
from tests.helpers.models import lightning_content

CONFIG = EncoderConfig(img_size=(24, 24, 24, 4), embed_dim=8, depths=(1, 1))
THREE = OutputMeaning(labels=("a", "b", "c"))


def write_checkpoint(path: Path, encoder: Encoder, outputs: int | None = None, **hyper: object) -> Path:
    """Write a Lightning file as the published code does, with a head if ``outputs`` is given."""
    generator = torch.Generator().manual_seed(1)
    head = None
    if outputs:
        weight = torch.randn(outputs, encoder.config.n_features, generator=generator)
        head = {"head.weight": weight, "head.bias": torch.randn(outputs, generator=generator)}
    task = {"downstream_task_type": "classification", "task_name": "diagnosis"}
    torch.save(lightning_content(encoder, head, **(task | hyper)), path)
    return path


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(CONFIG)


@pytest.fixture
def base(tmp_path: Path, encoder: Encoder) -> Path:
    return write_checkpoint(tmp_path / "base.ckpt", encoder)


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(2, 1, 24, 24, 24, 4, generator=torch.Generator().manual_seed(2))


def test_a_frozen_encoder_with_a_head_gives_a_linear_adapter(base, encoder, clips, tmp_path):
    tuned = write_checkpoint(tmp_path / "tuned.ckpt", encoder, outputs=3)
    adapter = adapter_from_checkpoint(tuned, "dx", THREE, base)
    assert (adapter.card.strategy, adapter.encoder, adapter.card.target) == ("linear", {}, "diagnosis")
    torch.testing.assert_close(AdaptedModel(load_model(base), adapter)(clips), load_model(tuned)(clips))


def change_norms(encoder: Encoder) -> None:
    encoder.layers[0].blocks[0].norm1.weight.data.add_(0.5)


def add_prompts(encoder: Encoder) -> None:
    for stage in encoder.layers:
        for block in stage.blocks:
            block.set_prompt(torch.randn(1, 3, block.norm1.weight.shape[0]))


def change_all(encoder: Encoder) -> None:
    for parameter in encoder.parameters():
        parameter.data.add_(0.01)


@pytest.mark.parametrize(
    ("changes", "strategy"),
    [
        ((change_norms,), "ln"),
        ((add_prompts,), "prompt"),
        ((change_norms, add_prompts), "prompt_ln"),
        ((change_all,), "full"),
    ],
)
def test_the_adapter_holds_the_differences_from_the_base(base, encoder, clips, tmp_path, changes, strategy):
    for change in changes:
        change(encoder)
    tuned = write_checkpoint(tmp_path / "tuned.ckpt", encoder, outputs=3)
    adapter = adapter_from_checkpoint(tuned, "dx", THREE, base)
    assert adapter.card.strategy == strategy
    torch.testing.assert_close(AdaptedModel(load_model(base), adapter)(clips), load_model(tuned)(clips))


def test_a_known_scaling_gives_predictions_in_their_unit(base, encoder, clips, tmp_path):
    tuned = write_checkpoint(tmp_path / "age.ckpt", encoder, 1, downstream_task_type="regression", task_name="age")
    meaning = OutputMeaning(unit="years", value_mean=28.7593, value_std=3.6815)
    adapter = adapter_from_checkpoint(tuned, "age", meaning, base)
    raw = load_model(tuned)(clips)
    torch.testing.assert_close(to_predictions(adapter.card, raw), raw * 3.6815 + 28.7593)


def test_missing_labels_are_an_error_with_a_hint(encoder, tmp_path):
    tuned = write_checkpoint(tmp_path / "tuned.ckpt", encoder, outputs=1)
    with pytest.raises(UsageError, match="2 classes") as caught:
        adapter_from_checkpoint(tuned, "dx", OutputMeaning())
    assert "--labels" in caught.value.hint


def test_a_file_without_a_head_is_rejected(base):
    with pytest.raises(BadDataError, match="no head"):
        adapter_from_checkpoint(base, "dx", OutputMeaning())


def test_a_base_with_a_different_shape_is_rejected(encoder, tmp_path):
    other = write_checkpoint(
        tmp_path / "other.ckpt", Encoder(EncoderConfig(img_size=(24, 24, 24, 4), embed_dim=8, depths=(1, 2)))
    )
    tuned = write_checkpoint(tmp_path / "tuned.ckpt", encoder, outputs=3)
    with pytest.raises(BadDataError, match="shape"):
        adapter_from_checkpoint(tuned, "dx", THREE, other)


def test_output_meanings_in_the_catalog_are_valid():
    for entry in catalog().values():
        if entry.head:
            OutputMeaning(**entry.head)
            assert entry.head["task"] in ("classification", "regression")


def test_converting_to_a_model_keeps_its_outputs(encoder, clips, tmp_path, capsys):
    tuned = write_checkpoint(tmp_path / "tuned.ckpt", encoder, outputs=3)
    assert main(["convert", str(tuned), str(tmp_path / "ours.safetensors")]) == 0
    before, after = load_model(tuned), load_model(tmp_path / "ours.safetensors")
    torch.testing.assert_close(after(clips), before(clips), rtol=0, atol=0)
    assert after.weights_sha256 == before.weights_sha256
    assert "ours.safetensors" in capsys.readouterr().out


def test_a_converted_adapter_fits_the_converted_model(encoder, clips, tmp_path, capsys):
    add_prompts(encoder)
    tuned = write_checkpoint(tmp_path / "tuned.ckpt", encoder, outputs=1)
    model, adapter = tmp_path / "model.safetensors", tmp_path / "adapter.safetensors"
    assert main(["convert", str(tuned), str(model)]) == 0
    options = ["--adapter", "dx", "--labels", "no,yes", "--target", "asd"]
    assert main(["convert", str(model), str(adapter), *options]) == 0
    card = load_adapter(adapter).card
    assert (card.labels, card.target, card.task, card.strategy) == (("no", "yes"), "asd", "classification", "prompt")
    adapted = AdaptedModel(load_model(model), load_adapter(adapter))
    torch.testing.assert_close(adapted(clips), load_model(tuned)(clips))
    capsys.readouterr()
    assert main(["card", str(adapter), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["no", "yes"]


def test_a_model_card_lists_the_contents(encoder, tmp_path, capsys):
    tuned = write_checkpoint(tmp_path / "tuned.ckpt", encoder, outputs=1)
    assert main(["card", str(tuned), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == sum(p.numel() for p in encoder.parameters())
    assert facts["encoder_sha256"] == load_model(tuned).weights_sha256
    assert facts["head"] == "v1, 1 outputs"


def test_the_list_shows_which_models_are_cached(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path))
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("neurostorm-5ds" in line and "to fetch" in line and "93.1 MB" in line for line in lines)


def test_errors_have_an_exit_code_and_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path))
    assert main(["card", "neurostorm-5ds", "--json"]) == 66
    assert "neurostorm-models fetch neurostorm-5ds" in capsys.readouterr().err
    assert main(["card", "nonsense"]) == 64
    assert main(["convert", str(tmp_path / "none.ckpt"), str(tmp_path / "x.safetensors")]) == 66
    assert main(["verify", "neurostorm-5ds"]) == 66
