"""Fixtures shared by all tests; each makes its data in ``tmp_path``."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


def shared_path(*parts: str) -> Path:
    """A file or folder of the material beside the repository; the test is skipped where it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}, which is not here")
    return path


@pytest.fixture(name="shared_path")
def shared_path_fixture():
    """The function `shared_path`, for tests that ask for it as a fixture."""
    return shared_path
