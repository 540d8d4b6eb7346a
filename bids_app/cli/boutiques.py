"""The Boutiques descriptor, made from the argument parser, so that platforms know every option that the command has.

``neurostorm --bids-exec-spec`` prints it; ``make boutiques`` writes ``boutiques.json`` and ``boutiques-cuda.json``. The
form of the command line, the two inputs for the output folder and the single output are what ``bosh validate --bids``
asks for; the keys of ``custom`` are CBRAIN's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bids_app import __version__
from bids_app.errors import EXIT_CODES, EXIT_OK, NoMatchError
from bids_app.settings import GROUP, PARTICIPANT

VARIANTS = ("cpu", "cuda")
LEVELS = [PARTICIPANT, GROUP]

CONTAINERS: dict[str, dict[str, Any]] = {
    "cpu": {"type": "docker", "image": f"neurostorm:{__version__}"},
    "cuda": {"type": "singularity", "image": f"docker://neurostorm:{__version__}-cuda", "container-opts": ["--nv"]},
}
RESOURCES: dict[str, int] = {"cpu-cores": 2, "ram": 4, "disk-space": 3, "nodes": 1, "walltime-estimate": 900}
"""Of one participant on two processors, rounded up from benchmarks/README.md (GB, s)."""

BESIDE_THE_PARSER: dict[str, Any] = {
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


def describe(parser: argparse.ArgumentParser, variant: str = VARIANTS[0]) -> dict[str, Any]:
    """The descriptor of the command that a parser reads.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        With ``bids_dir``, ``output_dir`` and ``analysis_level`` as its positional arguments.
    variant : str
        ``cpu`` or ``cuda``: which image is run.

    Returns
    -------
    dict
        Of Boutiques' schema 0.5.
    """
    options = [action for action in parser._actions if action.option_strings and not answers_and_exits(action)]
    inputs = [*positional_inputs(parser), *(option_input(action) for action in first_labels(options))]
    keys = dict.fromkeys(entry["value-key"] for entry in inputs)
    return {
        **BESIDE_THE_PARSER,
        "description": f"{parser.description} A research tool, not a medical device.",
        "command-line": f"mkdir -p [OUTPUT_DIR]; {parser.prog} {' '.join(keys)}",
        "container-image": CONTAINERS[variant],
        "inputs": inputs,
        "groups": GROUPS,
        "output-files": [OUTPUT],
        "tests": TESTS,
        "custom": CUSTOM,
    }


def answers_and_exits(action: argparse.Action) -> bool:
    """Whether an option answers a question instead of running the app; no platform can offer such a one."""
    return action.dest == argparse.SUPPRESS or action.default == argparse.SUPPRESS


def first_labels(options: list[argparse.Action]) -> list[argparse.Action]:
    """The options in the order of the help, the labels first, where the form of a BIDS App's command line has them."""
    labels = ("participant_label", "session_label")
    return sorted(options, key=lambda action: labels.index(action.dest) if action.dest in labels else len(labels))


def positional_inputs(parser: argparse.ArgumentParser) -> Iterator[dict[str, Any]]:
    """Inputs of the positional arguments."""
    for action in parser._get_positional_actions():
        entry = {"id": action.dest, "name": title(action.dest), "description": text_of(action)}
        if action.dest == "output_dir":
            yield from OUTPUT_FOLDERS
        elif action.dest == "analysis_level":
            yield entry | {
                "type": "String", "optional": False, "value-key": key_of(action), "value-choices": LEVELS,
            }  # fmt: skip
        else:
            yield entry | {"type": "File", "optional": False, "value-key": key_of(action)}


def option_input(action: argparse.Action) -> dict[str, Any]:
    """Input of an option; without its default, which platforms would pass on, over what a ``--config-file`` says.

    Raises
    ------
    TypeError
        An option of a kind that this function does not know yet.
    """
    entry: dict[str, Any] = {
        "id": action.dest,
        "name": title(action.dest),
        "description": text_of(action),
        "optional": True,
        "value-key": key_of(action),
        "command-line-flag": flag_of(action),
    }
    if action.nargs == 0:
        return entry | {"type": "Flag"}
    if action.nargs not in (None, "+", "?"):
        raise TypeError(f"{flag_of(action)}: nargs={action.nargs!r} has no counterpart in Boutiques here.")
    entry |= type_of(action)
    if action.choices is not None:
        entry["value-choices"] = list(action.choices)
    if action.nargs == "+":
        entry["list"] = True
    return entry


def type_of(action: argparse.Action) -> dict[str, Any]:
    """Boutiques' type of an option's value; a path is a File where something has to be there already."""
    if action.type is int:
        return {"type": "Number", "integer": True}
    if action.type is float:
        return {"type": "Number"}
    return {"type": "File" if action.type is Path and action.metavar == "FILE" else "String"}


def text_of(action: argparse.Action) -> str:
    """An argument's help as a sentence, with its default."""
    text = (action.help or title(action.dest)) % {"default": action.default}
    if "(default" not in text and action.default not in (None, [], False, 0):
        text += f" (default: {action.default})"
    return text[0].upper() + text[1:]


def title(dest: str) -> str:
    """``participant_label`` as ``Participant label``."""
    return dest.replace("_", " ").capitalize()


def key_of(action: argparse.Action) -> str:
    """The place of an argument on the command line's template."""
    return f"[{action.dest.upper()}]"


def flag_of(action: argparse.Action) -> str:
    """How an option is spelled in the descriptor: the first of its names with two dashes."""
    return next((name for name in action.option_strings if name.startswith("--")), action.option_strings[0])
