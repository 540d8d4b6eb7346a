"""The pipeline bundles of Nipoppy: up to date with the options, valid, and run on a simulated dataset."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app import __version__
from bids_app.cli.boutiques import describe
from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

NIPOPPY = load_script("write_nipoppy")
NAMES = (NIPOPPY.PROCESSING, NIPOPPY.EXTRACTION)
INSTALLED = ROOT / "build" / "integrations"
"""Where ``make test-slow`` installs Nipoppy, whose dependencies have other versions than ours."""
needs_nipoppy = pytest.mark.skipif(
    not (INSTALLED / "nipoppy").is_dir() and importlib.util.find_spec("nipoppy") is None,
    reason="nipoppy is not installed (make test-slow)",
)


@pytest.fixture
def nipoppy(tmp_path: Path):
    """Run ``nipoppy`` with its own HOME; return the process."""
    environment = os.environ | {
        "HOME": str(tmp_path),
        "COLUMNS": "200",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(INSTALLED), os.environ.get("PYTHONPATH")))),
    }

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from nipoppy.cli.cli import cli; cli()", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    return run


def test_the_files_in_the_repository_are_up_to_date() -> None:
    written = {path.relative_to(NIPOPPY.FOLDER).as_posix() for path in NIPOPPY.FOLDER.rglob("*") if path.is_file()}
    expected = NIPOPPY.texts()
    assert written == set(expected)
    for name, text in expected.items():
        assert (NIPOPPY.FOLDER / name).read_text() == text, f"{name} is out of date: run 'make boutiques'"


def test_every_option_of_the_command_is_an_input_of_both_pipelines() -> None:
    expected = [entry["id"] for entry in describe()["inputs"]]
    bundles = NIPOPPY.bundles()
    found = {name: [entry["id"] for entry in bundles[name]["descriptor"]["inputs"]] for name in NAMES}
    assert found == {NIPOPPY.PROCESSING: expected, NIPOPPY.EXTRACTION: [*expected, "phenotype_dir"]}
    for name in NAMES:
        assert set(bundles[name]["invocation"]) <= set(found[name])
    (dependency,) = bundles[NIPOPPY.EXTRACTION]["config"]["PROC_DEPENDENCIES"]
    assert dependency == {"NAME": bundles[NIPOPPY.PROCESSING]["config"]["NAME"], "VERSION": __version__}


@pytest.mark.parametrize("predictions", [True, False], ids=["with predictions", "without predictions"])
def test_tables_are_copied_and_replace_those_of_an_earlier_run(tmp_path: Path, predictions: bool) -> None:
    out, phenotypes = tmp_path / "the outputs", tmp_path / "the tables"
    out.mkdir()
    phenotypes.mkdir()
    for ending in ("tsv", "json"):
        (out / f"group_embeddings.{ending}").write_text("new")
    (phenotypes / "neurostorm_other.tsv").write_text("of an adapter that is no longer used")
    (phenotypes / "ours.tsv").write_text("kept")
    if predictions:
        (out / "phenotype").mkdir()
        (out / "phenotype" / "neurostorm_sex.tsv").write_text("new")
        (out / "phenotype" / "age.tsv").write_text("not a prediction")
    done = run_copy(out, phenotypes)
    assert done.returncode == 0, done.stderr
    expected = {"neurostorm_embeddings.tsv", "neurostorm_embeddings.json", "ours.tsv"}
    assert {path.name for path in phenotypes.iterdir()} == expected | ({"neurostorm_sex.tsv"} if predictions else set())


def test_an_extraction_without_embeddings_fails(tmp_path: Path) -> None:
    assert run_copy(tmp_path, tmp_path / "tables").returncode != 0


def run_copy(out: Path, phenotypes: Path) -> subprocess.CompletedProcess[str]:
    """Run the commands after the group level, with the folders quoted as bosh does."""
    script = " && ".join(NIPOPPY.COPY_TABLES)
    script = script.replace("[OUTPUT_DIR]", f"'{out}'").replace("[PHENOTYPE_DIR]", f"'{phenotypes}'")
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


@needs_nipoppy
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_bundles_are_valid(nipoppy, name: str) -> None:
    done = nipoppy("pipeline", "validate", NIPOPPY.FOLDER / name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all valid" in done.stdout + done.stderr


@needs_nipoppy
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.json", lambda content: content.pop("VERSION"), "VERSION"),
        ("config.json", lambda content: content.pop("SCHEMA_VERSION"), "SCHEMA_VERSION"),
        ("tracker.json", lambda content: content.update(PATHS=[]), "tracker"),
        ("descriptor.json", lambda content: content.pop("inputs"), "inputs"),
        ("invocation.json", lambda content: content.update(no_such_option=1), "no_such_option"),
    ],
)
def test_a_broken_bundle_is_not_valid(nipoppy, tmp_path: Path, file: str, change, named: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(NIPOPPY.FOLDER / NIPOPPY.PROCESSING, bundle)
    content = json.loads((bundle / file).read_text())
    change(content)
    (bundle / file).write_text(json.dumps(content))
    done = nipoppy("pipeline", "validate", bundle)
    assert done.returncode != 0
    assert named in done.stdout + done.stderr


@needs_nipoppy
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_study_is_processed_tracked_and_extracted(nipoppy, tmp_path: Path) -> None:
    from bids_app.cli.phantom import main as phantom

    simulated = ["--participants", "1", "--sessions", "2", "--size", "small", "--states", "rest", "--no-t1w"]
    assert phantom([str(tmp_path / "raw"), *simulated]) == 0
    study = tmp_path / "a study"

    def step(*arguments: object) -> None:
        done = nipoppy(*arguments, "--study", study)
        assert done.returncode == 0, done.stdout + done.stderr

    step("init", "--bids-source", tmp_path / "raw")
    (study / "global_config.json").write_text('{"CONTAINER_CONFIG": {"COMMAND": null}, "SCHEMA_VERSION": "1.0"}')
    for name in NAMES:
        step("pipeline", "install", "--assume-yes", NIPOPPY.FOLDER / name)
    chosen = study / "pipelines" / "processing" / f"neurostorm-{__version__}" / "invocation.json"
    chosen.write_text(json.dumps(json.loads(chosen.read_text()) | {"model": "demo"}))
    step("track-curation")
    step("process", "--pipeline", NIPOPPY.PROCESSING, "--session-id", "01")
    step("track-processing", "--pipeline", NIPOPPY.PROCESSING)
    derivatives = study / "derivatives"
    rows = (line.split("\t") for line in (derivatives / "processing_status.tsv").read_text().splitlines()[1:])
    assert {row[2]: row[-1] for row in rows} == {"01": "SUCCESS", "02": "FAIL"}
    step("extract", "--pipeline", NIPOPPY.EXTRACTION)
    tables = derivatives / "neurostorm" / __version__ / "idp"
    names = {path.name for path in tables.iterdir()}
    assert names == {f"neurostorm_{name}.{end}" for name in ("embeddings", "demostate") for end in ("tsv", "json")}
    assert (tables / "neurostorm_embeddings.tsv").read_text().splitlines()[1].startswith("sub-01\t01\trest\tdemo\t")
