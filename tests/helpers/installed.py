"""Libraries for the slow tests that are too large for the environment of every developer."""

from __future__ import annotations

import pytest

from tests.helpers.paths import ROOT

INSTALLED = ROOT / "build" / "integrations"
"""Where ``make test-slow`` installs them."""


def needs(package: str) -> pytest.MarkDecorator:
    """Return a mark for tests that read with a package of `INSTALLED`."""
    return pytest.mark.skipif(not (INSTALLED / package).is_dir(), reason=f"{package} is not installed (make test-slow)")
