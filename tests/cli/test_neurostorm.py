"""Command line of ``neurostorm``."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app import __version__
from bids_app.bids.layout import QUERIES
from bids_app.cli.neurostorm import main, parse_settings
from bids_app.errors import AnalysisLevelError, UsageError
from bids_app.settings import default_work_dir
from bids_app.settings.values import FILTERED_KINDS


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bids_app.cli.neurostorm", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_take_less_than_half_a_second_of_cpu_time(option: str) -> None:
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert command(option).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5


def test_version_is_the_package_version() -> None:
    assert command("--version").stdout == f"neurostorm {__version__}\n"


def test_the_first_line_is_printed_before_the_imports_that_take_seconds(tmp_path: Path) -> None:
    (tmp_path / "nipype.py").write_text("print('importing nipype', flush=True)\nraise SystemExit(3)\n")
    (tmp_path / "torch.py").write_text("print('importing torch', flush=True)\nraise SystemExit(3)\n")
    words = [
        "raw",
        str(tmp_path / "out"),
        "participant",
        "-w",
        str(tmp_path / "work"),
        "--participant-label",
        "01",
        "02",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "bids_app.cli.neurostorm", *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    first, second = done.stdout.splitlines()[:2]
    assert re.match(
        rf"\d\d:\d\d:\d\d neurostorm {__version__}, participant level of sub-01, sub-02: \S*/raw to ", first
    )
    assert first.endswith(f"{tmp_path}/out; logs: {tmp_path}/out/sub-*/log")
    assert second.startswith("importing")


def test_unknown_option_keeps_argparse_exit_code() -> None:
    assert command("a", "b", "participant", "--nonsense").returncode == 2


def test_unknown_level_has_its_own_exit_code(capsys) -> None:
    assert main(["a", "b", "participants"]) == 17
    assert "'participant' or 'group'" in capsys.readouterr().err


def test_unknown_level_raises_analysis_level_error() -> None:
    with pytest.raises(AnalysisLevelError):
        parse_settings(["a", "b", "cohort"])


def test_options_are_spelled_with_dashes_or_underscores() -> None:
    dashes = parse_settings(["a", "b", "participant", "--participant-label", "01", "--fd-spike-threshold", "0.3"])
    underscores = parse_settings(["a", "b", "participant", "--participant_label", "01", "--fd_spike_threshold", "0.3"])
    assert dashes == underscores


def test_a_repeated_option_adds_its_values() -> None:
    twice = (
        "--participant-label",
        "01",
        "--participant-label",
        "02",
        "--ignore",
        "fieldmaps",
        "--ignore",
        "slicetiming",
    )
    settings = parse_settings(["in", "out", "participant", *twice])
    assert settings.query.participants == ("01", "02")
    assert settings.preprocess.ignore == ("fieldmaps", "slicetiming")


def test_a_path_of_any_bytes_has_a_work_dir() -> None:
    assert default_work_dir(Path(os.fsdecode(b"/data/d\xe9f"))) != default_work_dir(Path("/data/def"))


def test_a_missing_model_file_is_named_with_its_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = parse_settings(["in", "out", "participant", "--model", "./missing.safetensors"])
    assert settings.model.model == str(tmp_path / "missing.safetensors")
    assert parse_settings(["in", "out", "participant", "--model", "neurostorm-5ds"]).model.model == "neurostorm-5ds"


def test_labels_are_stripped_of_prefixes_and_duplicates() -> None:
    settings = parse_settings(
        ["a", "b", "participant", "--participant-label", "sub-01", "02", "01", "--session-id", "ses-a", "-t", "rest"]
    )
    assert settings.query.participants == ("01", "02")
    assert settings.query.sessions == ("a",)
    assert settings.query.tasks == ("rest",)


@pytest.mark.parametrize(("text", "gigabytes"), [("8GB", 8.0), ("8000MB", 8.0), ("8GiB", 8.589936)])
def test_memory_is_given_with_its_unit(text: str, gigabytes: float) -> None:
    settings = parse_settings(["a", "b", "participant", "--mem", text])
    assert settings.resources.memory_gb == pytest.approx(gigabytes)


@pytest.mark.parametrize(("text", "said"), [("8", "write 8GB"), ("8@B", "write 8GB or 8000MB"), ("GB", "not a size")])
def test_memory_that_cannot_be_meant_is_refused(text: str, said: str, capsys) -> None:
    with pytest.raises(SystemExit, match="64"):
        parse_settings(["a", "b", "participant", "--mem", text])
    assert said in capsys.readouterr().err


def test_mem_and_mem_mb_together_are_refused() -> None:
    with pytest.raises(UsageError, match="--mem-mb"):
        parse_settings(["a", "b", "participant", "--mem", "8GB", "--mem-mb", "8000"])


@pytest.mark.parametrize(
    "words",
    [
        "--nprocs 0",
        "--omp-nthreads 0",
        "--dummy-scans -1",
        "--fd-spike-threshold 0",
        "--fd-spike-threshold nan",
        "--fd-spike-threshold inf",
        "--mem 0GB",
        "--mem-mb inf",
        "--mem-gb nan",
        "--random-seed -1",
        "--random-seed 99999999999",
    ],
)
def test_invalid_numbers_are_usage_errors(words: str, capsys) -> None:
    assert main(["a", "b", "participant", *words.split()]) == 64
    assert f"Invalid value for {words.split()[0][:5]}" in capsys.readouterr().err


def test_a_misspelled_option_is_compared_with_the_existing_ones(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_settings(["a", "b", "participant", "--fd-threshold", "0.3"])
    said = capsys.readouterr().err
    assert "unknown arguments: --fd-threshold 0.3" in said
    assert "Did you mean --fd-thresh?" in said


def test_threads_never_exceed_processors() -> None:
    assert parse_settings(["a", "b", "participant", "--nprocs", "2", "--omp-nthreads", "8"]).resources.omp_threads == 2


def test_config_file_gives_defaults_that_the_command_line_overrides(tmp_path: Path) -> None:
    config = tmp_path / "neurostorm.toml"
    config.write_text('[options]\nmodel = "demo"\nmem = "6GB"\ntask_id = ["rest"]\n')
    settings = parse_settings(["a", "b", "participant", "--config-file", str(config), "--mem", "8GB"])
    assert settings.model.model == "demo"
    assert settings.query.tasks == ("rest",)
    assert settings.resources.memory_gb == 8


def test_relative_file_names_become_absolute(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parcels.nii.gz").touch()  # the other does not exist, and is named in the error where it was looked for
    named = ["--model", "own.safetensors", "--adapter", "demo-state", "own.safetensors", "--atlas", "parcels.nii.gz"]
    model = parse_settings(["a", "b", "participant", *named]).model
    assert model.model == str(tmp_path / "own.safetensors")
    assert model.adapters == ("demo-state", str(tmp_path / "own.safetensors"))
    assert model.atlas == str(tmp_path / "parcels.nii.gz")
    published = "fmrifound-ratio0.5"  # what looks like a suffix makes no file of it
    assert parse_settings(["a", "b", "participant", "--model", published]).model.model == published


def test_config_file_with_unknown_option_names_it(tmp_path: Path) -> None:
    config = tmp_path / "neurostorm.toml"
    config.write_text('[options]\nmodle = "demo"\n')
    with pytest.raises(UsageError, match="modle"):
        parse_settings(["a", "b", "participant", "--config-file", str(config)])


@pytest.mark.parametrize(
    "line",
    [
        'mem = "8@B"',
        "mem = 8",
        'mem = "1.2.3GB"',
        "model = 3",
        'task_id = "rest"',
        "task_id = [1]",
        'nprocs = "two"',
        "nprocs = true",
        "nprocs = inf",
        'ignore = ["motion"]',
        'level = "some"',
        'low_mem = "yes"',
        "work_dir = []",
    ],
)
def test_invalid_values_in_a_config_file_are_named(tmp_path: Path, line: str, capsys) -> None:
    config = tmp_path / "neurostorm.toml"
    config.write_text(f"[options]\n{line}\n")
    assert main(["a", "b", "participant", "--config-file", str(config)]) == 64
    said = capsys.readouterr().err
    assert "neurostorm.toml" in said
    assert line.split()[0] in said


@pytest.mark.parametrize("text", ["options = 3", "[options]\nbids_dir = 3", "[options", "\0"])
def test_an_invalid_config_file_is_named(tmp_path: Path, text: str, capsys) -> None:
    config = tmp_path / "neurostorm.toml"
    config.write_text(text)
    assert main(["a", "b", "participant", "--config-file", str(config)]) == 64
    assert "neurostorm.toml" in capsys.readouterr().err


def test_filter_file_of_babs_is_accepted(tmp_path: Path) -> None:
    filters = {
        "fmap": {"datatype": "fmap"},
        "bold": {"task": "rest"},
        "roi": {"suffix": "roi"},
        "t1w": {"acquisition": None},
    }
    path = tmp_path / "filter.json"
    path.write_text(json.dumps(filters))
    settings = parse_settings(["a", "b", "participant", "--bids-filter-file", str(path)])
    assert settings.query.filters == filters


@pytest.mark.parametrize("kind", ["BOLD", "T1w", "func", "bolds"])
def test_a_filter_of_an_unknown_kind_of_file_is_named(kind: str, capsys) -> None:
    assert main(["a", "b", "participant", "--bids-filter-file", json.dumps({"bold": {}, kind: {"task": "rest"}})]) == 64
    said = capsys.readouterr().err
    assert f"unknown kinds of file: '{kind}'" in said
    assert "bold, t1w, fmap" in said


def test_filters_of_known_kinds_are_those_of_the_query() -> None:
    assert set(FILTERED_KINDS) == set(QUERIES)


@pytest.mark.parametrize("content", ["{", "[]", '{"bold": "rest"}'])
def test_broken_filter_file_is_named(tmp_path: Path, content: str, capsys) -> None:
    path = tmp_path / "filter.json"
    path.write_text(content)
    assert main(["a", "b", "participant", "--bids-filter-file", str(path)]) == 64
    assert "filter.json" in capsys.readouterr().err


def test_derivatives_have_a_given_name_or_that_of_their_folder(tmp_path: Path) -> None:
    settings = parse_settings(["a", "b", "participant", "-d", f"fmriprep={tmp_path}/x", f"{tmp_path}/xcp_d"])
    assert settings.query.derivatives == {"fmriprep": tmp_path / "x", "xcp_d": tmp_path / "xcp_d"}


def test_the_same_output_folder_has_the_same_work_dir(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NEUROSTORM_SCRATCH", str(tmp_path))
    first = parse_settings(["a", str(tmp_path / "out"), "participant"]).work_dir
    assert first == parse_settings(["b", str(tmp_path / "out"), "participant"]).work_dir
    assert first.is_relative_to(tmp_path)
    assert first != parse_settings(["a", str(tmp_path / "other"), "participant"]).work_dir


def test_output_spaces_accept_the_available_resolution() -> None:
    settings = parse_settings(["a", "b", "participant", "--output-spaces", "MNI152NLin6Asym:res-2"])
    assert settings.preprocess.output_spaces == ("MNI152NLin6Asym",)


def test_names_of_the_own_space_are_the_same_space() -> None:
    settings = parse_settings(["a", "b", "participant", "--output-spaces", "boldref", "T1w", "native", "anat", "func"])
    assert settings.preprocess.output_spaces == ("func", "T1w")


@pytest.mark.parametrize("space", ["MNI152NLin6Asym:res-1", "T1w:res-2"])
def test_other_resolutions_are_refused(space: str) -> None:
    assert main(["a", "b", "participant", "--output-spaces", space]) == 64


def test_parts_of_a_dataset_can_be_ignored() -> None:
    settings = parse_settings(["a", "b", "participant", "--ignore", "slicetiming", "fieldmaps"])
    assert settings.preprocess.ignore == ("slicetiming", "fieldmaps")
    result = command("a", "b", "participant", "--ignore", "motion")
    assert result.returncode == 64
    assert "slicetiming" in result.stderr
