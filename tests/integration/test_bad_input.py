"""Each type of invalid input has its own message, exit code and hint."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_app.cli.neurostorm import main
from bids_app.model import native
from bids_app.model.encoder import EncoderConfig
from tests.helpers.images import noise
from tests.helpers.machine import run_on_small_disk, run_without_privileges
from tests.helpers.models import save_random_encoder

CONFIG = EncoderConfig(patch_size=(24, 24, 24, 1), embed_dim=4, depths=(1, 1), first_window_size=(2, 2, 2, 4))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """File of a tiny encoder, which no run of this module uses."""
    return save_random_encoder(tmp_path_factory.mktemp("model") / "tiny.safetensors", CONFIG)


@pytest.fixture
def neurostorm(tmp_path: Path, tiny_dataset, weights: Path) -> Callable[..., int]:
    """Run the participant level on the tiny dataset, in this process."""

    def run(*options: str, out: Path | None = None, bids_dir: Path | None = None) -> int:
        torch.manual_seed(0)
        where = [str(bids_dir or tiny_dataset.root), str(out or tmp_path / "out"), "participant"]
        fixed = ["--model", str(weights), "--nprocs", "1", "--mem", "8GB"]
        scratch = [] if {"-w", "--work-dir"} & set(options) else ["-w", str(tmp_path / "work")]
        return main([*where, *fixed, *scratch, *options])

    return run


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def with_nan(data: np.ndarray) -> np.ndarray:
    data[3:9, 3:9, 2:6] = np.nan
    return data


DAMAGED_RUNS: dict[str, tuple[Callable[..., object], str]] = {
    "truncated file": (lambda d: cut_off(d.bold_path()), "sub-01_task-rest_bold.nii.gz"),
    "not a NIfTI file": (lambda d: d.bold_path().write_bytes(gzip.compress(b"hello" * 200)), "_bold.nii.gz"),
    "empty file": (lambda d: d.bold_path().write_bytes(b""), "_bold.nii.gz"),
    "3D image": (lambda d: d.write_bold(data=noise(12, 12, 8)), "3D instead of 4D"),
    "too few volumes": (lambda d: d.write_bold(data=noise(12, 12, 8, 5)), "5 volumes, too few"),
    "values that are not numbers": (lambda d: d.write_bold(data=with_nan(noise(12, 12, 8, 30))), "NaN"),
    "constant image": (
        lambda d: d.write_bold(data=np.full((12, 12, 8, 30), 7.0, np.float32)),
        "each volume is constant",
    ),
    "empty image": (lambda d: d.write_bold(data=np.zeros((12, 12, 8, 30), np.float32)), "each volume is constant"),
    "repetition time in ms": (lambda d: d.write_sidecar({"RepetitionTime": 2000}), "RepetitionTime"),
    "repetition time as text": (lambda d: d.write_sidecar({"RepetitionTime": "two"}), "RepetitionTime"),
    "sidecar that is no JSON": (
        lambda d: d.bold_path().with_name("sub-01_task-rest_bold.json").write_text("{"),
        ".json",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGED_RUNS.values(), ids=DAMAGED_RUNS)
def test_a_damaged_run_is_named_as_invalid_data(neurostorm, tiny_dataset, tmp_path, capsys, damage, words) -> None:
    damage(tiny_dataset)
    assert neurostorm() == 65
    message = capsys.readouterr().err
    assert "sub-01_task-rest" in message
    assert words in message
    (summary,) = (tmp_path / "out" / "sub-01" / "log").glob("*/summary.json")
    (run,) = json.loads(summary.read_text())["runs"]
    assert (run["status"], run["exit_code"]) == ("failed", 65)
    assert run["hint"]
    page = (tmp_path / "out" / "sub-01.html").read_text()
    assert run["reason"].split(":")[0] in page


def test_a_missing_repetition_time_is_an_error(neurostorm, tiny_dataset, capsys) -> None:
    image = nib.load(tiny_dataset.bold_path())
    data = np.asarray(image.dataobj)
    image = nib.Nifti1Image(data, image.affine)
    image.header.set_zooms((4, 4, 4, 0))
    image.to_filename(tiny_dataset.bold_path())
    tiny_dataset.write_sidecar({"TaskName": "rest"})
    assert neurostorm() == 65
    assert "Add RepetitionTime" in capsys.readouterr().err


def test_a_header_without_orientation_is_refused(neurostorm, tiny_dataset, capsys) -> None:
    image = nib.load(tiny_dataset.bold_path())
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.Nifti1Image(np.asarray(image.dataobj), None, image.header).to_filename(tiny_dataset.bold_path())
    assert neurostorm() == 65
    assert "orientation" in capsys.readouterr().err


def test_a_dataset_without_participants_is_invalid_or_matches_nothing(neurostorm, tmp_path, capsys) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "dataset_description.json").write_text('{"Name": "empty", "BIDSVersion": "1.10.0"}')
    assert neurostorm(bids_dir=empty) in (16, 18)
    assert "participants" in capsys.readouterr().err


def test_a_folder_without_a_dataset_is_invalid_bids(neurostorm, tmp_path, capsys) -> None:
    (tmp_path / "folder" / "sub-01").mkdir(parents=True)
    assert neurostorm(bids_dir=tmp_path / "folder") == 16
    assert "dataset_description.json" in capsys.readouterr().err


def test_a_missing_dataset_is_no_input(neurostorm, tmp_path, capsys) -> None:
    assert neurostorm(bids_dir=tmp_path / "nowhere") == 66
    assert "nowhere" in capsys.readouterr().err


def test_missing_labels_are_named_before_the_start(neurostorm, tmp_path, capsys) -> None:
    assert neurostorm("--participant-label", "01", "99") == 18
    assert "99" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_matches_nothing(neurostorm, capsys) -> None:
    assert neurostorm("--task-id", "nback") == 18
    assert "nback" in capsys.readouterr().err


def test_a_dataset_without_bold_runs_is_an_error(neurostorm, tiny_dataset, capsys) -> None:
    tiny_dataset.bold_path().unlink()
    assert neurostorm() == 18
    assert "BOLD" in capsys.readouterr().err


@pytest.mark.parametrize("inside", [".", "sub-01/out"])
def test_output_in_the_raw_data_is_refused(neurostorm, tiny_dataset, capsys, inside: str) -> None:
    before = sorted(tiny_dataset.root.rglob("*"))
    assert neurostorm(out=tiny_dataset.root / inside) == 64
    assert "output folder" in capsys.readouterr().err
    assert sorted(tiny_dataset.root.rglob("*")) == before


def test_scratch_in_the_raw_data_is_refused(neurostorm, tiny_dataset, capsys) -> None:
    assert neurostorm("-w", str(tiny_dataset.root / "work")) == 64
    assert "work folder" in capsys.readouterr().err


COMMAND = "import sys; from bids_app.cli.neurostorm import main; sys.exit(main({arguments!r}))"


def code_of(raw: Path, out: Path, work: Path, *options: str) -> str:
    """Return Python code that runs the participant level in a process of its own."""
    where = [str(raw), str(out), "participant", "-w", str(work), "--model", "demo", "--nprocs", "1", "--mem", "8GB"]
    return COMMAND.format(arguments=[*where, *options])


def test_too_little_disk_is_refused_before_anything_is_written(tiny_dataset, tmp_path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = run_on_small_disk(code_of(tiny_dataset.root, tmp_path / "out", small / "work"), small, megabytes=12)
    assert done.returncode == 73
    assert "1 participant needs about" in done.stderr
    assert "12 MB are free" in done.stderr or "13 MB are free" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_folder_without_write_permission_is_refused(tiny_dataset, tmp_path) -> None:
    (tmp_path / "place").mkdir(mode=0o500)
    done = run_without_privileges(code_of(tiny_dataset.root, tmp_path / "place" / "out", tmp_path / "work"))
    assert done.returncode == 73
    assert "no write permission" in done.stderr


def test_a_bold_file_without_read_permission_is_named(tiny_dataset, tmp_path) -> None:
    tiny_dataset.bold_path().chmod(0)
    done = run_without_privileges(code_of(tiny_dataset.root, tmp_path / "out", tmp_path / "work"))
    assert done.returncode in (65, 66, 74)
    assert "sub-01_task-rest_bold.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_folder_of_another_pipeline_is_refused(neurostorm, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    description = {
        "Name": "x",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "fMRIPrep"}],
    }
    (out / "dataset_description.json").write_text(json.dumps(description))
    assert neurostorm(out=out) == 73
    assert "fMRIPrep" in capsys.readouterr().err


def test_missing_published_weights_are_a_missing_input(tiny_dataset, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("NEUROSTORM_CACHE", str(tmp_path / "cache"))
    assert main([str(tiny_dataset.root), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]) == 66
    message = capsys.readouterr().err
    assert "neurostorm-models fetch neurostorm-5ds" in message
    assert "--model demo" in message


def test_check_prints_the_plan_and_writes_nothing(neurostorm, tmp_path, capsys) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert neurostorm("--check") == 0
    text = capsys.readouterr().out
    assert "sub-01_task-rest: 30 volumes" in text
    assert "no T1w image" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_check_names_an_unusable_run(neurostorm, tiny_dataset, capsys) -> None:
    tiny_dataset.write_bold(data=noise(12, 12, 8, 5))
    assert neurostorm("--check") == 65
    assert "5 volumes, too few" in capsys.readouterr().out


def test_an_unknown_output_space_lists_the_available_ones(neurostorm, tmp_path, capsys) -> None:
    assert neurostorm("--output-spaces", "Talairach") == 64
    assert "MNI152NLin6Asym" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_slow_scan_and_the_scratch_folder_are_announced(neurostorm, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("NEUROSTORM_SCAN", "reference")
    work = tmp_path / "work"
    assert neurostorm() == 65  # noise has no brain
    first = capsys.readouterr().err
    assert first.count("SLOW: the encoder runs in plain PyTorch, about 10 times slower") == 1
    assert f"Scratch folder: {work} (empty)" in first
    assert f"MB stay in the scratch folder, for reuse by later runs. To delete them: rm -r {work} " in first
    monkeypatch.delenv("NEUROSTORM_SCAN")
    assert neurostorm() == 65
    second = capsys.readouterr().err
    assert "finished steps are reused" in second
    assert ("SLOW" in second) == (native.library() is None)
    logs = (tmp_path / "out").glob("sub-01/log/*/neurostorm.log")
    first_log, _ = sorted(logs, key=lambda path: path.stat().st_mtime_ns)  # both may be of the same second
    text = first_log.read_text()
    for part in ("WARNING SLOW: ", "sub-01_task-rest: examine done in ", "sub-01_task-rest: failed at "):
        assert part in text
    assert "\x1b" not in text
