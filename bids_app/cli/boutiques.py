"""The Boutiques descriptor, made from the options, so that platforms know every option that the command has.

``neurostorm --bids-exec-spec`` prints it; ``make boutiques`` writes ``boutiques.json`` and ``boutiques-cuda.json``. The
form of the command line, the two inputs for the output folder and the single output are what ``bosh validate --bids``
asks for; the keys of ``custom`` are CBRAIN's.
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
"""Of one participant on two processors, rounded up from benchmarks/README.md (GB, s)."""

BESIDE_THE_OPTIONS: dict[str, Any] = {
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
        "description": "Name of the derivatives' folder, made when missing; for the group level, the one there",
        "type": "String",
        "optional": True,
        "value-key": "[OUTPUT_DIR]",
    },
    {
        "id": "participants_dir",
        "name": "Outputs of the participant level",
        "description": "The same folder, for platforms that hand folders over; bosh 0.5.33 leaves it out",
        "type": "File",
        "optional": True,
        "value-key": "[OUTPUT_DIR]",
    },
]
"""`bosh validate --bids` wants the output folder as a name and as a folder that exists, both under one key.

bosh 0.5.33 clears a key at the first of its inputs that has no value, so only the first of the two is of use with it.
"""

GROUPS = [
    {
        "id": "output_folder",
        "name": "Output folder",
        "description": "A new folder's name, or the folder that the participant level wrote",
        "members": ["output_dir", "participants_dir"],
        "mutually-exclusive": True,
        "one-is-required": True,
    },
    {
        "id": "memory",
        "name": "Memory",
        "description": "The same limit in two units",
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
"""An invocation on the dataset that `make demo` simulates."""

TESTS = [
    {
        "name": "one participant",
        "invocation": EXAMPLE,
        "assertions": {"exit-code": EXIT_OK, "output-files": [{"id": OUTPUT["id"]}]},
    },
    {
        "name": "a participant who is not there",
        "invocation": EXAMPLE | {"participant_label": ["nobody"]},
        "assertions": {"exit-code": NoMatchError.exit_code},
    },
]


def describe(variant: str = VARIANTS[0]) -> dict[str, Any]:
    """The descriptor of the command.

    Parameters
    ----------
    variant : str
        ``cpu`` or ``cuda``: which image is run.

    Returns
    -------
    dict
        Of Boutiques' schema 0.5.
    """
    options = list(all_options())
    positional = [entry for option in options if option.is_positional for entry in positional_inputs(option)]
    named = (option_input(option) for option in first_labels(option for option in options if not option.is_positional))
    inputs = [*positional, *named]
    keys = dict.fromkeys(entry["value-key"] for entry in inputs)
    return {
        **BESIDE_THE_OPTIONS,
        "description": f"{DESCRIPTION} A research tool, not a medical device.",
        "command-line": f"mkdir -p [OUTPUT_DIR]; neurostorm {' '.join(keys)}",
        "container-image": CONTAINERS[variant],
        "inputs": inputs,
        "groups": GROUPS,
        "output-files": [OUTPUT],
        "tests": TESTS,
        "custom": CUSTOM,
    }


def first_labels(options: Iterable[Option]) -> list[Option]:
    """The options, the labels first, where the form of a BIDS App's command line has them."""
    labels = ("participant_label", "session_label")
    return sorted(options, key=lambda option: labels.index(option.key) if option.key in labels else len(labels))


def positional_inputs(option: Option) -> Iterator[dict[str, Any]]:
    """Inputs of a positional argument."""
    if option.key == "output_dir":
        yield from OUTPUT_FOLDERS
        return
    entry = {"id": option.key, "name": title(option), "description": sentence(option), "optional": False}
    if option.key == "analysis_level":
        yield entry | {"type": "String", "value-key": place_of(option), "value-choices": LEVELS}
    else:
        yield entry | {"type": "File", "value-key": place_of(option)}


def option_input(option: Option) -> dict[str, Any]:
    """Input of an option; without its default, which platforms would pass on, over what a ``--config-file`` says."""
    entry: dict[str, Any] = {
        "id": option.key,
        "name": title(option),
        "description": sentence(option),
        "optional": True,
        "value-key": place_of(option),
        "command-line-flag": option.long_name,
    }
    if option.flag or option.counted:
        return entry | {"type": "Flag"}
    entry |= type_of(option)
    if option.choices:
        entry["value-choices"] = list(option.choices)
    if option.many:
        entry["list"] = True
    return entry


def type_of(option: Option) -> dict[str, Any]:
    """Boutiques' type of an option's value; a path is a File where something has to be there already."""
    if option.type is whole_number:
        return {"type": "Number", "integer": True}
    if option.type is number:
        return {"type": "Number"}
    return {"type": "File" if option.metavar == "FILE" else "String"}


def sentence(option: Option) -> str:
    """An option's help with its default, as a sentence."""
    return option.text[0].upper() + option.text[1:]


def title(option: Option) -> str:
    """``participant_label`` as ``Participant label``."""
    return option.key.replace("_", " ").capitalize()


def place_of(option: Option) -> str:
    """The place of an option on the command line's template."""
    return f"[{option.key.upper()}]"
