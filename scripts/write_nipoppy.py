"""Write the pipeline bundles of Nipoppy from the Boutiques descriptor: ``python scripts/write_nipoppy.py``.

``recipes/nipoppy/neurostorm`` is a processing pipeline, the participant level of one session. The extraction pipeline
``recipes/nipoppy/neurostorm_phenotype`` runs the group level, and copies its tables of embeddings and predictions to
the folder of imaging-derived phenotypes. Names in double brackets are replaced by Nipoppy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.bids.writer import write_text
from bids_app.cli import cluster
from bids_app.cli.boutiques import CONTAINERS, OUTPUT, describe
from bids_app.cli.options import DESCRIPTION
from bids_app.settings import GROUP, PARTICIPANT

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "recipes" / "nipoppy"
PROCESSING, EXTRACTION = "neurostorm", "neurostorm_phenotype"
SCHEMA_VERSION = "1.0"
"""Of the configuration and tracker files."""

FOLDERS = {"bids_dir": "[[NIPOPPY_DPATH_BIDS]]", "output_dir": "[[NIPOPPY_DPATH_PIPELINE_OUTPUT]]"}
WORK_DIR = "[[NIPOPPY_DPATH_PIPELINE_WORK]]"
SESSION_DIR = "[[NIPOPPY_BIDS_PARTICIPANT_ID]]/[[NIPOPPY_BIDS_SESSION_ID]]"
TRACKED = (f"{SESSION_DIR}/func/*_embeddings.tsv", f"{SESSION_DIR}/func/*_embeddings.json")
"""A session is complete once a run has embeddings, which all levels of outputs have."""

PHENOTYPES = {
    "id": "phenotype_dir",
    "name": "Phenotype dir",
    "description": "Folder for the tables of embeddings and predictions, created if missing",
    "type": "String",
    "optional": False,
    "value-key": "[PHENOTYPE_DIR]",
}
COPY_TABLES = (
    "mkdir -p [PHENOTYPE_DIR]",
    "find [PHENOTYPE_DIR] -maxdepth 1 -name 'neurostorm_*' -delete",
    "cp [OUTPUT_DIR]/group_embeddings.tsv [PHENOTYPE_DIR]/neurostorm_embeddings.tsv",
    "cp [OUTPUT_DIR]/group_embeddings.json [PHENOTYPE_DIR]/neurostorm_embeddings.json",
    "if test -d [OUTPUT_DIR]/phenotype; then"
    " find [OUTPUT_DIR]/phenotype -name 'neurostorm_*' -exec cp -t [PHENOTYPE_DIR] {} +; fi",
)
"""Shell commands after the group level; predictions are missing if no adapter was used."""


def extraction_descriptor() -> dict[str, Any]:
    """Return the descriptor of the group level with a folder for its tables; all options are those of the command."""
    descriptor = describe()
    run = descriptor["command-line"].partition("; ")[2]
    inputs = [
        entry | {"value-choices": [GROUP]} if entry["id"] == "analysis_level" else entry
        for entry in descriptor["inputs"]
    ]
    table = {
        "id": "embeddings",
        "name": "Embeddings",
        "description": "Mean embedding of each run; the tables of predictions are in the same folder",
        "path-template": "[PHENOTYPE_DIR]/neurostorm_embeddings.tsv",
        "optional": False,
    }
    return {
        **{key: value for key, value in descriptor.items() if key not in ("tests", "custom")},
        "name": EXTRACTION,
        "description": "Embeddings and predictions of all runs as phenotype tables. A research tool, not a medical "
        "device.",
        "command-line": " && ".join((run, *COPY_TABLES)),
        "inputs": [*inputs, PHENOTYPES],
        "output-files": [OUTPUT, table],
    }


def configuration(name: str, description: str, step: dict[str, Any], **others: Any) -> dict[str, Any]:
    """Return the main configuration of a bundle."""
    return {
        "NAME": name,
        "VERSION": __version__,
        "DESCRIPTION": description,
        "CONTAINER_INFO": {
            "FILE": f"[[NIPOPPY_DPATH_CONTAINERS]]/{PROCESSING}_{__version__}.sif",
            "URI": f"docker://{CONTAINERS['cpu']['image']}",
        },
        "STEPS": [
            {
                "DESCRIPTOR_FILE": "descriptor.json",
                "INVOCATION_FILE": "invocation.json",
                "HPC_CONFIG_FILE": "hpc.json",
                **step,
            }
        ],
        **others,
        "SCHEMA_VERSION": SCHEMA_VERSION,
    }


def hpc() -> dict[str, Any]:
    """Return what a job asks for: as much as a task of `neurostorm-cluster` by default."""
    asked = cluster.parser().parse_args(["prepare", "BIDS", "OUT"])
    return {
        "ACCOUNT": "[[HPC_ACCOUNT_NAME]]",
        "TIME": asked.time,
        "CORES": str(asked.cpus),
        "MEMORY": f"{asked.mem:g}G",
        "ARRAY_CONCURRENCY_LIMIT": "",
    }


def bundles() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the content of each file of each bundle."""
    processing = {
        "ANALYSIS_LEVEL": "participant_session",
        "TRACKER_CONFIG_FILE": "tracker.json",
        "GENERATE_PYBIDS_DATABASE": False,  # the command makes its own
    }
    tracker = {"PATHS": list(TRACKED), "PARTICIPANT_SESSION_DIR": SESSION_DIR, "SCHEMA_VERSION": SCHEMA_VERSION}
    selected = {"participant_label": ["[[NIPOPPY_PARTICIPANT_ID]]"], "session_label": ["[[NIPOPPY_SESSION_ID]]"]}
    return {
        PROCESSING: {
            "config": configuration(PROCESSING, DESCRIPTION, processing, PIPELINE_TYPE="processing"),
            "descriptor": describe(),
            "invocation": {**FOLDERS, "analysis_level": PARTICIPANT, **selected, "work_dir": WORK_DIR},
            "tracker": tracker,
            "hpc": hpc(),
        },
        EXTRACTION: {
            "config": configuration(
                EXTRACTION,
                "Phenotype tables: embeddings and predictions of all runs, from the outputs of neurostorm.",
                {"ANALYSIS_LEVEL": GROUP},
                PIPELINE_TYPE="extraction",
                PROC_DEPENDENCIES=[{"NAME": PROCESSING, "VERSION": __version__}],
            ),
            "descriptor": extraction_descriptor(),
            "invocation": {**FOLDERS, "analysis_level": GROUP, "phenotype_dir": "[[NIPOPPY_DPATH_PIPELINE_IDP]]"},
            "hpc": hpc(),
        },
    }


def texts() -> dict[str, str]:
    """Return the text of each file, by its path below ``recipes/nipoppy``."""
    return {
        f"{name}/{part}.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for name, files in bundles().items()
        for part, content in files.items()
    }


def main() -> None:
    """Write the files."""
    for name, text in texts().items():
        write_text(FOLDER / name, text)


if __name__ == "__main__":
    main()
