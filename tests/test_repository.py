"""Files of the repository: one address everywhere, pinned actions, and commands of the workflows that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from bids_app import PLEASE_REPORT, REPOSITORY
from tests.helpers.paths import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WITH_ADDRESS = ("pyproject.toml", "CITATION.cff", "SECURITY.md")
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


@pytest.mark.parametrize("name", WITH_ADDRESS)
def test_the_address_of_the_repository_is_the_same_everywhere(name: str) -> None:
    addresses = set(re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", (ROOT / name).read_text()))
    assert addresses == ({REPOSITORY} if REPOSITORY else set())


def test_metadata_and_messages_name_the_repository_if_it_is_public() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    assert urls.get("Repository", "") == REPOSITORY
    assert urls.get("Issues", "") in PLEASE_REPORT
    assert "report" in PLEASE_REPORT


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    used = re.findall(r"uses: (\S+)", path.read_text())
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read_and_run_existing_targets(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {match[1] for run in runs if (match := re.match(r"make ([\w-]+)", run))} <= targets


def test_every_night_slow_tests_fuzzing_containers_and_audit_run_without_skips() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())
    assert workflow[True]["schedule"]  # YAML reads the key "on" as true
    jobs = workflow["jobs"]
    assert set(jobs) == {"slow", "fuzz", "container", "audit"}
    for name in ("slow", "container"):
        assert jobs[name]["env"]["NEUROSTORM_NO_SKIPS"] == "1"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_valid(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids))


def test_the_form_for_bugs_asks_for_command_and_summary() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    required = {field["id"] for field in form["body"] if field.get("validations", {}).get("required")}
    assert {"command", "summary"} <= required


def test_notice_names_every_data_file_of_the_package_and_every_atlas() -> None:
    text = (ROOT / "NOTICE").read_text()
    for folder in ("data", "reports/assets"):
        for path in (ROOT / "bids_app" / folder).iterdir():
            assert path.suffix == ".py" or path.name == "__pycache__" or path.name in text, path.name
    for name in ("nilearn", "TemplateFlow", "AAL3", "Schaefer", "GPL", "MNI152NLin6Asym", "MNI152NLin2009cAsym"):
        assert name in text
