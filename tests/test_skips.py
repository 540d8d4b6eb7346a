"""With NEUROSTORM_NO_SKIPS, a skipped test is a failed test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.no_skips import NO_SKIPS
from tests.helpers.paths import ROOT

SKIPPED = """
import pytest

def test_skips_itself():
    pytest.skip("no scanner here")

@pytest.mark.skipif(True, reason="no scanner here")
def test_is_skipped():
    pass

@pytest.mark.xfail(reason="known")
def test_is_expected_to_fail():
    assert False

def test_passes():
    pass
"""
MODULE = "import pytest\npytest.importorskip('no_such_module')\n"


@pytest.mark.parametrize(
    ("wanted", "code", "said"), [("", 0, "3 skipped"), ("1", 1, "1 failed, 1 passed, 1 xfailed, 2 errors")]
)
def test_skips_are_failures_on_request(tmp_path: Path, wanted: str, code: int, said: str) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "helpers" / "no_skips.py").read_text())
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    (tmp_path / "test_module.py").write_text(MODULE)
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT), NO_SKIPS: wanted, "PYTEST_ADDOPTS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
    assert ("which NEUROSTORM_NO_SKIPS forbids" in done.stdout) == bool(wanted)
    assert ("test_module.py was skipped" in done.stdout) == bool(wanted)
