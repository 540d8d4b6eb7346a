"""What archives, catalogues and package managers require of the metadata, as JSON Schemas.

The builders of these platforms are no Python packages: the forms are written down from their public descriptions.
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "pattern": r"^\S(.|\n)*\S$|^\S$"}
VERSION: dict[str, Any] = {"type": "string", "pattern": r"^\d+\.\d+\.\d+\S*$"}
DESCRIPTION: dict[str, Any] = {"type": "string", "minLength": 20}
ACCOUNT: dict[str, Any] = {"type": "string", "pattern": r"^[\w.-]+/[\w.-]+$"}


def texts(*allowed: str) -> dict[str, Any]:
    """Return the schema of a list of texts, optionally of those allowed."""
    return {
        "type": "array",
        "minItems": 1,
        "uniqueItems": True,
        "items": {"enum": list(allowed)} if allowed else TEXT,
    }


def mapping(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of a mapping with no other keys."""
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def items(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list that is not empty."""
    return {"type": "array", "minItems": 1, "items": schema}


ZENODO = mapping(
    {
        "title": TEXT,
        "description": DESCRIPTION,
        "upload_type": {"const": "software"},
        "access_right": {"enum": ["open", "embargoed", "restricted", "closed"]},
        "license": TEXT,
        "creators": items(mapping({"name": TEXT}, {"affiliation": TEXT, "orcid": TEXT})),
        "keywords": texts(),
        "related_identifiers": items(
            mapping(
                {
                    "identifier": {"type": "string", "pattern": r"^arXiv:\d{4}\.\d{5}$"},
                    "relation": {"const": "cites"},
                    "scheme": {"const": "arxiv"},
                }
            )
        ),
    }
)
"""Keys of the legacy deposit that Zenodo reads from a repository."""

CODEMETA = mapping(
    {
        "@context": {"const": "https://w3id.org/codemeta/3.0"},
        "@type": {"const": "SoftwareSourceCode"},
        "name": TEXT,
        "identifier": TEXT,
        "description": DESCRIPTION,
        "version": VERSION,
        "license": {"type": "string", "pattern": r"^https://spdx\.org/licenses/[\w.-]+$"},
        "author": items(mapping({"@type": {"enum": ["Person", "Organization"]}, "name": TEXT})),
        "keywords": texts(),
        "programmingLanguage": TEXT,
        "runtimePlatform": TEXT,
        "operatingSystem": TEXT,
        "softwareRequirements": texts(),
        "referencePublication": items({"type": "string", "pattern": r"^https://arxiv\.org/abs/\d{4}\.\d{5}$"}),
    },
    {"codeRepository": TEXT, "issueTracker": TEXT},
)

APPS = mapping(
    {
        "apps": items(
            mapping(
                {
                    "gh": ACCOUNT,
                    "status": {"enum": ["active", "unmaintained"]},
                    "dh": ACCOUNT,
                    "ci": {"enum": ["gh", "travis", "circleci", "none"]},
                    "branch": TEXT,
                    "workflow": TEXT,
                    "ds_type": texts("raw", "derivative"),
                    "datatype": texts("anat", "func", "dwi", "fmap", "eeg", "perf", "pet"),
                    "description": DESCRIPTION,
                }
            )
        )
    }
)
"""The list of BIDS Apps on the website of BIDS."""

CONDA = mapping(
    {
        "schema_version": {"const": 1},
        "context": mapping({"name": TEXT, "version": VERSION}),
        "package": mapping({"name": TEXT, "version": TEXT}),
        "source": mapping({"path": TEXT}),
        "build": mapping({"number": {"type": "integer", "minimum": 0}, "skip": texts(), "script": TEXT}),
        "requirements": mapping({"build": texts(), "host": texts(), "run": texts()}),
        "tests": items({"oneOf": [mapping({"python": mapping({"imports": texts()})}), mapping({"script": texts()})]}),
        "about": mapping({"license": TEXT, "license_file": texts(), "summary": TEXT}, {"repository": TEXT}),
    }
)
"""Version 1 of conda recipes."""

CATEGORIES = (
    "functional imaging", "fetal imaging", "image reconstruction", "spectroscopy", "image registration",
    "rodent imaging", "data organisation", "diffusion imaging", "structural imaging", "quantitative imaging",
    "image segmentation", "visualization", "statistics", "quality control", "spine", "electrophysiology", "bids apps",
    "machine learning", "phase processing", "molecular biology", "hippocampus", "body", "shape analysis", "cryo EM",
    "programming", "workflows",
)  # fmt: skip
NEURODESK = mapping(
    {
        "name": {"type": "string", "pattern": "^[a-z0-9.-]+$"},
        "version": VERSION,
        "copyright": items(mapping({"license": TEXT}, {"url": TEXT})),
        "architectures": texts("x86_64", "aarch64"),
        "build": mapping(
            {
                "kind": {"const": "neurodocker"},
                "base-image": {"type": "string", "pattern": r"^[a-z0-9./-]+:\{\{ context\.version \}\}$"},
                "pkg-manager": {"enum": ["apt", "yum"]},
                "directives": items(mapping({"deploy": mapping({"bins": texts()})})),
                "add-default-template": {"type": "boolean"},
                "add-tzdata": {"type": "boolean"},
            }
        ),
        "structured_readme": mapping(
            {"description": DESCRIPTION, "example": TEXT, "citation": TEXT}, {"documentation": TEXT}
        ),
        "categories": texts(*CATEGORIES),
        "icon": {"type": "string", "pattern": "^data:image/png;base64,[A-Za-z0-9+/]+=*$"},
    }
)
NEURODESK_TESTS = mapping(
    {
        "name": TEXT,
        "version": VERSION,
        "tests": items(
            {
                **mapping(
                    {"name": TEXT, "command": TEXT},
                    {
                        "expected_output_contains": TEXT,
                        "expected_exit_code": {"type": "integer"},
                        "validate": items(mapping({"output_exists": TEXT})),
                        "timeout": {"type": "integer", "minimum": 1},
                        "depends_on": TEXT,
                    },
                ),
                "anyOf": [
                    {"required": [key]} for key in ("expected_output_contains", "expected_exit_code", "validate")
                ],
            }
        ),
    }
)
SCHEMAS = {
    ".zenodo.json": ZENODO,
    "codemeta.json": CODEMETA,
    "recipes/bids-website/apps.yml": APPS,
    "recipes/conda/recipe.yaml": CONDA,
    "recipes/neurostorm/build.yaml": NEURODESK,
    "recipes/neurostorm/fulltest.yaml": NEURODESK_TESTS,
}
"""The schema of each file."""
