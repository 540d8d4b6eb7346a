"""Fixtures shared by all tests; all data are made in ``tmp_path``."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.datasets import TinyDataset
from tests.helpers.images import StandardBrain
from tests.helpers.no_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401


@pytest.fixture(scope="session")
def standard_brain() -> StandardBrain:
    """Brain derived from the embedded template, with its own folds, a scalp, and a bias field."""
    from scipy import ndimage

    from bids_app.catalog.templates import load_template, space
    from bids_app.preprocess.registration.bold_to_template import epi_like
    from bids_app.preprocess.registration.transforms import linear, resample_to

    draws = np.random.default_rng(3)
    template, model = load_template("MNI152NLin2009aSym"), space("MNI152NLin6Asym")
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = model.affine[:3, 3]
    shape = (46, 55, 46)
    pull = linear(model.pull_to(template.space))
    image = resample_to(ndimage.gaussian_filter(epi_like(template), 0.8), template.affine, shape, affine, pull)
    mask = resample_to(template.mask.astype(np.float32), template.affine, shape, affine, pull) > 0.5
    folds = ndimage.gaussian_filter(draws.normal(size=shape), 1)
    uneven = ndimage.gaussian_filter(draws.normal(size=shape), 8)
    brain = image * (1 + 0.08 * folds / folds.std()) * (1 + 0.1 * uneven / uneven.std())
    scalp = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_dilation(mask, iterations=2)
    head = ndimage.binary_dilation(mask, iterations=7)
    return StandardBrain((1000 * brain + 250 * scalp + 30 * head).astype(np.float32), mask, affine)


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> TinyDataset:
    """Raw BIDS dataset with one participant and one BOLD run without a T1w image."""
    return TinyDataset(tmp_path / "raw")


def pytest_configure() -> None:
    """Search for cyclic garbage less often: the thousands of collected tests are searched each time."""
    gc.set_threshold(200_000, 20, 50)
