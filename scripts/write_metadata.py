"""Write the metadata for archives, package managers and catalogues: ``python scripts/write_metadata.py``.

All facts are those of ``pyproject.toml``, ``CITATION.cff`` and ``bids_app/__init__.py``. See ``docs/integrations.md``.
"""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from bids_app import REPOSITORY, __version__
from bids_app.bids.writer import write_text
from bids_app.cli.boutiques import CONTAINERS
from bids_app.errors import NoMatchError

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
NAME: str = PROJECT["name"]
AUTHORS: list[str] = [author["name"] for author in CITATION["authors"]]
COMMANDS: list[str] = list(PROJECT["scripts"])
RESEARCH_ONLY = "A research tool, not a medical device."

OWNER = REPOSITORY.removeprefix("https://github.com/").split("/")[0] or "OWNER"
"""Account of the source code; ``OWNER`` until the address is public."""
CONDA_NAMES = {"isal": "python-isal", "matplotlib": "matplotlib-base", "torch": "pytorch"}
"""Names on conda-forge that differ from those on PyPI."""

Metadata = Mapping[str, Any]


def arxiv_of(reference: Metadata) -> str:
    """Return the arXiv identifier of a reference, from its notes."""
    found = re.fullmatch(r"arXiv (\d{4}\.\d{5})", reference["notes"])
    if found is None:
        raise ValueError(f"CITATION.cff: no arXiv identifier in the notes of {reference['title']}")
    return found[1]


def zenodo() -> Metadata:
    """Return ``.zenodo.json``; Zenodo takes the version from the release."""
    return {
        "title": CITATION["title"],
        "description": f"{PROJECT['description']}. {RESEARCH_ONLY}",
        "upload_type": "software",
        "access_right": "open",
        "license": PROJECT["license"],
        "creators": [{"name": name} for name in AUTHORS],
        "keywords": PROJECT["keywords"],
        "related_identifiers": [
            {"identifier": f"arXiv:{arxiv_of(reference)}", "relation": "cites", "scheme": "arxiv"}
            for reference in CITATION["references"]
        ],
    }


def codemeta() -> Metadata:
    """Return ``codemeta.json``, with the addresses once the source code is public."""
    addresses = {"codeRepository": REPOSITORY, "issueTracker": f"{REPOSITORY}/issues"} if REPOSITORY else {}
    return {
        "@context": "https://w3id.org/codemeta/3.0",
        "@type": "SoftwareSourceCode",
        "name": CITATION["title"],
        "identifier": NAME,
        "description": PROJECT["description"],
        "version": __version__,
        "license": f"https://spdx.org/licenses/{PROJECT['license']}",
        **addresses,
        "author": [{"@type": "Organization", "name": name} for name in AUTHORS],
        "keywords": PROJECT["keywords"],
        "programmingLanguage": "Python",
        "runtimePlatform": f"Python {PROJECT['requires-python']}",
        "operatingSystem": "Linux",
        "softwareRequirements": PROJECT["dependencies"],
        "referencePublication": [f"https://arxiv.org/abs/{arxiv_of(each)}" for each in CITATION["references"]],
    }


def bids_website() -> Metadata:
    """Return the entry of the list of BIDS Apps (``data/tools/apps.yml`` of bids-website)."""
    entry = {
        "gh": f"{OWNER}/{NAME}",
        "status": "active",
        "dh": f"{OWNER.lower()}/{NAME}" if REPOSITORY else f"OWNER/{NAME}",
        "ci": "gh",
        "branch": "main",
        "workflow": "ci",
        "ds_type": ["raw", "derivative"],
        "datatype": ["anat", "func", "fmap"],
        "description": PROJECT["description"],
    }
    return {"apps": [entry]}


def conda() -> Metadata:
    """Return the recipe for rattler-build, which builds the package from this repository."""
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    run = [f"{CONDA_NAMES.get(each.name, each.name)} {each.specifier}" for each in requirements]
    python = f"python {PROJECT['requires-python']}"
    address = {"repository": REPOSITORY} if REPOSITORY else {}
    return {
        "schema_version": 1,
        "context": {"name": NAME, "version": __version__},
        "package": {"name": "${{ name }}", "version": "${{ version }}"},
        "source": {"path": "../.."},
        "build": {
            "number": 0,
            "skip": ["not linux"],
            "script": "${{ PYTHON }} -m pip install . --no-deps --no-build-isolation -vv",
        },
        "requirements": {
            "build": ["${{ compiler('cxx') }}", "${{ stdlib('c') }}"],
            "host": [python, "pip", *build_requirements()],
            "run": [python, *run],
        },
        "tests": [
            {"python": {"imports": ["bids_app"]}},
            {"script": [f"{COMMANDS[0]} --self-test", *(f"{command} --help" for command in COMMANDS)]},
        ],
        "about": {
            **address,
            "license": PROJECT["license"],
            "license_file": PROJECT["license-files"],
            "summary": PROJECT["description"],
        },
    }


def build_requirements() -> list[str]:
    """Return the packages that build the wheel, from ``pyproject.toml``."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [f"{each.name} {each.specifier}" for each in map(Requirement, settings["build-system"]["requires"])]


def neurodesk() -> Metadata:
    """Return ``build.yaml`` of Neurodesk, which makes its container from our image."""
    icon = base64.b64encode((ROOT / "recipes" / NAME / "icon.png").read_bytes()).decode()
    documentation = {"documentation": REPOSITORY} if REPOSITORY else {}
    return {
        "name": NAME,
        "version": __version__,
        "copyright": [{"license": PROJECT["license"]}],
        "architectures": ["x86_64", "aarch64"],
        "build": {
            "kind": "neurodocker",
            "base-image": CONTAINERS["cpu"]["image"].replace(__version__, "{{ context.version }}"),
            "pkg-manager": "apt",
            "directives": [{"deploy": {"bins": COMMANDS}}],
            "add-default-template": False,
            "add-tzdata": False,
        },
        "structured_readme": {
            "description": f"{PROJECT['description']}. {RESEARCH_ONLY}",
            "example": "neurostorm bids_dir output_dir participant --participant-label 01\n"
            "neurostorm bids_dir output_dir group",
            **documentation,
            "citation": "\n".join(f"{each['title']}. arXiv {arxiv_of(each)}" for each in CITATION["references"]),
        },
        "categories": ["functional imaging", "bids apps", "machine learning"],
        "icon": f"data:image/png;base64,{icon}",
    }


def neurodesk_tests() -> Metadata:
    """Return ``fulltest.yaml`` of Neurodesk: what its container has to do, on a dataset that it simulates itself."""
    run = "neurostorm dataset output participant --model demo --work-dir work"
    simulate = "neurostorm-phantom dataset --participants 1 --size small --states rest --no-t1w"
    return {
        "name": NAME,
        "version": __version__,
        "tests": [
            {"name": "version", "command": "neurostorm --version", "expected_output_contains": "neurostorm ${version}"},
            *(
                {"name": f"help of {command}", "command": f"{command} --help", "expected_output_contains": command}
                for command in COMMANDS
            ),
            {"name": "models", "command": "neurostorm --list-models", "expected_output_contains": "demo"},
            {
                "name": "numbers of this machine",
                "command": "neurostorm --self-test",
                "expected_output_contains": "self-test passed",
                "timeout": 600,
            },
            {
                "name": "simulated dataset",
                "command": f"rm -rf dataset output work && {simulate}",
                "validate": [{"output_exists": "dataset/dataset_description.json"}],
                "timeout": 600,
            },
            {
                "name": "a missing participant",
                "command": f"{run} --participant-label nobody",
                "expected_exit_code": NoMatchError.exit_code,
                "expected_output_contains": "sub-nobody",
                "depends_on": "simulated dataset",
            },
            {
                "name": "participant level",
                "command": run,
                "validate": [{"output_exists": "output/sub-01.html"}],
                "timeout": 1800,
                "depends_on": "simulated dataset",
            },
            {
                "name": "group level",
                "command": "neurostorm dataset output group",
                "validate": [{"output_exists": "output/group.html"}, {"output_exists": "output/group_embeddings.tsv"}],
                "timeout": 600,
                "depends_on": "participant level",
            },
        ],
    }


def to_json(content: Metadata) -> str:
    """Return JSON as it is written."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def to_yaml(content: Metadata) -> str:
    """Return YAML as it is written."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=120)


def texts() -> dict[str, str]:
    """Return the text of each file by its path."""
    return {
        ".zenodo.json": to_json(zenodo()),
        "codemeta.json": to_json(codemeta()),
        "recipes/bids-website/apps.yml": to_yaml(bids_website()),
        "recipes/conda/recipe.yaml": to_yaml(conda()),
        f"recipes/{NAME}/build.yaml": to_yaml(neurodesk()),
        f"recipes/{NAME}/fulltest.yaml": to_yaml(neurodesk_tests()),
    }


def main() -> None:
    """Write the files."""
    for name, text in texts().items():
        write_text(ROOT / name, text)


if __name__ == "__main__":
    main()
