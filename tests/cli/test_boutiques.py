"""Boutiques descriptors: up to date, valid, and consistent with the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bids_app.cli.boutiques import EXAMPLE, VARIANTS, describe
from bids_app.cli.neurostorm import build_parser, main, parse_settings

ROOT = Path(__file__).parents[2]
FILES = {"cpu": ROOT / "boutiques.json", "cuda": ROOT / "boutiques-cuda.json"}
BOSH = Path(sys.executable).with_name("bosh")
needs_bosh = pytest.mark.skipif(not BOSH.exists(), reason="boutiques is not installed (the extra dev)")


def bosh(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in (BOSH, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def write_invocation(folder: Path, **values: Any) -> Path:
    path = folder / "invocation.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_files_in_the_repository_are_up_to_date(variant: str) -> None:
    written = json.loads(FILES[variant].read_text())
    assert written == describe(variant), "an option changed: run 'make boutiques'"


def test_the_command_prints_the_descriptor(capsys) -> None:
    for arguments, variant in ((["--bids-exec-spec"], "cpu"), (["--bids_exec_spec", "cuda"], "cuda")):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert capsys.readouterr().out == FILES[variant].read_text()


def test_every_option_of_a_run_is_an_input() -> None:
    ids = [entry["id"] for entry in describe()["inputs"]]
    assert len(ids) == len(set(ids))
    expected = {action.dest for action in build_parser()._actions} | {"participants_dir"}
    assert set(ids) == expected - {"help", "version", "list_models", "self_test", "bids_exec_spec"}


def test_the_inputs_and_outputs_of_cbrain_modules_exist() -> None:
    descriptor = describe()
    inputs = {entry["id"]: entry for entry in descriptor["inputs"]}
    outputs = {entry["id"] for entry in descriptor["output-files"]}
    modules = descriptor["custom"]["cbrain:integrator_modules"]
    maker = modules["BoutiquesBidsSingleSubjectMaker"]
    assert inputs[maker["dataset_input_id"]]["type"] == "File"
    assert inputs[maker["subjects_input_id"]]["list"] is True
    assert set(modules["BoutiquesFileTypeVerifier"]) <= {i for i, entry in inputs.items() if entry["type"] == "File"}
    assert set(modules["BoutiquesOutputFileTypeSetter"]) <= outputs
    # CBRAIN puts a dataset of its own in the place of the first occurrence of the dataset's key
    assert descriptor["command-line"].count(inputs["bids_dir"]["value-key"]) == 1


@needs_bosh
@pytest.mark.parametrize("variant", VARIANTS)
def test_descriptors_are_valid_for_bids_apps(variant: str) -> None:
    result = bosh("validate", "--bids", FILES[variant])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "BIDS validation OK" in result.stdout


@needs_bosh
def test_the_command_line_of_an_invocation_has_its_values(tmp_path: Path) -> None:
    filters = tmp_path / "filters.json"
    filters.write_text('{"bold": {"task": "rest"}}')
    invocation = write_invocation(
        tmp_path,
        bids_dir=str(tmp_path), output_dir="out", analysis_level="participant", participant_label=["01", "02"],
        session_label=["a"], task_id=["rest"], bids_filter_file=str(filters), model="demo", device="cpu",
        level="minimal", nprocs=2, omp_nthreads=1, mem="6GB", low_mem=True, ignore=["slicetiming"], dummy_scans=4,
        fd_spike_threshold=0.3, stop_on_first_crash=True, work_dir="work", verbose=True,
    )  # fmt: skip
    result = bosh("exec", "simulate", FILES["cpu"], "-i", invocation)
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "neurostorm " in line]
    assert line.startswith("mkdir -p out; neurostorm ")
    settings = parse_settings(shlex.split(line.partition("neurostorm ")[2]))
    assert (settings.bids_dir, settings.level) == (tmp_path, "participant")
    assert (settings.query.participants, settings.query.sessions) == (("01", "02"), ("a",))
    assert settings.query.filters == {"bold": {"task": "rest"}}
    assert (settings.model.model, settings.model.device, settings.model.embeddings_only) == ("demo", "cpu", True)
    assert (settings.resources.n_procs, settings.resources.memory_gb, settings.resources.low_mem) == (2, 6.0, True)
    assert (settings.preprocess.ignore, settings.preprocess.dummy_scans) == (("slicetiming",), 4)
    assert settings.stop_on_first_crash
    assert settings.verbosity == 1


@needs_bosh
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"analysis_level": "cohort"}, "analysis_level"),
        ({"mem": "4GB", "mem_mb": 4000}, "mem_mb"),
        ({"bids_dir": None}, "bids_dir"),
    ],
)
def test_invalid_invocations_are_refused(tmp_path: Path, wrong: dict[str, Any], named: str) -> None:
    values = {"bids_dir": str(tmp_path), "output_dir": "out", "analysis_level": "participant"} | wrong
    invocation = write_invocation(tmp_path, **{k: v for k, v in values.items() if v is not None})
    result = bosh("exec", "simulate", FILES["cpu"], "-i", invocation)
    assert result.returncode != 0
    assert named in (result.stdout + result.stderr).lower()


@needs_bosh
def test_launching_runs_the_installed_command_and_returns_its_exit_code(
    tiny_dataset, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("PATH", str(BOSH.parent), prepend=":")
    invocation = write_invocation(
        tmp_path, **EXAMPLE | {"bids_dir": str(tiny_dataset.root), "output_dir": "out", "participant_label": ["99"]}
    )
    result = bosh("exec", "launch", "--no-container", "--skip-data-collection", FILES["cpu"], invocation, cwd=tmp_path)
    assert result.returncode == 18, result.stdout + result.stderr
    assert "sub-99" in result.stdout + result.stderr


@needs_bosh
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_launching_writes_the_outputs(tmp_path: Path, monkeypatch) -> None:
    from bids_app.cli.phantom import main as phantom

    monkeypatch.setenv("PATH", str(BOSH.parent), prepend=":")
    arguments = ["--participants", "1", "--size", "small", "--states", "rest", "--no-t1w"]
    assert phantom([str(tmp_path / "raw"), *arguments]) == 0
    values = EXAMPLE | {"bids_dir": "raw", "output_dir": "out", "work_dir": "work"}
    invocation = write_invocation(tmp_path, **values)
    launch = ("exec", "launch", "--no-container", "--skip-data-collection", FILES["cpu"], invocation)
    result = bosh(*launch, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "sub-01.html").is_file()
    write_invocation(tmp_path, bids_dir="raw", output_dir="out", analysis_level="group")
    assert bosh(*launch, cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "group_embeddings.tsv").is_file()
