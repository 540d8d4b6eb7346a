"""Evaluations of given embeddings: no scan is read and no encoder is run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bids_app.training.adapt import AdaptSettings, LabelledScans
from bids_app.training.data.examples import Examples
from bids_app.training.evaluation import run as running
from bids_app.training.evaluation.evaluate import Evaluation, evaluate
from bids_app.training.evaluation.run import EvaluateSettings
from bids_app.training.tasks import Task

MODEL: Any = SimpleNamespace(name="given", weights_sha256="0" * 64)


def label_embeddings(values: list[str], participants: list[str], sessions=None, families=None, sites=()) -> Examples:
    """Return examples of one clip each."""
    scans = tuple(
        SimpleNamespace(participant=p, session=sessions[i] if sessions else "", labels={}, n_clips=1, name=f"{p}{i}")
        for i, p in enumerate(participants)
    )
    return Examples(LabelledScans(scans, tuple(values)), families or {}, tuple(sites))


@pytest.fixture
def make_examples() -> Callable[..., Examples]:
    """Return the function `label_embeddings`."""
    return label_embeddings


@pytest.fixture
def evaluate_given(monkeypatch) -> Callable[..., Evaluation]:
    """Return a function that evaluates embeddings and features (N, C) by name."""

    def run(
        task: Task,
        examples: Examples,
        embeddings,
        features=None,
        images=None,
        strategy="linear",
        report=lambda _: None,
        **more,
    ):
        rows, owners = torch.tensor(np.asarray(embeddings)).float(), torch.arange(len(embeddings))
        monkeypatch.setattr(running, "compute_embeddings", lambda *_: (rows, owners))
        given = features or {}
        monkeypatch.setattr(running, "compute_features", lambda name, *_: given[name])
        settings = EvaluateSettings(
            AdaptSettings(strategy), baselines=tuple(given), **{"permutations": 0, "repeats": 2, **more}
        )
        return evaluate(MODEL, task, examples, settings, "voxel", images=images, report=report)

    return run
