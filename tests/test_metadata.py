"""Metadata for archives, catalogues and package managers: one source of facts, and the form that each of them wants."""

from __future__ import annotations

import base64
import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from PIL import Image

from bids_app import REPOSITORY, __version__
from bids_app.cli.boutiques import describe
from tests.helpers.metadata_schemas import SCHEMAS
from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

METADATA = load_script("write_metadata")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
AUTHORS = [author["name"] for author in CITATION["authors"]]
INSTALLED = ROOT / "build" / "integrations"
"""Where ``make test-slow`` installs validators."""


def needs(module: str) -> pytest.MarkDecorator:
    """Skip a test without a validator."""
    found = (INSTALLED / module).is_dir() or importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not found, reason=f"{module} is not installed (make test-slow)")


def read(name: str) -> Any:
    """Return the content of a JSON or YAML file of the repository."""
    text = (ROOT / name).read_text()
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def read_paper() -> tuple[dict[str, Any], str]:
    """Return the header of the paper and its text."""
    _, header, text = (ROOT / "paper.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_files_in_the_repository_are_up_to_date() -> None:
    for name, text in METADATA.texts().items():
        assert (ROOT / name).read_text() == text, f"{name} is out of date: run 'make metadata'"


def test_facts_are_those_of_the_project_and_its_citation() -> None:
    zenodo, codemeta, (app,) = (
        read(".zenodo.json"),
        read("codemeta.json"),
        read("recipes/bids-website/apps.yml")["apps"],
    )
    conda, neurodesk = read("recipes/conda/recipe.yaml"), read("recipes/neurostorm/build.yaml")
    tests, (paper, _) = read("recipes/neurostorm/fulltest.yaml"), read_paper()
    versions = [codemeta["version"], conda["context"]["version"], neurodesk["version"], tests["version"]]
    assert set(versions) == {__version__}
    names = [
        codemeta["identifier"],
        conda["context"]["name"],
        neurodesk["name"],
        tests["name"],
        app["gh"].split("/")[1],
    ]
    assert set(names) == {PROJECT["name"]}
    assert zenodo["title"] == codemeta["name"] == paper["title"] == CITATION["title"]
    authors = [
        [each["name"] for each in people] for people in (zenodo["creators"], codemeta["author"], paper["authors"])
    ]
    assert authors == [AUTHORS] * 3
    assert describe()["author"] in AUTHORS
    licences = [zenodo["license"], codemeta["license"].rsplit("/")[-1], conda["about"]["license"], CITATION["license"]]
    assert {*licences, neurodesk["copyright"][0]["license"]} == {PROJECT["license"]}
    assert zenodo["keywords"] == codemeta["keywords"] == paper["tags"] == PROJECT["keywords"]
    described = [codemeta["description"], app["description"], conda["about"]["summary"]]
    assert set(described) == {PROJECT["description"]}
    for text in (zenodo["description"], neurodesk["structured_readme"]["description"]):
        assert text.startswith(PROJECT["description"])
    assert len(conda["requirements"]["run"]) == len(PROJECT["dependencies"]) + 1  # and Python
    assert neurodesk["build"]["directives"][0]["deploy"]["bins"] == list(PROJECT["scripts"])


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_has_the_form_that_its_platform_wants(name: str) -> None:
    jsonschema.validate(read(name), SCHEMAS[name])


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_missing_empty_or_unknown_field_is_noticed(name: str) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])
    content = read(name)
    schemas = {key: part for key, part in SCHEMAS[name]["properties"].items() if key in content}
    for key in schemas:
        if key in SCHEMAS[name]["required"]:
            assert not validator.is_valid({k: v for k, v in content.items() if k != key}), key
        for empty in ("", [], {}, None):
            assert not validator.is_valid(content | {key: empty}), (key, empty)
    assert not validator.is_valid(content | {"no_such_field": "x"})
    for broken in without_a_nested_field(content):
        assert not validator.is_valid(broken)


def without_a_nested_field(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Iterate over copies of which each lacks the first field of the first entry of one list of mappings."""
    for key, value in content.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            broken = copy.deepcopy(content)
            broken[key][0].pop(next(iter(broken[key][0])))
            yield broken


def test_the_listed_workflow_exists_and_the_account_is_that_of_the_repository() -> None:
    (app,) = read("recipes/bids-website/apps.yml")["apps"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{app['workflow']}.yml").read_text())
    assert workflow["name"] == app["workflow"]
    assert app["branch"] in workflow[True]["push"]["branches"]  # YAML reads the key "on" as true
    account = REPOSITORY.removeprefix("https://github.com/").split("/")[0]
    assert app["gh"].split("/")[0] == (account or "OWNER")


def test_files_have_the_address_of_the_repository_once_it_is_public(monkeypatch) -> None:
    monkeypatch.setattr(METADATA, "REPOSITORY", "https://github.com/Lab/neurostorm")
    monkeypatch.setattr(METADATA, "OWNER", "Lab")
    for name, text in METADATA.texts().items():
        content = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
        jsonschema.validate(content, SCHEMAS[name])
        if name in ("codemeta.json", "recipes/conda/recipe.yaml", "recipes/neurostorm/build.yaml"):
            assert "https://github.com/Lab/neurostorm" in text
    (app,) = METADATA.bids_website()["apps"]
    assert (app["gh"], app["dh"]) == ("Lab/neurostorm", "lab/neurostorm")


def test_the_icon_is_a_square_image() -> None:
    path = ROOT / "recipes" / "neurostorm" / "icon.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == image.height >= 64
    assert read("recipes/neurostorm/build.yaml")["icon"].endswith(base64.b64encode(path.read_bytes()).decode())


def test_the_paper_has_the_sections_and_the_length_of_the_journal() -> None:
    header, text = read_paper()
    assert {"title", "tags", "authors", "affiliations", "date", "bibliography"} <= header.keys()
    assert {author["affiliation"] for author in header["authors"]} <= {each["index"] for each in header["affiliations"]}
    assert re.findall(r"^# (.+)$", text, re.MULTILINE) == [
        "Summary", "Statement of need", "State of the field", "Software design", "Research impact statement",
        "Acknowledgements", "References",
    ]  # fmt: skip
    assert 750 <= len(text.split()) <= 1750


def test_the_paper_cites_every_entry_of_its_bibliography_and_no_other() -> None:
    entries = re.findall(r"^@\w+\{(\w+),$", (ROOT / "paper.bib").read_text(), re.MULTILINE)
    assert sorted(entries) == sorted(set(re.findall(r"@(\w+)", read_paper()[1])))
    assert {"fmriprep", "deepprep", "brainmarks"} <= set(entries)


def test_every_figure_of_the_paper_is_one_of_the_benchmarks() -> None:
    measured = (ROOT / "benchmarks" / "README.md").read_text()
    figures = re.findall(r"\d[\d,]*\.\d+(?:e-?\d+)?|\d{1,3}(?:,\d{3})+|\d+ of \d+", read_paper()[1])
    assert len(figures) >= 10
    assert [figure for figure in figures if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d,])", measured)] == []


@needs("cffconvert")
@pytest.mark.slow
def test_the_citation_file_is_valid() -> None:
    folder = (
        INSTALLED
        if (INSTALLED / "cffconvert").is_dir()
        else Path(importlib.util.find_spec("cffconvert").origin).parents[1]
    )
    validator = jsonschema.Draft7Validator(
        json.loads((folder / "cffconvert" / "schemas" / "1.2.0" / "schema.json").read_text())
    )
    validator.validate(CITATION)
    for key in ("title", "authors", "message", "cff-version"):
        assert not validator.is_valid({k: v for k, v in CITATION.items() if k != key})


@needs("pypandoc")
@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["", " [@no_such_paper]"], ids=["as it is", "with an unknown citation"])
def test_the_paper_is_built_with_its_references(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "paper.md").write_text((ROOT / "paper.md").read_text().replace("\n# Acknow", f"\n{wrong}\n\n# Acknow"))
    (tmp_path / "paper.bib").write_text((ROOT / "paper.bib").read_text())
    code = "import pypandoc, subprocess, sys; sys.exit(subprocess.call([pypandoc.get_pandoc_path(), *sys.argv[1:]]))"
    options = ["paper.md", "--citeproc", "--fail-if-warnings", "--to", "html", "--output", "paper.html"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(INSTALLED), os.environ.get("PYTHONPATH", "")))}
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not wrong), done.stderr
    assert wrong or 'id="ref-neurostorm"' in (tmp_path / "paper.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tests_for_neurodesk_pass_with_the_installed_commands(tmp_path: Path) -> None:
    suite = read("recipes/neurostorm/fulltest.yaml")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    passed: list[str] = []
    for test in suite["tests"]:
        assert test.get("depends_on", test["name"]) in [*passed, test["name"]]
        done = subprocess.run(
            ["bash", "-c", test["command"]], cwd=tmp_path, env=os.environ | {"PATH": path},
            capture_output=True, text=True, check=False, timeout=test.get("timeout", 120),
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == test.get("expected_exit_code", 0), output
        assert test.get("expected_output_contains", "").replace("${version}", suite["version"]) in output
        assert all((tmp_path / each["output_exists"]).exists() for each in test.get("validate", [])), output
        passed.append(test["name"])
