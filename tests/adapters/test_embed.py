"""Embeddings of a series on the model grid; that they equal the participant level's is in tests/test_python.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bids_app.adapters.embed import encode
from bids_app.errors import BadDataError, UsageError
from bids_app.model.api import Model, load_model


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("demo")


@pytest.mark.parametrize(
    ("shape", "message"), [((96, 96, 96, 19), r"15\.2 s.*16\.0 s"), ((1, 96, 96, 96, 20), "model grid")]
)
def test_series_without_a_clip_or_off_the_grid_are_refused(model: Model, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        encode(model, torch.zeros(1).expand(shape))


def test_embeddings_that_are_not_finite_are_refused(model: Model) -> None:
    with pytest.raises(BadDataError, match="NaN"):
        encode(model, torch.full((1,), torch.nan).expand(96, 96, 96, 20))


@pytest.mark.parametrize(
    "series",
    [
        torch.zeros(1, dtype=torch.complex64).expand(96, 96, 96, 20),
        np.broadcast_to(np.array(0j), (96, 96, 96, 20)),
        np.broadcast_to(np.array("a"), (96, 96, 96, 20)),
        np.broadcast_to(np.array(None), (96, 96, 96, 20)),
    ],
    ids=["complex tensor", "complex array", "text", "objects"],
)
def test_series_that_are_not_real_numbers_are_refused(model: Model, series: torch.Tensor | np.ndarray) -> None:
    with pytest.raises(UsageError, match="values of type"):
        encode(model, series)
