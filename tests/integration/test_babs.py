"""The BABS configuration is valid, and its command is valid for this app."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bids_app import __version__
from bids_app.cli.neurostorm import parse_settings

CONFIG = Path(__file__).parents[2] / "docs" / "babs.yml"


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(CONFIG.read_text())


def test_its_arguments_are_options_of_the_command(config: dict[str, Any]) -> None:
    arguments = {("--participant-label" if k.startswith("$") else k): v for k, v in config["bids_app_args"].items()}
    words = [word for name, value in arguments.items() for word in (name, value) if word]
    words[words.index("--participant-label") + 1] = "sub-01"
    settings = parse_settings(["inputs/data/BIDS", "outputs/neurostorm", "participant", *words])
    assert settings.query.participants == ("01",)
    assert settings.resources.memory_gb == 6
    assert settings.stop_on_first_crash
    assert settings.work_dir.name == "$BABS_TMPDIR"


def test_its_folder_has_the_version_of_the_package(config: dict[str, Any]) -> None:
    assert config["zip_foldernames"] == {"neurostorm": __version__.replace(".", "-")}


@pytest.fixture
def babs(monkeypatch) -> Any:
    """Container module of BABS, without DataLad."""
    spec = importlib.util.find_spec("babs")
    if spec is None:
        pytest.skip("BABS is not installed; it wants an older NumPy, but 'pip install --no-deps babs' is enough here")
    monkeypatch.setitem(sys.modules, "babs", importlib.util.module_from_spec(spec))
    return importlib.import_module("babs.container")


@pytest.mark.slow
def test_babs_itself_writes_a_script_that_runs_the_app(babs, tmp_path: Path) -> None:
    container = babs.Container(str(tmp_path), "neurostorm-0-1-0", str(CONFIG))
    folders, out_dir = babs.app_output_settings_from_config(container.config)
    datasets = [
        {
            "name": name,
            "is_zipped": False,
            "unzipped_path_containing_subject_dirs": entry["path_in_babs"],
            "path_in_babs": entry["path_in_babs"],
        }
        for name, entry in container.config["input_datasets"].items()
    ]
    script = babs.generate_bidsapp_runscript(
        datasets,
        "subject",
        container_name=container.container_name,
        relative_container_path=container.container_path_relToAnalysis,
        bids_app_output_dir=out_dir,
        dict_zip_foldernames=folders,
        bids_app_args=container.config["bids_app_args"],
        singularity_args=container.config["singularity_args"],
    )
    assert "--containall" in script
    (command,) = re.findall(r"^\s*(?:singularity|apptainer) run.*?(?:[^\\]\n)", script, re.MULTILINE | re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    words = words[next(i for i, word in enumerate(words) if word.endswith("/image")) + 1 :]
    settings = parse_settings([word.replace("${subid}", "sub-01") for word in words])
    assert (settings.level, settings.query.participants, settings.model.model) == ("participant", ("01",), "demo")
    assert settings.out_dir.name == "neurostorm"

    submit = babs.generate_submit_script(
        queue_system="slurm",
        cluster_resources_config=container.config["cluster_resources"],
        script_preamble=container.config["script_preamble"],
        job_scratch_directory=container.config["job_compute_space"],
        input_datasets=datasets,
        processing_level="subject",
        container_name=container.container_name,
        zip_foldernames=container.config["zip_foldernames"],
    )
    assert "#SBATCH --mem=6G" in submit
    assert "#SBATCH --time=2:00:00" in submit
