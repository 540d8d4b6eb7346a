"""Harmonisation of features between sites by ComBat (Johnson et al. 2007; Fortin et al. 2018), with neuroCombat."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from bids_app.errors import BadDataError, UsageError

MIN_SCANS = 3
"""Minimum number of training scans of a site, for its mean and variance."""


def combat(features: np.ndarray, sites: Sequence[str], train: np.ndarray) -> np.ndarray:
    """Remove differences in mean and variance between sites.

    The parameters are estimated from the training set alone and without the target, so that the test set and its labels
    have no influence on the model.

    Parameters
    ----------
    features : np.ndarray, (N, F)
    sites : sequence of str, (N,)
    train : np.ndarray of int
        Indices of the training set.

    Returns
    -------
    np.ndarray, (N, F)
        All examples, harmonised. Features that are constant in the training set are unchanged.

    Raises
    ------
    UsageError
        neuroCombat is not installed.
    BadDataError
        A site has too few training scans.
    """
    try:
        from neuroCombat import neuroCombat, neuroCombatFromTraining
    except ImportError as error:
        raise UsageError(
            f"ComBat needs the package neuroCombat ({error}).", 'Install it: pip install "neurostorm[combat]".'
        ) from error
    import pandas as pd

    names = np.asarray(sites, str)
    counts = {site: int((names[train] == site).sum()) for site in np.unique(names)}
    if few := [site for site, n in counts.items() if n < MIN_SCANS]:
        raise BadDataError(
            f"ComBat: too few training scans of the site {few[0]} ({counts[few[0]]}).",
            f"Each site needs at least {MIN_SCANS} in each fold: leave out this site, or use more --folds.",
        )
    varies = features[train].std(axis=0) > 0
    found = features.astype(float)
    table = pd.DataFrame({"site": names[train]})
    with contextlib.redirect_stdout(io.StringIO()):  # progress messages
        fitted = neuroCombat(found[train][:, varies].T, table, "site")["estimates"]
        found[:, varies] = neuroCombatFromTraining(found[:, varies].T, names, fitted)["data"].T
    return found
