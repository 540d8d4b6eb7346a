"""Boutiques descriptor, generated from the options of the command.

``neurostorm --bids-exec-spec`` prints it; ``make boutiques`` writes ``boutiques.json`` and ``boutiques-cuda.json``.
``bosh validate --bids`` requires this form of the command line, the two inputs for the output folder and the single
output. The keys of ``custom`` are defined by CBRAIN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bids_app import __version__
from bids_app.cli.options import DESCRIPTION, all_options
from bids_app.errors import EXIT_CODES, EXIT_OK, NoMatchError
from bids_app.settings import GROUP, PARTICIPANT, Option
from bids_app.settings.option import number, whole_number

VARIANTS = ("cpu", "cuda")
LEVELS = [PARTICIPANT, GROUP]

CONTAINERS: dict[str, dict[str, Any]] = {
    "cpu": {"type": "docker", "image": f"neurostorm:{__version__}"},
    "cuda": {"type": "singularity", "image": f"docker://neurostorm:{__version__}-cuda", "container-opts": ["--nv"]},
}
RESOURCES: dict[str, int] = {"cpu-cores": 2, "ram": 4, "disk-space": 3, "nodes": 1, "walltime-estimate": 900}
"""For one participant on two processors, rounded up from benchmarks/README.md (GB, s)."""

FIXED_FIELDS: dict[str, Any] = {
    "name": "neurostorm",
    "tool-version": __version__,
    "author": "The NeuroSTORM BIDS App developers",
    "schema-version": "0.5",
    "suggested-resources": RESOURCES,
    "tags": {
        "domain": ["neuroinformatics", "bids", "fmri", "foundation model"],
        "status": "beta",
        "medical device": False,
    },
    "error-codes": [{"code": code, "description": meaning} for code, meaning in EXIT_CODES.items() if code != EXIT_OK],
}

OUTPUT = {
    "id": "outputs",
    "name": "Outputs",
    "description": "BIDS derivatives and reports",
    "path-template": "[OUTPUT_DIR]",
    "optional": False,
}
OUTPUT_FOLDERS = [
    {
        "id": "output_dir",
        "name": "Output folder",
        "description": "Name of the derivatives folder, created if missing; for the group level, the existing one",
        "type": "String",
        "optional": True,
        "value-key": "[OUTPUT_DIR]",
    },
    {
        "id": "participants_dir",
        "name": "Outputs of the participant level",
        "description": "The same folder, for platforms that pass existing folders; bosh 0.5.33 ignores it",
        "type": "File",
        "optional": True,
        "value-key": "[OUTPUT_DIR]",
    },
]
"""`bosh validate --bids` requires the output folder as a name and as an existing folder, both with one value key.

bosh 0.5.33 clears a value key at its first input without a value, so it only uses the first of the two.
"""

GROUPS = [
    {
        "id": "output_folder",
        "name": "Output folder",
        "description": "Name of a new folder, or the output folder of the participant level",
        "members": ["output_dir", "participants_dir"],
        "mutually-exclusive": True,
        "one-is-required": True,
    },
    {
        "id": "memory",
        "name": "Memory",
        "description": "Memory limit, in either unit",
        "members": ["mem", "mem_mb"],
        "mutually-exclusive": True,
    },
]

CUSTOM = {
    "BIDSAppSpecVersion": "draft",
    "cbrain:author": "The NeuroSTORM BIDS App developers",
    "cbrain:readonly-input-files": True,
    "cbrain:integrator_modules": {
        "BoutiquesBidsSingleSubjectMaker": {
            "dataset_input_id": "bids_dir",
            "subjects_input_id": "participant_label",
            "keep_sub_prefix": False,
        },
        "BoutiquesFileTypeVerifier": {"bids_dir": ["BidsDataset", "BidsSubject"]},
        "BoutiquesOutputFileTypeSetter": {"outputs": "FileCollection"},
    },
}

EXAMPLE = {
    "bids_dir": "demo/dataset",
    "output_dir": "demo/boutiques",
    "analysis_level": PARTICIPANT,
    "participant_label": ["01"],
    "model": "demo",
    "work_dir": "demo/work",
}
"""Example invocation on the dataset that `make demo` simulates."""

TESTS = [
    {
        "name": "one participant",
        "invocation": EXAMPLE,
        "assertions": {"exit-code": EXIT_OK, "output-files": [{"id": OUTPUT["id"]}]},
    },
    {
        "name": "a missing participant",
        "invocation": EXAMPLE | {"participant_label": ["nobody"]},
        "assertions": {"exit-code": NoMatchError.exit_code},
    },
]


def describe(variant: str = VARIANTS[0]) -> dict[str, Any]:
    """Make the descriptor of the command.

    Parameters
    ----------
    variant : str
        Container image: ``cpu`` or ``cuda``.

    Returns
    -------
    dict
        Descriptor in Boutiques schema 0.5.
    """
    options = list(all_options())
    positional = [entry for option in options if option.is_positional for entry in positional_inputs(option)]
    named = (option_input(option) for option in labels_first(option for option in options if not option.is_positional))
    inputs = [*positional, *named]
    keys = dict.fromkeys(entry["value-key"] for entry in inputs)
    return {
        **FIXED_FIELDS,
        "description": f"{DESCRIPTION} A research tool, not a medical device.",
        "command-line": f"mkdir -p [OUTPUT_DIR]; neurostorm {' '.join(keys)}",
        "container-image": CONTAINERS[variant],
        "inputs": inputs,
        "groups": GROUPS,
        "output-files": [OUTPUT],
        "tests": TESTS,
        "custom": CUSTOM,
    }


def labels_first(options: Iterable[Option]) -> list[Option]:
    """Move the labels to the front, as in the standard BIDS App command line."""
    labels = ("participant_label", "session_label")
    return sorted(options, key=lambda option: labels.index(option.key) if option.key in labels else len(labels))


def positional_inputs(option: Option) -> Iterator[dict[str, Any]]:
    """Iterate over the inputs of a positional argument."""
    if option.key == "output_dir":
        yield from OUTPUT_FOLDERS
        return
    entry = {"id": option.key, "name": title(option), "description": capitalised_help(option), "optional": False}
    if option.key == "analysis_level":
        yield entry | {"type": "String", "value-key": value_key(option), "value-choices": LEVELS}
    else:
        yield entry | {"type": "File", "value-key": value_key(option)}


def option_input(option: Option) -> dict[str, Any]:
    """Make the input of an option, without its default: platforms would pass it and override ``--config-file``."""
    entry: dict[str, Any] = {
        "id": option.key,
        "name": title(option),
        "description": capitalised_help(option),
        "optional": True,
        "value-key": value_key(option),
        "command-line-flag": option.long_name,
    }
    if option.flag or option.counted:
        return entry | {"type": "Flag"}
    entry |= boutiques_type(option)
    if option.choices:
        entry["value-choices"] = list(option.choices)
    if option.many:
        entry["list"] = True
    return entry


def boutiques_type(option: Option) -> dict[str, Any]:
    """Return the Boutiques type of an option's value; only a path that has to exist is a File."""
    if option.type is whole_number:
        return {"type": "Number", "integer": True}
    if option.type is number:
        return {"type": "Number"}
    return {"type": "File" if option.metavar == "FILE" else "String"}


def capitalised_help(option: Option) -> str:
    """Return the help with the default, capitalised."""
    return option.text[0].upper() + option.text[1:]


def title(option: Option) -> str:
    """Return ``Participant label`` for ``participant_label``."""
    return option.key.replace("_", " ").capitalize()


def value_key(option: Option) -> str:
    """Return the placeholder of an option in the command-line template."""
    return f"[{option.key.upper()}]"
