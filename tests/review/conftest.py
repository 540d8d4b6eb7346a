"""Small output folders with figures to review."""

import pytest

from tests.helpers.figures import write_figures


@pytest.fixture
def out(tmp_path):
    """Output folder of two participants, 14 figures to review."""
    return write_figures(tmp_path / "out")
