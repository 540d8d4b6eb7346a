"""The final summary fits on a screen, however many runs failed; -v prints everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.outputs.schema import RunOutcome
from bids_app.settings import PARTICIPANT, Settings
from bids_app.workflow.participant import failed, print_summary

SCREEN = 24


@pytest.mark.parametrize("n_failed", [0, 1, 500])
def test_the_final_summary_fits_on_a_screen(tmp_path: Path, capsys, n_failed: int) -> None:
    settings = Settings(tmp_path, tmp_path / "out", PARTICIPANT, tmp_path / "work")
    outcomes = [failed(f"sub-{n:03}", "examine", "truncated", "Copy it again.", 65) for n in range(n_failed)]
    print_summary([RunOutcome(stem="sub-x"), *outcomes], {}, settings, 12.0)
    said = capsys.readouterr().err
    assert len(said.splitlines()) < SCREEN
    assert said.count("failed: truncated") == min(n_failed, 8)
    assert ("492 more" in said) == (n_failed == 500)
    print_summary(outcomes, {}, replace(settings, verbosity=1), 12.0)
    assert capsys.readouterr().err.count("failed: truncated") == n_failed
