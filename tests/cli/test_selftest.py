"""The self-test passes on a correct installation only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bids_app.cli import selftest
from bids_app.cli.neurostorm import main
from bids_app.errors import SelfTestError


def test_a_correct_installation_passes_and_reports_its_results(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--self-test"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "maximum difference from the reference" in told
    assert "models on this machine: demo" in told
    assert told.endswith("self-test passed\n")


def test_numbers_that_differ_from_the_reference_fail(tmp_path: Path, monkeypatch, capsys) -> None:
    content = json.loads(selftest.GOLDEN.read_text())
    content["answers"]["voxel"][7] += 3e-4
    changed = tmp_path / "golden.json"
    changed.write_text(json.dumps(content))
    monkeypatch.setattr(selftest, "GOLDEN", changed)
    assert main(["--self-test"]) == 70
    told = capsys.readouterr()
    assert "passed" not in told.out
    assert "difference 3.0e-04, tolerance 0.0001" in told.err


def test_reference_values_of_another_model_are_refused(tmp_path: Path, monkeypatch) -> None:
    other = tmp_path / "golden.json"
    other.write_text(json.dumps({"model_sha256": "0" * 64, "answers": {}}))
    monkeypatch.setattr(selftest, "GOLDEN", other)
    with pytest.raises(SelfTestError, match="another version"):
        selftest.read_golden()


def test_different_results_on_two_devices_fail(monkeypatch) -> None:
    golden = selftest.read_golden()
    off = {name: values + 9e-5 for name, values in golden.items()}
    below = {name: values - 9e-5 for name, values in golden.items()}
    monkeypatch.setattr(selftest, "devices", lambda: ["cpu", "cpu:0"])
    monkeypatch.setattr(selftest, "outputs_on", lambda device, series: off if device == "cpu" else below)
    with pytest.raises(SelfTestError, match="cpu and cpu:0"):
        selftest.run_self_test(lambda line: None)


def test_nan_fails() -> None:
    golden = {"global": np.zeros(2), "voxel": np.zeros(2)}
    with pytest.raises(SelfTestError):
        selftest.check(selftest.max_difference({"global": np.zeros(2), "voxel": np.array([0, np.nan])}, golden), "")


@pytest.mark.gpu
def test_gpu_and_cpu_give_the_same_results() -> None:
    assert "cuda" in selftest.devices()
    lines: list[str] = []
    selftest.run_self_test(lines.append)
    assert any(line.startswith("cpu and cuda differ") for line in lines)
