"""Adapters with low-rank updates in one run of ``neurostorm``: each predicts what it predicts alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from bids_app.adapters.file import Adapter, AdapterCard, save_adapter
from bids_app.cli.neurostorm import main
from bids_app.model.api import load_model
from bids_app.model.encoder import EncoderConfig
from tests.helpers.datasets import PreprocessedTree
from tests.helpers.models import linear_head, save_random_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))
LAYER = "layers.0.blocks.0.mamba.out_proj"


def write_adapter(folder: Path, weights: Path, name: str, seed: int | None) -> Path:
    """Write an adapter with a random update of rank 2, or with a head only."""
    card = AdapterCard(name, "regression", "age", load_model(weights).weights_sha256, "voxel", unit="years")
    adapter = Adapter(card, linear_head(8))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        factors = {"A": torch.randn(2, 8, generator=generator), "B": torch.randn(4, 2, generator=generator)}
        low_rank = {"strategy": "lora", "rank": 2, "lora_alpha": 4.0, "lora_targets": ("out_proj",)}
        adapter = Adapter(
            AdapterCard(**vars(card) | low_rank),
            adapter.head,
            {f"{LAYER}.lora_{factor}.default.weight": value for factor, value in factors.items()},
        )
    return save_adapter(folder / f"{name}.safetensors", adapter)


def test_adapters_in_one_run_predict_as_each_alone(standard_brain, tmp_path) -> None:
    study = PreprocessedTree(tmp_path / "fmriprep")
    study.write_run("01", standard_brain.series(), standard_brain.mask, standard_brain.affine)
    weights = save_random_encoder(tmp_path / "tiny.safetensors", CONFIG)
    seeds = {"first": 1, "second": 2, "head": None}
    adapters = {name: write_adapter(tmp_path, weights, name, seed) for name, seed in seeds.items()}
    before = hashlib.sha256(weights.read_bytes()).hexdigest()

    def predict(out: Path, *names: str) -> dict[str, str]:
        options = ["--model", str(weights), "--nprocs", "1", "--mem", "8GB", "-w", str(tmp_path / "work")]
        for name in names:
            options += ["--adapter", str(adapters[name])]
        assert main([str(study.root), str(out), "participant", *options]) == 0
        return {name: next(out.rglob(f"*desc-{name}_predictions.tsv")).read_text() for name in names}

    together = predict(tmp_path / "together", *adapters)
    alone = {name: predict(tmp_path / name, name)[name] for name in adapters}
    assert together == alone
    assert len(set(alone.values())) == 3
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before
