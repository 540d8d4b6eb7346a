"""Tests mirror the package: ``tests/PACKAGE/test_MODULE.py`` tests ``bids_app/PACKAGE/MODULE.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

TESTS = ROOT / "tests"
WITHOUT_COUNTERPART = {"integration", "parity", "container", "fuzz", "golden"}
"""Folders of tests that do not mirror a module."""
OF_SEVERAL_MODULES = {
    "bids/test_nipreps_names.py": "output names, compared with the specification of niworkflows",
    "group/test_in_browser.py": "that page in a browser",
    "reports/test_in_browser.py": "the participant page in a browser",
    "reports/test_viewer_in_browser.py": "the viewer of that page",
    "reports/test_accessibility.py": "accessibility of the same page",
    "review/test_in_browser.py": "the page of the review in a browser",
    "phantom/test_simulation.py": "a simulated scan compared with its truth",
}


def mirroring_modules() -> list[Path]:
    """Return the test modules in subfolders of ``tests``; those at its root test the whole repository."""
    found = (path.relative_to(TESTS) for path in TESTS.rglob("test_*.py"))
    return sorted(path for path in found if len(path.parts) > 1 and path.parts[0] not in WITHOUT_COUNTERPART)


def counterpart(path: Path) -> Path:
    """Return the module or package that a test module tests."""
    return ROOT / "bids_app" / path.parent / path.stem.removeprefix("test_")


@pytest.mark.parametrize("path", mirroring_modules(), ids=str)
def test_every_test_module_has_a_counterpart(path: Path) -> None:
    module = counterpart(path)
    exists = module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()
    assert exists != (path.as_posix() in OF_SEVERAL_MODULES), f"{path} has no module in bids_app/{path.parent}"


def test_exceptions_exist() -> None:
    assert all((TESTS / name).is_file() for name in OF_SEVERAL_MODULES)
