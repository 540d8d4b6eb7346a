"""Arguments of ``neurostorm-train`` that cannot work are refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.cli.train import main

ADAPT = ["adapt", "derivatives", "--target", "participants.tsv:sex"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--nprocs", "0"),
        ("--seed", "-1"),
        ("--ridge", "-0.1"),
        ("--ridge", "nan"),
        ("--device", "gpu"),
        ("--seed", "x"),
    ],
)
def test_a_value_that_cannot_work_is_named(option: str, value: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*ADAPT, f"{option}={value}"])
    assert caught.value.code == 2
    assert f"argument {option}" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named_before_the_data_are_read(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "x.safetensors", Path("/proc/x.safetensors")):
        assert main([*ADAPT, "--output", str(output)]) == 73
        assert f"{output}: cannot be written" in capsys.readouterr().err
